"""The CIFAR ResNets: He's table, shortcuts without weights."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fasttricks import models

# He 2015, table 6, in millions
TABLE = {20: 0.27, 32: 0.46, 44: 0.66, 56: 0.85, 110: 1.7}


@pytest.mark.parametrize("depth", TABLE)
def test_layers_and_parameters_are_those_of_the_paper(depth):
    builder = getattr(models, f"resnet{depth}")
    with torch.device("meta"):
        model = builder()
        features = model.forward_features(torch.zeros(1, 3, 32, 32))
    layers = [m for m in model.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    parameters = sum(p.numel() for p in model.parameters())
    assert parameters / 1e6 == pytest.approx(TABLE[depth], abs=0.006 if depth < 110 else 0.03)
    assert f"{parameters:,} parameters" in builder.__doc__
    assert features.shape == (1, 64, 8, 8)


def test_where_the_size_halves_the_shortcut_is_every_other_pixel_and_zeros():
    model = models.resnet20(width=4, zero_init_residual=True).eval()
    block = model.stages[1][0]  # its body starts at 0, what is left is the shortcut
    x = torch.rand(2, 4, 7, 8)
    out = block(x)
    assert torch.equal(out[:, :4], x[:, :, ::2, ::2])
    assert (out[:, 4:] == 0).all()


def test_drop_path_reaches_its_value_at_the_last_block():
    model = models.resnet20(width=4, drop_path=0.9)
    rates = [m.p for m in model.modules() if isinstance(m, models.DropPath)]
    assert rates == pytest.approx([0.1 * (k + 1) for k in range(9)])


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="width must be at least 1, got width=-1"):
        models.resnet20(width=-1)
    with pytest.raises(TypeError, match="stem"):
        models.resnet20(stem="imagenet")
