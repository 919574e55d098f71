"""Averages of weights against hand-written loops, and how they are saved and restored."""

from __future__ import annotations

import copy
import gc
import weakref

import pytest
import torch
from random_batches import make_batches
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, TensorDataset

from fasttricks.data import DeviceLoader, ImageSet
from fasttricks.engine import (
    Callback,
    Lookahead,
    StochasticWeightAverage,
    Trainer,
    WeightAverage,
)
from fasttricks.transforms import Normalize, RandomTranslate


def make_model(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.CELU(), nn.Flatten(), nn.Linear(4 * 36, 5)
    )


def make_trainer(model, *callbacks):
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    return Trainer(
        model, optimizer, precision="fp32", progress=False, channels_last=False, callbacks=callbacks
    )


def floats(model):
    return {n: v.detach().clone() for n, v in model.state_dict().items() if v.is_floating_point()}


def assert_equal(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


class Keep(Callback):
    """Keeps the weights after each update."""

    def __init__(self):
        self.weights = []

    def on_step_end(self, trainer):
        self.weights.append(floats(trainer.model))


def plain_loop(model, batches, epochs, *, after_update):
    """A loop of plain torch that hands its state to a function after each update."""
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
    model.train()
    update = 0
    for _ in range(epochs):
        for images, targets in batches:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(images), targets).backward()
            optimizer.step()
            update += 1
            with torch.no_grad():
                after_update(update)


def moving_average(weights, decay):
    """The EMA of a list of weights, the first taken as it is."""
    average = weights[0]
    for later in weights[1:]:
        average = {n: v.lerp(later[n], 1 - decay) for n, v in average.items()}
    return average


# Exponential moving average ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "taken"),
    [
        ({}, range(1, 11)),
        ({"every": 4}, (2, 6, 10)),  # counted back from the last
        ({"every": 20}, (10,)),
        ({"start_fraction": 0.6}, range(6, 11)),
        ({"start_fraction": 0.45, "every": 3}, (4, 7, 10)),
        ({"start_fraction": 1.0}, (10,)),
    ],
)
def test_the_weight_average_takes_the_weights_of_its_updates(options, taken):
    model, keep = make_model(), Keep()
    average = WeightAverage(decay=0.75, **options)
    make_trainer(model, keep, average).fit(make_batches(5), epochs=2)
    expected = moving_average([keep.weights[update - 1] for update in taken], 0.75)
    assert_equal(floats(model), expected)
    assert average.average.n_averaged == len(taken)


def mixed_dtypes(step):
    """Parameters of every kind, all as many, which move with the step."""
    torch.manual_seed(step)
    module = nn.Module()
    for dtype in (torch.float32, torch.bfloat16, torch.float16, torch.complex64):
        module.register_parameter(
            str(dtype).replace("torch.", "of_"), nn.Parameter(torch.randn(5).to(dtype))
        )
    for dtype in (torch.int64, torch.bool):
        value = torch.randint(0, 9, (5,)).to(dtype)
        module.register_parameter(
            str(dtype).replace("torch.", "of_"), nn.Parameter(value, requires_grad=False)
        )
    return module


