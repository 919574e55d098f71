"""Images by pixel: the same pooling and norm as in a common format, and a block that keeps them."""

from __future__ import annotations

import copy
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import use_winograd_
from fasttricks.models._blocks import ConvNormAct, batch_norm
from fasttricks.models._by_pixel import (
    batch_norm_by_pixel,
    is_by_pixel,
    max_pool_by_pixel,
    try_halve,
)
from fasttricks.models._kernels import kernels

sizes = st.integers(2, 7)


def images(*shape, seed=0):
    """Few values, so that windows have equal maxima."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(-3, 4, shape, generator=generator).float()


def by_pixel(x):
    return x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def test_only_that_format_is_by_pixel():
    x = torch.randn(4, 8, 5, 6)
    assert is_by_pixel(by_pixel(x))
    assert not is_by_pixel(x)
    assert not is_by_pixel(x.contiguous(memory_format=torch.channels_last))
    assert not is_by_pixel(by_pixel(torch.randn(1, 8, 5, 6)))  # channels_last too
    assert not is_by_pixel(by_pixel(x)[:, :, 1:, 1:])
    assert not is_by_pixel(torch.randn(4, 8))


@given(
    n=st.integers(2, 3), c=st.integers(2, 3), rows=sizes, columns=sizes,
    window=st.sampled_from([(2, 2), (1, 2), (2, 1)]),
)  # fmt: skip
def test_pooling_equals_torchs_and_ties_go_to_the_same_pixel(n, c, rows, columns, window):
    x = images(n, c, rows, columns)
    results = []
    for pool, make in ((F.max_pool2d, lambda t: t), (max_pool_by_pixel, by_pixel)):
        leaf = x.clone().requires_grad_(True)
        arguments = (window,) if pool is F.max_pool2d else window
        y = pool(make(leaf), *arguments)
        y.backward(images(*y.shape, seed=1))
        results.append((y, leaf.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
    assert results[1][0].permute(2, 3, 0, 1).is_contiguous()


def autograd_names(y):
    """The names of the functions that made y of the leaves."""
    names, waiting = set(), [y.grad_fn]
    while waiting:
        node = waiting.pop()
        names.add(node.name())
        waiting += [before for before, _ in node.next_functions if before is not None]
    return names


@pytest.mark.parametrize("pool", ["first", "last"])
def test_only_a_network_that_was_told_to_halves_by_our_own_pass(pool):
    norm = partial(nn.BatchNorm2d, track_running_stats=False)
    block = ConvNormAct(3, 8, norm=norm, act=nn.SiLU, pool=pool)
    x = channels_last(torch.randn(4, 3, 7, 7))
    plain = block(x)
    assert "_HalveBackward" not in autograd_names(plain)
    torch.func.grad(lambda t: block(t).sum())(x)  # which a function of ours would not let through
    assert use_winograd_(block) == 0
    quick = block(x)
    assert ("_HalveBackward" in autograd_names(quick)) == (kernels() is not None)
    torch.testing.assert_close(quick, plain)
    # in evaluation nothing has changed
    assert "_HalveBackward" not in autograd_names(block.eval()(x))


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


@pytest.mark.native
@given(
    n=st.integers(1, 3), c=st.integers(1, 40), rows=sizes, columns=sizes,
    make=st.sampled_from([by_pixel, channels_last]),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)  # fmt: skip
def test_our_own_halving_equals_torchs_and_keeps_the_format(n, c, rows, columns, make, dtype):
    x = images(n, c, rows, columns).to(dtype)
    results = []
    for halve_, format in ((F.max_pool2d, channels_last), (try_halve, make)):
        leaf = format(x.clone()).requires_grad_(True)
        y = halve_(leaf, 2) if halve_ is F.max_pool2d else halve_(leaf)
        results.append((y, *torch.autograd.grad(y, leaf, images(*y.shape, seed=1).to(dtype))))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)
        if make is by_pixel:
            assert found.permute(2, 3, 0, 1).is_contiguous()
        else:
            assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.native
def test_our_own_halving_takes_what_is_no_number_for_the_largest():
    nan, inf = float("nan"), float("inf")
    maps = [[[nan, 1], [2, 3]], [[1, 2], [nan, 3]], [[nan, nan], [3, 2]], [[-inf, -inf]] * 2]
    x = channels_last(torch.tensor([[[[*r] for r in rows] for rows in maps]]).float())
    results = []
    for halve_ in (lambda t: F.max_pool2d(t, 2), try_halve):
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
        y = halve_(leaf)
        y.sum().backward()
        results.append((y, leaf.grad))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.native
@pytest.mark.parametrize("make", [by_pixel, channels_last])
def test_our_own_halving_keeps_the_smallest_numbers_and_can_be_changed_in_place(make):
    x = make(torch.full((2, 20, 4, 4), -9e-41).bfloat16()).requires_grad_(True)
    y = try_halve(x)
    assert torch.equal(y, torch.full((2, 20, 2, 2), -9e-41).bfloat16())
    (grad,) = torch.autograd.grad(y, x, torch.full_like(y, 9e-41), retain_graph=True)
    assert torch.equal(grad[:, :, ::2, ::2], torch.full((2, 20, 2, 2), 9e-41).bfloat16())
    y += 1  # no view of something inside
    y.sum().backward()


def in_another_order(x):
    return x.transpose(0, 1).contiguous().transpose(0, 1)


@pytest.mark.native
@pytest.mark.parametrize("make", [by_pixel, channels_last])
def test_our_own_halving_takes_what_comes_back_in_another_order(make):
    x = make(images(2, 20, 5, 4)).requires_grad_(True)
    grad = images(2, 20, 2, 2, seed=1)
    (expected,) = torch.autograd.grad(F.max_pool2d(x, 2), x, grad)
    with torch.autograd.graph.saved_tensors_hooks(in_another_order, lambda t: t):
        y = try_halve(x)
    (found,) = torch.autograd.grad(y, x, in_another_order(grad))
    assert torch.equal(found, expected)


def test_our_own_halving_is_for_images_to_train_on(monkeypatch):
    x = channels_last(torch.randn(2, 3, 4, 4)).requires_grad_(True)
    assert (try_halve(x) is None) == (kernels() is None)
    for other in (
        x.detach(),
        x.double(),
        channels_last(x[:, :, :1]),
        x[:0],
        x[:, :, 1:, 1:],
        x.contiguous(memory_format=torch.contiguous_format),
        x.to("meta"),
    ):
        assert try_halve(other) is None
    monkeypatch.setattr("fasttricks.models._by_pixel.kernels", lambda: None)
    assert try_halve(x) is None


@pytest.mark.parametrize("training", [True, False])
def test_batch_norm_equals_torchs(training):
    torch.manual_seed(0)
    x = torch.randn(4, 8, 5, 6)
    grad = torch.randn(4, 8, 5, 6)
    results = []
    for run in (lambda norm, t: norm(t), lambda norm, t: batch_norm_by_pixel(norm, by_pixel(t))):
        norm = batch_norm(8, momentum=0.3).train(training)
        leaf = x.clone().requires_grad_(True)
        y = run(norm, leaf)
        y.backward(grad)
        assert norm.num_batches_tracked == training
        running = norm.running_mean, norm.running_var
        results.append((y, leaf.grad, norm.weight.grad, norm.bias.grad, *running))
    for expected, found in zip(*results, strict=True):
        torch.testing.assert_close(found, expected)
    assert is_by_pixel(results[1][0])


@pytest.mark.parametrize("size", [15, 14, 7, 3])
@pytest.mark.parametrize("pool", ["none", "first", "last"])
@pytest.mark.parametrize("ghost", [None, 2])
@pytest.mark.parametrize("native", [True, False])
def test_blocks_compute_the_same_and_pass_images_on_by_pixel(
    pool, size, ghost, native, monkeypatch
):
    if not native:
        for module in ("_by_pixel", "_norm_act", "_winograd_transforms"):
            monkeypatch.setattr(f"fasttricks.models.{module}.kernels", lambda: None)
    torch.manual_seed(0)
    norm = partial(batch_norm, ghost_batch_size=ghost)
    options = {"norm": norm, "act": nn.SiLU}
    plain = nn.Sequential(ConvNormAct(64, 64, pool=pool, **options), ConvNormAct(64, 64, **options))
    fast = copy.deepcopy(plain)
    assert use_winograd_(fast) == 2
    x = torch.randn(4, 64, size, size).contiguous(memory_format=torch.channels_last)
    results = []
    for blocks in (plain, fast):
        leaf = x.clone().requires_grad_(True)
        y = blocks(leaf)
        y.square().sum().backward()
        results.append([y, leaf.grad, *(p.grad for p in blocks.parameters())])
    for expected, found in zip(*results, strict=True):
        # Rounding makes another pixel a window's maximum now and then.
        assert (found - expected).norm() <= (1e-3 if pool == "none" else 1e-2) * expected.norm()
    running = [torch.cat([b.flatten() for b in blocks.buffers()]) for blocks in (plain, fast)]
    torch.testing.assert_close(*running, rtol=1e-4, atol=1e-4)
    between = fast[0](x)
    assert is_by_pixel(between) == (ghost is None and between.shape[-1] > 1)


def test_a_row_of_single_pixels_by_pixel():
    x = by_pixel(torch.randn(3, 4, 1, 6))
    assert is_by_pixel(x)
    torch.testing.assert_close(max_pool_by_pixel(x, 1, 2), F.max_pool2d(x.contiguous(), (1, 2)))
