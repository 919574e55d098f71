"""A figure to reach: which way is better, and whether a value has got there."""

from __future__ import annotations

from fasttricks._checks import check_choice, check_number


def resolve_mode(metric: str, mode: str | None) -> str:
    """Return "max" if more of a metric is better, "min" if less is; by default its name decides."""
    if mode is None:
        return "min" if metric.endswith("loss") else "max"
    check_choice("mode", mode, ("max", "min"))
    return mode


def check_target(target: float, metric: str) -> None:
    """Raise a ValueError unless a metric can have this value."""
    check_number("target", target)
    if metric in ("accuracy", "val_accuracy") and not 0 <= target <= 1:
        raise ValueError(
            f"target must be between 0 and 1 for {metric}, got target={target}; "
            f"{target:g} % are {target / 100:g}"
        )


def is_reached(value: float, target: float, mode: str) -> bool:
    """Whether a value is at the target or beyond; NaN never is."""
    return value >= target if mode == "max" else value <= target
