"""The range test: its ramp, its rules on curves worked out by hand, and that it leaves no trace."""

from __future__ import annotations

import math
import pickle
import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from fasttricks.data import DeviceLoader, ImageSet
from fasttricks.engine import Trainer
from fasttricks.lr_range_test import RULES, RangeTest, lr_range_test, suggest_range
from fasttricks.schedules import one_cycle, triangular
from fasttricks.transforms import Normalize, RandomTranslate


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)
    )


def make_loader(seed=0):
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(256, (48, 3, 8, 8), generator=generator).to(torch.uint8)
    labels = torch.arange(48) % 3
    images[torch.arange(48), labels] //= 2
    image_set = ImageSet(images, labels, classes=("a", "b", "c"), name="noise")
    transforms = [RandomTranslate(1), Normalize(0.5, 0.25)]
    return DeviceLoader(image_set, batch_size=16, transforms=transforms, shuffle=True, seed=seed)


def sgd(model, lr=0.1):
    return torch.optim.SGD(model.parameters(), lr=lr, momentum=0.9)


def run(model=None, optimizer=None, loader=None, **options):
    model = model or make_model()
    options = {"precision": "fp32", "num_steps": 40, **options}
    return lr_range_test(model, optimizer or sgd(model), loader or make_loader(), **options)


def test_the_exponential_ramp_is_geometric_and_the_linear_one_arithmetic():
    result = run(num_steps=11, start_lr=1e-3, end_lr=1e-1, divergence=1e9)
    assert result.rates == pytest.approx([1e-3 * 100 ** (k / 10) for k in range(11)])
    result = run(num_steps=11, start_lr=0.1, end_lr=0.2, ramp="linear")
    assert result.rates == pytest.approx([0.1 + 0.01 * k for k in range(11)])


def test_each_update_uses_its_rate_and_losses_are_those_of_a_plain_loop():
    model, loader = make_model(), make_loader()
    result = run(model, loader=loader, num_steps=12, start_lr=0.01, end_lr=0.1)
    plain = make_model()
    optimizer = sgd(plain)
    losses, batches = [], [*loader, *loader, *loader, *loader]
    for rate, (images, targets) in zip(np.geomspace(0.01, 0.1, 12), batches, strict=True):
        optimizer.param_groups[0]["lr"] = float(rate)
        loss = nn.functional.cross_entropy(plain(images), targets)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    # Convolutions of NCHW and NHWC images round differently in fp32.
    assert result.losses == pytest.approx(losses, rel=1e-5)


def everything(model, optimizer, loader):
    """All that training changes, as bytes."""
    generator = getattr(loader, "generator", None)
    tensors = [
        *(t.detach().clone() for t in (*model.parameters(), *model.buffers())),
        *(torch.zeros(0) if p.grad is None else p.grad.clone() for p in model.parameters()),
    ]
    rest = (
        optimizer.state_dict(),
        [m.training for m in model.modules()],
        torch.get_rng_state().tolist(),
        random.getstate(),
        np.random.get_state()[1].tolist(),  # noqa: NPY002
        getattr(loader, "epoch", None),
        None if generator is None else generator.get_state().tolist(),
    )
    return pickle.dumps(([t.tolist() for t in tensors], repr(rest)))


@pytest.mark.parametrize("used", [False, True])
@pytest.mark.parametrize("kind", ["device", "torch", "generator"])
def test_it_leaves_no_trace(used, kind):
    model, device_loader = make_model(), make_loader()
    optimizer, loader = sgd(model), device_loader
    if kind != "device":
        images, targets = next(iter(device_loader))
        generator = torch.Generator().manual_seed(3) if kind == "generator" else None
        data = TensorDataset(images, targets)
        loader = DataLoader(data, batch_size=8, shuffle=True, generator=generator)
    if used:  # momentum, gradients and an epoch behind it
        Trainer(model, optimizer, precision="fp32", progress=False).fit(loader, epochs=1)
        nn.functional.cross_entropy(model(next(iter(loader))[0]), next(iter(loader))[1]).backward()
    model[1].eval()
    references = [p.grad for p in model.parameters()]
    before = everything(model, optimizer, loader)
    run(model, optimizer, loader)
    assert everything(model, optimizer, loader) == before
    assert all(p.grad is g for p, g in zip(model.parameters(), references, strict=True))


