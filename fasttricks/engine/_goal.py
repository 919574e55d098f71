"""A figure to reach: which way is better, and whether a value has got there."""

from __future__ import annotations

from dataclasses import dataclass

from fasttricks._checks import check_choice, check_number

_SHARES = ("accuracy", "val_accuracy")


def way_of(metric: str, mode: str | None) -> str:
    """Return "max" if more of a metric is better, "min" if less is; by default its name decides."""
    if mode is None:
        return "min" if metric.endswith("loss") else "max"
    check_choice("mode", mode, ("max", "min"))
    return mode


@dataclass(frozen=True)
class Goal:
    """A value of a metric that is to be reached, from below or from above.

    Raises:
        ValueError: If the target is out of the metric's range, or no finite number.
    """

    target: float
    metric: str
    mode: str

    def __post_init__(self) -> None:
        check_number("target", self.target)
        if self.metric in _SHARES and self.target > 1:
            raise ValueError(
                f"target must be between 0 and 1 for {self.metric}, got target={self.target}; "
                f"{self.target:g} % are {self.target / 100:g}"
            )

    def is_reached_by(self, value: float) -> bool:
        """Whether a value is at the target or beyond; NaN never is."""
        return value >= self.target if self.mode == "max" else value <= self.target
