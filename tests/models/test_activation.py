from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn

from fasttricks.models import ACTIVATIONS, make_activation


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_name_makes_a_new_module_that_keeps_the_shape(name):
    first, second = make_activation(name), make_activation(name)
    assert isinstance(first, nn.Module)
    assert first is not second
    assert first(torch.randn(2, 3, 4, 4)).shape == (2, 3, 4, 4)


def test_celu_is_the_formula_of_its_paper():
    x = torch.linspace(-2, 2, 101, dtype=torch.float64)
    alpha = 0.3
    expected = torch.where(x > 0, x, alpha * ((x / alpha).exp() - 1))
    torch.testing.assert_close(make_activation("celu", celu_alpha=alpha)(x), expected)


def test_celu_without_alpha_has_torchs_one():
    assert make_activation("celu").alpha == 1.0


@pytest.mark.parametrize("factory", [nn.SiLU, partial(nn.CELU, alpha=0.2), lambda: nn.PReLU(3)])
def test_classes_partials_and_functions_make_a_new_module_each_time(factory):
    first, second = make_activation(factory), make_activation(factory)
    assert type(first) is type(factory())
    assert first is not second


def test_unknown_name_lists_the_known_ones():
    with pytest.raises(ValueError, match=r"celu, elu, gelu, .*silu.*got act='swish'"):
        make_activation("swish")


def test_celu_alpha_with_another_activation_is_refused():
    with pytest.raises(ValueError, match=r"celu_alpha=0.3 with act='relu'"):
        make_activation("relu", celu_alpha=0.3)


@pytest.mark.parametrize("alpha", [0, -0.5, float("nan")])
def test_celu_alpha_must_be_positive(alpha):
    with pytest.raises(ValueError, match=f"celu_alpha={alpha}"):
        make_activation("celu", celu_alpha=alpha)


@pytest.mark.parametrize(
    ("act", "message"),
    [
        (nn.ReLU(), r"got the module ReLU\(\): give its class"),
        (3, "got act=3"),
        (torch.relu, "without arguments failed"),
        (lambda: 5, "which returned 5"),
    ],
)
def test_what_makes_no_module_is_refused(act, message):
    with pytest.raises(TypeError, match=message):
        make_activation(act)
