"""The step's choices: what memory, numbers that are not finite, and each switch do to it."""

from __future__ import annotations

import copy
import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from random_batches import make_batches
from torch import nn

from fasttricks.engine import Callback, Precision, Trainer
from fasttricks.engine._memory import is_out_of_memory
from fasttricks.engine._speed import hardest, tf32_matmul
from fasttricks.optim import Muon
from fasttricks.schedules import linear


def make_model(norm=True, dropout=0.0, seed=0):
    torch.manual_seed(seed)
    middle = [nn.BatchNorm2d(4)] if norm else []
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), *middle, nn.CELU(), nn.Flatten(), nn.Dropout(dropout), nn.Linear(144, 5)
    )


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)


def make_trainer(model, optimizer=None, **options):
    options = {"precision": "fp32", "progress": False, "channels_last": False, **options}
    return Trainer(model, optimizer or sgd(model), **options)


def assert_same(one, other):
    for (name, value), expected in zip(
        one.state_dict().items(), other.state_dict().values(), strict=True
    ):
        assert torch.equal(value, expected), name


# Memory -----------------------------------------------------------------------------------------


class Limited(nn.Module):
    """Runs out of memory above so many images, after batch norm and dropout have done their work.

    With ``in_backward`` it does so in the backward pass.
    """

    def __init__(self, model, limit, error=None, in_backward=False):
        super().__init__()
        self.model, self.limit, self.in_backward = model, limit, in_backward
        self.error = error or torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB")
        self.sizes = []

    def forward(self, images):
        outputs = self.model(images)
        self.sizes.append(len(images))
        if len(images) > self.limit:
            if not self.in_backward:
                raise self.error
            outputs.register_hook(self.fail)
        return outputs

    def fail(self, _):
        raise self.error


ERRORS = [
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't "
                 "allocate memory: you tried to allocate 36028797018963968 bytes."),
    RuntimeError("MPS backend out of memory (MPS allocated: 3.40 GB)"),
]  # fmt: skip


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("in_backward", [False, True])
def test_when_memory_runs_out_half_as_much_is_computed_and_nothing_is_lost(error, in_backward):
    """The run equals one of parts of 3 images from the start, statistics and draws included."""
    batches = make_batches(size=12)
    limited = Limited(make_model(dropout=0.3), 4, error, in_backward)
    plain = make_model(dropout=0.3)
    trainers = [make_trainer(limited), make_trainer(plain, micro_batch_size=3)]
    for trainer in trainers:
        torch.manual_seed(5)
        if trainer.model is limited:
            with pytest.warns(
                RuntimeWarning, match="memory ran out; micro_batch_size is now 3"
            ) as caught:
                trainer.fit(batches, 2)
            assert len(caught) == 1
        else:
            trainer.fit(batches, 2)
    assert_same(limited.model, plain)
    assert trainers[0].history["loss"] == trainers[1].history["loss"]
    assert limited.sizes[:3] == [12, 6, 3]
    assert set(limited.sizes[2:]) == {3}
    assert trainers[0].describe()["micro_batch_size"] == 3


@pytest.mark.parametrize(
    ("images", "most", "parts"),
    [(10, 4, [4, 3, 3]), (9, 8, [5, 4]), (8, 4, [4, 4]), (3, 5, [3]), (5, 1, [1] * 5)],
)
def test_a_batch_is_computed_in_parts_as_even_as_can_be(images, most, parts):
    model = Limited(make_model(), images)
    make_trainer(model, micro_batch_size=most).step(make_batches(1, size=images)[0])
    assert model.sizes == parts


def test_a_part_that_fits_stays_whole_until_it_no_longer_does():
    limited = Limited(make_model(), 5)
    trainer = make_trainer(limited)
    trainer.step(make_batches(1, size=5)[0])
    with pytest.warns(RuntimeWarning, match="micro_batch_size is now 4"):
        trainer.step(make_batches(1, size=8)[0])
    assert limited.sizes == [5, 8, 4, 4]


def test_a_single_image_that_does_not_fit_is_an_error():
    trainer = make_trainer(Limited(make_model(norm=False), 0))
    before = copy.deepcopy(trainer.model.state_dict())
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(make_batches(1)[0])
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_by_choice_it_is_an_error_at_once():
    limited = Limited(make_model(), 4)
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(limited, oom="raise").step(make_batches(1)[0])
    assert limited.sizes == [12]


