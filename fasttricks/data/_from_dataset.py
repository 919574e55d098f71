"""Reads a data set of images and labels, such as torchvision's, image by image."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from fasttricks.data._decode import as_rgb, upright
from fasttricks.data._progress import Progress, report

_IMAGE_NAMES = ("image", "img")  # in rows of Hugging Face's sets


class Dataset(Protocol):
    """What has a length, and gives a pair of an image and a label for each number below it."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int, /) -> Any: ...


def read_dataset(
    dataset: Dataset, *, size: tuple[int, int] | None, progress: Progress | None
) -> tuple[Tensor, Tensor]:
    """All images, uint8 [N, C, H, W], and their labels, int64 [N].

    Grey images become RGB where others are.

    Raises:
        TypeError: an image or a label is of another kind.
        ValueError: there are none, or the images differ in size.
    """
    number = len(dataset)
    if not number:
        raise ValueError("dataset must hold at least one image, got none")
    images, labels = [], []
    for index in range(number):
        image, label = _pair(dataset[index], index)
        images.append(image if size is None else _resized(image, size))
        labels.append(label)
        if images[index].shape[1:] != images[0].shape[1:]:
            sizes = [f"{one.shape[2]}x{one.shape[1]}" for one in (images[0], images[index])]
            raise ValueError(
                f"dataset must hold images of one size, got {sizes[0]} and {sizes[1]} (image "
                f"{index}); pass size="
            )
        report(progress, index + 1, number, "reading images")
    channels = max(len(image) for image in images)
    images = [image.expand(channels, -1, -1) if len(image) == 1 else image for image in images]
    if any(len(image) != channels for image in images):
        counts = sorted({len(image) for image in images})
        raise ValueError(f"dataset must hold images of as many channels, got {counts}")
    return torch.stack(images), torch.tensor(labels, dtype=torch.int64, device="cpu")


def class_names(dataset: Dataset, labels: Tensor) -> tuple[str, ...]:
    """The names that the data set, or what it is a part of, gives its classes, or numbers."""
    whole: object = dataset
    while isinstance(whole, Subset) and not hasattr(whole, "classes"):
        whole = whole.dataset
    named: object = getattr(whole, "classes", None)
    if named is None and isinstance(features := getattr(whole, "features", None), Mapping):
        named = getattr(features.get("label"), "names", None)
    number = int(labels.max()) + 1
    names = tuple(map(str, named)) if isinstance(named, Sequence) else ()
    if len(names) >= number and len(set(names)) == len(names):
        return names
    return tuple(map(str, range(number)))


def _pair(item: Any, index: int) -> tuple[Tensor, int]:
    if isinstance(item, Mapping):
        item = _of_row(item)
    try:
        image, label = item
    except (TypeError, ValueError):
        kind = type(item).__name__
        raise TypeError(
            f"dataset must give pairs of an image and a label, got {kind} as image {index}"
        ) from None
    if isinstance(label, Tensor | np.ndarray) and math.prod(label.shape) == 1:
        label = label.item()
    if isinstance(label, bool) or not isinstance(label, Integral):
        kind = type(label).__name__
        raise TypeError(f"labels of dataset must be whole numbers, got {kind} with image {index}")
    return _as_tensor(image, index), int(label)


def _of_row(row: Mapping[str, Any]) -> tuple[Any, Any]:
    """The image and the label of a row with names, as Hugging Face's data sets give it."""
    name = next((one for one in _IMAGE_NAMES if one in row), None)
    if name is None or "label" not in row:
        raise TypeError(
            f"rows of dataset must have an image ({' or '.join(_IMAGE_NAMES)}) and a label, got "
            f"{', '.join(map(str, row))}; give pairs, such as [(row['photo'], row['kind']), ...]"
        )
    return row[name], row["label"]


def _as_tensor(image: Any, index: int) -> Tensor:
    """The image as uint8 [C, H, W]."""
    if isinstance(image, Tensor):
        pixels = image
    elif isinstance(image, np.ndarray):
        pixels = torch.from_numpy(image.copy())
        pixels = pixels if pixels.ndim == 2 else pixels.movedim(-1, 0)
    elif hasattr(image, "convert"):  # Pillow's, which need not be installed otherwise
        grey = image.mode in ("1", "L", "LA")
        pixels = torch.from_numpy(np.array(upright(image).convert("L") if grey else as_rgb(image)))
        pixels = pixels if grey else pixels.movedim(-1, 0)
    else:
        raise TypeError(
            "images of dataset must be Pillow's, tensors or arrays, got "
            f"{type(image).__name__} as image {index}"
        )
    if pixels.dtype != torch.uint8:
        raise TypeError(
            "images of dataset must be uint8 (values 0..255), got "
            f"{pixels.dtype} as image {index}; leave out the transform that scales them"
        )
    pixels = pixels[None] if pixels.ndim == 2 else pixels
    if pixels.ndim != 3:
        shape = list(pixels.shape)
        raise TypeError(f"images of dataset must be [C, H, W] or [H, W], got {shape} ({index})")
    return pixels


def _resized(image: Tensor, size: tuple[int, int]) -> Tensor:
    from torchvision.transforms.v2.functional import resize

    if tuple(image.shape[1:]) == size:
        return image
    resized: Tensor = resize(image, list(size), antialias=True)
    return resized
