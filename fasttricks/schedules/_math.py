"""The few operations that schedules need, each for a Python float and for a tensor.

They look at the type of the step, never at its value, so that a captured graph stays valid for all
steps.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor

Number = TypeVar("Number", float, Tensor)


def as_floating(step: Tensor) -> Tensor:
    """Return whole-numbered steps in the device's widest float, floating ones as they are."""
    if step.is_complex():
        raise TypeError(f"step must be real, got a tensor with dtype={step.dtype}")
    if step.is_floating_point():
        return step
    return step.to(torch.float32 if step.device.type == "mps" else torch.float64)


def clamp(x: Number, low: float, high: float) -> Number:
    """Return ``x`` limited to ``low`` and ``high``."""
    if isinstance(x, Tensor):
        return x.clamp(low, high)
    return min(max(x, low), high)


def where(condition: bool | Tensor, x: Number, y: Number) -> Number:
    """Return ``x`` where the condition holds, else ``y``."""
    if isinstance(x, Tensor):
        return torch.where(cast(Tensor, condition), x, y)
    return x if condition else y


def floor(x: Number) -> Number:
    """Return the largest whole number up to ``x``."""
    if isinstance(x, Tensor):
        return x.floor()
    return float(math.floor(x))


def power(base: float, exponent: Number) -> Number:
    """Return ``base ** exponent``."""
    result: Number = base**exponent
    return result


def fill(like: Number, value: float) -> Number:
    """Return ``value`` in the form of ``like``."""
    if isinstance(like, Tensor):
        return torch.full_like(like, value)
    return float(value)


def mix(start: float, end: float, weight: Number) -> Number:
    """Return ``start`` at weight 0, ``end`` at weight 1, both exactly, never a value outside."""
    # start + (end - start) * weight would miss ``end`` by a rounding: a last rate of 0 might turn
    # out below 0.
    return clamp(start * (1 - weight) + end * weight, min(start, end), max(start, end))


def straight(fraction: Number) -> Number:
    """Return the fraction as it is: a straight line."""
    return fraction


def half_cosine(fraction: Number) -> Number:
    """Return ``(1 - cos(pi * fraction)) / 2``: from 0 to 1, flat at both ends."""
    if isinstance(fraction, Tensor):
        return (1 - torch.cos(math.pi * fraction)) / 2
    return (1 - math.cos(math.pi * fraction)) / 2


def interpolate(
    step: Number,
    points: tuple[Sequence[float], Sequence[float]],
    ease: Callable[[Number], Number] = straight,
) -> Number:
    """Return the value at ``step`` of the curve through ``points`` (steps, values)."""
    steps, values = points
    result = fill(step, values[0])
    for left, right, start, end in zip(steps[:-1], steps[1:], values[:-1], values[1:], strict=True):
        if right > left:
            piece = mix(start, end, ease(clamp((step - left) / (right - left), 0.0, 1.0)))
        else:
            piece = fill(step, end)
        result = where(step < left, result, piece)
    return result
