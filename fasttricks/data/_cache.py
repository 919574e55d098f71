"""Keeps decoded data sets as .npy files, so that a second start reads tensors and decodes nothing.

One folder an entry: four .npy files and entry.json with the names and each array's crc32. The
folder's name says which source in which state it is of, so an entry is never changed, only
replaced. Entries are written beside their place and renamed into it; one that is damaged in
whatever way counts as missing. Nothing here is ever unpickled.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fasttricks.data._image_set import ImageSet
from fasttricks.data._source import Pair, Source

_FORMAT = 1
_ENTRY_FILE = "entry.json"
_SPLITS = ("train", "test")
# a temporary folder older than this is what a killed process left
_LEFTOVER_SECONDS = 3600.0


def cache_root(cache_dir: str | os.PathLike[str] | None = None) -> Path:
    """The cache folder: the argument, or the first that is set of what follows.

    $FASTTRICKS_CACHE, $XDG_CACHE_HOME/fasttricks, ~/.cache/fasttricks.
    """
    if cache_dir is None:
        cache_dir = os.environ.get("FASTTRICKS_CACHE") or None
    if cache_dir is not None:
        return Path(cache_dir).expanduser()
    base = os.environ.get("XDG_CACHE_HOME", "")
    # the XDG rules say to ignore a relative path
    return (Path(base) if os.path.isabs(base) else Path.home() / ".cache") / "fasttricks"


def entry_name(source: Source) -> str:
    """The name of a source's entry: which path, and in which state its files are."""
    return f"{_path_digest(source)}-{_digest([_FORMAT, source.stamps])}"


def read_entry(root: Path, name: str) -> Pair | None:
    """The two sets of the entry ``name``, or None unless it is exactly what was written."""
    folder = root / "decoded" / name
    try:
        with open(folder / _ENTRY_FILE, encoding="utf-8") as file:
            entry = json.load(file)
        if entry["format"] != _FORMAT or entry["entry"] != name:
            return None
        arrays = {
            key: _read_array(folder / f"{key}.npy", crc32) for key, crc32 in entry["crc32"].items()
        }
        train, test = (
            ImageSet(
                torch.from_numpy(arrays[f"{split}_images"]).permute(0, 3, 1, 2),
                torch.from_numpy(arrays[f"{split}_labels"]),
                tuple(entry["classes"]),
                entry["name"],
            )
            for split in _SPLITS
        )
    # a damaged or foreign file can fail anywhere in json, numpy and ImageSet's own checks
    except Exception:
        return None
    return train, test


def write_entry(root: Path, source: Source, pair: Pair) -> None:
    """Keep ``pair`` as the entry of ``source``, and drop the entries of its earlier states.

    A cache that cannot be written costs time, not the data: it is a warning.
    """
    folder = root / "decoded"
    name = entry_name(source)
    part: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        part = tempfile.mkdtemp(prefix=f"{name}.part-", dir=folder)
        os.chmod(part, 0o755)  # a cache may be shared; mkdtemp's folders are private
        _write_files(Path(part), name, source, pair)
        _move_into_place(Path(part), folder / name)
        _drop_others(folder, source, keep=name)
    except OSError as error:
        warnings.warn(
            f"cannot write the cache {folder} ({error.strerror or error}): "
            "the images will be decoded again next time; set FASTTRICKS_CACHE or pass cache_dir",
            stacklevel=3,
        )
    finally:
        if part is not None:
            shutil.rmtree(part, ignore_errors=True)


def _write_files(folder: Path, name: str, source: Source, pair: Pair) -> None:
    crc32 = {}
    for split, image_set in zip(_SPLITS, pair, strict=True):
        arrays = {
            "images": image_set.images.permute(0, 2, 3, 1).numpy(),
            "labels": image_set.labels.numpy(),
        }
        for kind, array in arrays.items():
            array = np.ascontiguousarray(array)
            np.save(folder / f"{split}_{kind}.npy", array, allow_pickle=False)
            crc32[f"{split}_{kind}"] = zlib.crc32(array.data)
    entry = {
        "format": _FORMAT,
        "entry": name,
        "source": str(source.path),
        "name": pair[0].name,
        "classes": list(pair[0].classes),
        "crc32": crc32,
    }
    with open(folder / _ENTRY_FILE, "w", encoding="utf-8") as file:
        json.dump(entry, file, indent=1)


def _move_into_place(part: Path, target: Path) -> None:
    """Rename ``part`` to ``target``.

    What lies there was found damaged. What another process puts there meanwhile equals ours.
    """
    shutil.rmtree(target, ignore_errors=True)
    try:
        os.rename(part, target)
    except OSError:
        if not target.is_dir():
            raise


def _drop_others(folder: Path, source: Source, *, keep: str) -> None:
    """Remove the entries of earlier states of ``source``, and what killed processes left of it."""
    for name in os.listdir(folder):
        if not name.startswith(f"{_path_digest(source)}-") or name == keep:
            continue
        path = folder / name
        try:
            age = time.time() - path.stat().st_mtime
        except FileNotFoundError:  # another process has just finished or removed it
            continue
        if ".part-" in name and age < _LEFTOVER_SECONDS:
            continue
        shutil.rmtree(path, ignore_errors=True)


def _read_array(path: Path, crc32: int) -> npt.NDArray[Any]:
    """The array in a .npy file; a ValueError if its bytes are not those that were written."""
    with open(path, "rb") as file:
        array: npt.NDArray[Any] = np.lib.format.read_array(file, allow_pickle=False)
    if zlib.crc32(np.ascontiguousarray(array).data) != crc32:
        raise ValueError(f"{path} has changed")
    return array


def _path_digest(source: Source) -> str:
    return _digest(os.path.realpath(source.path))


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()[:20]
