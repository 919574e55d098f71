"""Changes of whole networks: other activations, batch norms folded away."""

from __future__ import annotations

import copy
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torch.utils._pytree import tree_leaves

from fasttricks.models._activation import ACTIVATIONS, Activation, make_activation
from fasttricks.models._by_pixel import ForCPU
from fasttricks.models._ghost_batch_norm import GhostBatchNorm2d
from fasttricks.models._winograd import WinogradConv2d

_KINDS = {type(make()) for name, make in ACTIVATIONS.items() if name != "identity"}
_KINDS |= {nn.CELU, nn.PReLU, nn.RReLU, nn.Hardtanh, nn.Softsign}

# Norms that do nothing else, as some subclasses do.
_NORMS = (nn.BatchNorm2d, GhostBatchNorm2d)


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
        new = make_activation(act, celu_alpha=celu_alpha).train(parent.training)
        beside = next(chain(parent.parameters(), model.parameters()), None)
        setattr(parent, name, new if beside is None else new.to(beside))
        if isinstance(parent, nn.TransformerEncoderLayer):
            parent.activation_relu_or_gelu = 0  # by which its fast path would take the old one
    return len(places)


def fuse(model: nn.Module, images: Tensor) -> nn.Module:
    """Return a copy for inference with batch norms folded into the convolutions before them.

    One pass over ``images`` shows which norm takes what which convolution gives, unchanged. A norm
    behind a pool or a sum stays, and so does one of a class of its own, which may do more.

    Args:
        model: The network; it stays as it is.
        images: Example images, as the network takes them.

    Returns:
        A copy in evaluation mode, whose outputs are equal but for rounding.

    Raises:
        ValueError: If the copy's outputs for ``images`` differ, as where a convolution's result is
            used elsewhere than in its norm too.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4))
        >>> fuse(model, torch.zeros(1, 3, 8, 8))[1]
        Identity()

    Reference:
        ``torch.nn.utils.fusion.fuse_conv_bn_eval``: W' = W g / s, b' = (b - m) g / s + beta, with
        s the square root of variance + eps.
    """
    fused = copy.deepcopy(model).eval()
    for module in fused.modules():  # by torch's way, that of a convolution with a bias
        if isinstance(module, WinogradConv2d):
            module.in_evaluation = False
        if isinstance(module, ForCPU):
            module.made_for_evaluation = False
    pairs, expected = _pairs(fused, images)
    names = {module: name for name, module in fused.named_modules()}
    for norm, conv in pairs:
        _set(fused, names[conv], fuse_conv_bn_eval(conv, norm))
        _set(fused, names[norm], nn.Identity())
    with torch.no_grad():
        found = fused(images)
    pairs_of_outputs = zip(tree_leaves(found), tree_leaves(expected), strict=True)
    if not all(_nearly_equal(one, other) for one, other in pairs_of_outputs):
        raise ValueError(
            "model must use the result of a convolution in its norm alone, got one whose outputs "
            "change where they are fused"
        )
    return fused


def _nearly_equal(one: Any, other: Any) -> bool:
    if not (isinstance(other, Tensor) and other.is_floating_point()):
        return True  # such as the shape of something
    rounding = 100 * torch.finfo(other.dtype).eps
    finite = other[other.isfinite()]
    largest = finite.abs().max() if finite.numel() else other.new_zeros(())
    near = (one - other).abs() <= rounding * (1 + largest)
    return bool((near | (one == other) | (one.isnan() & other.isnan())).all())


def _pairs(
    model: nn.Module, images: Tensor
) -> tuple[list[tuple[nn.BatchNorm2d, nn.Conv2d]], object]:
    """Each batch norm that takes what a convolution gave, with it; and the network's outputs."""
    # The tensors are kept, so that none of them takes the address of another; the version tells
    # whether an operation in place came between.
    given: dict[int, tuple[Tensor, int, nn.Conv2d]] = {}
    pairs: dict[nn.BatchNorm2d, nn.Conv2d] = {}
    calls: dict[nn.Module, int] = {}

    def after_conv(module: nn.Module, inputs: Any, output: Tensor) -> None:
        calls[module] = calls.get(module, 0) + 1
        if isinstance(module, nn.Conv2d):
            given[id(output)] = (output, output._version, module)

    def before_norm(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        calls[module] = calls.get(module, 0) + 1
        tensor, version, conv = given.get(id(inputs[0]), (None, 0, None))
        if tensor is None or conv is None or not isinstance(module, nn.BatchNorm2d):
            return
        # One of them may be computed, by a parametrization or pruning.
        if not {"weight", "bias"} <= conv._parameters.keys():
            return
        if tensor._version == version:
            pairs[module] = conv

    hooks = []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            hooks.append(module.register_forward_hook(after_conv))
        elif type(module) in _NORMS and module.running_mean is not None:
            hooks.append(module.register_forward_pre_hook(before_norm))
    try:
        with torch.no_grad():
            outputs = model(images)
    finally:
        for hook in hooks:
            hook.remove()
    # One that is called twice serves two places, and cannot be folded into one of them.
    return [pair for pair in pairs.items() if calls[pair[0]] == calls[pair[1]] == 1], outputs


def _set(model: nn.Module, name: str, new: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    setattr(model.get_submodule(parent), child, new)
