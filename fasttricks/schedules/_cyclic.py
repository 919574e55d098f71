"""Cyclical schedules of Smith 2015, and the momentum that mirrors a cycle."""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass, field, replace

from fasttricks._checks import check_fraction, check_non_negative, check_positive
from fasttricks.schedules._base import Schedule
from fasttricks.schedules._math import Curve, Number, clamp, floor, lerp, power


class Cycle(Schedule):
    """A schedule that goes up and comes down, so that a momentum can mirror it."""

    @abstractmethod
    def _between(self, foot: float, peak: float) -> Schedule | Curve:
        """Return the same way up and down between other values, of which either may be higher."""


@dataclass(frozen=True, repr=False)
class _Triangular(Cycle):
    _call = "triangular"
    base_lr: float
    max_lr: float
    step_size_up: float
    step_size_down: float | None = None
    _period: float = field(init=False, compare=False)
    _wave: Curve = field(init=False, compare=False)

    def __post_init__(self) -> None:
        down = self.step_size_up if self.step_size_down is None else self.step_size_down
        period = self.step_size_up + down
        wave = Curve((0.0, self.step_size_up, period), self._points())
        object.__setattr__(self, "_period", period)
        object.__setattr__(self, "_wave", wave)

    def _points(self) -> tuple[float, float, float]:
        """Return the wave's values at the foot, the peak and the next foot."""
        return self.base_lr, self.max_lr, self.base_lr

    def _value(self, step: Number) -> Number:
        # Before step 0 the first value holds: running backwards, triangular2 would rise above
        # max_lr.
        return self._wave(clamp(step, 0.0, math.inf) % self._period)

    def _between(self, foot: float, peak: float) -> Schedule | Curve:
        return replace(self, base_lr=foot, max_lr=peak)

    @property
    def _span(self) -> int:
        return math.ceil(4 * self._period) + 1


@dataclass(frozen=True, repr=False)
class _Fading(_Triangular):
    """A wave of height 1 above ``base_lr`` whose height is scaled as the steps go by."""

    def _points(self) -> tuple[float, float, float]:
        return 0.0, 1.0, 0.0

    def _value(self, step: Number) -> Number:
        step = clamp(step, 0.0, math.inf)
        return lerp(self.base_lr, self.max_lr, self._wave(step % self._period) * self._scale(step))

    @abstractmethod
    def _scale(self, step: Number) -> Number:
        """Return what is left of the height."""


@dataclass(frozen=True, repr=False)
class _Triangular2(_Fading):
    _call = "triangular2"

    def _scale(self, step: Number) -> Number:
        return power(0.5, floor(step / self._period))


@dataclass(frozen=True, repr=False)
class _ExpRange(_Fading):
    _call = "exp_range"
    gamma: float = 1.0

    def _scale(self, step: Number) -> Number:
        return power(self.gamma, step)


def triangular(
    base_lr: float, max_lr: float, *, step_size_up: float, step_size_down: float | None = None
) -> Schedule:
    """Straight up from ``base_lr`` to ``max_lr`` and straight down, over and over.

    With step size s and step t: ``cycle = floor(1 + t / (2 s))``, ``x = |t / s - 2 cycle + 1|``,
    ``value = base_lr + (max_lr - base_lr) * max(0, 1 - x)``. Peaks are at s, 3 s, 5 s, ...

    Args:
        base_lr: The value at the foot of each cycle, at least 0.
        max_lr: The value at the peak of each cycle, above ``base_lr``.
        step_size_up: Steps of the rising half, above 0; the paper: 2 to 10 times the steps of an
            epoch.
        step_size_down: Steps of the falling half; by default ``step_size_up``.

    Raises:
        ValueError: If a rate is negative or not finite, ``max_lr`` not above ``base_lr``, or a step
            size not above 0.

    Example:
        >>> [triangular(0.0, 0.4, step_size_up=2)(step) for step in range(5)]
        [0.0, 0.2, 0.4, 0.2, 0.0]

    Reference:
        Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186, section 3.1.
    """
    _check_cycle(base_lr, max_lr, step_size_up, step_size_down)
    return _Triangular(base_lr, max_lr, step_size_up, step_size_down)


