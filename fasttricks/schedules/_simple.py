"""Schedules of one idea each: constant, linear, cosine, warm-up, step decay, piecewise linear."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from fasttricks._checks import (
    check_fraction,
    check_integer,
    check_non_negative,
    check_number,
    check_positive,
)
from fasttricks.schedules._base import Schedule
from fasttricks.schedules._math import (
    Curve,
    Number,
    clamp,
    fill,
    floor,
    power,
)


@dataclass(frozen=True, repr=False)
class _Constant(Schedule):
    _call = "constant"
    value: float

    def _value(self, step: Number) -> Number:
        return fill(step, self.value)

    @property
    def length(self) -> int | None:
        return 1


def constant(value: float) -> Schedule:
    """The same value at every step.

    Args:
        value: The value, at least 0.

    Raises:
        ValueError: If ``value`` is negative or not finite.

    Example:
        >>> constant(0.1)(1000)
        0.1
    """
    check_non_negative("value", value)
    return _Constant(value)


@dataclass(frozen=True, repr=False)
class _Linear(Schedule):
    _call = "linear"
    start: float
    end: float
    total_steps: int
    _curve: Curve = field(init=False, compare=False)

    def __post_init__(self) -> None:
        curve = Curve((0, self.total_steps - 1), (self.start, self.end))
        object.__setattr__(self, "_curve", curve)

    def _value(self, step: Number) -> Number:
        return self._curve(step)

    @property
    def length(self) -> int | None:
        return self.total_steps


def linear(start: float, end: float, *, total_steps: int) -> Schedule:
    """A straight line: ``start + (end - start) * step / (total_steps - 1)``, then held.

    Args:
        start: The value of update 0, at least 0.
        end: The value of update ``total_steps - 1`` and of all later ones, at least 0.
        total_steps: Number of updates, at least 1 (with 1, the only update uses ``end``).

    Raises:
        ValueError: If a value is negative or not finite, or ``total_steps`` below 1.

    Example:
        >>> linear(1.0, 0.0, total_steps=5)(3)
        0.25
    """
    _check_ramp(start, end, total_steps)
    return _Linear(start, end, total_steps)


@dataclass(frozen=True, repr=False)
class _Cosine(_Linear):
    _call = "cosine"

    def __post_init__(self) -> None:
        curve = Curve((0, self.total_steps - 1), (self.start, self.end), smooth=True)
        object.__setattr__(self, "_curve", curve)


def cosine(start: float, end: float, *, total_steps: int) -> Schedule:
    """Half a cosine from ``start`` to ``end``, then held.

    ``end + (start - end) * (1 + cos(pi * step / (total_steps - 1))) / 2``: flat at both ends.

    Args:
        start: The value of update 0, at least 0.
        end: The value of update ``total_steps - 1`` and of all later ones, at least 0.
        total_steps: Number of updates, at least 1 (with 1, the only update uses ``end``).

    Raises:
        ValueError: If a value is negative or not finite, or ``total_steps`` below 1.

    Example:
        >>> cosine(0.4, 0.0, total_steps=101)(50)
        0.2

    Reference:
        Loshchilov and Hutter, SGDR, arXiv 1608.03983, section 3, equation 5, without restarts.
    """
    _check_ramp(start, end, total_steps)
    return _Cosine(start, end, total_steps)


def _check_ramp(start: float, end: float, total_steps: int) -> None:
    check_non_negative("start", start)
    check_non_negative("end", end)
    check_integer("total_steps", total_steps, minimum=1)


@dataclass(frozen=True, repr=False)
class _Warmup(Schedule):
    _call = "warmup"
    value: float
    total_steps: int
    start: float | None = None
    _curve: Curve = field(init=False, compare=False)

    def __post_init__(self) -> None:
        start = self.value / self.total_steps if self.start is None else self.start
        curve = Curve((0, self.total_steps - 1), (start, self.value))
        object.__setattr__(self, "_curve", curve)

    def _value(self, step: Number) -> Number:
        return self._curve(step)

    @property
    def length(self) -> int | None:
        return self.total_steps


def warmup(value: float, *, total_steps: int, start: float | None = None) -> Schedule:
    """A straight rise to ``value`` over ``total_steps`` updates, then held.

    Join the rest of the run with ``.then``. By default update k uses ``value * (k + 1) /
    total_steps``, so that no update is wasted on a rate of 0.

    Args:
        value: The value of update ``total_steps - 1`` and of all later ones, at least 0.
        total_steps: Number of updates that warm up, at least 1.
        start: The value of update 0, at most ``value``; by default ``value / total_steps``.

    Raises:
        ValueError: If a value is negative or not finite, ``start`` above ``value``, or
            ``total_steps`` below 1.

    Example:
        >>> warmup(0.4, total_steps=4)(0)
        0.1

    Reference:
        Goyal et al., Accurate, Large Minibatch SGD, arXiv 1706.02677, section 2.2 (gradual
        warm-up).
    """
    check_non_negative("value", value)
    check_integer("total_steps", total_steps, minimum=1)
    if start is not None:
        check_non_negative("start", start)
        if start > value:
            raise ValueError(f"start must be at most value, got start={start} and value={value}")
    return _Warmup(value, total_steps, start)


@dataclass(frozen=True, repr=False)
class _StepDecay(Schedule):
    _call = "step_decay"
    start: float
    every: int
    factor: float = 0.5

    def _value(self, step: Number) -> Number:
        return self.start * power(self.factor, floor(clamp(step, 0.0, math.inf) / self.every))

    @property
    def _span(self) -> int:
        return 4 * self.every


def step_decay(start: float, *, every: int, factor: float = 0.5) -> Schedule:
    """Stairs: ``start * factor ** floor(step / every)``, such as "halve every thirty epochs".

    Args:
        start: The value of updates 0 to ``every - 1``, at least 0.
        every: Updates on one stair, at least 1: epochs times steps per epoch.
        factor: What each stair multiplies by, above 0 and at most 1.

    Raises:
        ValueError: If ``start`` is negative or not finite, ``every`` below 1, or ``factor`` outside
            (0, 1].

    Example:
        >>> [step_decay(0.4, every=30)(step) for step in (29, 30, 60)]
        [0.4, 0.2, 0.1]
    """
    check_non_negative("start", start)
    check_integer("every", every, minimum=1)
    check_positive("factor", factor)
    check_fraction("factor", factor)
    return _StepDecay(start, every, factor)


@dataclass(frozen=True, repr=False)
class _PiecewiseLinear(Schedule):
    _call = "piecewise_linear"
    steps: tuple[float, ...]
    values: tuple[float, ...]
    _curve: Curve = field(init=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_curve", Curve(self.steps, self.values))

    def _value(self, step: Number) -> Number:
        return self._curve(step)

    @property
    def length(self) -> int | None:
        return max(math.ceil(self.steps[-1]), 0) + 1


def piecewise_linear(steps: Sequence[float], values: Sequence[float]) -> Schedule:
    """Straight lines through the points ``(steps[i], values[i])``, held before and after them.

    Steps are updates, not epochs: multiply epochs by the number of steps per epoch.

    Args:
        steps: At least two steps, strictly increasing.
        values: As many values, each at least 0.

    Raises:
        ValueError: If the lengths differ or are below 2, the steps do not increase, or a value is
            negative.

    Example:
        The 24 epochs of the DAWNBench entry, at 98 steps an epoch; it counts updates from 1, hence
        the shift:

        >>> dawn = piecewise_linear([0, 5 * 98, 24 * 98], [0, 0.4, 0]).shifted(-1)
        >>> dawn(244), dawn(489), dawn(2351)
        (0.2, 0.4, 0.0)

    Reference:
        Page, How to Train Your ResNet, 2018 (the DAWNBench rate: [0, 5, 24] epochs to [0, 0.4, 0]).
    """
    steps, values = tuple(steps), tuple(values)
    if len(steps) != len(values):
        counts = f"got {len(steps)} steps and {len(values)} values"
        raise ValueError(f"steps and values must have the same length, {counts}")
    if len(steps) < 2:
        raise ValueError(f"steps must hold at least 2 points, got steps={list(steps)}")
    for index, (step, value) in enumerate(zip(steps, values, strict=True)):
        check_number(f"steps[{index}]", step)
        check_non_negative(f"values[{index}]", value)
    if any(right <= left for left, right in pairwise(steps)):
        raise ValueError(f"steps must increase from point to point, got steps={list(steps)}")
    return _PiecewiseLinear(steps, values)
