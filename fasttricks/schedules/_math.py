"""The few operations that schedules need, each for a Python float and for a tensor.

They look at the type of the step, never at its value, so that a captured graph stays valid for all
steps.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
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


def half_cosine(fraction: Number) -> Number:
    """Return ``(1 - cos(pi * fraction)) / 2``: from 0 to 1, flat at both ends."""
    if isinstance(fraction, Tensor):
        return (1 - torch.cos(math.pi * fraction)) / 2
    return (1 - math.cos(math.pi * fraction)) / 2


def lerp(start: float, end: float, weight: Number) -> Number:
    """Return ``start`` at weight 0, ``end`` at weight 1, both exactly, never a value outside."""
    # start + (end - start) * weight would miss ``end`` by a rounding: a last rate of 0 might turn
    # out below 0.
    return clamp(start * (1 - weight) + end * weight, min(start, end), max(start, end))


class Curve:
    """A curve through points, held before the first and after the last.

    Args:
        steps: Where the points are, never falling; of several at one step the last holds.
        values: The value at each.
        smooth: Whether it goes from point to point by half a cosine rather than straight.
    """

    __slots__ = ("smooth", "steps", "values")

    def __init__(
        self, steps: Sequence[float], values: Sequence[float], *, smooth: bool = False
    ) -> None:
        self.steps = tuple(steps)
        self.values = tuple(float(value) for value in values)
        self.smooth = smooth

    def __call__(self, step: Number) -> Number:
        """Return the value at ``step``."""
        result = fill(step, self.values[0])
        for (left, start), (right, end) in pairwise(zip(self.steps, self.values, strict=True)):
            if right > left:
                weight = clamp((step - left) / (right - left), 0.0, 1.0)
                piece = lerp(start, end, half_cosine(weight) if self.smooth else weight)
            else:
                piece = fill(step, end)
            result = where(step < left, result, piece)
        return result
