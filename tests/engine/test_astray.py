"""Gradients that are clipped, and losses that are not finite."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasttricks import Trainer, linear
from fasttricks.engine import Precision

BAD = torch.full((4, 3, 4, 4), torch.nan)


def make_trainer(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    optimizers = [
        torch.optim.SGD(model[:2].parameters(), lr=0.5),
        torch.optim.SGD(model[2:].parameters(), lr=0.5),
    ]
    options = {"precision": "fp32", "progress": False, "channels_last": False} | options
    return Trainer(model, optimizers, **options)


def batches(n):
    generator = torch.Generator().manual_seed(1)
    return [
        (torch.randn(4, 3, 4, 4, generator=generator), torch.tensor([0, 1, 1, 0])) for _ in range(n)
    ]


def norm_of_update(trainer, batch):
    before = [p.detach().clone() for p in trainer.model.parameters()]
    trainer.step(batch)
    moved = [p - b for p, b in zip(trainer.model.parameters(), before, strict=True)]
    return torch.cat([m.detach().flatten() for m in moved]).norm().item() / 0.5


def test_the_norm_of_all_optimizers_together_is_clipped():
    (batch,) = batches(1)
    free = norm_of_update(make_trainer(), batch)
    assert free > 0.2
    assert norm_of_update(make_trainer(grad_clip=0.1), batch) == pytest.approx(0.1, rel=1e-4)
    assert norm_of_update(make_trainer(grad_clip=2 * free), batch) == pytest.approx(free, rel=1e-5)


def test_scaled_gradients_are_clipped_after_unscaling():
    weight = nn.Parameter(torch.tensor([3.0, 4.0]))
    sgd = torch.optim.SGD([weight], lr=1.0)
    precision = Precision("fp32")  # with fp16's scaler, which runs on the CPU as well
    precision._scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    precision.backward(weight.square().sum() / 2)  # a gradient of norm 5
    assert precision.step([sgd], max_norm=1.0)
    assert weight.tolist() == pytest.approx([3 - 0.6, 4 - 0.8])


def test_a_skipped_update_leaves_no_trace():
    good = batches(6)
    spoiled = [*good[:3], (BAD, torch.tensor([0, 1, 1, 0])), *good[3:]]
    plain = make_trainer(lr=linear(0.5, 0.0, total_steps=8))
    skipping = make_trainer(lr=linear(0.5, 0.0, total_steps=8), nonfinite="skip")
    plain.fit(good, 1)
    history = skipping.fit(spoiled, 1)
    for key, value in plain.model.state_dict().items():
        assert torch.equal(value, skipping.model.state_dict()[key]), key
    assert (skipping.step_count, skipping.nonfinite_steps) == (6, 1)
    assert skipping.describe()["skipped_steps"] == 1
    assert history["loss"] == plain.history["loss"]
    assert skipping.lr == plain.lr


def test_by_default_it_ends_the_run_before_the_update():
    plain, trainer = make_trainer(), make_trainer()
    plain.fit(batches(1), 1)
    bad = (BAD, torch.zeros(4, dtype=torch.int64))
    with pytest.raises(FloatingPointError, match="the loss became nan at update 2 with lr=0.5"):
        trainer.fit([*batches(1), bad], 1)
    assert trainer.step_count == 1
    for name, value in plain.model.state_dict().items():
        assert torch.equal(value, trainer.model.state_dict()[name])
    with pytest.raises(FloatingPointError, match="the loss became nan at update 2"):
        trainer.step(bad)


def test_what_is_not_trained_may_be_infinite():
    trainer = make_trainer()
    mask = torch.nn.Parameter(torch.tensor([-torch.inf, 0.0]), requires_grad=False)
    trainer.model.register_parameter("mask", mask)
    assert len(trainer.fit(batches(1), 1)) == 1


def test_a_gradient_alone_that_is_not_finite_ends_the_run_too():
    trainer = make_trainer()

    def root(outputs, targets):
        return (outputs * 0).square().sum().sqrt()  # 0, of slope NaN

    trainer.loss = root
    with pytest.raises(FloatingPointError, match="the weights are no longer finite at update 1"):
        trainer.fit(batches(1), 1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"grad_clip": 0}, "grad_clip must be greater than 0, got grad_clip=0"),
        ({"nonfinite": "ignore"}, "nonfinite must be one of 'raise', 'skip', got"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer(**options)
