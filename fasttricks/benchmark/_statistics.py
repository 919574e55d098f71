"""What several runs with different seeds say together."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fasttricks._checks import check_choice, check_number
from fasttricks.engine._goal import is_reached

# Two-sided 95 % points of Student's t for 1 to 30 degrees of freedom, as in any table of it.
_T95 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


@dataclass(frozen=True)
class Summary:
    """Mean and spread of a figure over runs.

    Attributes:
        runs: Number of runs.
        mean: Their mean.
        std: Standard deviation of a run (n - 1 in the denominator), 0 for a single run.
        interval: Ends of the mean's 95 % interval by Student's t; ``None`` for a single run, which
            says nothing of the spread.
        share_at_target: Share of runs that reach the target, 0 to 1; ``None`` without a target.
    """

    runs: int
    mean: float
    std: float
    interval: tuple[float, float] | None
    share_at_target: float | None

    def text(self, unit: str = "") -> str:
        """Write mean, deviation, interval, number of runs and share, with a unit such as "%"."""
        unit = unit and f" {unit}"
        at_target = self.share_at_target
        share = "" if at_target is None else f", {at_target:.0%} at the target"
        if self.interval is None:
            return f"{self.mean:.2f}{unit} (1 run{share})"
        low, high = self.interval
        return (
            f"{self.mean:.2f}{unit} ± {self.std:.2f} "
            f"(95 % interval {low:.2f} to {high:.2f}, {self.runs} runs{share})"
        )


def summarize(
    values: Iterable[float], *, target: float | None = None, mode: str = "max"
) -> Summary:
    """Summarize a figure over runs: mean, standard deviation, 95 % interval, share at the target.

    Args:
        values: One figure a run, for example the test accuracy in percent; a list, an array, a
            tensor.
        target: The figure to reach, in the same unit.
        mode: "max" (default) if a run at or over the target reaches it, as for an accuracy; "min"
            if one at or under it does, as for seconds.

    Returns:
        The ``Summary``.

    Raises:
        ValueError: If ``values`` is empty, or holds NaN or an infinity, or ``mode`` is unknown.
        TypeError: If one is no number, such as the None of a run that did not get there.

    Example:
        >>> summarize([94.0, 94.2], target=94.1).share_at_target
        0.5
    """
    check_choice("mode", mode, ("max", "min"))
    listed = values.tolist() if hasattr(values, "tolist") else list(values)
    if not isinstance(listed, list):
        raise ValueError(f"values must hold one figure a run, got the single figure {listed}")
    if not listed:
        raise ValueError("values must hold at least one figure, got none")
    for value in listed:
        check_number("values", value)
    n = len(listed)
    mean = math.fsum(listed) / n
    share = None if target is None else sum(is_reached(v, target, mode) for v in listed) / n
    if n == 1:
        return Summary(1, mean, 0.0, None, share)
    std = math.sqrt(math.fsum((value - mean) ** 2 for value in listed) / (n - 1))
    # Beyond the table the normal's 1.96, corrected to second order in 1/n, is right to 0.001.
    quantile = _T95[n - 2] if n - 2 < len(_T95) else 1.960 + 2.372 / (n - 1) + 2.82 / (n - 1) ** 2
    half = quantile * std / math.sqrt(n)
    return Summary(n, mean, std, (mean - half, mean + half), share)
