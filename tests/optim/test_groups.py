"""Parameter groups: every trainable parameter once, in its place."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasttricks import Muon, build, parameter_groups, split_for_muon


@pytest.mark.parametrize("name", ["resnet9", "resnet20", "speedrun_net", "vgg11"])
def test_every_trainable_parameter_is_in_one_group(name):
    model = build(name)
    trainable = [p for p in model.parameters() if p.requires_grad]
    groups = parameter_groups(model, lr=0.1, weight_decay=5e-4, bias_lr=6.4)
    muon, rest = split_for_muon(model)
    for parts in ([p for group in groups for p in group["params"]], [*muon, *rest]):
        assert len(parts) == len(trainable)
        assert {id(p) for p in parts} == {id(p) for p in trainable}
    weights, others = groups
    assert (weights["lr"], weights["weight_decay"]) == (0.1, 5e-4)
    assert (others["lr"], others["weight_decay"]) == (6.4, 0.0)
    assert all(p.ndim > 1 for p in weights["params"])
    assert all(p.ndim == 1 for p in others["params"])
    assert all(p.ndim == 4 for p in muon)
    assert any(p is model.head.weight for p in rest)


def test_frozen_parameters_are_left_out_and_empty_groups_too():
    model = build("speedrun_net")
    muon, rest = split_for_muon(model)
    assert not any(p is model.whiten.weight for p in [*muon, *rest])
    (only,) = parameter_groups(nn.Linear(2, 2, bias=False), lr=1, weight_decay=0)
    assert len(only["params"]) == 1


def test_scales_of_any_norm_are_left_without_decay_whatever_their_dimensions():
    norms = [
        nn.BatchNorm2d(4),
        nn.InstanceNorm2d(4, affine=True),
        nn.GroupNorm(2, 4),
        nn.LayerNorm([4, 8, 8]),
        nn.RMSNorm([8, 8]),
    ]
    model = nn.Sequential(*norms, nn.Flatten(), nn.Linear(256, 2))
    weights, others = parameter_groups(model, lr=0.1, weight_decay=1e-3)
    assert [id(p) for p in weights["params"]] == [id(model[-1].weight)]
    assert len(others["params"]) == 10


def test_the_groups_go_into_the_optimizers():
    model = build("resnet20", width=4)
    sgd = torch.optim.SGD(parameter_groups(model, lr=0.1, weight_decay=5e-4), momentum=0.9)
    assert [group["lr"] for group in sgd.param_groups] == [0.1, 0.1]
    muon, rest = split_for_muon(model)
    optimizers = [Muon(muon, lr=0.1), torch.optim.AdamW(rest)]
    model(torch.randn(4, 3, 8, 8)).sum().backward()
    before = [p.clone() for p in model.parameters()]
    for optimizer in optimizers:
        optimizer.step()
    changed = [not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)]
    assert all(changed)


@pytest.mark.parametrize("name", ["lr", "weight_decay", "bias_lr"])
def test_negative_numbers_are_named(name):
    options = {"lr": 0.1, "weight_decay": 0.0, name: -1}
    with pytest.raises(ValueError, match=f"{name} must be at least 0, got {name}=-1"):
        parameter_groups(nn.Linear(2, 2), **options)
