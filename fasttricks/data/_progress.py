"""Tells whoever waits how far slow work has come."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

Progress: TypeAlias = Callable[[int, int, str], None]
"""Called as ``progress(done, total, what)`` during slow work."""

# often enough for a smooth bar, seldom enough to cost nothing
_EVERY = 256


def report(progress: Progress | None, done: int, total: int, what: str) -> None:
    """Tell that one more is done, if anybody listens: now and then, and at the end."""
    if progress is not None and (done % _EVERY == 0 or done == total):
        progress(done, total, what)