def test_other_errors_are_passed_on_at_once():
    limited = Limited(make_model(), 4, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        make_trainer(limited).step(make_batches(1)[0])
    assert limited.sizes == [12]


def test_memory_that_ends_on_this_machine_is_recognised():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    assert is_out_of_memory(caught.value)


@pytest.mark.parametrize("make", [sgd, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)])
def test_accumulated_gradients_equal_those_of_the_large_batch(make):
    whole, parts = (make_model(norm=False) for _ in range(2))
    for model, size in ((whole, None), (parts, 5)):
        make_trainer(model, make(model), micro_batch_size=size).fit(make_batches(4, size=48), 3)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)


WEIGHTS = torch.tensor([1.0, 5.0, 0.1, 2.0, 0.5])


@pytest.mark.parametrize(
    "loss",
    [
        nn.CrossEntropyLoss(weight=WEIGHTS),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.2),
        nn.CrossEntropyLoss(ignore_index=1, label_smoothing=0.2),
        nn.CrossEntropyLoss(weight=WEIGHTS, ignore_index=-100),
        nn.CrossEntropyLoss(reduction="sum"),
        nn.NLLLoss(weight=WEIGHTS, ignore_index=3),
    ],
    ids=repr,
)
def test_parts_add_up_where_images_do_not_count_alike(loss):
    """The mean of the whole is no mean of the parts' means, and a part may hold nothing of it."""
    batches = make_batches(4, size=24)
    for _, targets in batches:
        targets[:8] = loss.ignore_index
    if loss.ignore_index < 0 and loss.weight is None:
        batches = make_batches(4, size=24)
    found = []
    for size in (None, 5):
        model = make_model(norm=False)
        if isinstance(loss, nn.NLLLoss):
            model.append(nn.LogSoftmax(1))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002)
        trainer = make_trainer(model, optimizer, loss=loss, micro_batch_size=size)
        history = trainer.fit(batches, 3)
        found.append((model.state_dict(), history["loss"], trainer.step(batches[0])))
    assert found[1][1] == pytest.approx(found[0][1], rel=1e-5)
    if loss.reduction == "sum":  # the history's is the mean over the images all the same
        model = make_model(norm=False)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.002 * 24)
        expected = make_trainer(model, optimizer).fit(batches, 3)["loss"]
        assert found[0][1] == pytest.approx(expected, rel=1e-5)
    torch.testing.assert_close(found[1][2], found[0][2])
    for name, value in found[0][0].items():
        torch.testing.assert_close(found[1][0][name], value, rtol=1e-5, atol=1e-6)


def test_labels_of_a_byte_take_weights_in_parts_too():
    images, targets = make_batches(1)[0]
    loss = nn.CrossEntropyLoss(weight=WEIGHTS)
    trainers = [
        make_trainer(make_model(norm=False), loss=loss, micro_batch_size=size) for size in (None, 5)
    ]
    whole, parts = (trainer.step((images, targets.to(torch.uint8))) for trainer in trainers)
    torch.testing.assert_close(parts, whole)


def test_a_loss_and_a_metric_of_one_number_in_a_row_train_as_any():
    class Learned(nn.Module):
        def __init__(self):
            super().__init__()
            self.s = nn.Parameter(torch.zeros(1))

        def forward(self, outputs, targets):
            return F.cross_entropy(outputs, targets) * (-self.s).exp() + self.s

    model, loss = make_model(), Learned()
    optimizer = torch.optim.SGD([*model.parameters(), loss.s], lr=0.1)
    metrics = {"error": lambda o, t: (o.argmax(1) != t).float().mean().reshape(1)}
    trainer = make_trainer(model, optimizer, loss=loss, metrics=metrics, micro_batch_size=3)
    (row,) = trainer.fit(make_batches(2), 1, val=make_batches(1)).rows
    assert loss.s.item() != 0
    assert row["loss"] > 0
    assert 0 <= row["error"] <= 1


# Numbers that are not finite --------------------------------------------------------------------


def poisoned(value, where=1):
    batches = make_batches(4)
    batches[where][0][0, 0, 0, 0] = value
    return batches


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("make", [sgd, lambda m: torch.optim.AdamW(m.parameters(), lr=0.01)])
def test_skip_leaves_the_update_out_with_its_statistics_and_its_place_in_the_schedule(value, make):
    """The run equals one that never met the batch."""
    met, spared = make_model(), make_model()
    schedule = linear(0.1, 0.01, total_steps=8)
    batches = poisoned(value)
    rates = []

    class Watch(Callback):
        def on_step_end(self, trainer):
            rates.append(trainer.lr)

    options = {"nonfinite": "skip", "callbacks": [Watch()]}
    trainer = make_trainer(met, make(met), lr=schedule, **options)
    history = trainer.fit(batches, 2, val=make_batches(1))
    other = make_trainer(spared, make(spared), lr=schedule)
    expected = other.fit([*batches[:1], *batches[2:]], 2, val=make_batches(1))
    assert_same(met, spared)
    assert rates[0] == rates[1] > rates[2]
    for name in ("loss", "accuracy", "val_loss", "step"):
        assert history[name] == expected[name]
    assert history["skipped_steps"] == [1, 2]
    assert trainer.skipped_steps == trainer.describe()["skipped_steps"] == 2
    assert "skipped_steps" not in expected.columns


