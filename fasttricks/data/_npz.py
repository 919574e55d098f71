"""Reads an .npz of images: the layout x_train, y_train, x_test, y_test that Keras uses."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from fasttricks.data._errors import DataError, reason_of
from fasttricks.data._image_set import ImageSet
from fasttricks.data._progress import Progress
from fasttricks.data._source import Pair, Source, name_of, stamp_files

_KEYS = ("x_train", "y_train", "x_test", "y_test")
# stops a stray label (an id, a hash) from making millions of class names
_MAX_CLASSES = 100_000

_Array = npt.NDArray[Any]


def find_npz(path: Path) -> Source:
    """The .npz at ``path`` as a source.

    It is one read away from tensors and so not worth caching.
    """

    def read(progress: Progress | None) -> Pair:
        return read_npz(path)

    stamps = stamp_files(path.parent, [path.name])
    return Source(path, name_of(path), stamps, read, worth_caching=False)


def read_npz(path: Path) -> Pair:
    """The training and test set in the .npz at ``path``; the classes are "0", "1", ..."""
    arrays = _load_arrays(path)
    images = {
        split: _as_nhwc(path, f"x_{split}", arrays[f"x_{split}"]) for split in ("train", "test")
    }
    labels = {
        split: _as_labels(path, f"y_{split}", arrays[f"y_{split}"]) for split in ("train", "test")
    }
    for split in ("train", "test"):
        if len(images[split]) != len(labels[split]):
            raise DataError(
                f"x_{split} and y_{split} must be equally long, got {len(images[split])} images "
                f"and {len(labels[split])} labels in {path}"
            )
    if images["train"].shape[1:] != images["test"].shape[1:]:
        raise DataError(
            "x_train and x_test must hold images of one shape [H, W, C], got "
            f"{images['train'].shape[1:]} and {images['test'].shape[1:]} in {path}"
        )
    num_classes = int(labels["train"].max()) + 1
    if labels["test"].max() >= num_classes:
        raise DataError(
            f"y_test must hold labels between 0 and {num_classes - 1} like y_train, "
            f"got {labels['test'].max()} in {path}"
        )
    absent = np.flatnonzero(np.bincount(labels["train"]) == 0)
    if len(absent):
        warnings.warn(
            f"y_train has no image of {len(absent)} of the {num_classes} classes, such as "
            f"{absent[0]}, in {path}; number them from 0 without a gap, unless that is meant",
            UserWarning,
            stacklevel=2,
        )
    classes = tuple(str(label) for label in range(num_classes))
    train, test = (
        ImageSet(
            torch.from_numpy(images[split]).permute(0, 3, 1, 2),
            torch.from_numpy(labels[split]),
            classes,
            name_of(path),
        )
        for split in ("train", "test")
    )
    return train, test


def _load_arrays(path: Path) -> dict[str, _Array]:
    try:
        # opened here: numpy leaves a file open when it finds that it is no zip file
        with open(path, "rb") as file:
            return _arrays_of(path, np.load(file, allow_pickle=False))
    except (DataError, MemoryError):
        raise
    except Exception as error:  # a damaged file can fail anywhere in zipfile, zlib and numpy
        raise DataError(
            f"{path} is not a readable .npz file ({reason_of(error)}); "
            "write it again with numpy.savez"
        ) from None


def _arrays_of(path: Path, loaded: object) -> dict[str, _Array]:
    if not isinstance(loaded, np.lib.npyio.NpzFile):
        raise DataError(f"{path} is a single array, not an .npz file; use numpy.savez")
    missing = [key for key in _KEYS if key not in loaded.files]
    if missing:
        raise DataError(
            f"{path} must hold {', '.join(_KEYS)}; missing: {', '.join(missing)} "
            f"(it holds {', '.join(loaded.files) or 'nothing'})"
        )
    return {key: _load_array(path, loaded, key) for key in _KEYS}


def _load_array(path: Path, loaded: np.lib.npyio.NpzFile, key: str) -> _Array:
    try:
        array: object = loaded[key]
    except MemoryError:
        raise
    except Exception as error:
        raise DataError(
            f"cannot read {key} in {path} ({reason_of(error)}); "
            "write it again with numpy.savez as a plain array of numbers"
        ) from None
    if not isinstance(array, np.ndarray):
        raise DataError(f"{key} in {path} is not an array; write it again with numpy.savez")
    return array


def _as_nhwc(path: Path, key: str, images: _Array) -> _Array:
    """The images with shape [N, H, W, C], checked."""
    if images.dtype != np.uint8:
        raise DataError(
            f"{key} must have dtype uint8 (values 0..255), got {images.dtype} in {path}"
        )
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.size == 0:
        raise DataError(
            f"{key} must have the shape [N, H, W, C] or [N, H, W], got {images.shape} in {path}"
        )
    if images.shape[3] > 4:
        channels_first = images.shape[1] <= 4
        advice = (
            f"; the channels come first, so write {key}.transpose(0, 2, 3, 1)"
            if channels_first
            else ""
        )
        raise DataError(
            f"{key} must have 1 to 4 channels in the last place, "
            f"got shape {images.shape} in {path}{advice}"
        )
    return images


def _as_labels(path: Path, key: str, labels: _Array) -> npt.NDArray[np.int64]:
    """The labels with shape [N] and dtype int64, checked as far as one array can be."""
    if labels.dtype.kind not in "iu":
        raise DataError(f"{key} must have a whole-number dtype, got {labels.dtype} in {path}")
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1 or labels.size == 0:
        raise DataError(f"{key} must have the shape [N] or [N, 1], got {labels.shape} in {path}")
    low, high = labels.min(), labels.max()
    if low < 0 or high >= _MAX_CLASSES:
        wrong = low if low < 0 else high
        raise DataError(
            f"{key} must hold labels from 0 to num_classes - 1 (at most {_MAX_CLASSES - 1}), "
            f"got {wrong} in {path}"
        )
    return labels.astype(np.int64)
