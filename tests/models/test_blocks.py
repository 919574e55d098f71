from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from fasttricks.models import ConvNormAct, Residual, batch_norm, global_max_pool, halve


@pytest.mark.parametrize("size", [(2, 2), (7, 9), (8, 5)])
def test_halve_is_torchs_pool_where_both_sides_have_two_pixels(size):
    x = torch.randn(2, 3, *size)
    assert torch.equal(halve(x), F.max_pool2d(x, 2))


def test_halve_keeps_a_side_of_one_pixel():
    x = torch.randn(2, 3, 1, 4)
    assert torch.equal(halve(x), x.view(2, 3, 1, 2, 2).amax(-1))
    assert torch.equal(halve(x[..., :1]), x[..., :1])


def test_global_max_pool_is_the_maximum_of_each_channel():
    x = torch.randn(3, 4, 5, 7)
    assert torch.equal(global_max_pool(x), x.amax((2, 3)))


def test_pool_first_and_last_give_what_their_formula_says():
    torch.manual_seed(0)
    block = ConvNormAct(2, 3, norm=batch_norm, act=nn.Tanh)
    x = torch.randn(4, 2, 6, 6)
    conv = F.conv2d(x, block.conv.weight, padding=1)

    def norm(y):
        return F.batch_norm(y, None, None, training=True)

    plain = block(x)
    block.pool = "last"
    last = block(x)
    block.pool = "first"
    first = block(x)
    torch.testing.assert_close(plain, norm(conv).tanh())
    torch.testing.assert_close(last, F.max_pool2d(norm(conv).tanh(), 2))
    torch.testing.assert_close(first, norm(F.max_pool2d(conv, 2)).tanh())
    assert not torch.allclose(first, last)


@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("stride", [1, 2])
def test_block_keeps_the_size_divided_by_its_stride(kernel_size, stride):
    block = ConvNormAct(2, 3, norm=batch_norm, act=nn.ReLU, kernel_size=kernel_size, stride=stride)
    assert block(torch.randn(2, 2, 8, 8)).shape == (2, 3, 8 // stride, 8 // stride)


def test_residual_adds_the_body_to_the_input():
    x = torch.randn(2, 3)
    body = nn.Linear(3, 3)
    assert torch.equal(Residual(body)(x), x + body(x))


def test_batch_norm_passes_its_numbers_on_and_freezes_the_scale_only():
    norm = batch_norm(5, eps=1e-3, momentum=0.4, frozen_scale=True)
    assert (norm.num_features, norm.eps, norm.momentum) == (5, 1e-3, 0.4)
    assert not norm.weight.requires_grad
    assert norm.bias.requires_grad
    assert torch.equal(norm.weight, torch.ones(5))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 0}, "in_channels must be at least 1, got in_channels=0"),
        ({"out_channels": -2}, "out_channels=-2"),
        ({"pool": "middle"}, "'none', 'first', 'last', got pool='middle'"),
        ({"kernel_size": 4}, "odd, got kernel_size=4"),
        ({"stride": 0}, "stride=0"),
    ],
)
def test_block_refuses_bad_numbers(change, message):
    options = {"in_channels": 2, "out_channels": 3, "norm": batch_norm, "act": nn.ReLU} | change
    with pytest.raises(ValueError, match=message):
        ConvNormAct(**options)


@pytest.mark.parametrize(
    ("change", "message"),
    [({"eps": 0}, "eps=0"), ({"momentum": 1.5}, "momentum=1.5"), ({"num_features": 0}, "=0")],
)
def test_batch_norm_refuses_bad_numbers(change, message):
    with pytest.raises(ValueError, match=message):
        batch_norm(**({"num_features": 2} | change))
