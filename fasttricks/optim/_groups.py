"""Which parameters get which rate, decay and optimizer."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn import Parameter

from fasttricks._checks import check_non_negative


def parameter_groups(
    model: nn.Module, *, lr: float, weight_decay: float, bias_lr: float | None = None
) -> list[dict[str, Any]]:
    """Split a model's trainable parameters in two groups for one optimizer.

    Weights of convolutions and linear layers decay; norms' scales and all biases, whose decay only
    shifts what the next layer takes back, do not, and may have a rate of their own.

    Args:
        model: The module.
        lr: Rate of the weights, at least 0.
        weight_decay: Decay of the weights, at least 0.
        bias_lr: Rate of scales and biases; None is ``lr``. The speed records take 64 times ``lr``.

    Returns:
        The groups that are not empty, weights first.

    Raises:
        ValueError: If a number is negative.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))
        >>> groups = parameter_groups(model, lr=0.1, weight_decay=5e-4)
        >>> [(len(group["params"]), group["weight_decay"]) for group in groups]
        [(1, 0.0005), (3, 0.0)]

    Reference:
        Goyal et al. 2017 (arXiv 1706.02677), section 5.3; He et al. 2019, "Bag of Tricks"
        (arXiv 1812.01187), section 3.1; the bias rate: Page 2019, "Bag of Tricks".
    """
    check_non_negative("lr", lr)
    check_non_negative("weight_decay", weight_decay)
    if bias_lr is not None:
        check_non_negative("bias_lr", bias_lr)
    # Scales of these may have several dimensions.
    of_norms = {
        id(p)
        for module in model.modules()
        if isinstance(module, nn.LayerNorm | nn.RMSNorm)
        for p in module.parameters(recurse=False)
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    weights = [p for p in trainable if p.ndim > 1 and id(p) not in of_norms]
    others = [p for p in trainable if p.ndim <= 1 or id(p) in of_norms]
    groups = [
        {"params": weights, "lr": lr, "weight_decay": weight_decay},
        {"params": others, "lr": lr if bias_lr is None else bias_lr, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def split_for_muon(model: nn.Module) -> tuple[list[Parameter], list[Parameter]]:
    """Split a model's trainable parameters in those for ``Muon`` and the rest.

    Muon takes the weights of convolutions. Heads, norms and biases stay with SGD or AdamW: a head's
    rows are no hidden matrix, and vectors have no directions to make orthogonal.

    Args:
        model: The module.

    Returns:
        (convolutions' weights, all others), together all trainable parameters.

    Example:
        >>> model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Flatten(), nn.Linear(8, 2))
        >>> muon, rest = split_for_muon(model)
        >>> len(muon), len(rest)
        (1, 3)

    Reference:
        Jordan 2024, "Muon: an optimizer for hidden layers", and airbench94_muon.
    """
    convolutions = {
        id(module.weight)
        for module in model.modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    }
    trainable = [p for p in model.parameters() if p.requires_grad]
    muon = [p for p in trainable if id(p) in convolutions]
    return muon, [p for p in trainable if id(p) not in convolutions]
