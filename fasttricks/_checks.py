"""Argument checks shared by every room; the message names argument, rule and value in one line."""

from __future__ import annotations

import math
from collections.abc import Collection, Sized
from numbers import Integral, Real


def check_number(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite real number (``bool`` is not one)."""
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TypeError(f"{name} must be a number, got {name}={value!r}")
    if not math.isfinite(value):
        raise ValueError(f"{name} must be finite, got {name}={value}")


def check_positive(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number above 0."""
    check_number(name, value)
    if not value > 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be greater than 0, got {name}={value}")


def check_non_negative(name: str, value: object) -> None:
    """Raise unless ``value`` is a finite number of at least 0."""
    check_number(name, value)
    if value < 0:  # type: ignore[operator]
        raise ValueError(f"{name} must be at least 0, got {name}={value}")


def check_fraction(name: str, value: object) -> None:
    """Raise unless ``value`` is a number between 0 and 1, both included."""
    check_number(name, value)
    if not 0 <= value <= 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be between 0 and 1, got {name}={value}")


def check_share(name: str, value: object) -> None:
    """Raise unless ``value`` is a number above 0 and at most 1."""
    check_positive(name, value)
    if value > 1:  # type: ignore[operator]
        raise ValueError(f"{name} must be at most 1, got {name}={value}")


def check_integer(name: str, value: object, *, minimum: int = 0) -> int:
    """Return ``value`` as an int; raise unless it is a whole number of at least ``minimum``.

    What is kept or computed with should be what this returns: NumPy's numbers overflow.
    """
    if isinstance(value, bool) or not isinstance(value, Integral):
        raise TypeError(f"{name} must be a whole number, got {name}={value!r}")
    if value < minimum:
        raise ValueError(f"{name} must be at least {minimum}, got {name}={value}")
    return int(value)


def is_library_class(value: object) -> bool:
    """Whether a value is of a class of the library's own, no subclass elsewhere."""
    return type(value).__module__.startswith("fasttricks.")


def length_of(value: object) -> int | None:
    """Return the length, or None if there is none, as of a loader of torch over a stream."""
    if not isinstance(value, Sized):
        return None
    try:
        return len(value)
    except TypeError:
        return None


def check_flag(name: str, value: object) -> None:
    """Raise a TypeError that names the argument unless the value is True or False."""
    if not isinstance(value, bool):
        raise TypeError(f"{name} must be True or False, got {name}={value!r}")


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raise unless ``value`` is one of ``choices``."""
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{name} must be one of {known}, got {name}={value!r}")
