"""The Trainer against the plain loop, bit for bit, and what it records, calls and refuses."""

from __future__ import annotations

import copy
import math
import warnings
from itertools import pairwise

import pytest
import torch
from random_batches import make_batches
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fasttricks.engine import (
    Callback,
    FreezeAfter,
    Precision,
    Trainer,
    WeightAverage,
    find_batch_size,
    precompile,
    predict,
    profile_steps,
)
from fasttricks.lr_range_test import lr_range_test
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.optim import Muon
from fasttricks.schedules import linear


def make_model(seed=0, norm=True):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(nn.Conv2d(3, 4, 3), *middle, nn.CELU(), nn.Flatten(), nn.Linear(4 * 36, 5))


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def muon_and_sgd(model):
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    return [Muon(matrices, lr=0.05), torch.optim.SGD(vectors, lr=0.05)]


def quiet(model, optimizer, **options):
    options = {"precision": "fp32", "progress": False, "channels_last": False, **options}
    return Trainer(model, optimizer, **options)


def assert_same_weights(one, other):
    for (name, value), expected in zip(one.named_parameters(), other.parameters(), strict=True):
        assert torch.equal(value, expected), name


@pytest.mark.parametrize("make_optimizers", [sgd, adamw, muon_and_sgd])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_fifty_steps_give_the_weights_of_a_plain_loop_bit_for_bit(make_optimizers, precision):
    batches = make_batches(5)
    ours, plain = make_model(), make_model()
    quiet(ours, make_optimizers(ours), precision=precision).fit(batches, epochs=10)

    optimizers = make_optimizers(plain)
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    plain.train()
    for _ in range(10):
        for images, targets in batches:
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
                outputs = plain(images)
            nn.functional.cross_entropy(outputs.float(), targets).backward()
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad()
    assert_same_weights(ours, plain)


def test_micro_batches_add_up_to_the_whole_batch():
    # Without batch norm, whose statistics are those of a part; 12 = 5 + 5 + 2, an uneven split.
    batches = make_batches(5)
    whole, parts = make_model(norm=False).double(), make_model(norm=False).double()
    batches = [(images.double(), targets) for images, targets in batches]
    for model, size in ((whole, None), (parts, 5)):
        trainer = quiet(model, sgd(model), micro_batch_size=size)
        trainer.loss = lambda outputs, targets: nn.functional.cross_entropy(outputs, targets)
        trainer.fit(batches, epochs=4)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        # The Trainer takes the loss in fp32, so the parts agree to fp32 rounding.
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


def test_the_schedule_gives_each_update_its_rate():
    model = make_model()
    seen = []

    class Watch(Callback):
        def on_step_start(self, trainer):
            seen.append(trainer.lr)

    schedule = linear(0.5, 0.1, total_steps=10)
    trainer = quiet(model, sgd(model), lr=schedule, callbacks=[Watch()])
    history = trainer.fit(make_batches(5), epochs=2)
    assert seen == pytest.approx([0.5 - 0.4 * k / 9 for k in range(10)])
    assert history["lr"] == [seen[4], seen[9]]


def test_schedules_per_group_come_in_as_schedulers():
    model = make_model()
    optimizer = torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)
    rates = [linear(1.0 + i, 0.0, total_steps=5) for i in range(len(optimizer.param_groups))]
    trainer = quiet(model, optimizer, schedulers=[ScheduledGroups(optimizer, {"lr": rates})])
    trainer.fit(make_batches(3), epochs=1)
    expected = [(1.0 + i) * 0.25 for i in range(len(rates))]
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx(expected)


def test_a_fraction_of_an_epoch_ends_within_it():
    model = make_model()
    trainer = quiet(model, sgd(model))
    history = trainer.fit(make_batches(4), epochs=2.5)
    assert trainer.step_count == 10
    assert history["step"] == [4, 8, 10]


def test_history_holds_the_means_over_the_epochs_images():
    model = make_model()
    batches = make_batches(2, size=6) + make_batches(1, size=3, seed=5)
    trainer = quiet(model, torch.optim.SGD(model.parameters(), lr=0.0))
    history = trainer.fit(batches, epochs=1, val=batches)
    assert history["val_accuracy"] == [trainer.evaluate(batches).accuracy]
    model.train()
    with torch.no_grad():
        outputs = torch.cat([model(images) for images, _ in batches])
    targets = torch.cat([targets for _, targets in batches])
    expected = nn.functional.cross_entropy(outputs, targets).item()
    assert history["loss"] == [pytest.approx(expected, rel=1e-6)]
    assert history["accuracy"] == [pytest.approx((outputs.argmax(1) == targets).double().mean())]
    assert history["train_seconds"][0] == pytest.approx(trainer.train_seconds)


