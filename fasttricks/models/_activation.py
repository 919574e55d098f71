"""The ``act`` option of every builder: a name, or anything that makes a module."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from types import MappingProxyType
from typing import TypeAlias

from torch import nn

from fasttricks._checks import check_positive
from fasttricks.models._celu import CELU

Activation: TypeAlias = str | Callable[[], nn.Module]

ACTIVATIONS: Mapping[str, Callable[[], nn.Module]] = MappingProxyType(
    {
        "celu": CELU,
        "elu": nn.ELU,
        "gelu": nn.GELU,
        "gelu_tanh": partial(nn.GELU, approximate="tanh"),
        "hardswish": nn.Hardswish,
        "identity": nn.Identity,
        "leaky_relu": nn.LeakyReLU,
        "mish": nn.Mish,
        "relu": nn.ReLU,
        "relu6": nn.ReLU6,
        "selu": nn.SELU,
        "silu": nn.SiLU,
        "softplus": nn.Softplus,
        "tanh": nn.Tanh,
    }
)


def make_activation(act: Activation = "relu", *, celu_alpha: float | None = None) -> nn.Module:
    """Make a new activation module from a name or from a class.

    Every call returns a new module, so that one with weights (``nn.PReLU``) is never shared by
    two layers. The smoothing of CELU, ``max(0, x) + min(0, alpha * (exp(x / alpha) - 1))``, has
    its own argument because the best value depends on the network around it.

    Args:
        act: A name of ``ACTIVATIONS``, or a callable without arguments that returns a module:
            ``nn.GELU``, ``functools.partial(nn.LeakyReLU, 0.1)``.
        celu_alpha: ``alpha`` of CELU, above 0; only with ``act="celu"``. None is torch's 1.

    Returns:
        A new module.

    Raises:
        ValueError: For a name that isn't known, or ``celu_alpha`` with another activation.
        TypeError: If ``act`` is neither a name nor a callable that returns a module.

    Example:
        >>> make_activation("celu", celu_alpha=0.075)
        CELU(alpha=0.075)
        >>> make_activation(nn.SiLU)
        SiLU()

    Reference:
        Barron, "Continuously Differentiable Exponential Linear Units", arXiv 1704.07483.
    """
    if celu_alpha is not None:
        check_positive("celu_alpha", celu_alpha)
        if act != "celu":
            raise ValueError(
                'celu_alpha applies to act="celu" only, '
                f"got celu_alpha={celu_alpha} with act={act!r}"
            )
        return CELU(celu_alpha)
    if isinstance(act, str):
        return _known(act)()
    return _made_by(act)


def _known(name: str) -> Callable[[], nn.Module]:
    try:
        return ACTIVATIONS[name]
    except KeyError:
        known = ", ".join(ACTIVATIONS)
        raise ValueError(
            f"act must be one of {known}, or a module class such as nn.GELU, got act={name!r}"
        ) from None


def _made_by(factory: object) -> nn.Module:
    rule = "act must be a name, or a module class or other callable that returns a new nn.Module"
    if isinstance(factory, nn.Module):
        # It could hold weights, and one module in every layer would share them.
        raise TypeError(f"{rule}, got the module {factory!r}: give its class or a partial instead")
    if not callable(factory):
        raise TypeError(f"{rule}, got act={factory!r}")
    try:
        made = factory()
    except TypeError as error:
        raise TypeError(
            f"{rule}; calling act={factory!r} without arguments failed: {error}"
        ) from error
    if not isinstance(made, nn.Module):
        raise TypeError(f"{rule}, got act={factory!r}, which returned {made!r}")
    return made