def test_parameters_of_any_dtype_are_averaged_as_torch_averages_them():
    ours = WeightAverage(decay=0.75)
    theirs = AveragedModel(mixed_dtypes(0), multi_avg_fn=get_ema_multi_avg_fn(0.75))
    ours.start(mixed_dtypes(0))
    for step in range(1, 5):
        ours.update(mixed_dtypes(step))
        theirs.update_parameters(mixed_dtypes(step))
    assert ours.average.n_averaged == theirs.n_averaged
    for value, expected in zip(ours.average.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(value, expected), value.dtype


def test_the_weight_average_serves_a_loop_of_ones_own():
    batches = make_batches()
    trained, by_hand = make_model(), make_model()
    make_trainer(trained, WeightAverage(decay=0.9)).fit(batches, epochs=3)
    average = WeightAverage(decay=0.9)
    average.start(by_hand)
    plain_loop(by_hand, batches, 3, after_update=lambda _: average.update(by_hand))
    average.hand_over(by_hand)
    assert_equal(floats(trained), floats(by_hand))


def test_the_validation_of_the_last_epoch_sees_the_average():
    model, batches = make_model(), make_batches()
    trainer = make_trainer(model, WeightAverage(decay=0.9))
    history = trainer.fit(batches, epochs=1, val=batches)
    assert history["val_loss"] == [trainer.evaluate(batches).loss]


# Lookahead ---------------------------------------------------------------------------------------


def lookahead_loop(model, batches, epochs, *, every, decay_at):
    """Algorithm 1 of the paper in plain torch; ``decay_at`` maps an update to 1 - alpha."""
    slow = floats(model)

    def after_update(update):
        if update % every == 0:
            for name, value in model.state_dict().items():
                if name in slow:
                    slow[name] = slow[name] + (1 - decay_at(update)) * (value - slow[name])
                    value.copy_(slow[name])

    plain_loop(model, batches, epochs, after_update=after_update)
    model.load_state_dict(slow, strict=False)


@pytest.mark.parametrize("every", [1, 3, 5, 50])
@pytest.mark.parametrize("decay", [0.0, 0.5, 0.8, 1.0])
def test_lookahead_is_that_of_the_papers_algorithm(every, decay):
    batches = make_batches()
    ours, plain = make_model(), make_model()
    make_trainer(ours, Lookahead(every=every, decay=decay)).fit(batches, epochs=3)
    lookahead_loop(plain, batches, 3, every=every, decay_at=lambda _: decay)
    expected = floats(plain)
    for name, value in floats(ours).items():
        # lerp and the written-out formula round differently, and twelve updates carry it on
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_lookahead_with_a_rising_decay_is_that_of_airbench94():
    batches = make_batches()
    ours, plain = make_model(), make_model()
    make_trainer(ours, Lookahead(every=5, decay=0.95**5, rise=3)).fit(batches, epochs=5)
    alpha = 0.95**5 * (torch.arange(20 + 1) / 20) ** 3  # as its script has it
    lookahead_loop(plain, batches, 5, every=5, decay_at=lambda update: alpha[update].item())
    expected = floats(plain)
    for name, value in floats(ours).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-4, atol=1e-6)


def test_lookahead_without_memory_of_its_slow_weights_is_plain_training():
    batches = make_batches(5)
    ours, plain = make_model(), make_model()
    make_trainer(ours, Lookahead(every=1, decay=0.0)).fit(batches, epochs=2)
    make_trainer(plain).fit(batches, epochs=2)
    assert_equal(floats(ours), floats(plain))


def test_lookahead_writes_in_place_and_leaves_counters_alone():
    model = make_model()
    pointers = [p.data_ptr() for p in model.parameters()]
    make_trainer(model, Lookahead(every=2)).fit(make_batches(3), epochs=1)
    assert [p.data_ptr() for p in model.parameters()] == pointers


def test_lookahead_serves_a_loop_of_ones_own():
    batches = make_batches()
    trained, by_hand = make_model(), make_model()
    make_trainer(trained, Lookahead(every=3, decay=0.6, rise=2)).fit(batches, epochs=3)
    lookahead = Lookahead(every=3, decay=0.6, rise=2)
    lookahead.start(by_hand)

    def after_update(update):
        if update % 3 == 0:
            lookahead.update(by_hand, share_done=update / 12)

    plain_loop(by_hand, batches, 3, after_update=after_update)
    lookahead.hand_over(by_hand)
    assert_equal(floats(trained), floats(by_hand))