def test_a_torch_dataloader_serves_as_well_as_a_list():
    images, targets = make_batches(1, size=24)[0]
    loader = DataLoader(TensorDataset(images, targets), batch_size=6)
    from_loader, from_list = make_model(), make_model()
    quiet(from_loader, sgd(from_loader)).fit(loader, epochs=2)
    parts = list(zip(images.split(6), targets.split(6), strict=True))
    quiet(from_list, sgd(from_list)).fit(parts, epochs=2)
    assert_same_weights(from_loader, from_list)


def test_callbacks_come_in_their_order():
    calls = []

    class Log(Callback):
        def __getattribute__(self, name):
            if name.startswith("on_"):
                return lambda *args: calls.append(name[3:])
            return super().__getattribute__(name)

    model = make_model()
    quiet(model, sgd(model), callbacks=[Log()]).fit(make_batches(2), epochs=2)
    epoch = ["epoch_start", *["step_start", "step_end"] * 2, "epoch_end"]
    assert calls == ["fit_start", *epoch, *epoch, "fit_end"]


def test_freeze_after_stops_the_parameter_at_that_update():
    model, snapshots = make_model(), []

    class Keep(Callback):
        def on_step_end(self, trainer):
            snapshots.append(model[0].bias.detach().clone())

    freeze = FreezeAfter([model[0].bias], steps=3)
    quiet(model, sgd(model), callbacks=[freeze, Keep()]).fit(make_batches(6), epochs=1)
    moved = [not torch.equal(a, b) for a, b in pairwise(snapshots)]
    assert moved == [True, True, False, False, False]


def test_freeze_after_thaws_what_it_froze_if_its_updates_come_again(tmp_path):
    model = make_model()
    model[1].bias.requires_grad_(False)  # by somebody else
    freeze = FreezeAfter([model[0].bias, model[1].bias], steps=3)
    trainer = quiet(model, sgd(model), callbacks=[freeze])
    trainer.save(tmp_path / "start")
    ends = []
    for _ in range(2):
        trainer.load(tmp_path / "start")
        trainer.fit(make_batches(6), epochs=1)
        assert not model[0].bias.requires_grad
        ends.append({name: value.clone() for name, value in model.state_dict().items()})
    assert not model[1].bias.requires_grad
    for name, value in ends[0].items():
        assert torch.equal(value, ends[1][name]), name


def test_the_weight_average_is_that_of_its_formula_and_ends_in_the_model():
    model, weights = make_model(), []

    class Keep(Callback):
        def on_step_end(self, trainer):
            weights.append({n: v.detach().clone() for n, v in model.state_dict().items()})

    callbacks = [Keep(), WeightAverage(decay=0.75)]
    quiet(model, sgd(model), callbacks=callbacks).fit(make_batches(4), epochs=2)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            expected = weights[0][name]  # the first update is taken as it is
            for later in weights[1:]:
                expected = 0.75 * expected + 0.25 * later[name]
            torch.testing.assert_close(value, expected)


def test_an_epoch_counts_on_over_calls_of_fit():
    model = make_model()
    trainer = quiet(model, sgd(model))
    trainer.fit(make_batches(2), epochs=2)
    assert trainer.fit(make_batches(2), epochs=1)["epoch"] == [1, 2, 3]


def test_gradients_left_by_an_interrupted_step_do_not_enter_the_next():
    clean, stale = make_model(), make_model()
    for parameter in stale.parameters():
        parameter.grad = torch.ones_like(parameter)
    for model in (clean, stale):
        quiet(model, sgd(model)).step(make_batches(1)[0])
    assert_same_weights(clean, stale)


def test_soft_targets_count_by_their_largest_class():
    model = make_model()
    images, targets = make_batches(1)[0]
    soft = nn.functional.one_hot(targets, 5) * 0.9 + 0.02
    rows = [
        quiet(same, sgd(same)).fit([(images, each)], epochs=1).rows[0]
        for each, same in ((targets, copy.deepcopy(model)), (soft, model))
    ]
    assert rows[0]["accuracy"] == rows[1]["accuracy"]


def test_a_precision_object_is_taken_as_it_is():
    model, precision = make_model(), Precision("bf16")
    assert quiet(model, sgd(model), precision=precision).precision is precision


