"""VGG: the paper's convolutions, torchvision's layout, any size from 8 pixels."""

from __future__ import annotations

import pytest
import torch
import torchvision
from torch import nn

from fasttricks import models


@pytest.mark.parametrize("depth", [11, 13, 16, 19])
def test_features_are_torchvisions(depth):
    builder = getattr(models, f"vgg{depth}")
    with torch.device("meta"):
        ours = builder()
        theirs = getattr(torchvision.models, f"vgg{depth}_bn")()
    own, other = ours.features.state_dict(), theirs.features.state_dict()
    assert {name: value.shape for name, value in own.items()} == {
        name: value.shape for name, value in other.items()
    }
    # the paper counts its three linear layers
    assert sum(isinstance(m, nn.Conv2d) for m in ours.modules()) == depth - 3
    parameters = sum(p.numel() for p in ours.parameters())
    assert f"{parameters:,} parameters" in builder.__doc__


def test_torchvisions_features_give_its_maps():
    torch.manual_seed(0)
    theirs = torchvision.models.vgg11_bn().features
    ours = models.vgg11()
    ours.features.load_state_dict(theirs.state_dict())
    x = torch.randn(2, 3, 64, 32)
    torch.testing.assert_close(
        ours.eval().forward_features(x), theirs.eval()(x), rtol=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("size", [8, 9, 16, 31, 32, 100])
def test_pools_leave_a_side_of_one_pixel_alone(size):
    model = models.vgg11(width=2).eval()
    features = model.forward_features(torch.zeros(1, 3, size, size))
    assert features.shape[2:] == (max(1, size // 32),) * 2


def test_dropout_is_before_the_head():
    assert models.vgg11(width=2, dropout=0.3).dropout.p == 0.3
    with pytest.raises(ValueError, match="dropout must be between 0 and 1, got dropout=2"):
        models.vgg11(dropout=2)
