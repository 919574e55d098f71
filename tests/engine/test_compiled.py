"""A compiled model trains what is thawed, whichever torch compiles it."""

from __future__ import annotations

import warnings

import pytest
import torch
from random_batches import make_batches
from torch import nn
from torch._dynamo.utils import counters

from fasttricks.engine import Trainer
from fasttricks.engine._compiled import Compiled, touch_parameters

BATCHES = make_batches(3)


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Sequential(nn.CELU(), nn.Flatten(), nn.Linear(144, 5))

    def forward(self, x):
        return self.head(self.conv(x))


def make_trainer(compile):
    torch.manual_seed(0)
    model = Net()
    model.conv.requires_grad_(False)
    sgd = torch.optim.SGD(model.parameters(), lr=0.05)
    return Trainer(model, sgd, compile=compile, precision="fp32", progress=False)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_what_is_thawed_after_the_compilation_trains(backend):
    torch._dynamo.reset()
    models = []
    for compile in (False, backend):
        trainer = make_trainer(compile)
        trainer.fit(BATCHES, 1)
        trainer.model.conv.requires_grad_(True)
        trainer.fit(BATCHES, 2)
        models.append(trainer.model)
    for one, other in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.allclose(one, other, atol=1e-5)
    torch.manual_seed(0)
    assert not torch.allclose(models[1].conv.weight, Net().conv.weight, atol=1e-3)


def test_it_compiles_once_more_for_that_and_never_else():
    torch._dynamo.reset()
    trainer = make_trainer("eager")
    before = counters["stats"]["unique_graphs"]
    trainer.fit(BATCHES, 2)
    made = counters["stats"]["unique_graphs"] - before
    trainer.model.conv.requires_grad_(True)
    trainer.fit(BATCHES, 1)
    assert counters["stats"]["unique_graphs"] - before == made + 1
    trainer.fit(BATCHES, 2)
    assert counters["stats"]["unique_graphs"] - before == made + 1


def test_a_scripted_part_is_left_alone():
    model = Net()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is deprecated
        model.head = torch.jit.script(model.head)
    touch_parameters(model)
    assert model(torch.zeros(1, 3, 8, 8)).shape == (1, 5)


def test_touching_changes_neither_the_parameters_nor_their_order():
    model = Net()
    names = list(model.state_dict())
    own = list(model.parameters())
    compiled = Compiled(model, lambda module: module)
    assert compiled.module() is model
    model.conv.requires_grad_(False)
    assert compiled.module() is model
    touch_parameters(model)
    assert list(model.state_dict()) == names
    assert all(a is b for a, b in zip(model.parameters(), own, strict=True))
