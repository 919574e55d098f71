"""A source: where a data set lies, which files decide its content, and how to read it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

from fasttricks.data._errors import DataError
from fasttricks.data._image_set import ImageSet
from fasttricks.data._progress import Progress

Pair: TypeAlias = tuple[ImageSet, ImageSet]
"""The training set and the test set."""


class FileStamp(NamedTuple):
    """What tells two versions of a file apart without reading it.

    The name is the path inside the source, with forward slashes; the time is in nanoseconds.
    """

    name: str
    size: int
    mtime_ns: int


@dataclass(frozen=True)
class Source:
    """A data set on disk, found but not yet read.

    Args:
        path: the file or folder that was named.
        name: what to call the sets, unless they turn out to be CIFAR-10.
        stamps: every file that decides the content, in a fixed order.
        read: reads the two sets; called at most once.
        worth_caching: whether reading is slower than reading the cache.
    """

    path: Path
    name: str
    stamps: tuple[FileStamp, ...]
    read: Callable[[Progress | None], Pair]
    worth_caching: bool = True


def stamp_files(folder: Path, names: Iterable[str]) -> tuple[FileStamp, ...]:
    """The stamps of the files ``names`` in ``folder``; a DataError if one is missing."""
    return tuple(stamp_file(os.path.join(folder, name), name=name) for name in names)


def stamp_file(path: str, *, name: str) -> FileStamp:
    """The stamp of one file; a DataError if it cannot be looked at or is a pipe or the like."""
    try:
        status = os.stat(path)
    except OSError as error:
        raise DataError(
            f"cannot read {path} ({error.strerror}): restore the file or remove the link"
        ) from None
    if not stat.S_ISREG(status.st_mode):
        raise DataError(f"{path} is not a regular file: remove it")
    return FileStamp(name, status.st_size, status.st_mtime_ns)


def name_of(path: Path) -> str:
    """What to call the data set at ``path``: the folder's name, or the file's without suffix."""
    name = Path(os.path.abspath(path)).name
    for suffix in (".npz", ".tar.gz"):
        if name.lower().endswith(suffix):
            name = name[: -len(suffix)]
    return name or "data"