# SWA ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epochs", "start", "ends"),
    [(4, 0.75, (12, 16)), (4, 0.0, (4, 8, 12, 16)), (4, 1.0, (16,)), (2.5, 0.5, (8, 10))],
)
def test_swa_is_the_plain_mean_of_the_weights_at_the_ends_of_epochs(epochs, start, ends):
    model, keep = make_model(), Keep()
    average = StochasticWeightAverage(None, start_fraction=start)
    make_trainer(model, keep, average).fit(make_batches(4), epochs=epochs)
    for name, value in floats(model).items():
        expected = torch.stack([keep.weights[end - 1][name].double() for end in ends]).mean(0)
        # a running mean in fp32 against one in fp64
        torch.testing.assert_close(value, expected.float(), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "make", [StochasticWeightAverage, lambda batches: WeightAverage(decay=0.5, batches=batches)]
)
def test_a_frozen_norm_keeps_its_statistics(make):
    model, batches = make_model(), make_batches()
    model[1].eval()
    before = floats(model[1])
    make_trainer(model, make(batches)).fit(batches, epochs=2)
    assert not model[1].training
    for name in ("running_mean", "running_var"):
        assert torch.equal(getattr(model[1], name), before[name])
    assert model[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    "make", [StochasticWeightAverage, lambda batches: WeightAverage(decay=0.5, batches=batches)]
)
def test_statistics_are_those_of_what_frozen_norms_let_through(make):
    torch.manual_seed(0)
    model, batches = make_model(), make_batches()
    model.insert(2, nn.BatchNorm2d(4))
    model[1].eval()
    model[1].running_mean.fill_(3.0)
    make_trainer(model, make(batches)).fit(batches, epochs=2)
    with torch.no_grad():
        shown = [model[1](model[0](images)) for images, _ in batches]
    means = torch.stack([one.mean((0, 2, 3)) for one in shown])
    variances = torch.stack([one.var((0, 2, 3)) for one in shown])
    torch.testing.assert_close(model[2].running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(model[2].running_var, variances.mean(0), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "make", [StochasticWeightAverage, lambda batches: WeightAverage(decay=0.5, batches=batches)]
)
def test_an_average_without_batches_for_its_statistics_is_refused(make):
    with pytest.raises(ValueError, match="batches must hold at least one batch, got none"):
        make([])


def test_in_evaluation_mode_all_statistics_are_estimated():
    model, batches = make_model().eval(), make_batches()
    average = WeightAverage(decay=0.5, batches=[images for images, _ in batches])
    average.start(model)
    average.update(model)
    average.hand_over(model)
    with torch.no_grad():
        means = torch.stack([model[0](images).mean((0, 2, 3)) for images, _ in batches])
    torch.testing.assert_close(model[1].running_mean, means.mean(0), rtol=1e-4, atol=1e-5)
    assert not any(
        module.training for module in (*model.modules(), *average.average.module.modules())
    )


def test_batches_that_are_used_up_leave_the_averaged_statistics():
    expected, model = make_model(), make_model()
    make_trainer(expected, WeightAverage(decay=0.5)).fit(make_batches(), epochs=2)
    trainer = make_trainer(model, WeightAverage(decay=0.5, batches=iter([])))
    with pytest.warns(RuntimeWarning, match="the batch-norm statistics are averaged ones"):
        trainer.fit(make_batches(), epochs=2)
    for name, value in floats(expected).items():
        assert torch.equal(floats(model)[name], value)


class Marked(nn.Module):
    """Has buffers that no mean may touch: indices, a mask of infinities, a count."""

    def __init__(self):
        super().__init__()
        self.layers = make_model()
        self.register_buffer("indices", torch.arange(2000))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, x):
        self.calls += self.training
        return self.layers(x)


@pytest.mark.parametrize(
    "average",
    [
        WeightAverage(decay=0.95),
        Lookahead(every=2),
        StochasticWeightAverage(None, start_fraction=0),
    ],
    ids=lambda average: type(average).__name__,
)
def test_only_weights_and_statistics_are_averaged(average):
    model = Marked()
    expected = Marked().state_dict()
    make_trainer(model, average).fit(make_batches(), 3)
    assert torch.equal(model.indices, expected["indices"])
    assert torch.equal(model.mask, expected["mask"])
    assert model.calls == model.layers[1].num_batches_tracked == 12


@pytest.mark.parametrize(
    "make", [StochasticWeightAverage, lambda batches: WeightAverage(decay=0.5, batches=batches)]
)
def test_an_averages_batch_norm_statistics_are_estimated_on_the_batches_given(make):
    model, batches = make_model(), make_batches()
    make_trainer(model, make(batches)).fit(batches, epochs=4)
    with torch.no_grad():
        features = [model[0](images) for images, _ in batches]
    mean = torch.stack([f.mean((0, 2, 3)) for f in features]).mean(0)
    variance = torch.stack([f.var((0, 2, 3)) for f in features]).mean(0)
    torch.testing.assert_close(model[1].running_mean, mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var, variance, rtol=1e-5, atol=1e-6)
    assert model[1].momentum == 0.1


