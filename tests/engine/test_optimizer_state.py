"""An optimizer's state in the form that fused updates take: its values stay, and it trains."""

from __future__ import annotations

import pytest
import torch
from random_batches import make_batches
from torch import nn

from fasttricks.engine import Trainer
from fasttricks.engine._optimizer_state import begin_momenta, match_layouts

BATCHES = make_batches(3)


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.CELU(), nn.Flatten(), nn.Linear(144, 5))


def make_trainer(model=None, kind=torch.optim.SGD, **options):
    model = model or make_model()
    numbers = {"momentum": 0.9} if kind is torch.optim.SGD else {}
    optimizer = kind(model.parameters(), lr=0.05, **numbers)
    return Trainer(model, optimizer, **{"precision": "fp32", "progress": False, **options})


def strides(trainer):
    """Those of each parameter, and of what the optimizer keeps of it in its shape."""
    state = trainer.optimizers[0].state
    return [
        (p.stride(), value.stride())
        for p in trainer.model.parameters()
        for value in state[p].values()
        if isinstance(value, torch.Tensor) and value.shape == p.shape
    ]


@pytest.mark.parametrize("kind", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize("fused", [False, True])
def test_a_run_in_another_layout_goes_on_as_it_would(tmp_path, kind, fused):
    """The values are the same either way; fused, the layouts too."""
    make_trainer(kind=kind, channels_last=False).fit(BATCHES, 2, checkpoints=tmp_path)
    plain = make_trainer(kind=kind, channels_last=False)
    other = make_trainer(kind=kind, fused=fused)
    for trainer in (plain, other):
        trainer.load(tmp_path)
        trainer.fit(BATCHES, 2)
    pairs = strides(other)
    assert len(pairs) >= 4
    assert not fused or all(mine == theirs for mine, theirs in pairs)
    for one, same in zip(plain.model.parameters(), other.model.parameters(), strict=True):
        assert torch.allclose(one, same, atol=1e-5)


def test_an_optimizer_in_use_follows_its_model_into_channels_last():
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, fused=True)
    options = {"precision": "fp32", "progress": False}
    first = Trainer(model, sgd, channels_last=False, **options)
    first.fit(BATCHES, 1)
    kept = [state["momentum_buffer"].clone() for state in first.optimizers[0].state.values()]
    second = Trainer(first.model, first.optimizers, precision="fp32", progress=False)
    assert all(mine == theirs for mine, theirs in strides(second))
    for before, state in zip(kept, second.optimizers[0].state.values(), strict=True):
        assert torch.equal(before, state["momentum_buffer"])


def test_other_numbers_of_the_state_are_left_alone():
    adam = torch.optim.Adam([nn.Parameter(torch.ones(2, 3, 2, 2))], fused=True)
    (parameter,) = adam.param_groups[0]["params"]
    parameter.grad = torch.ones_like(parameter)
    adam.step()
    before = dict(adam.state[parameter])
    match_layouts(adam)
    assert all(adam.state[parameter][name] is value for name, value in before.items())


@pytest.mark.parametrize("used", [False, True])
def test_what_is_frozen_at_first_trains_once_it_is_thawed(used):
    models = []
    for fused in (False, True):
        model = make_model()
        model[0].requires_grad_(False)
        trainer = make_trainer(model, fused=fused)
        if used:
            trainer.fit(BATCHES, 1)
        before = model[0].weight.detach().clone()
        model[0].requires_grad_(True)
        trainer.fit(BATCHES, 2)
        assert not torch.allclose(before, model[0].weight, atol=1e-3)
        models.append(model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)


def test_an_optimizer_that_is_fused_already_may_be_given_again():
    first = make_trainer(fused=True)
    first.fit(BATCHES, 1)
    Trainer(first.model, first.optimizers, fused=True, precision="fp32", progress=False)


@pytest.mark.parametrize("numbers", [{"momentum": 0.0}, {"momentum": 0.9, "dampening": 0.5}])
def test_a_momentum_begins_at_zero_only_where_that_makes_no_difference(numbers):
    sgd = torch.optim.SGD(make_model().parameters(), lr=0.1, fused=True, **numbers)
    begin_momenta([sgd])
    assert not sgd.state


def test_what_is_frozen_has_no_momentum():
    model = make_model()
    model[0].requires_grad_(False)
    trainer = make_trainer(model, fused=True)
    trainer.fit(BATCHES, 1)
    assert set(trainer.optimizers[0].state) == set(model[3].parameters())


def test_a_run_without_it_goes_on_fused_and_thaws(tmp_path):
    model = make_model()
    model[0].requires_grad_(False)
    make_trainer(model).fit(BATCHES, 1, checkpoints=tmp_path)
    trainer = make_trainer(fused=True)
    trainer.model[0].requires_grad_(False)
    trainer.load(tmp_path)
    trainer.fit(BATCHES, 1)
    trainer.model[0].requires_grad_(True)
    trainer.fit(BATCHES, 1)
    assert len(trainer.optimizers[0].state) == 4


def test_states_of_others_are_left_alone():
    class Odd(torch.optim.SGD):
        def __init__(self, parameters):
            super().__init__(parameters, lr=0.1, momentum=0.9)
            self.state["k"] = torch.tensor([0])

    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(12, 5))
    odd = Odd(model.parameters())
    batches = [(torch.randint(5, (6, 3)), torch.randint(5, (6,)))] * 2
    for _ in range(2):
        Trainer(model, odd, precision="fp32", progress=False).fit(batches, 1)
    assert odd.state[model[0].weight]["momentum_buffer"].is_sparse
    assert odd.state["k"].item() == 0
