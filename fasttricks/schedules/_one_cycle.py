"""The one-cycle schedule of Smith 2018, also as fastai, torch and the DAWNBench entries use it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

from fasttricks._checks import (
    check_choice,
    check_fraction,
    check_integer,
    check_positive,
)
from fasttricks.schedules._base import Schedule
from fasttricks.schedules._cyclic import Cycle
from fasttricks.schedules._math import Curve, Number


@dataclass(frozen=True, repr=False)
class _OneCycle(Cycle):
    _call = "one_cycle"
    max_lr: float
    total_steps: int
    pct_start: float = 0.3
    anneal: Literal["cosine", "linear"] = "cosine"
    div_factor: float = 25.0
    final_div_factor: float = 1e4
    three_phase: bool = False
    _rate: Curve = field(init=False, compare=False)

    def __post_init__(self) -> None:
        initial = self.max_lr / self.div_factor
        final = initial / self.final_div_factor
        rate = self._through(initial, self.max_lr, initial, final)
        object.__setattr__(self, "_rate", rate)

    def _value(self, step: Number) -> Number:
        return self._rate(step)

    def _between(self, foot: float, peak: float) -> Schedule | Curve:
        return self._through(foot, peak, foot, foot)

    def _through(self, start: float, peak: float, foot: float, end: float) -> Curve:
        """Return the curve from the start over the peak and the foot (three phases) to the end."""
        last = self.total_steps - 1
        top = self._peak_step
        smooth = self.anneal == "cosine"
        if self.three_phase:
            return Curve((0.0, top, 2 * top, last), (start, peak, foot, end), smooth=smooth)
        if 0 < top == last:  # pct_start=1: nothing is left to come down in
            return Curve((0.0, last), (start, peak), smooth=smooth)
        return Curve((0.0, top, last), (start, peak, end), smooth=smooth)

    @property
    def _peak_step(self) -> float:
        peak = self.pct_start * self.total_steps - 1
        # 0.29 * 100 is a rounding below 29: meant is the whole step, where the value is max_lr
        # exactly.
        if math.isclose(peak, round(peak), rel_tol=1e-12, abs_tol=1e-12):
            peak = float(round(peak))
        return max(peak, 0.0)

    @property
    def length(self) -> int | None:
        return self.total_steps


def one_cycle(
    max_lr: float,
    total_steps: int,
    *,
    pct_start: float = 0.3,
    anneal: Literal["cosine", "linear"] = "cosine",
    div_factor: float = 25.0,
    final_div_factor: float = 1e4,
    three_phase: bool = False,
) -> Schedule:
    """Up once to ``max_lr`` and down again, far below the start, within one run.

    From ``initial = max_lr / div_factor`` at step 0 to ``max_lr`` at step ``pct_start * total_steps
    - 1``, then to ``final = initial / final_div_factor`` at step ``total_steps - 1``. With
    ``three_phase`` the way down to ``initial`` is as long as the way up, and the rest of the run
    goes on from there to ``final``.

    - fastai and torch: the defaults (fastai: ``pct_start=0.25, final_div_factor=4000``).
    - Smith 2018: ``anneal="linear", three_phase=True, pct_start=0.45, div_factor=10,
      final_div_factor=100``.
    - DAWNBench, 5 of 24 epochs up from 0 and down to 0:
      ``anneal="linear", pct_start=5 / 24, div_factor=math.inf``.

    Args:
        max_lr: The highest rate, above 0.
        total_steps: Number of updates of the run, at least 1.
        pct_start: Fraction of the run spent rising, 0 to 1, with ``three_phase`` to 0.5; with
            ``pct_start * total_steps <= 1`` the run starts at the peak.
        anneal: ``"cosine"`` or ``"linear"``, the curve of each phase.
        div_factor: ``max_lr`` over the initial rate, at least 1; infinity starts from 0.
        final_div_factor: The initial rate over the final rate, above 0.
        three_phase: Whether to come down in two phases.

    Returns:
        The schedule; :func:`cycled_momentum` gives the momentum that mirrors it.

    Raises:
        ValueError: If a rate or factor is out of its range, ``total_steps`` below 1, or ``anneal``
            unknown.

    Example:
        >>> one_cycle(max_lr=0.4, total_steps=100)
        one_cycle(max_lr=0.4, total_steps=100)
        >>> one_cycle(0.4, 100)(0), one_cycle(0.4, 100)(29)
        (0.016, 0.4)

    Reference:
        Smith, arXiv 1803.09820, section 4; Smith and Topin, Super-Convergence, arXiv 1708.07120.
    """
    check_positive("max_lr", max_lr)
    check_integer("total_steps", total_steps, minimum=1)
    check_fraction("pct_start", pct_start)
    check_choice("anneal", anneal, ("cosine", "linear"))
    _check_factor("div_factor", div_factor)
    _check_factor("final_div_factor", final_div_factor)
    if div_factor < 1:
        raise ValueError(f"div_factor must be at least 1, got div_factor={div_factor}")
    if three_phase and pct_start > 0.5:
        got = f"got pct_start={pct_start}"
        raise ValueError(f"pct_start must be at most 0.5 with three_phase=True, {got}")
    return _OneCycle(
        max_lr, total_steps, pct_start, anneal, div_factor, final_div_factor, three_phase
    )


def _check_factor(name: str, value: float) -> None:
    if value != math.inf:
        check_positive(name, value)