def test_the_training_that_follows_is_that_without_a_test():
    weights = []
    for tested in (False, True):
        model, loader = make_model(), make_loader()
        optimizer = sgd(model)
        if tested:
            run(model, optimizer, loader)
        Trainer(model, optimizer, precision="fp32", progress=False).fit(loader, epochs=2)
        weights.append([p.detach().clone() for p in model.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_an_error_in_the_middle_leaves_no_trace_either():
    model, loader = make_model(), make_loader()
    optimizer = sgd(model)
    before = everything(model, optimizer, loader)
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        if len(calls) == 5:
            raise RuntimeError("midway")
        return nn.functional.cross_entropy(outputs, targets)

    with pytest.raises(RuntimeError, match="midway"):
        run(model, optimizer, loader, loss=loss)
    assert everything(model, optimizer, loader) == before


def test_it_stops_once_the_loss_has_risen_too_far():
    result = run(end_lr=1e4, num_steps=60)
    assert result.diverged
    assert len(result.rates) < 60
    assert len(result.rates) == len(result.losses) == len(result.smoothed)


def test_a_trainer_is_taken_with_all_that_it_has():
    model, loader = make_model(), make_loader()
    trainer = Trainer(model, sgd(model), precision="fp32", channels_last=False, progress=False)
    before = everything(model, trainer.optimizers[0], loader)
    from_trainer = lr_range_test(trainer, loader=loader, num_steps=20)
    assert everything(model, trainer.optimizers[0], loader) == before
    assert from_trainer == run(num_steps=20)
    assert (trainer.step_count, len(trainer.history)) == (0, 0)


def test_groups_keep_the_ratio_of_their_rates():
    model = make_model()
    groups = [{"params": [p], "lr": 0.1 * (i + 1)} for i, p in enumerate(model.parameters())]
    optimizer, seen = torch.optim.SGD(groups), []
    optimizer.register_step_pre_hook(lambda o, *_: seen.append([g["lr"] for g in o.param_groups]))
    run(model, optimizer, num_steps=10)
    for rates in seen:
        assert [rate / rates[0] for rate in rates] == pytest.approx([1, 2, 3, 4, 5, 6])


def bowl():
    """A curve made by hand: flat at 2, a straight fall to 1 over a decade, then a rise."""
    rates = np.geomspace(1e-4, 1, 81)  # 20 points a decade
    position = np.log10(rates)
    losses = np.interp(position, [-4, -3, -2, -1, 0], [2.0, 2.0, 1.0, 1.0 + 1e-9, 3.0])
    return rates, losses


def test_the_range_lies_within_the_fall():
    rates, losses = bowl()
    max_lr, base_lr = suggest_range(rates, losses, losses)
    # A tenth of the fall from 1e-3 to 1e-2 is done at 10^-2.9, nine tenths at 10^-2.1.
    assert math.log10(max_lr) == pytest.approx(-2.1, abs=0.051)
    assert math.log10(base_lr) == pytest.approx(-2.9, abs=0.051)


def test_the_rules_read_the_curve_as_they_say():
    rates, losses = bowl()
    assert math.log10(RULES["minimum"](rates, losses)) == pytest.approx(-3, abs=0.051)
    assert -3.0 <= math.log10(RULES["steep"](rates, losses)) <= -2.0
    assert -3.0 <= math.log10(RULES["valley"](rates, losses)) <= -2.0
    steep = np.interp(np.log10(rates), [-4, -2, -1.9, 0], [2.0, 1.9, 1.0, 1.0])
    assert math.log10(RULES["steep"](rates, steep)) == pytest.approx(-1.95, abs=0.051)


@given(st.lists(st.floats(0.1, 10), min_size=12, max_size=60))
def test_every_rule_gives_a_rate_of_the_curve_and_base_is_under_max(losses):
    rates = np.geomspace(1e-3, 10, len(losses))
    smoothed = np.array(losses)
    for name, rule in RULES.items():
        rate = rule(rates, smoothed) * (10 if name == "minimum" else 1)
        assert np.isclose(rates, rate).any()
    max_lr, base_lr = suggest_range(rates, smoothed, smoothed)
    assert 0 < base_lr < max_lr <= rates[-1]


def test_max_lr_is_twice_the_rate_of_the_first_jump_that_comes_back():
    rates, losses = bowl()
    noise = 0.01 * np.sin(np.arange(81) * 2.4)
    losses = np.minimum.accumulate(losses) + noise  # a plateau after the fall ...
    rates_of_jumps = rates[[50, 60, 70]]
    losses[[50, 60, 70]] = 1.6  # ... with three jumps
    max_lr, _ = suggest_range(rates, losses, losses)
    assert max_lr == pytest.approx(2 * rates_of_jumps[0])


def test_a_small_jump_or_one_within_the_noise_is_none():
    rates, losses = bowl()
    losses = np.minimum.accumulate(losses)
    steady, _ = suggest_range(rates, losses, losses)
    dented = losses.copy()
    dented[50] += 0.29  # of a fall of 1
    assert suggest_range(rates, dented, losses)[0] == steady
    noisy = losses + 0.2 * np.cos(np.pi * np.arange(81))  # a jump of 0.4 is not 4 deviations
    assert suggest_range(rates, noisy, losses)[0] == steady


def test_a_loss_that_rises_for_good_gives_no_rate_beyond_its_fall():
    rates, losses = bowl()
    losses[50:] = 5.0
    assert suggest_range(rates, losses, losses)[0] < 1e-2


def test_suggestions_go_straight_into_schedules():
    loader = make_loader()
    result = run(loader=loader)
    assert result.step_size == result.step_size_epochs * len(loader)
    schedule = triangular(result.base_lr, result.max_lr, step_size_up=result.step_size)
    assert schedule(result.step_size) == pytest.approx(result.max_lr)
    assert max(one_cycle(result.max_lr, 20)(k) for k in range(20)) == pytest.approx(result.max_lr)
    assert result.suggest("valley") in result.rates


def test_the_picture_shows_the_curve_and_the_range():
    result = run()
    axes = result.plot()
    assert list(axes.lines[0].get_xdata()) == list(result.rates)
    labels = [text.get_text() for text in axes.get_legend().get_texts()]
    assert any("max_lr" in label for label in labels)
    assert axes.get_xscale() == "log"


def test_the_picture_of_a_loss_that_only_rises_is_not_flat():
    losses = (0.10, *(0.10 + 0.01 * k for k in range(1, 11)), 9.0)
    rates = tuple(10.0 ** (k / 4 - 4) for k in range(12))
    axes = RangeTest(rates, losses, losses, 1e-3, 1e-4, 1, None, True).plot()
    low, high = axes.get_ylim()
    inside = sum(low < loss < high for loss in losses)
    assert 6 <= inside < 12  # the middle and what lies below it, not the diverged end
    assert low < 0.10
    assert high < 0.5


def test_a_result_compares_and_pickles():
    result = run(num_steps=12)
    assert pickle.loads(pickle.dumps(result)) == result
    assert isinstance(result, RangeTest)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"start_lr": 0}, "start_lr must be greater than 0, got start_lr=0"),
        ({"end_lr": math.nan}, "end_lr must be finite, got end_lr=nan"),
        ({"start_lr": 1.0, "end_lr": 0.5}, "end_lr must be greater than start_lr, got end_lr=0.5"),
        ({"num_steps": 5}, "num_steps must be at least 10, got num_steps=5"),
        ({"ramp": "steps"}, "ramp must be one of .* got ramp='steps'"),
        ({"smoothing": 1.0}, "smoothing must be under 1, got smoothing=1.0"),
        ({"divergence": -1}, "divergence must be greater than 1, got divergence=-1"),
        ({"loader": []}, "loader must hold at least one batch, got an empty one"),
    ],
)
def test_bad_numbers_are_named(options, message):
    model = make_model()
    loader = options.pop("loader", make_loader())
    with pytest.raises(ValueError, match=message):
        lr_range_test(model, sgd(model), loader, precision="fp32", **options)


