"""Changes of whole networks: other activations, batch norms folded away."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from fasttricks.models._activation import ACTIVATIONS, Activation, make_activation

_KINDS = {type(make()) for name, make in ACTIVATIONS.items() if name != "identity"}
_KINDS |= {nn.CELU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Softsign}


def replace_activation_(
    model: nn.Module, act: Activation, *, celu_alpha: float | None = None
) -> int:
    """Put another activation in the place of every one that is a module, in place.

    Works on any network whose activations are modules, torchvision's and timm's included; what is
    called as a function (``F.relu``) is out of reach. Sigmoids stay, which are gates, as those of
    squeeze-and-excitation.

    Args:
        model: The network.
        act: A name of ``ACTIVATIONS``, a module class, or a callable that returns a new module.
        celu_alpha: Smoothing of CELU, only with ``act="celu"``. None is torch's 1.

    Returns:
        How many were replaced.

    Raises:
        ValueError: If ``act`` isn't known, or the network has no activation to replace.
        TypeError: If ``act`` is no activation.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(inplace=True), nn.Linear(3, 2))
        >>> replace_activation_(model, "celu", celu_alpha=0.075)
        1
        >>> model[1]
        CELU(alpha=0.075)
    """
    make_activation(act, celu_alpha=celu_alpha)  # raises before anything is changed
    places = [
        (parent, name)
        for parent in list(model.modules())
        for name, child in parent._modules.items()  # named_children leaves repeated ones out
        if type(child) in _KINDS
    ]
    if not places:
        raise ValueError(
            f"model must have an activation that is a module, got {type(model).__name__} without"
        )
    for parent, name in places:
        new = make_activation(act, celu_alpha=celu_alpha)
        setattr(parent, name, new.train(parent.training))
    return len(places)


def fuse(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy for inference with batch norms folded into the convolutions before them.

    One pass over ``images`` shows which norm takes what which convolution gives. A norm behind a
    pool stays. The network must use a convolution's result in its norm alone, as networks do.

    Args:
        model: The network; it stays as it is.
        images: Example images, as the network takes them.

    Returns:
        A copy in evaluation mode, whose outputs are equal but for rounding.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> fuse(model, torch.zeros(1, 3, 8, 8))[1]
        Identity()

    Reference:
        ``torch.nn.utils.fusion.fuse_conv_bn_eval``: W' = W g / s, b' = (b - m) g / s + beta, with
        s the square root of variance + eps.
    """
    fused = copy.deepcopy(model).eval()
    pairs = _pairs(fused, images)
    names = {module: name for name, module in fused.named_modules()}
    for norm, conv in pairs:
        _set(fused, names[conv], fuse_conv_bn_eval(conv, norm))
        _set(fused, names[norm], nn.Identity())
    return fused


def _pairs(model: nn.Module, images: Tensor) -> list[tuple[nn.BatchNorm2d, nn.Conv2d]]:
    """Each batch norm that takes the very tensor a convolution gave, with that convolution."""
    # The tensors are kept, so that none of them takes the address of another.
    given: dict[int, tuple[Tensor, nn.Conv2d]] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    calls: dict[nn.Module, int] = {}

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            given[id(output)] = (output, module)

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.BatchNorm2d) and id(inputs[0]) in given:
            pairs[module] = given[id(inputs[0])][1]

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif isinstance(module, nn.BatchNorm2d):
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad():
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    # One that is called twice serves two places, and cannot be folded into one of them.
    return [pair for pair in pairs.items() if calls[pair[0]] == calls[pair[1]] == 1]


def _set(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