def test_skip_also_looks_at_gradients():
    class Explosive(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            return gradient * torch.inf

    class Model(nn.Sequential):
        def forward(self, images):
            return super().forward(Explosive.apply(images) if len(images) == 7 else images)

    torch.manual_seed(0)
    model = Model(nn.Flatten(), nn.Linear(192, 5))
    images, targets = make_batches(1, size=7)[0]
    trainer = make_trainer(model, nonfinite="skip")
    before = copy.deepcopy(model.state_dict())
    images.requires_grad_(True)
    trainer.model[1].weight.register_hook(lambda g: g * torch.nan)
    trainer.step((images.detach(), targets))
    assert trainer.skipped_steps == 1
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert all(p.grad is None for p in model.parameters())


def test_an_epoch_without_a_finite_loss_ends_the_run():
    batches = [(torch.full_like(images, math.nan), targets) for images, targets in make_batches(2)]
    model = make_model()
    with pytest.raises(FloatingPointError, match="no loss of the whole epoch was finite at update"):
        make_trainer(model, nonfinite="skip").fit(batches, 1)


def test_overflows_of_fp16_are_counted_in_the_history():
    precision = Precision("fp32")  # with a scaler, as fp16 has, which runs on the CPU as well
    precision._scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40, growth_interval=1000)
    precision.name = "fp16"
    precision.forward_context = lambda: warnings.catch_warnings()  # any context that does nothing
    model = make_model()
    hook = model[-1].weight.register_hook(lambda g: g * torch.inf if g.abs().max() > 1e9 else g)
    trainer = make_trainer(model, precision=precision, lr=linear(0.1, 0.01, total_steps=8))
    history = trainer.fit(make_batches(4), 8)
    hook.remove()
    skipped = trainer.precision.skipped_steps
    assert 0 < skipped < 32
    assert history["skipped_steps"][-1] == skipped
    assert trainer.step_count == 32 - skipped


# Switches ---------------------------------------------------------------------------------------


def test_label_smoothing_is_that_of_the_cross_entropy():
    one, other = make_model(), make_model()
    make_trainer(one, label_smoothing=0.1).fit(make_batches(), 1)
    make_trainer(other, loss=nn.CrossEntropyLoss(label_smoothing=0.1)).fit(make_batches(), 1)
    assert_same(one, other)


@pytest.mark.parametrize("max_norm", [0.05, 1e9])
def test_clipping_is_that_of_torch_over_all_optimizers_together(max_norm):
    one, other = make_model(), make_model()

    def optimizers(model):
        matrices = [p for p in model.parameters() if p.ndim >= 2]
        vectors = [p for p in model.parameters() if p.ndim < 2]
        return [Muon(matrices, lr=0.05), torch.optim.SGD(vectors, lr=0.5)]

    make_trainer(one, optimizers(one), grad_clip=max_norm).fit(make_batches(), 2)
    both = optimizers(other)
    everything = [p for optimizer in both for g in optimizer.param_groups for p in g["params"]]
    for _ in range(2):
        for images, targets in make_batches():
            F.cross_entropy(other(images), targets).backward()
            nn.utils.clip_grad_norm_(everything, max_norm)
            for optimizer in both:
                optimizer.step()
                optimizer.zero_grad()
    assert_same(one, other)


def test_clipping_of_scaled_gradients_is_that_of_plain_ones():
    models = [make_model(norm=False), make_model(norm=False)]
    scaled = Precision("fp32")
    scaled._scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for model, precision in zip(models, ("fp32", scaled), strict=True):
        make_trainer(model, precision=precision, grad_clip=0.05).fit(make_batches(), 2)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_the_hardest_images_are_trained_on_and_all_are_counted():
    model, plain = make_model(), make_model()
    batches = make_batches(3)
    history = make_trainer(model, select=0.25).fit(batches, 1)
    optimizer, losses, right = sgd(plain), [], 0
    for images, targets in batches:
        statistics = copy.deepcopy(plain.state_dict())
        with torch.no_grad():
            outputs = plain(images)
        each = F.cross_entropy(outputs, targets, reduction="none")
        losses.append(each)
        right += int((outputs.argmax(1) == targets).sum())
        plain.load_state_dict(statistics)  # the pass that chooses leaves batch norm alone
        chosen = sorted(sorted(range(12), key=lambda i: float(each[i]))[-3:])
        F.cross_entropy(plain(images[chosen]), targets[chosen]).backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_same(model, plain)
    assert history["loss"] == [pytest.approx(torch.cat(losses).mean().item(), rel=1e-6)]
    assert history["accuracy"] == [right / 36]


