"""Batch norm and activation in one pass, against torch's two in float64."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import CELU, use_winograd_
from fasttricks.models._blocks import ConvNormAct, batch_norm
from fasttricks.models._by_pixel import is_by_pixel
from fasttricks.models._norm_act import act_by_pixel, try_norm_act
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
@given(
    channels=st.sampled_from([16, 32, 48, 304]), images=st.integers(2, 5), size=st.integers(1, 9)
)
def test_it_equals_torchs_norm_and_activation(act, dtype, make, channels, images, size):
    torch.manual_seed(channels)
    norm = nn.BatchNorm2d(channels)
    nn.init.uniform_(norm.weight, 0.5, 2)
    nn.init.normal_(norm.bias)
    twin = copy.deepcopy(norm).double()
    x = (draw(images, channels, size, size + 1) * 2 + 3).to(dtype)
    grad = draw(*x.shape, seed=1).to(dtype)
    leaf = make(x).requires_grad_(True)
    y = try_norm_act(norm, ACTS[act], leaf)
    y.backward(grad)
    exact = x.detach().double().requires_grad_(True)
    normalized = twin(exact)
    assume(act != "relu" or normalized.abs().min() > 1e-5)  # whose slope jumps there
    expected = ACTS[act](normalized)
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
    y = try_norm_act(norm, nn.Identity(), x)
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
        [
            torch.linspace(-30, 30, 5000),
            torch.tensor([0.0, -0.0, 1e-3, 100, -100, 1e9, -1e9, 3e38, -3e38]),
        ]
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
@pytest.mark.parametrize("why", ["no weights", "no statistics", "frozen statistics"])
def test_statistics_are_followed_as_torch_does(why):
    x = channels_last(draw(4, 16, 5, 5)).requires_grad_(True)
    norm = nn.BatchNorm2d(
        16, affine=why != "no weights", track_running_stats=why != "no statistics"
    )
    norm.track_running_stats = why == "no weights"
    twin = copy.deepcopy(norm)
    torch.testing.assert_close(try_norm_act(norm, nn.ReLU(), x), twin(x).relu())
    found, expected = dict(norm.named_buffers()), dict(twin.named_buffers())
    assert len(found) == (0 if why == "no statistics" else 3)
    torch.testing.assert_close(found, expected)


@pytest.mark.native
@pytest.mark.parametrize("frozen", ["input", "scale", "both parameters", "nothing"])
def test_gradients_come_to_what_needs_them(frozen):
    x = channels_last(draw(4, 16, 5, 5)).requires_grad_(frozen != "input")
    norm = batch_norm(16, frozen_scale=frozen in ("scale", "both parameters"))
    norm.bias.requires_grad_(frozen != "both parameters")
    wanted = [t for t in (x, norm.weight, norm.bias) if t.requires_grad]
    # a sum's gradient has no memory of its own
    found = torch.autograd.grad(try_norm_act(norm, nn.SiLU(), x).sum(), wanted)
    expected = torch.autograd.grad(nn.SiLU()(norm(x)).sum(), wanted)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.native
@pytest.mark.parametrize("make", [by_pixel, channels_last])
def test_what_is_kept_may_come_back_in_another_order(make):
    norm, leaf = nn.BatchNorm2d(16), make(draw(3, 16, 5, 6)).requires_grad_(True)
    grads = []
    for pack in (lambda t: t, lambda t: t.clone(memory_format=torch.contiguous_format)):
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            y = try_norm_act(norm, nn.GELU(), leaf)
        grads.append(torch.autograd.grad(y.square().sum(), leaf)[0])
    assert torch.equal(*grads)


@pytest.mark.native
def test_torchs_default_dtype_and_device_do_not_matter():
    norm, x = nn.BatchNorm2d(16), channels_last(draw(4, 16, 5, 5)).requires_grad_(True)
    expected = try_norm_act(norm, nn.SiLU(), x)
    try:
        for dtype in (torch.float64, torch.bfloat16):
            torch.set_default_dtype(dtype)
            y = try_norm_act(norm, nn.SiLU(), x)
            assert torch.equal(y, expected)
            y.sum().backward()
    finally:
        torch.set_default_dtype(torch.float32)
    with torch.device("meta"):
        assert torch.equal(try_norm_act(norm, nn.SiLU(), x), expected)


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("channels", [16, 48, 304])
def test_nothing_is_written_past_the_end(dtype, channels, monkeypatch):
    guards = []

    def guarded(like, shape, *, by_pixel, dtype=None):
        memory = torch.full((math.prod(shape) + 64,), 7.0, dtype=dtype or like.dtype)
        guards.append(memory[-64:])
        n, c, h, w = shape
        if by_pixel:
            return memory[:-64].view(h, w, n, c).permute(2, 3, 0, 1)
        return memory[:-64].view(n, h, w, c).permute(0, 3, 1, 2)

    monkeypatch.setattr("fasttricks.models._norm_act.empty_images", guarded)
    x = channels_last(draw(3, channels, 5, 7).to(dtype)).requires_grad_(True)
    try_norm_act(nn.BatchNorm2d(channels), nn.SiLU(), x).sum().backward()
    act_by_pixel(nn.SiLU(), x)
    assert len(guards) == 3
    for guard in guards:
        assert torch.equal(guard, torch.full_like(guard, 7))


@pytest.mark.native
@pytest.mark.parametrize("dtype", DTYPES)
def test_any_number_of_threads_gives_the_same_bits(dtype):
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            norm, x = nn.BatchNorm2d(48), by_pixel(draw(7, 48, 9, 8).to(dtype)).requires_grad_(True)
            y = try_norm_act(norm, nn.SiLU(), x)
            y.square().sum().backward()
            results.append((y, x.grad, norm.weight.grad, norm.bias.grad, norm.running_var))
        finally:
            torch.set_num_threads(1)
    assert all(map(torch.equal, *results))


def others():
    """What the passes are not for: the norm, the activation, the images."""
    norm, act = nn.BatchNorm2d(16), nn.SiLU()
    x = channels_last(draw(4, 16, 5, 5)).requires_grad_(True)
    return {
        "evaluation": (nn.BatchNorm2d(16).eval(), act, x),
        "another norm": (batch_norm(16, ghost_batch_size=2), act, x),
        "no norm": (nn.Identity(), act, x),
        "a cumulative average": (nn.BatchNorm2d(16, momentum=None), act, x),
        "float64 parameters": (nn.BatchNorm2d(16).double(), act, x),
        "another activation": (norm, nn.Tanh(), x),
        "in place": (norm, nn.SiLU(inplace=True), x),
        "tanh's GELU": (norm, nn.GELU(approximate="tanh"), x),
        "float64": (norm, act, x.double()),
        "rows first": (norm, act, x.contiguous()),
        "other channels": (nn.BatchNorm2d(32), act, x),
        "a part of a vector": (nn.BatchNorm2d(24), act, channels_last(draw(4, 24, 5, 5))),
        "a number a channel": (norm, act, x[:1, :, :1, :1]),
        "empty": (norm, act, x[:0]),
    }


@pytest.mark.parametrize("why", others())
def test_elsewhere_there_is_none(why):
    assert try_norm_act(*others()[why]) is None


def test_without_gradients_or_a_compiler_there_is_none(monkeypatch):
    norm, act, x = nn.BatchNorm2d(16), nn.SiLU(), channels_last(draw(4, 16, 5, 5))
    with torch.no_grad():
        assert try_norm_act(norm, act, x) is None
    assert act_by_pixel(nn.Tanh(), x) is None
    assert act_by_pixel(act, x.contiguous()) is None
    assert act_by_pixel(act, channels_last(draw(1, 1025, 1, 2))) is None
    monkeypatch.setattr("fasttricks.models._norm_act.kernels", lambda: None)
    assert try_norm_act(norm, act, x) is None
    assert act_by_pixel(act, x) is None


@pytest.mark.native
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("act", ACTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_to_evaluate_it_is_torchs_by_the_running_statistics(act, dtype, affine):
    norm = nn.BatchNorm2d(32, affine=affine)
    for _ in range(3):
        norm(2 * draw(8, 32, 5, 5).float() + 1)
    norm.eval()
    before = copy.deepcopy(norm.state_dict())
    x = channels_last(draw(4, 32, 5, 5)).to(dtype)
    with torch.no_grad():
        found = try_norm_act(norm, ACTS[act], x)
        expected = ACTS[act](norm(x.double().float()).to(dtype)).float()
    assert found.dtype == dtype
    bound = 1e-5 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(found.float(), expected, rtol=bound, atol=bound)
    for name, value in norm.state_dict().items():
        assert torch.equal(value, before[name])
    assert try_norm_act(norm, ACTS[act], x) is None  # with gradients it is torch's
    with torch.no_grad():
        assert (
            try_norm_act(nn.BatchNorm2d(32, track_running_stats=False).eval(), nn.SiLU(), x) is None
        )


@pytest.mark.native
def test_hooks_on_a_blocks_norm_or_activation_are_called():
    for name in ("norm", "act"):
        block = ConvNormAct(16, 16, norm=batch_norm, act=nn.SiLU)
        use_winograd_(block)
        x = channels_last(draw(4, 16, 5, 5))
        assert "_NormActBackward" in block(x).grad_fn.name()
        seen = []
        getattr(block, name).register_forward_hook(lambda *_, seen=seen: seen.append(1))
        block(x)
        assert seen == [1]


@pytest.mark.native
def test_a_hook_on_all_modules_or_another_forward_is_called():
    block = ConvNormAct(16, 16, norm=batch_norm, act=nn.SiLU)
    use_winograd_(block)
    x, seen = channels_last(draw(4, 16, 5, 5)), []
    handle = nn.modules.module.register_module_forward_hook(lambda m, *_: seen.append(type(m)))
    try:
        block(x)
    finally:
        handle.remove()
    assert {nn.BatchNorm2d, nn.SiLU} <= set(seen)
    block.norm.forward = lambda x: torch.zeros_like(x)
    assert not block(x).any()


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