def test_a_loss_that_is_nan_at_the_first_update_is_named():
    with pytest.raises(ValueError, match="the loss must be finite at the first update, got nan"):
        run(loss=lambda outputs, targets: outputs.sum() * math.nan)


@pytest.mark.parametrize("finite", [1, 2, 3])
def test_a_loss_that_diverges_at_once_is_named(finite):
    calls = []

    def loss(outputs, targets):
        calls.append(1)
        return nn.functional.cross_entropy(outputs, targets) * (
            1.0 if len(calls) <= finite else math.inf
        )

    if finite == 3:
        result = run(loss=loss)
        assert result.diverged
        assert len(result.losses) == 3
        return
    message = f"start_lr must be .* got start_lr=0.0001 and no finite loss after {finite} updates"
    with pytest.raises(ValueError, match=message):
        run(loss=loss)


def test_a_loader_without_a_length_gives_no_step_size():
    class Stream(IterableDataset):
        def __iter__(self):
            generator = torch.Generator().manual_seed(1)
            for label in range(48):
                yield torch.randn(3, 8, 8, generator=generator), label % 3

    model, loader = make_model(), DataLoader(Stream(), batch_size=16)
    result = lr_range_test(model, sgd(model), loader, num_steps=10, precision="fp32")
    assert result.step_size is None
    assert len(result.losses) == 10


