"""The base class of all schedules, and the three ways to combine them: then, scale, shift."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import MISSING, dataclass, fields
from numbers import Integral, Real
from typing import TYPE_CHECKING, ClassVar, overload

import torch
from torch import Tensor

from fasttricks._axes import new_axes
from fasttricks._checks import check_integer, check_non_negative, check_number
from fasttricks.schedules._math import Number, as_floating, where

if TYPE_CHECKING:
    from matplotlib.axes import Axes


class Schedule(ABC):
    """A function of the optimizer step, without state: ``schedule(step) -> value``.

    Schedules print as the call that made them, compare equal to an equal one, hash and pickle. Join
    two with :meth:`then`, scale with ``*``, move in time with :meth:`shifted`, look at one with
    :meth:`plot`. One of your own is a frozen dataclass (``repr=False``) derived from this class
    with a ``_value(step)`` that works on a float and on a tensor.

    Example:
        >>> from fasttricks.schedules import cosine, warmup
        >>> schedule = warmup(0.4, total_steps=5).then(cosine(0.4, 0.0, total_steps=95), at=5)
        >>> schedule(0), schedule(4), schedule(99)
        (0.08, 0.4, 0.0)
    """

    _call: ClassVar[str] = ""  # the public function that makes it, for repr

    @abstractmethod
    def _value(self, step: Number) -> Number:
        """Return the value at ``step``, a float or a floating tensor."""

    @property
    def length(self) -> int | None:
        """Updates after which the value no longer changes; None if it goes on changing."""
        return None

    @property
    def _span(self) -> int:
        """Steps that show the whole shape in a plot."""
        return max(self.length or 1, 2)

    @overload
    def __call__(self, step: Tensor) -> Tensor: ...
    @overload
    def __call__(self, step: float) -> float: ...
    def __call__(self, step: float | Tensor) -> float | Tensor:
        """Return the value that update ``step``, counted from 0, uses.

        Args:
            step: An int or a float, or a tensor of steps of any shape, dtype and device.

        Returns:
            A float; for a tensor a tensor of its shape on its device, in float64 for whole-numbered
            steps (float32 on mps) and in the dtype of floating ones.

        Raises:
            TypeError: If ``step`` is not a number.
            ValueError: If ``step`` is a NaN or infinite float.
        """
        if isinstance(step, Tensor):
            return self._value(as_floating(step))
        check_number("step", step)
        return self._value(float(step))

    def then(self, other: Schedule, *, at: int) -> Schedule:
        """Return this schedule up to step ``at``, and from there ``other``, counted anew from 0.

        Args:
            other: The schedule that update ``at`` and all later ones use, at ``step - at``.
            at: The first step of ``other``, at least 1.

        Raises:
            TypeError: If ``other`` is not a schedule.
            ValueError: If ``at`` is below 1.
        """
        if not isinstance(other, Schedule):
            raise TypeError(f"other must be a Schedule, got other={other!r}")
        check_integer("at", at, minimum=1)
        return _Then(self, other, at)

    def shifted(self, by: float) -> Schedule:
        """Return this schedule ``by`` steps later: ``shifted(by)(k) == self(k - by)``."""
        check_number("by", by)
        return _Shifted(self, by)

    def __mul__(self, factor: float) -> Schedule:
        """Return this schedule with every value times ``factor``, a number of at least 0."""
        check_non_negative("factor", factor)
        return _Scaled(self, factor)

    __rmul__ = __mul__

    def plot(self, steps: int | None = None, *, ax: Axes | None = None) -> Axes:
        """Draw the values of updates 0 to ``steps - 1`` and return the Axes.

        Args:
            steps: How many updates to draw; by default the whole length, or a few cycles.
            ax: matplotlib Axes to draw on; by default those of a new figure.

        Raises:
            ImportError: If matplotlib is not installed.
        """
        count = self._span if steps is None else steps
        check_integer("steps", count, minimum=1)
        if ax is None:
            ax = new_axes()
        at = torch.arange(count)
        ax.plot(at.tolist(), self(at).tolist(), label=repr(self))
        ax.set(xlabel="step", ylabel="value")
        return ax

    def __repr__(self) -> str:
        given = (
            f"{field.name}={_shown(value)}"
            for field in fields(self)  # type: ignore[arg-type]
            if field.init
            and ((value := getattr(self, field.name)) != field.default or field.default is MISSING)
        )
        return f"{self._call or type(self).__name__}({', '.join(given)})"


def _shown(value: object) -> str:
    """Return text that evaluates to ``value``, for NumPy's numbers and infinity too."""
    if isinstance(value, tuple):
        return f"[{', '.join(_shown(item) for item in value)}]"
    if isinstance(value, bool) or not isinstance(value, Real):
        return repr(value)
    if isinstance(value, Integral):
        return repr(int(value))
    return repr(float(value)) if math.isfinite(value) else f'float("{float(value)}")'


@dataclass(frozen=True, repr=False)
class _Then(Schedule):
    first: Schedule
    second: Schedule
    at: int

    def _value(self, step: Number) -> Number:
        return where(step < self.at, self.first._value(step), self.second._value(step - self.at))

    @property
    def length(self) -> int | None:
        return None if self.second.length is None else self.at + self.second.length

    @property
    def _span(self) -> int:
        return self.at + self.second._span

    def __repr__(self) -> str:
        return f"{_grouped(self.first)}.then({self.second!r}, at={self.at})"


@dataclass(frozen=True, repr=False)
class _Shifted(Schedule):
    schedule: Schedule
    by: float

    def _value(self, step: Number) -> Number:
        return self.schedule._value(step - self.by)

    @property
    def length(self) -> int | None:
        length = self.schedule.length
        return None if length is None else max(1, math.ceil(length + self.by))

    @property
    def _span(self) -> int:
        return max(2, math.ceil(self.schedule._span + self.by))

    def __repr__(self) -> str:
        return f"{_grouped(self.schedule)}.shifted({_shown(self.by)})"


@dataclass(frozen=True, repr=False)
class _Scaled(Schedule):
    schedule: Schedule
    factor: float

    def _value(self, step: Number) -> Number:
        return self.schedule._value(step) * self.factor

    @property
    def length(self) -> int | None:
        return self.schedule.length

    @property
    def _span(self) -> int:
        return self.schedule._span

    def __repr__(self) -> str:
        return f"{self.schedule!r} * {_shown(self.factor)}"


def _grouped(schedule: Schedule) -> str:
    return f"({schedule!r})" if isinstance(schedule, _Scaled) else repr(schedule)