def test_selecting_in_parts_chooses_the_same_images():
    one, other = make_model(norm=False), make_model(norm=False)
    make_trainer(one, select=0.5).fit(make_batches(), 2)
    make_trainer(other, select=0.5, micro_batch_size=5).fit(make_batches(), 2)
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("head", "loss", "shape"),
    [
        ([nn.Flatten(), nn.Linear(12, 6)], nn.MSELoss(), (6,)),
        ([nn.Flatten(), nn.Linear(12, 1), nn.Flatten(0)], nn.MSELoss(), ()),
        ([nn.Flatten(), nn.Linear(12, 6)], nn.BCEWithLogitsLoss(), (6,)),
        ([nn.Conv2d(3, 5, 1)], nn.CrossEntropyLoss(), (2, 2)),
    ],
)
def test_of_several_losses_an_image_the_mean_tells_the_hardest(head, loss, shape):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(8, 3, 2, 2, generator=generator)
    is_label = isinstance(loss, nn.CrossEntropyLoss)
    targets = torch.rand(8, *shape, generator=generator)
    targets = (5 * targets).long() if is_label else targets
    model = nn.Sequential(*copy.deepcopy(head))
    plain = copy.deepcopy(model)
    history = make_trainer(model, loss=loss, select=0.25).fit([(images, targets)], 1)
    with torch.no_grad():
        outputs = plain(images)
        each = [loss(o, t).item() for o, t in zip(outputs.split(1), targets.split(1), strict=True)]
    assert history["loss"] == [pytest.approx(sum(each) / 8)]
    chosen = sorted(sorted(range(8), key=lambda i: each[i])[-2:])
    optimizer = sgd(plain)
    loss(plain(images[chosen]), targets[chosen]).backward()
    optimizer.step()
    assert_same(model, plain)


def test_a_loss_that_is_not_told_by_image_cannot_select():
    class Flat(nn.MSELoss):
        def forward(self, outputs, targets):
            return super().forward(outputs.flatten(), targets.flatten())

    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    batch = (torch.zeros(4, 3, 2, 2), torch.zeros(4, 2))
    message = r"with reduction='none', got shape \[8\] for outputs \[4, 2\]"
    with pytest.raises(ValueError, match=message):
        make_trainer(model, loss=Flat(), select=0.5).step(batch)


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.5, 5), (0.99, 10)])
def test_the_share_is_rounded_and_never_empty(share, count):
    losses = torch.rand(10, generator=torch.Generator().manual_seed(0))
    chosen = hardest(losses, share)
    assert len(chosen) == count
    assert set(chosen.tolist()) == set(losses.argsort(descending=True)[:count].tolist())


def test_metrics_are_means_over_images_in_training_and_validation():
    def margin(outputs, targets):
        top = outputs.topk(2, dim=1).values
        return (top[:, 0] - top[:, 1]).mean()

    model = make_model()
    batches = make_batches(2, size=6) + make_batches(1, size=3, seed=5)
    trainer = make_trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.0), metrics={"margin": margin}
    )
    history = trainer.fit(batches, 1, val=batches)
    outputs = trainer.predict(batches)
    targets = torch.cat([targets for _, targets in batches])
    assert history["val_margin"] == [pytest.approx(margin(outputs, targets).item())]
    assert trainer.evaluate(batches).metrics == {"margin": history["val_margin"][0]}
    model.train()
    with torch.no_grad():
        outputs = torch.cat([model(images) for images, _ in batches])
    assert history["margin"] == [pytest.approx(margin(outputs, targets).item(), rel=1e-5)]


def test_a_compiled_model_trains_as_the_plain_one_under_its_own_names():
    one, other = make_model(), make_model()
    names = list(one.state_dict())
    trainer = make_trainer(one, compile="aot_eager")
    trainer.fit(make_batches(), 2, val=make_batches(1))
    make_trainer(other).fit(make_batches(), 2)
    assert list(trainer.model.state_dict()) == names
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(a, b)


