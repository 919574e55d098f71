"""CELU: values and gradients of the formula, for every float and layout, as a CPU computes them."""

from __future__ import annotations

import io
import math
import pickle
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import resnet9
from fasttricks.models._celu import CELU


@settings(deadline=None, max_examples=40)
@given(
    alpha=st.sampled_from([0.01, 0.075, 0.3, 1.0, 5.0]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16]),
    scale=st.sampled_from([1e-3, 1.0, 30.0]),
    channels_last=st.booleans(),
)
def test_values_and_gradients_are_those_of_the_formula(alpha, dtype, scale, channels_last):
    generator = torch.Generator().manual_seed(0)
    x = (scale * torch.randn(2, 3, 5, 4, generator=generator)).to(dtype)
    if channels_last:
        x = x.to(memory_format=torch.channels_last)
    ours, exact = x.clone().requires_grad_(), x.double()
    y = CELU(alpha)(ours)
    expected = torch.where(exact > 0, exact, alpha * torch.expm1(exact / alpha))
    step = torch.finfo(dtype).eps
    # rounded once in torch, a few times here: near 0 an error of alpha, elsewhere of the value
    torch.testing.assert_close(y.double(), expected, rtol=2 * step, atol=2 * alpha * step)
    assert (y.dtype, y.stride()) == (x.dtype, x.stride())
    weight = torch.randn(2, 3, 5, 4, generator=generator)
    y.backward(weight.to(dtype))
    slope = torch.where(exact > 0, 1.0, (exact / alpha).exp()) * weight.to(dtype).double()
    torch.testing.assert_close(ours.grad.double(), slope, rtol=4 * step, atol=8 * step)
    assert torch.equal(ours.detach(), x)


def test_gradients_of_both_orders_agree_with_finite_differences():
    x = torch.tensor([-2.0, -0.3, -0.01, 0.02, 1.5], dtype=torch.float64, requires_grad=True)
    act = CELU(0.3)
    assert torch.autograd.gradcheck(act, x)
    assert torch.autograd.gradgradcheck(act, x)


def test_the_ends_of_the_line():
    x = torch.tensor([-math.inf, -1e30, -0.0, math.inf, math.nan])
    y = CELU(0.075)(x)
    assert y[:4].tolist() == pytest.approx([-0.075, -0.075, 0.0, math.inf])
    assert y[4].isnan()


def test_it_is_a_torch_celu_that_compiles_exports_and_pickles():
    act = CELU(0.075)
    assert isinstance(act, nn.CELU)
    assert repr(act) == "CELU(alpha=0.075)"
    assert pickle.loads(pickle.dumps(act)).alpha == 0.075
    x = torch.randn(4, 3)
    graph = torch.export.export(act, (x,)).graph
    called = [str(node.target) for node in graph.nodes if node.op == "call_function"]
    assert called == ["aten.celu.default"]
    compiled = torch.compile(act, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), F.celu(x, 0.075))


def test_per_sample_gradients_through_torch_func():
    model = resnet9(3, width=2, frozen_scale=True).eval()
    parameters = dict(model.named_parameters())

    def loss(parameters, image):
        return torch.func.functional_call(model, parameters, (image[None],)).square().sum()

    images = torch.randn(3, 3, 8, 8)
    each = torch.func.vmap(torch.func.grad(loss), (None, 0))(parameters, images)
    alone = torch.func.grad(loss)(parameters, images[1])
    torch.testing.assert_close(each["head.weight"][1], alone["head.weight"])


def test_it_can_be_traced_by_jit_and_fx():
    x = torch.randn(2, 5)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # jit is deprecated
        traced = torch.jit.trace(CELU(0.1), x)
        torch.jit.save(traced, io.BytesIO())
    torch.testing.assert_close(traced(x), nn.CELU(0.1)(x))
    torch.testing.assert_close(torch.fx.symbolic_trace(CELU(0.1))(x), nn.CELU(0.1)(x))
