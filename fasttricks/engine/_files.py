"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import math
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def replacing(path: Path | str) -> Iterator[Path]:
    """Yield a temporary path beside ``path`` to write to; it takes the name when all went well.

    The file is flushed to the disk before it is renamed, so a crash leaves the old file or the new
    one, never a part. On an error the temporary file is removed and nothing else changes.

    Args:
        path: The final name; its folder is made if it is missing.

    Yields:
        The temporary path, which has the same suffix.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with replacing(f"{folder}/note.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     os.listdir(folder)
        ['note.txt']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(8)}{path.suffix}")
    try:
        yield temporary
        with temporary.open("r+b") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_folder(path: Path | str) -> Iterator[Path]:
    """Yield a temporary folder beside ``path`` to fill; it takes the name when all went well.

    As ``replacing``, for a folder of files that belong together. A folder that has the name already
    is moved aside first and removed last.

    Args:
        path: The final name; the folder that it lies in is made if it is missing.

    Yields:
        The temporary folder.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, old = _hidden(path), _hidden(path)
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _flush(file)
        _flush(temporary)
        if path.exists():
            path.rename(old)
        try:
            temporary.rename(path)
        except OSError:
            if old.exists():
                old.rename(path)
            raise
        _flush(path.parent)
        shutil.rmtree(old, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def make_folder(path: Path | str, *, name: str) -> None:
    """Make a folder unless it is there; raise a ValueError that names the argument if none can be.

    Raises:
        ValueError: If a part of the path is a file, or may not be written to.
    """
    path = Path(path)
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(
            f"{name} must lie in a folder that can be made, got {path} ({error.strerror})"
        ) from error
    if not os.access(path, os.W_OK):
        raise ValueError(f"{name} must lie in a folder that can be written to, got {path}")


def remove_folder(path: Path) -> None:
    """Remove a folder with its files; at no time is there a part of it under its name."""
    hidden = _hidden(path)
    path.rename(hidden)
    shutil.rmtree(hidden)


def _hidden(path: Path) -> Path:
    return path.with_name(f".{path.name}-{secrets.token_hex(8)}")


def _flush(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
    if path.is_dir() and os.name == "nt":  # where folders cannot be opened
        return
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_json(path: Path | str, value: Any) -> None:
    """Write ``value`` as JSON, whole or not at all.

    Args:
        path: The final name; its folder is made if it is missing.
        value: What JSON can hold; a number must be finite.

    Raises:
        TypeError: If ``value`` holds something that JSON cannot.
        ValueError: If it holds NaN or an infinity.
    """
    text = json.dumps(value, indent=1, allow_nan=False) + "\n"
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def without_nonfinite(value: Any) -> Any:
    """Return ``value`` with None for every NaN and infinity in it, which JSON cannot hold.

    Example:
        >>> without_nonfinite({"loss": [math.nan, 1.5]})
        {'loss': [None, 1.5]}
    """
    if isinstance(value, Mapping):
        return {name: without_nonfinite(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [without_nonfinite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