def test_compile_takes_modes_and_backends(monkeypatch):
    seen = []
    monkeypatch.setattr(torch, "compile", lambda module, **options: seen.append(options) or module)
    for choice in (True, "max-autotune", "eager", False):
        make_trainer(make_model(), compile=choice)
    usual = {"backend": "inductor", "dynamic": False}
    assert seen == [usual, {**usual, "mode": "max-autotune"}, {**usual, "backend": "eager"}]


def test_fused_optimizers_are_torchs_own():
    one, other = make_model(), make_model()
    optimizer = torch.optim.AdamW(one.parameters(), lr=0.01)
    trainer = make_trainer(one, optimizer, fused=True)
    trainer.fit(make_batches(), 2)
    fused = torch.optim.AdamW(other.parameters(), lr=0.01, fused=True)
    make_trainer(other, fused).fit(make_batches(), 2)
    assert_same(one, other)
    assert "fused: True" in trainer.describe()["optimizers"][0]


def test_fused_leaves_those_alone_that_cannot():
    model = make_model()
    muon = Muon([p for p in model.parameters() if p.ndim >= 2])
    rest = torch.optim.SGD([p for p in model.parameters() if p.ndim < 2], lr=0.1)
    make_trainer(model, [muon, rest], fused=True).fit(make_batches(1), 1)
    assert "fused" not in muon.param_groups[0]
    assert rest.param_groups[0]["fused"]


def test_tf32_holds_inside_the_block_alone():
    before = torch.get_float32_matmul_precision()
    with tf32_matmul():
        assert torch.get_float32_matmul_precision() == "high"
    assert torch.get_float32_matmul_precision() == before


def used(model):
    optimizer = sgd(model)
    make_trainer(model, optimizer).step(make_batches(1)[0])
    return optimizer


BAD = [
    ({"nonfinite": "stop"}, "nonfinite must be one of 'raise', 'skip', got nonfinite='stop'"),
    ({"grad_clip": 0}, "grad_clip must be greater than 0, got grad_clip=0"),
    ({"label_smoothing": 2}, "label_smoothing must be between 0 and 1, got label_smoothing=2"),
    ({"label_smoothing": 0.1, "loss": nn.CrossEntropyLoss()}, "left to the loss that is given"),
    ({"select": 0}, "select must be greater than 0, got select=0"),
    ({"select": 1.5}, "select must be at most 1, got select=1.5"),
    ({"select": 0.5, "loss": lambda o, t: o.mean()}, "a loss of reduction='mean', such as"),
    ({"tf32": True}, "tf32=True needs a model on a CUDA device, got 'cpu'"),
    (
        {"fused": True, "optimizer": lambda m: Muon([m[0].weight])},
        "AdamW, got Muon; leave fused out",
    ),
    ({"fused": True, "optimizer": used}, "before the first update, got a used SGD"),
    (
        {"fused": True, "optimizer": lambda m: torch.optim.SGD(m.parameters(), foreach=True)},
        "goes neither with foreach",
    ),
    ({"metrics": {"loss": F.mse_loss}}, "must not be those of the history's own columns, got 'lo"),
    ({"oom": "ignore"}, "oom must be one of 'halve', 'raise', got oom='ignore'"),
    ({"compile": "gcc"}, "compile must be one of .*'inductor'.*, got compile='gcc'"),
    ({"compile": 3}, "compile must be True, False, a mode or a backend, got compile=3"),
]


def test_what_is_refused_leaves_model_and_optimizers_as_they_were():
    model = make_model()
    optimizer = sgd(model)
    other = torch.optim.SGD(model.parameters(), lr=0.1, foreach=True)
    strides = [parameter.stride() for parameter in model.parameters()]
    schedule = linear(0.7, 0.1, total_steps=8)
    for bad in ({"select": 2}, {"compile": "gcc"}, {"cuda_graph": True}, {"tf32": True}):
        with pytest.raises(ValueError, match="must|needs"):
            make_trainer(model, optimizer, lr=schedule, fused=True, channels_last=True, **bad)
    with pytest.raises(ValueError, match="goes neither with foreach"):
        make_trainer(model, [optimizer, other], lr=schedule, fused=True)
    (group,) = optimizer.param_groups
    assert not group["fused"]
    assert group["lr"] == pytest.approx(sgd(model).param_groups[0]["lr"])
    assert [parameter.stride() for parameter in model.parameters()] == strides


@pytest.mark.parametrize(("options", "message"), BAD)
def test_bad_choices_are_named(options, message):
    options = dict(options)
    model = make_model()
    optimizer = options.pop("optimizer", sgd)(model)
    with pytest.raises((ValueError, TypeError), match=message):
        make_trainer(model, optimizer, **options)
