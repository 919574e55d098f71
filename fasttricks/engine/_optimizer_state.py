"""What optimizers keep of each parameter, brought into the form that fused updates take."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


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