def test_a_precision_for_another_device_is_refused():
    model = make_model()
    precision = Precision("bf16", device="cuda")
    message = "precision must be made for the model's device, 'cpu', got one for 'cuda'"
    with pytest.raises(ValueError, match=message):
        quiet(model, sgd(model), precision=precision)
    fp32 = Precision("fp32", device="cuda")  # the same everywhere
    assert quiet(model, sgd(model), precision=fp32).precision is fp32


def test_batches_that_are_used_up_are_no_val_of_several_epochs():
    model, batches = make_model(), make_batches(2)
    trainer = quiet(model, sgd(model))
    with pytest.raises(TypeError, match="val must yield its batches anew each .* got generator"):
        trainer.fit(batches, 2, val=(batch for batch in batches))
    assert not trainer.history.rows
    assert "val_loss" in trainer.fit(batches, 1, val=iter(batches)).rows[0]


def test_images_are_predicted_without_targets():
    model, batches = make_model(), make_batches(2)
    trainer = quiet(model, sgd(model))
    images = [images for images, _ in batches]
    assert torch.equal(trainer.predict(images), trainer.predict(batches))
    assert torch.equal(predict(model, images), predict(model, batches))
    for call in (trainer.predict, lambda tensor: predict(model, tensor)):
        with pytest.raises(TypeError, match="batches must be an iterable .* put it into a list"):
            call(images[0])


def test_targets_keep_their_layout():
    seen = []

    def loss(outputs, targets):
        seen.append(targets.is_contiguous())
        return (outputs - targets.mean((2, 3))).square().mean()

    model = nn.Sequential(nn.Conv2d(3, 2, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    targets = torch.randn(4, 2, 8, 8)
    quiet(model, sgd(model), loss=loss).step((torch.randn(4, 3, 8, 8), targets))
    assert seen == [True]


def test_a_loader_that_runs_dry_is_named():
    class Once:
        def __init__(self):
            self.batches = iter(make_batches(2))

        def __len__(self):
            return 2

        def __iter__(self):
            return self.batches

    model = make_model()
    with pytest.raises(ValueError, match="train must yield batches anew each epoch"):
        quiet(model, sgd(model)).fit(Once(), epochs=2)


def test_a_fraction_of_an_epoch_that_falls_short_is_named_too():
    class Short(list):
        def __len__(self):
            return 4

    model = make_model()
    trainer = quiet(model, sgd(model))
    with pytest.warns(RuntimeWarning, match="a length of 4 batches and yielded 1 in an epoch"):
        trainer.fit(Short(make_batches(1)), epochs=0.5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        trainer.fit(make_batches(4), epochs=1.5)


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_stops_the_run_and_says_where(poison):
    model = make_model()
    batches = make_batches(3)
    batches[1][0][0, 0, 0, 0] = poison
    ended = []

    class Ended(Callback):
        def on_fit_end(self, trainer):
            ended.append(True)

    trainer = quiet(model, sgd(model), callbacks=[Ended()])
    with pytest.raises(FloatingPointError, match=r"the loss became (nan|inf) .* with lr=0.05"):
        trainer.fit(batches, epochs=1)
    assert ended == [True]


def test_evaluate_leaves_weights_statistics_and_modes_alone():
    model = make_model()
    model[1].eval()
    trainer = quiet(model, sgd(model))
    model.train()
    model[1].eval()
    before = copy.deepcopy(model.state_dict())
    trainer.evaluate(make_batches(2))
    assert model.training
    assert not model[1].training
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def trials(trainer, batches):
    return {
        "fit": lambda: trainer.fit(batches, 2, val=batches),
        "lr_range_test": lambda: lr_range_test(trainer, loader=batches, num_steps=10),
        "find_batch_size": lambda: find_batch_size(trainer, batches[0], max_batch_size=16),
        "profile_steps": lambda: profile_steps(trainer, batches, steps=1),
        "precompile": lambda: precompile(trainer, batches),
    }


@pytest.mark.parametrize("name", trials(None, None))
def test_a_frozen_part_stays_frozen_while_the_model_trains(name):
    model = make_model()
    model[1].eval()
    modes = []
    model.register_forward_hook(lambda *_: modes.append((model.training, model[1].training)))
    before = copy.deepcopy(model[1].state_dict())
    trials(quiet(model, sgd(model)), make_batches(2))[name]()
    assert not model[1].training
    assert set(modes) - {(False, False)} == {(True, False)}
    for statistic in ("running_mean", "running_var", "num_batches_tracked"):
        assert torch.equal(model[1].state_dict()[statistic], before[statistic])


@pytest.mark.parametrize("name", trials(None, None))
def test_a_model_in_evaluation_mode_is_put_into_training_mode(name):
    model = make_model().eval()
    modes = []
    model.register_forward_hook(lambda *_: modes.append((model.training, model[1].training)))
    trials(quiet(model, sgd(model)), make_batches(2))[name]()
    assert (True, True) in modes
    assert (True, False) not in modes


def test_predict_gives_the_models_logits_in_order():
    model = make_model()
    batches = make_batches(3)
    logits = quiet(model, sgd(model)).predict(batches)
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(logits, torch.cat([model(images) for images, _ in batches]))


def test_convolutions_are_computed_in_channels_last():
    model = make_model()
    trainer = quiet(model, sgd(model), channels_last=True)
    seen = []
    model[0].register_forward_hook(lambda m, args, out: seen.append((args[0], out)))
    trainer.step(make_batches(1)[0])
    assert model[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert all(t.is_contiguous(memory_format=torch.channels_last) for t in seen[0])


class Viewed(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), nn.Linear(4 * 9, 5)

    def forward(self, images):
        pooled = nn.functional.max_pool2d(self.conv(images), 2)
        return self.linear(pooled.view(len(images), -1))


@pytest.mark.parametrize("name", ["step", "evaluate", "predict"])
def test_a_view_that_channels_last_refuses_is_told_the_ways_out(name):
    batches = make_batches(1)

    def call(**options):
        model = Viewed()
        trainer = quiet(model, sgd(model), **options)
        getattr(trainer, name)(batches[0] if name == "step" else batches)

    call(channels_last=False)
    message = (
        r"view size is not compatible[\s\S]*reshape or flatten .* or pass channels_last=False$"
    )
    with pytest.raises(RuntimeError, match=message):
        call(channels_last=True)


def test_other_errors_keep_their_words():
    model = nn.Sequential(nn.Flatten(), nn.Linear(3, 5))
    for call in (lambda t, b: t.step(b[0]), lambda t, b: t.evaluate(b)):
        with pytest.raises(
            RuntimeError, match="^mat1 and mat2 shapes cannot be multiplied"
        ) as caught:
            call(quiet(model, sgd(model), channels_last=True), make_batches(1))
        assert "channels_last" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"precision": "fp8"}, ValueError, "precision must be one of .* got precision='fp8'"),
        ({"precision": "fp16"}, ValueError, "needs a CUDA device"),
        ({"micro_batch_size": 0}, ValueError, "micro_batch_size must be at least 1, got .*=0"),
        ({"callbacks": [3]}, TypeError, "callbacks must be Callback objects, got int"),
    ],
)
def test_bad_options_are_named(options, error, message):
    model = make_model()
    with pytest.raises(error, match=message):
        quiet(model, sgd(model), **options)


