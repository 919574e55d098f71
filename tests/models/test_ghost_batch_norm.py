"""Ghost batch norm against a loop over groups written plainly, and its running statistics."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import GhostBatchNorm2d, batch_norm, resnet9


def images(n, channels=3, seed=0):
    return torch.randn(n, channels, 4, 5, generator=torch.Generator().manual_seed(seed)).double()


@given(n=st.integers(1, 40), size=st.integers(2, 12))
def test_every_group_is_normalised_by_its_own_mean_and_variance(n, size):
    norm = GhostBatchNorm2d(3, ghost_batch_size=size, momentum=0.3).double()
    x = images(n)
    found = norm(x)
    groups = max(1, n // size)
    lengths = [n // groups + (place < n % groups) for place in range(groups)]
    assert min(lengths) >= min(n, size)
    mean, var, expected = torch.zeros(3).double(), torch.ones(3).double(), []
    for part in x.split(lengths):
        centre = part.mean((0, 2, 3))
        spread = ((part - centre.view(1, 3, 1, 1)) ** 2).mean((0, 2, 3))
        expected.append((part - centre.view(1, 3, 1, 1)) / (spread + 1e-5).sqrt().view(1, 3, 1, 1))
        count = part.numel() // 3
        mean = 0.7 * mean + 0.3 * centre
        var = 0.7 * var + 0.3 * spread * count / (count - 1)
    torch.testing.assert_close(found, torch.cat(expected))
    torch.testing.assert_close(norm.running_mean, mean)
    torch.testing.assert_close(norm.running_var, var)


def test_in_evaluation_and_for_a_small_batch_it_is_batch_norm():
    ghost, plain = GhostBatchNorm2d(3, ghost_batch_size=8).double(), nn.BatchNorm2d(3).double()
    assert torch.equal(ghost(images(15)), plain(images(15)))
    ghost.eval()
    plain.eval()
    assert torch.equal(ghost(images(64)), plain(images(64)))


def test_scale_bias_and_gradients_are_those_of_one_norm():
    norm = GhostBatchNorm2d(3, ghost_batch_size=4).double()
    nn.init.uniform_(norm.weight)
    nn.init.uniform_(norm.bias)
    x = images(8).requires_grad_(True)
    assert torch.autograd.gradcheck(norm.train(), (x,))


def test_channels_last_stays():
    norm = GhostBatchNorm2d(3, ghost_batch_size=4).double()
    x = images(8)
    found = norm(x.to(memory_format=torch.channels_last))
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, norm(x))


def test_batch_norm_makes_it_with_the_other_options():
    norm = batch_norm(4, ghost_batch_size=16, momentum=0.4, eps=1e-3, frozen_scale=True)
    assert isinstance(norm, GhostBatchNorm2d)
    assert (norm.ghost_batch_size, norm.momentum, norm.eps) == (16, 0.4, 1e-3)
    assert not norm.weight.requires_grad
    assert "ghost_batch_size=16" in repr(norm)
    assert type(batch_norm(4)) is nn.BatchNorm2d


@pytest.mark.parametrize(
    ("size", "error", "message"),
    [
        (1, ValueError, "ghost_batch_size must be at least 2, got ghost_batch_size=1"),
        (2.5, TypeError, "ghost_batch_size=2.5"),
    ],
)
def test_bad_sizes_are_named(size, error, message):
    with pytest.raises(error, match=message):
        GhostBatchNorm2d(3, ghost_batch_size=size)
    with pytest.raises(error, match=message):
        resnet9(ghost_batch_size=size)
