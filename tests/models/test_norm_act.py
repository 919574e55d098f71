"""Batch norm and activation in one pass, against torch's two in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import CELU, use_winograd_
from fasttricks.models._blocks import ConvNormAct, batch_norm
from fasttricks.models._by_pixel import is_by_pixel
from fasttricks.models._norm_act import act_by_pixel, norm_act_quickly
from fasttricks.models._speedrun import speedrun_net

ACTS = {
    "identity": nn.Identity(),
    "relu": nn.ReLU(),
    "silu": nn.SiLU(),
    "celu": CELU(0.3),
    "torch's celu": nn.CELU(0.075),
    "gelu": nn.GELU(),
}
DTYPES = [torch.float32, torch.bfloat16]
# As shares of the norm: fp32's rounding, and bf16's of what is written.
NEAR = {torch.float32: 1e-6, torch.bfloat16: 3e-3}


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def by_pixel(x):
    return x.permute(2, 3, 0, 1).contiguous().permute(2, 3, 0, 1)


def channels_last(x):
    return x.contiguous(memory_format=torch.channels_last)


def near(found, expected, most):
    return (found.double() - expected.double()).norm() <= most * expected.double().norm()


@pytest.mark.native
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("make", [by_pixel, channels_last])
@given(channels=st.integers(1, 70), images=st.integers(2, 5), size=st.integers(1, 9))
def test_it_equals_torchs_norm_and_activation(act, dtype, make, channels, images, size):
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    twin = copy.deepcopy(norm).double()
    x = (draw(images, channels, size, size + 1) * 2 + 3).to(dtype)
    grad = draw(*x.shape, seed=1).to(dtype)
    leaf = make(x).requires_grad_(True)
    y = norm_act_quickly(norm, ACTS[act], leaf)
    y.backward(grad)
    exact = x.detach().double().requires_grad_(True)
    expected = ACTS[act](twin(exact))
    expected.backward(grad.double())
    assert y.dtype == leaf.grad.dtype == dtype
    assert make(y).data_ptr() == y.data_ptr()  # it is laid so already
    assert near(y, expected, NEAR[dtype])
    # of few numbers, what is left of a gradient once its part along the norm is taken away is small
    scale = grad.double().norm() * twin.weight.abs().max() / twin.running_var.min().sqrt()
    assert (leaf.grad.double() - exact.grad).norm() <= 2 * NEAR[dtype] * scale
    for found, other in ((norm.weight, twin.weight), (norm.bias, twin.bias)):
        assert (found.grad.double() - other.grad).norm() <= NEAR[dtype] * grad.double().norm()
    for found, other in zip(norm.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(found.double(), other.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.native
@pytest.mark.parametrize("mean", [0.0, 1e4])
def test_statistics_are_exact_far_from_zero(mean):
    norm = nn.BatchNorm2d(16)
    x = channels_last(draw(8, 16, 9, 9) + mean).requires_grad_(True)
    y = norm_act_quickly(norm, nn.Identity(), x)
    expected = nn.BatchNorm2d(16).double()(x.double())
    assert near(y, expected, 1e-6 if mean == 0 else 1e-3)  # a number near 1e4 has two places
    channel = y.double().permute(1, 0, 2, 3).flatten(1)
    assert channel.mean(1).abs().max() < (1e-6 if mean == 0 else 1e-3)
    torch.testing.assert_close(
        channel.var(1, unbiased=False), torch.ones(16).double(), rtol=1e-4, atol=0
    )


@pytest.mark.native
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", DTYPES)
def test_activations_are_torchs_everywhere(act, dtype):
    values = torch.cat(
        [torch.linspace(-30, 30, 5000), torch.tensor([0.0, -0.0, 1e-3, 100, -100, 1e9, -1e9])]
    )
    x = channels_last(values.to(dtype).view(1, 1, 1, -1).expand(2, 16, -1, -1))
    expected = ACTS[act](x.double())
    found = act_by_pixel(ACTS[act], x).double()
    rounding = 1e-6 if dtype == torch.float32 else 2.0**-8
    assert (
        (found - expected).abs()
        <= rounding * expected.abs() + (1e-6 if dtype == torch.float32 else 1e-4)
    ).all()
    odd = torch.full((2, 16, 1, 1), float("nan"), dtype=dtype)
    assert act_by_pixel(ACTS[act], channels_last(odd)).isnan().all()


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@given(
    channels=st.integers(1, 50),
    images=st.integers(1, 19),
    rows=st.integers(1, 9),
    columns=st.integers(1, 70),
)
def test_an_activation_alone_gives_images_by_pixel(channels, images, rows, columns, dtype):
    x = channels_last(draw(images, channels, rows, columns).to(dtype)).requires_grad_(True)
    act = nn.SiLU()
    y = act_by_pixel(act, x)
    assert y.permute(2, 3, 0, 1).is_contiguous()
    assert near(y, act(x), NEAR[dtype])
    grad = draw(*x.shape, seed=1).to(dtype)
    (found,) = torch.autograd.grad(y, x, grad)
    (expected,) = torch.autograd.grad(act(x), x, grad)
    torch.testing.assert_close(found, expected)


@pytest.mark.native
def test_a_norm_may_have_no_weights_or_no_statistics_and_frozen_inputs():
    x = channels_last(draw(4, 8, 5, 5))
    for options in ({"affine": False}, {"track_running_stats": False}):
        norm = nn.BatchNorm2d(8, **options)
        twin = copy.deepcopy(norm)
        leaf = x.clone(memory_format=torch.preserve_format).requires_grad_(True)
        torch.testing.assert_close(norm_act_quickly(norm, nn.ReLU(), leaf), twin(leaf).relu())
        assert (
            all(map(torch.equal, norm.buffers(), twin.buffers())) or norm.running_mean is not None
        )
    norm = batch_norm(8, frozen_scale=True)
    norm_act_quickly(norm, nn.ReLU(), x).sum().backward()
    assert norm.weight.grad is None
    assert norm.bias.grad is not None


def others():
    """What the passes are not for: the norm, the activation, the images."""
    norm, act = nn.BatchNorm2d(8), nn.SiLU()
    x = channels_last(draw(4, 8, 5, 5)).requires_grad_(True)
    return {
        "evaluation": (nn.BatchNorm2d(8).eval(), act, x),
        "another norm": (batch_norm(8, ghost_batch_size=2), act, x),
        "no norm": (nn.Identity(), act, x),
        "a cumulative average": (nn.BatchNorm2d(8, momentum=None), act, x),
        "float64 parameters": (nn.BatchNorm2d(8).double(), act, x),
        "another activation": (norm, nn.Tanh(), x),
        "in place": (norm, nn.SiLU(inplace=True), x),
        "tanh's GELU": (norm, nn.GELU(approximate="tanh"), x),
        "float64": (norm, act, x.double()),
        "rows first": (norm, act, x.contiguous()),
        "other channels": (nn.BatchNorm2d(7), act, x),
        "a number a channel": (norm, act, x[:1, :, :1, :1]),
        "empty": (norm, act, x[:0]),
    }


@pytest.mark.parametrize("why", others())
def test_elsewhere_there_is_none(why):
    assert norm_act_quickly(*others()[why]) is None


def test_without_gradients_or_a_compiler_there_is_none(monkeypatch):
    norm, act, x = nn.BatchNorm2d(8), nn.SiLU(), channels_last(draw(4, 8, 5, 5))
    with torch.no_grad():
        assert norm_act_quickly(norm, act, x) is None
    assert act_by_pixel(nn.Tanh(), x) is None
    assert act_by_pixel(act, x.contiguous()) is None
    assert act_by_pixel(act, channels_last(draw(1, 1025, 1, 2))) is None
    monkeypatch.setattr("fasttricks.models._norm_act.kernels", lambda: None)
    assert norm_act_quickly(norm, act, x) is None
    assert act_by_pixel(act, x) is None


@pytest.mark.native
def test_hooks_on_a_blocks_norm_or_activation_are_called():
    for name in ("norm", "act"):
        block = ConvNormAct(8, 8, norm=batch_norm, act=nn.SiLU)
        use_winograd_(block)
        x = channels_last(draw(4, 8, 5, 5))
        assert "_NormActBackward" in block(x).grad_fn.name()
        seen = []
        getattr(block, name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        block(x)
        assert seen == [1]


@pytest.mark.native
@pytest.mark.parametrize("hook", [False, True])
def test_whitened_images_go_to_the_first_convolution_by_pixel(hook):
    model = speedrun_net(widths=(64, 64, 64))
    model.get_parameter("whiten.bias").requires_grad_(False)
    twin = copy.deepcopy(model)
    use_winograd_(model)
    seen, went = [], []
    if hook:
        model.act.register_forward_hook(lambda *_: seen.append(1))
    halved = model.groups[0][0].conv.halved
    model.groups[0][0].conv.halved = lambda x: went.append(is_by_pixel(x)) or halved(x)
    x = channels_last(draw(4, 3, 20, 20))
    torch.testing.assert_close(model(x), twin(x), rtol=1e-3, atol=1e-3)
    assert went == [not hook]
    assert seen == [1] * hook
