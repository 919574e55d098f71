"""What optimizers keep of each parameter, brought into the form that fused updates take."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


@torch.no_grad()
def match_layouts(optimizer: Optimizer) -> None:
    """Lay each tensor of the state out in memory as its parameter is, the values unchanged.

    Fused updates go through memory, and want or silently take all to have one layout: that of a
    momentum was another if it came from a run that was not in channels_last.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            fits = isinstance(value, Tensor) and value.shape == parameter.shape
            if fits and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


@torch.no_grad()
def begin_momenta(optimizer: Optimizer, group: dict[str, Any]) -> None:
    """Let the momenta of a group for SGD's fused update begin at 0, which makes no difference.

    It wants all or none, also once a parameter that was frozen begins to train.
    """
    if not (group.get("fused") and group.get("momentum")) or group.get("dampening"):
        return
    for parameter in group["params"]:
        if optimizer.state.get(parameter, {}).get("momentum_buffer") is None:
            optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
