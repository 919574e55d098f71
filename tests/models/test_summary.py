"""The summary: published counts, shares that add up, a network left as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasttricks import resnet9, resnet18, speedrun_net, summary


def test_counts_are_the_published_ones():
    # airbench94's network: 118.1 million multiply-adds forward, of which 0.277 are whitening
    result = summary(speedrun_net(), batch_size=1)
    assert result.parameters == 1_972_792
    assert result.macs / 1e6 == pytest.approx(118.1, abs=0.3)
    assert summary(resnet18(), batch_size=1).macs / 1e6 == pytest.approx(555.4, abs=1.5)


def test_stages_are_the_children_with_shapes_and_shares():
    model = resnet9(width=8)
    model.prep.train()
    result = summary(model, (3, 16, 16), batch_size=2)
    names = ["prep", "layer1", "residual1", "layer2", "layer3", "residual3", "dropout", "head"]
    assert [stage.name for stage in result.stages] == names
    assert result.stages[0].output_shape == (2, 8, 16, 16)
    assert result.stages[-1].output_shape == (2, 10)
    assert sum(stage.time_share for stage in result.stages) == pytest.approx(1)
    assert sum(stage.macs for stage in result.stages) == result.macs
    assert sum(stage.macs_share for stage in result.stages) == pytest.approx(1)
    prep = result.stages[0]
    assert prep.macs_share == pytest.approx(prep.macs / result.macs)
    assert sum(stage.parameters for stage in result.stages) == result.parameters
    assert result.stages[0].macs == 16 * 16 * 3 * 8 * 9
    assert model.training
    assert not model.layer1._forward_hooks


def test_it_prints_as_a_table():
    lines = str(summary(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU()), (1, 6, 6))).splitlines()
    assert lines[0].split() == ["stage", "class", "output", "parameters", "MACs", "share", "time"]
    assert lines[1].split()[:2] == ["0", "Conv2d"]
    assert "2 x 4 x 4" in lines[1]
    assert lines[-1].split() == ["total", "20", "288"]


def test_a_network_without_multiply_adds_has_shares_of_0():
    result = summary(nn.Sequential(nn.ReLU()), (1, 2, 2))
    assert (result.macs, result.stages[0].macs_share) == (0, 0.0)


def test_shared_parameters_count_once():
    layer = nn.Linear(4, 4, bias=False)
    model = nn.Sequential(nn.Flatten(), layer, nn.ReLU(), nn.Sequential(layer))
    assert summary(model, (1, 2, 2)).parameters == 16


def test_bad_sizes_are_named():
    with pytest.raises(ValueError, match=r"input_size\[1\] must be at least 1, got .*=0"):
        summary(nn.Flatten(), (3, 0, 3))
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        summary(nn.Flatten(), batch_size=0)


def test_statistics_do_not_move():
    model = resnet9(width=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    summary(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


class Stages(nn.Module):
    """Children that are defined in another order than called, in a list, one of them twice."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(4, 2)
        self.stem = nn.Flatten()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])
        self.unused = nn.Linear(9, 9)

    def forward(self, x):
        x = self.stem(x)
        for block in (*self.blocks, self.blocks[0]):
            x = block(x)
        return self.head(x)


def test_stages_stand_in_the_order_of_their_calls_and_lists_give_theirs():
    result = summary(Stages(), (1, 2, 2))
    assert [stage.name for stage in result.stages] == ["stem", "blocks.0", "blocks.1", "head"]
    assert [stage.macs for stage in result.stages] == [0, 32, 16, 8]
    assert result.macs == 56
    assert sum(stage.time_share for stage in result.stages) == pytest.approx(1)


def test_a_network_of_bf16_is_summed_up_too():
    assert summary(nn.Sequential(nn.Conv2d(1, 2, 3)).bfloat16(), (1, 4, 4)).macs == 72