def device_loader():
    images = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8)
    images = images.contiguous(memory_format=torch.channels_last)
    data = ImageSet(images, torch.arange(24) % 5, classes=tuple("abcde"), name="noise")
    transforms = [RandomTranslate(1), Normalize((0.5,) * 3, (0.25,) * 3)]
    return DeviceLoader(data, batch_size=6, transforms=transforms, shuffle=True)


def torch_loader():
    images, targets = make_batches(1, size=24)[0]
    return DataLoader(TensorDataset(images, targets), batch_size=6, shuffle=True)


@pytest.mark.parametrize("make_loader", [device_loader, torch_loader])
def test_swa_leaves_the_place_of_its_loader_and_the_random_states_alone(make_loader):
    places = []
    for swa in (False, True):
        torch.manual_seed(0)
        model, loader = make_model(), make_loader()
        callbacks = [StochasticWeightAverage(loader)] if swa else []
        make_trainer(model, *callbacks).fit(loader, epochs=2)
        places.append((torch.get_rng_state().tolist(), getattr(loader, "epoch", None)))
    assert places[0] == places[1]


def test_swa_hands_over_before_the_last_validation():
    model, batches = make_model(), make_batches()
    trainer = make_trainer(model, StochasticWeightAverage(batches))
    history = trainer.fit(batches, epochs=2, val=batches)
    assert history["val_loss"][-1] == trainer.evaluate(batches).loss


def test_swa_serves_a_loop_of_ones_own_in_a_model_without_batch_norm():
    model = nn.Linear(1, 1)
    average = StochasticWeightAverage([(torch.ones(1, 1), torch.zeros(1))])
    average.start(model)
    for value in (1.0, 2.0, 6.0):
        nn.init.constant_(model.weight, value)
        average.update(model)
    average.hand_over(model)
    assert model.weight.item() == pytest.approx(3.0)


# What they share ---------------------------------------------------------------------------------

MAKERS = [
    lambda: WeightAverage(decay=0.7),
    lambda: Lookahead(every=3, decay=0.7),
    lambda: StochasticWeightAverage(None, start_fraction=0.0),
]
every_average = pytest.mark.parametrize("make", MAKERS, ids=["ema", "lookahead", "swa"])


class Hold(Callback):
    """Keeps everything at one update, and in another run puts it back before the first."""

    def __init__(self, average, at):
        self.average, self.at, self.kept = average, at, None

    def on_step_end(self, trainer):
        if trainer.batches_done == self.at:
            parts = (trainer.model, trainer.optimizers[0], self.average)
            self.kept = [copy.deepcopy(part.state_dict()) for part in parts]


@every_average
@pytest.mark.parametrize("loaded_in_fit", [False, True])
def test_an_average_that_is_saved_and_loaded_goes_on_as_if_nothing_happened(make, loaded_in_fit):
    batches = make_batches(4)
    whole, average = make_model(), make()
    hold = Hold(average, at=8)
    make_trainer(whole, average, hold).fit(batches, epochs=4)

    model, again = make_model(seed=5), make()

    class Resume(Callback):
        """Sets a fresh fit to the kept place, as a resumed trainer would."""

        def on_fit_start(self, trainer):
            if loaded_in_fit:
                again.load_state_dict(hold.kept[2])

        def on_epoch_start(self, trainer):
            if trainer.total_steps == 8:
                trainer.batches_done, trainer.total_steps = 8, 16

    trainer = make_trainer(model, again, Resume())
    model.load_state_dict(hold.kept[0])
    trainer.optimizers[0].load_state_dict(hold.kept[1])
    if not loaded_in_fit:
        again.load_state_dict(hold.kept[2])
    trainer.fit(batches, epochs=2)
    assert_equal(floats(model), floats(whole))


@every_average
def test_a_state_holds_tensors_alone_and_is_empty_before_the_start(make):
    average = make()
    assert average.state_dict() == {}
    average.start(make_model())
    state = average.state_dict()
    assert state
    assert all(
        type(name) is str and isinstance(value, torch.Tensor) for name, value in state.items()
    )