def test_missing_parts_are_named():
    model = make_model()
    with pytest.raises(TypeError, match="optimizer must be given with a module, got None"):
        lr_range_test(model, loader=make_loader())
    with pytest.raises(ValueError, match="loader must be given"):
        lr_range_test(model, sgd(model))
    trainer = Trainer(model, sgd(model), precision="fp32", progress=False)
    with pytest.raises(TypeError, match="must be left out with a Trainer"):
        lr_range_test(trainer, sgd(model), make_loader())


@pytest.mark.parametrize("shift", [-1.0, -5.0])
def test_a_loss_below_zero_does_not_diverge_by_falling(shift):
    plain = run(num_steps=40, end_lr=0.5)
    shifted = run(
        num_steps=40, end_lr=0.5, loss=lambda o, y: nn.functional.cross_entropy(o, y) + shift
    )
    assert len(shifted.losses) == 40
    assert not shifted.diverged
    assert np.allclose(np.array(shifted.losses) - shift, plain.losses, atol=1e-4)
    assert shifted.max_lr == pytest.approx(plain.max_lr)


def test_a_loss_below_zero_that_rises_far_ends_the_test():
    def loss(outputs, targets):
        return outputs.pow(2).mean() - 2

    model = nn.Sequential(nn.Flatten(), nn.Linear(192, 3))
    result = run(model, loss=loss, end_lr=1e4)
    assert result.diverged
    assert len(result.losses) < 40


def test_a_picture_by_default_is_pyplots_so_that_show_finds_it():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ax = run(num_steps=12).plot()
    assert ax.figure.number in pyplot.get_fignums()
    pyplot.close(ax.figure)


def test_a_loader_in_the_optimizers_place_is_named():
    trainer = Trainer(make_model(), sgd(make_model()), precision="fp32", progress=False)
    with pytest.raises(ValueError, match="pass loader="):
        lr_range_test(trainer, make_loader())
