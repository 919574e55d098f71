"""Arguments that are one number for each channel, or one for all: a mean, a fill."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttricks._checks import check_number


def channel_numbers(name: str, values: object) -> tuple[float, ...]:
    """The numbers of an argument that is a number or a sequence of numbers."""
    if hasattr(values, "tolist"):  # of a tensor or an array
        values = values.tolist()
    numbers = tuple(values) if isinstance(values, Sequence) else (values,)
    if not numbers:
        raise ValueError(f"{name} must have at least one number, got {name}={values!r}")
    for number in numbers:
        check_number(name, number)
    return numbers


def check_fits_channels(name: str, numbers: Sequence[float], channels: int) -> None:
    """Raise unless there is one number for each channel, or one for all."""
    if len(numbers) not in (1, channels):
        raise ValueError(
            f"{name} must have one number for each channel or one for all, "
            f"got {len(numbers)} numbers and images of {channels} channels"
        )


def constants_on(device: torch.device, numbers: Sequence[float], *, dtype: torch.dtype) -> Tensor:
    """The numbers as a 1-D tensor on ``device``.

    Made there, number by number: a copy from the host would wait for the device's queue to drain.
    """
    if device.type == "cpu":
        return torch.tensor(numbers, dtype=dtype, device=device)
    return torch.stack([torch.full((), n, dtype=dtype, device=device) for n in numbers])