@every_average
def test_a_state_that_was_loaded_is_used_once(make):
    saved = make()
    saved.start(make_model(seed=7))
    average = make()
    average.load_state_dict(saved.state_dict())
    average.start(make_model())
    assert_equal(floats(average.average.module), floats(make_model(seed=7)))
    average.start(make_model())
    assert_equal(floats(average.average.module), floats(make_model()))


@every_average
def test_an_empty_state_starts_from_the_model(make):
    average = make()
    average.load_state_dict({})
    average.start(make_model())
    assert_equal(floats(average.average.module), floats(make_model()))


@every_average
def test_an_average_holds_no_reference_to_the_model(make):
    model, average = make_model(), make()
    make_trainer(model, average).fit(make_batches(1), epochs=1)
    gone, copied = weakref.ref(model), weakref.ref(average.average.module)
    gc.collect()
    gc.disable()  # without the collector only what is in no circle goes
    try:
        del model
        average = None
        assert gone() is None
        assert copied() is None
    finally:
        gc.enable()


@every_average
def test_an_error_in_a_fit_leaves_the_models_own_weights(make):
    model, keep = make_model(), Keep()
    batches = make_batches(4)
    batches[2][0][:] = torch.nan
    with pytest.raises(FloatingPointError):
        make_trainer(model, make(), keep).fit(batches, epochs=1)
    assert len(keep.weights) == 2


@every_average
def test_calls_before_the_start_are_named(make):
    with pytest.raises(RuntimeError, match=r"call start\(model\) of \w+ before its other calls"):
        make().update(make_model())
    with pytest.raises(RuntimeError, match=r"call start\(model\)"):
        make().hand_over(make_model())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: WeightAverage(decay=1.5), "decay must be between 0 and 1, got decay=1.5"),
        (lambda: WeightAverage(decay=0.9, every=0), "every must be at least 1, got every=0"),
        (
            lambda: WeightAverage(decay=0.9, start_fraction=2),
            "start_fraction must be between 0 and 1, got start_fraction=2",
        ),
        (lambda: Lookahead(every=0), "every must be at least 1, got every=0"),
        (lambda: Lookahead(decay=-0.1), "decay must be between 0 and 1, got decay=-0.1"),
        (lambda: Lookahead(rise=-1), "rise must be at least 0, got rise=-1"),
        (
            lambda: StochasticWeightAverage([], start_fraction=-1),
            "start_fraction must be between 0 and 1, got start_fraction=-1",
        ),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Loaders that yield less than their length, or more ---------------------------------------------


class Short(list):
    """Two batches more in its length than it yields."""

    def __len__(self):
        return super().__len__() + 2


def short_run(*callbacks, epochs=3, val=None):
    model, keep = make_model(), Keep()
    trainer = make_trainer(model, keep, *callbacks)
    with pytest.warns(RuntimeWarning, match="a length of 5 batches and yielded 3") as caught:
        trainer.fit(Short(make_batches(3)), epochs, val=val)
    assert len(caught) == 1
    return trainer, keep.weights


@pytest.mark.parametrize("epochs", [1, 3])
def test_after_short_epochs_the_moving_average_is_handed_over(epochs):
    trainer, weights = short_run(WeightAverage(decay=0.75), epochs=epochs)
    assert len(weights) == trainer.step_count == 3 * epochs
    assert trainer.batches_done == trainer.total_steps == 5 * epochs
    assert_equal(floats(trainer.model), moving_average(weights, 0.75))


def test_an_average_that_took_nothing_in_takes_the_last_weights():
    trainer, weights = short_run(WeightAverage(decay=0.75, start_fraction=1.0))
    assert_equal(floats(trainer.model), weights[-1])


def test_after_short_epochs_the_slow_weights_are_handed_over():
    lookahead = Lookahead(every=2)
    trainer, weights = short_run(lookahead, epochs=1)
    assert_equal(floats(trainer.model), floats(lookahead.average.module))
    assert not torch.equal(floats(trainer.model)["0.weight"], weights[-1]["0.weight"])


def test_the_mean_over_epochs_takes_the_ends_of_short_ones():
    trainer, weights = short_run(StochasticWeightAverage(None, start_fraction=0.6))
    mean = {name: (weights[5][name] + weights[8][name]) / 2 for name in weights[0]}
    torch.testing.assert_close(floats(trainer.model), mean)