def triangular2(
    base_lr: float, max_lr: float, *, step_size_up: float, step_size_down: float | None = None
) -> Schedule:
    """As :func:`triangular`, with the height of the peak above ``base_lr`` halved after each cycle.

    Cycle c, counted from 1, peaks at ``base_lr + (max_lr - base_lr) / 2 ** (c - 1)``.

    Args:
        base_lr: The value at the foot of each cycle, at least 0.
        max_lr: The value at the first peak, above ``base_lr``.
        step_size_up: Steps of the rising half, above 0.
        step_size_down: Steps of the falling half; by default ``step_size_up``.

    Raises:
        ValueError: As for :func:`triangular`.

    Example:
        >>> [triangular2(0.0, 0.4, step_size_up=2)(step) for step in (2, 6, 10)]
        [0.4, 0.2, 0.1]

    Reference:
        Smith, arXiv 1506.01186, section 3.1 (triangular2).
    """
    _check_cycle(base_lr, max_lr, step_size_up, step_size_down)
    return _Triangular2(base_lr, max_lr, step_size_up, step_size_down)


def exp_range(
    base_lr: float,
    max_lr: float,
    *,
    step_size_up: float,
    step_size_down: float | None = None,
    gamma: float = 1.0,
) -> Schedule:
    """As :func:`triangular`, with the height above ``base_lr`` at step t times ``gamma ** t``.

    Args:
        base_lr: The value at the foot of each cycle, at least 0.
        max_lr: The bound at step 0, above ``base_lr``; the first peak is already ``gamma **
            step_size_up`` lower.
        step_size_up: Steps of the rising half, above 0.
        step_size_down: Steps of the falling half; by default ``step_size_up``.
        gamma: Decay per step, above 0 and at most 1.

    Raises:
        ValueError: As for :func:`triangular`, or if ``gamma`` is outside (0, 1].

    Example:
        >>> exp_range(0.0, 0.4, step_size_up=2, gamma=0.5)(2)
        0.1

    Reference:
        Smith, arXiv 1506.01186, section 3.1 (exp_range).
    """
    _check_cycle(base_lr, max_lr, step_size_up, step_size_down)
    check_positive("gamma", gamma)
    check_fraction("gamma", gamma)
    return _ExpRange(base_lr, max_lr, step_size_up, step_size_down, gamma)


def _check_cycle(base_lr: float, max_lr: float, up: float, down: float | None) -> None:
    check_non_negative("base_lr", base_lr)
    check_non_negative("max_lr", max_lr)
    if max_lr <= base_lr:
        got = f"got max_lr={max_lr} and base_lr={base_lr}"
        raise ValueError(f"max_lr must be greater than base_lr, {got}")
    check_positive("step_size_up", up)
    if down is not None:
        check_positive("step_size_down", down)


@dataclass(frozen=True, repr=False)
class _CycledMomentum(Schedule):
    _call = "cycled_momentum"
    schedule: Cycle
    base_momentum: float = 0.85
    max_momentum: float = 0.95
    _mirror: Schedule | Curve = field(init=False, compare=False)

    def __post_init__(self) -> None:
        mirror = self.schedule._between(self.max_momentum, self.base_momentum)
        object.__setattr__(self, "_mirror", mirror)

    def _value(self, step: Number) -> Number:
        return self._mirror(step)

    @property
    def length(self) -> int | None:
        return self.schedule.length

    @property
    def _span(self) -> int:
        return self.schedule._span


def cycled_momentum(
    schedule: Schedule, *, base_momentum: float = 0.85, max_momentum: float = 0.95
) -> Schedule:
    """The momentum that mirrors a cycle: highest at its foot, lowest at its peak.

    It moves in the same phases and along the same curve as the rate; in a tail that only lowers the
    rate (``one_cycle(..., three_phase=True)``) it stays at ``max_momentum``.

    Args:
        schedule: A ``one_cycle``, ``triangular``, ``triangular2`` or ``exp_range``.
        base_momentum: The momentum at the peak of the rate, from 0 to 1.
        max_momentum: The momentum at the foot of the rate, from ``base_momentum`` to 1.

    Raises:
        TypeError: If ``schedule`` has no cycle.
        ValueError: If a momentum is outside 0 to 1, or ``max_momentum`` below ``base_momentum``.

    Example:
        >>> rate = triangular(0.0, 0.4, step_size_up=2)
        >>> [cycled_momentum(rate)(step) for step in (0, 2, 4)]
        [0.95, 0.85, 0.95]

    Reference:
        Smith, A disciplined approach to neural network hyper-parameters, arXiv 1803.09820, section
        4.3.
    """
    if not isinstance(schedule, Cycle):
        known = "one_cycle, triangular, triangular2 or exp_range"
        raise TypeError(f"schedule must be a {known}, got schedule={schedule!r}")
    check_fraction("base_momentum", base_momentum)
    check_fraction("max_momentum", max_momentum)
    if max_momentum < base_momentum:
        got = f"got max_momentum={max_momentum} and base_momentum={base_momentum}"
        raise ValueError(f"max_momentum must be at least base_momentum, {got}")
    return _CycledMomentum(schedule, base_momentum, max_momentum)
