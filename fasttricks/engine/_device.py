"""The choice of a device by name, and a model's."""

from __future__ import annotations

import torch
from torch import nn

from fasttricks._checks import check_choice

DEVICES = ("auto", "cuda", "mps", "cpu")


def choose_device(name: str = "auto") -> str:
    """Return the device to use: the one that is named, or with "auto" the fastest that is there.

    Args:
        name: "auto" (default: CUDA, else Apple's MPS, else the CPU), "cuda", "mps" or "cpu".

    Returns:
        "cuda", "mps" or "cpu".

    Raises:
        ValueError: If the name is unknown, or that device is not available here.

    Example:
        >>> choose_device("cpu")
        'cpu'
    """
    check_choice("device", name, DEVICES)
    available = {
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if name == "auto":
        return next(device for device, is_there in available.items() if is_there)
    if not available[name]:
        raise ValueError(
            f"device must be available, got device={name!r}, which torch {torch.__version__} does "
            "not find here; use device='cpu' or 'auto'"
        )
    return name


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter; the CPU if it has none."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
