"""What optimizers keep of each parameter: loaded, and in the form that fused updates take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

# How an optimizer computes, which may change from one machine to the next.
SWITCHES = ("fused", "foreach", "capturable", "differentiable")


def number_of(value: Any) -> Any:
    """Return the number in a tensor of one, and anything else as it is."""
    return value.item() if isinstance(value, Tensor) and value.numel() == 1 else value


def settings_of(optimizer: Optimizer) -> dict[str, Any]:
    """Return an optimizer's kind and its groups' numbers, by which one run is told from another."""
    left_out = ("params", *SWITCHES)
    groups = [
        {name: number_of(value) for name, value in group.items() if name not in left_out}
        for group in optimizer.param_groups
    ]
    return {"kind": type(optimizer).__name__, "groups": groups}


def load_optimizer(optimizer: Optimizer, state: dict[str, Any]) -> None:
    """Load a state, but keep how the optimizer computes, and its tensors, which are written.

    Such a tensor is a rate on a GPU; where the own rate is a number, the saved one becomes one.
    """
    before = [dict(group) for group in optimizer.param_groups]
    groups = [
        group | {name: own[name] for name in SWITCHES if name in own}
        for group, own in zip(state["param_groups"], before, strict=True)
    ]
    optimizer.load_state_dict({**state, "param_groups": groups})
    match_layouts(optimizer)
    with torch.no_grad():
        for group, own in zip(optimizer.param_groups, before, strict=True):
            for name in own.keys() & group.keys():
                value = own[name]
                if isinstance(value, Tensor):
                    group[name] = value.copy_(torch.as_tensor(group[name]))
                elif isinstance(value, int | float):
                    group[name] = number_of(group[name])


@torch.no_grad()
def match_layouts(optimizer: Optimizer) -> None:
    """Lay what a fused update reads out in memory as its parameters are, the values unchanged.

    Such updates go through memory, and want or silently take all to have one layout: that of a
    momentum was another if it came from a run that was not in channels_last.
    """
    for group in optimizer.param_groups:
        if group.get("fused"):
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                for name, value in state.items():
                    if _is_like(value, parameter) and value.stride() != parameter.stride():
                        state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def _is_like(value: Any, parameter: nn.Parameter) -> bool:
    return (
        type(value) is Tensor
        and value.shape == parameter.shape
        and value.layout == parameter.layout == torch.strided
        and value.device == parameter.device
    )


@torch.no_grad()
def begin_momenta(optimizers: Iterable[Optimizer]) -> None:
    """Let the momenta of SGD's fused update begin at 0, which makes no difference.

    It wants all or none, also once a layer that was frozen begins to train.
    """
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if not (group.get("fused") and group.get("momentum")) or group.get("dampening"):
                continue
            for parameter in group["params"]:
                state = optimizer.state.get(parameter, {})
                if parameter.requires_grad and state.get("momentum_buffer") is None:
                    optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