@pytest.mark.parametrize(
    ("train", "epochs", "error", "message"),
    [
        ([], 1, ValueError, "train must hold at least one batch"),
        (iter([]), 1, TypeError, "train must have a length, got list_iterator"),
        ([1], 0, ValueError, "epochs must be greater than 0, got epochs=0"),
        ([1], math.nan, ValueError, "epochs must be finite, got epochs=nan"),
    ],
)
def test_bad_runs_are_refused_before_they_start(train, epochs, error, message):
    model = make_model()
    with pytest.raises(error, match=message):
        quiet(model, sgd(model)).fit(train, epochs)


def test_no_optimizer_and_an_empty_batch_are_refused():
    model = make_model()
    with pytest.raises(TypeError, match="optimizer must be Optimizer objects, got float"):
        quiet(model, [0.1])
    with pytest.raises(ValueError, match="at least one image"):
        quiet(model, sgd(model)).step((torch.zeros(0, 3, 8, 8), torch.zeros(0, dtype=torch.int64)))


def test_compiled_it_trains_to_the_same_weights():
    def trained(**options):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, sgd, precision="fp32", progress=False, **options)
        generator = torch.Generator().manual_seed(1)
        batches = [
            (torch.randn(4, 3, 4, 4, generator=generator), torch.tensor([0, 1, 1, 0]))
            for _ in range(3)
        ]
        trainer.fit(batches, 2)
        return trainer

    torch.compiler.reset()
    plain, compiled = trained(), trained(compile="aot_eager")
    assert compiled.describe()["compiled"]
    assert not plain.describe()["compiled"]
    assert list(compiled.model.state_dict()) == list(plain.model.state_dict())
    for key, value in plain.model.state_dict().items():
        torch.testing.assert_close(compiled.model.state_dict()[key], value)
    with pytest.raises(ValueError, match="compile must be one of .*inductor.*, got compile='gcc'"):
        trained(compile="gcc")