def test_the_last_validation_after_short_epochs_sees_the_average():
    batches = make_batches()
    trainer, _ = short_run(WeightAverage(decay=0.9), val=batches)
    assert trainer.history["val_loss"][-1] == trainer.evaluate(batches).loss


def test_a_run_of_short_epochs_goes_on_from_its_checkpoint(tmp_path):
    batches = Short(make_batches(3))
    for epochs in (1, 3):
        model = make_model()
        trainer = make_trainer(model, WeightAverage(decay=0.9))
        with pytest.warns(RuntimeWarning, match="and yielded 3"):
            trainer.fit(batches, epochs, checkpoints=tmp_path, resume=epochs > 1)
    assert trainer.step_count == 9
    assert trainer.history["step"] == [3, 6, 9]


class Long(list):
    """Two batches less in its length than it yields."""

    def __len__(self):
        return super().__len__() - 2


@pytest.mark.parametrize("make", [lambda: WeightAverage(decay=0.5), lambda: Lookahead(every=2)])
def test_of_batches_beyond_the_length_none_is_trained_on(make):
    expected, model = make_model(), make_model()
    make_trainer(expected, make()).fit(make_batches(5)[:3], 3)
    trainer = make_trainer(model, make())
    with pytest.warns(RuntimeWarning, match="3 batches and yielded more in an epoch") as caught:
        trainer.fit(Long(make_batches(5)), 3)
    assert len(caught) == 1
    assert [row["step"] for row in trainer.history.rows] == [3, 6, 9]
    for name, value in floats(expected).items():
        assert torch.equal(floats(model)[name], value)


@pytest.mark.parametrize("before", [True, False])
def test_a_state_is_taken_up_before_start_and_after(before):
    first, model = WeightAverage(decay=0.5), nn.Linear(1, 1, bias=False)
    first.start(model)
    for value in (1.0, 2.0):
        nn.init.constant_(model.weight, value)
        first.update(model)
    state = first.state_dict()
    second = WeightAverage(decay=0.5)
    if not before:
        second.start(model)
    second.load_state_dict(state)
    assert second.state_dict().keys() == state.keys()
    if before:
        second.start(model)
    nn.init.constant_(model.weight, 4.0)
    second.update(model)
    assert second.module.weight.item() == 2.75
    second.hand_over(model)
    assert model.weight.item() == 2.75


def test_a_state_that_was_taken_up_is_not_taken_up_again():
    average, model = WeightAverage(decay=0.5), nn.Linear(1, 1, bias=False)
    average.start(model)
    average.load_state_dict(average.state_dict())
    nn.init.constant_(model.weight, 7.0)
    average.start(model)
    assert average.module.weight.item() == 7.0


def test_after_a_fit_a_state_waits_for_the_next_and_leaves_the_last_ones_average():
    average = WeightAverage(decay=0.5)
    batches = [(torch.randn(4, 3), torch.tensor([0, 1, 0, 1]))] * 2

    def fitted(width):
        model = nn.Sequential(nn.Linear(3, width), nn.Linear(width, 2))
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"precision": "fp32", "progress": False, "callbacks": [average]}
        trainer = Trainer(model, sgd, **options)
        trainer.fit(batches, 1)
        return trainer

    state = fitted(5).callbacks[0].state_dict()
    trainer = fitted(4)
    before = average.module[0].weight.clone()
    average.load_state_dict(state)  # of another model, which the next fit may have
    assert torch.equal(average.module[0].weight, before)
    assert len(trainer.history) == 1


def test_a_state_that_waits_is_the_one_that_is_saved():
    model, average = nn.Linear(1, 1, bias=False), WeightAverage(decay=0.5)
    trainer = Trainer(
        model, torch.optim.SGD([model.weight], lr=0.1), loss=nn.MSELoss(), callbacks=[average]
    )
    trainer.fit([(torch.ones(2, 1), torch.zeros(2, 1))], 1)
    state = {name: value + 1 for name, value in average.state_dict().items()}
    average.load_state_dict(state)
    saved = average.state_dict()
    assert saved.keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in saved.items())


def test_there_is_no_module_before_it_starts():
    with pytest.raises(RuntimeError, match=r"call start\(model\) of Lookahead"):
        _ = Lookahead().module
