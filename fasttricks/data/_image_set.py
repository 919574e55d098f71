"""ImageSet: labelled images of one size as a uint8 tensor.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from operator import index as index_of
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from fasttricks._checks import check_fraction, check_integer
from fasttricks.data._from_dataset import Dataset, class_names, read_dataset
from fasttricks.data._progress import Progress


@dataclass(frozen=True, eq=False, repr=False)
class ImageSet:
    """Labelled images of one size in memory.

    Everything is checked when the set is built, so whatever takes an ``ImageSet`` can rely on it.
    The images are kept with NHWC storage (``torch.channels_last``), which is what files hold and
    what convolutions run fastest on; tensors that are stored so already are taken as they are,
    others are copied.

    Args:
        images: uint8, shape [N, C, H, W], values 0..255, N at least 1.
        labels: whole numbers of any dtype, kept as int64, shape [N], values 0..len(classes) - 1, on
            the images' device.
        classes: the name of each class, in the order of the labels.
        name: what to call the set in records and messages.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a shape, a length or a label's value is wrong.

    Example:
        >>> images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
        >>> labels = torch.tensor([0, 1, 1, 0])
        >>> ImageSet(images, labels, classes=("cat", "dog"), name="pets")
        ImageSet('pets': 4 images of 3x32x32 (CxHxW), 2 classes)
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    name: str

    def __post_init__(self) -> None:
        _check_images(self.images)
        _check_names(self.classes, self.name)
        object.__setattr__(self, "classes", tuple(self.classes))
        labels = _checked_labels(self.labels, self.images, len(self.classes))
        images = self.images.detach().contiguous(memory_format=torch.channels_last)
        object.__setattr__(self, "images", images)
        object.__setattr__(self, "labels", labels.detach().contiguous())

    @classmethod
    def from_dataset(
        cls,
        dataset: Dataset,
        *,
        size: int | tuple[int, int] | None = None,
        classes: Sequence[str] | None = None,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> ImageSet:
        """Read a data set of pairs (image, label), such as torchvision's, into memory.

        Images are Pillow's, turned as their EXIF orientation says, uint8 tensors [C, H, W] or uint8
        arrays [H, W, C]; grey ones become RGB where others are.

        Args:
            dataset: has a length and gives the pairs by their number, or rows with an ``image`` or
                ``img`` and a ``label``, as Hugging Face's data sets do.
            size: height and width to resize to, or one number for both; by default the images stay
                as they are, and must be of one size.
            classes: the name of each class; by default ``dataset.classes``, also of the set that a
                ``Subset`` is a part of, if there is such a list for all labels, else the labels.
            name: what to call the set; by default the class of ``dataset``.
            progress: called as ``progress(done, total, what)`` now and then.

        Raises:
            TypeError: an image or label is of another kind, or images are not uint8.
            ValueError: there are none, they differ in size, or a label has no class.

        Example:
            >>> pairs = [(torch.zeros(3, 8, 8, dtype=torch.uint8), label) for label in (0, 1, 1)]
            >>> ImageSet.from_dataset(pairs, size=6, classes=("cat", "dog"), name="pets")
            ImageSet('pets': 3 images of 3x6x6 (CxHxW), 2 classes)
        """
        if isinstance(size, tuple):
            if len(size) != 2:
                raise ValueError(f"size must be a number or (height, width), got size={size}")
            height, width = (check_integer("size", side, minimum=1) for side in size)
        elif size is not None:
            height = width = check_integer("size", size, minimum=1)
        images, labels = read_dataset(
            dataset, size=None if size is None else (height, width), progress=progress
        )
        names = class_names(dataset, labels) if classes is None else tuple(classes)
        return cls(images, labels, names, type(dataset).__name__ if name is None else name)

    def __len__(self) -> int:
        return self.images.shape[0]

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """The image [C, H, W], a view, and the label at ``index``: a data set for torch's loaders.

        Raises:
            TypeError: the index is no whole number.
            IndexError: it lies outside the set.
        """
        number = index_of(index)
        return self.images[number], int(self.labels[number])

    def __repr__(self) -> str:
        shape = "x".join(str(size) for size in self.images.shape[1:])
        content = f"{len(self)} images of {shape} (CxHxW), {self.num_classes} classes"
        return f"ImageSet({self.name!r}: {content})"

    @property
    def num_classes(self) -> int:
        """The number of classes, those without an image included."""
        return len(self.classes)

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.images.shape[2], self.images.shape[3]

    @property
    def channels(self) -> int:
        """The number of channels: 3 for RGB, 1 for grey."""
        return self.images.shape[1]

    def subset(self, indices: Sequence[int] | npt.NDArray[Any] | Tensor) -> ImageSet:
        """The images at ``indices``, in that order, as a new set with the same classes and name.

        Args:
            indices: whole numbers from 0 to len(self) - 1, at least one, in a sequence, a NumPy
                array or a tensor; a number may come more than once.

        Raises:
            TypeError: the indices are not whole numbers.
            ValueError: there are none, or one lies outside the set.

        Example:
            >>> images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
            >>> labels = torch.tensor([0, 1, 1, 0])
            >>> pets = ImageSet(images, labels, classes=("cat", "dog"), name="pets")
            >>> pets.subset([3, 1]).labels
            tensor([0, 1])
        """
        index = _as_index(indices, len(self)).to(self.images.device)
        # indexing the NHWC view copies whole images and keeps the storage order
        images = self.images.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)
        return ImageSet(images, self.labels[index], self.classes, self.name)

    def split(self, holdout: int | float, seed: int = 0) -> tuple[ImageSet, ImageSet]:
        """Hold out some images of every class: ``(rest, held_out)``, together the whole set.

        The choice is random within each class and every class gives its share, to within less than
        one image. It is a pure function of (labels, holdout, seed). Both parts keep the order of
        the set.

        Args:
            holdout: an ``int`` is the number of images to hold out; a ``float``
                between 0 and 1 is their part of the set.
            seed: which of the many such splits.

        Raises:
            TypeError: holdout is not a number or seed not a whole one.
            ValueError: either part would be empty.

        Example:
            >>> images = torch.zeros(10, 1, 8, 8, dtype=torch.uint8)
            >>> labels = torch.arange(10) % 2
            >>> numbers = ImageSet(images, labels, classes=("even", "odd"), name="numbers")
            >>> rest, held_out = numbers.split(0.2, seed=1)
            >>> len(rest), sorted(held_out.labels.tolist())
            (8, [0, 1])
        """
        seed = check_integer("seed", seed)
        if isinstance(holdout, float):
            check_fraction("holdout", holdout)
            count = round(holdout * len(self))
        else:
            count = check_integer("holdout", holdout, minimum=1)
        if not 0 < count < len(self):
            raise ValueError(
                f"holdout must leave at least one image in each part, got holdout={holdout} "
                f"({count} images) of a set of {len(self)}"
            )
        held_out = _held_out(self.labels.cpu(), count, seed)
        return self.subset((~held_out).nonzero()[:, 0]), self.subset(held_out.nonzero()[:, 0])

    def mean_std(self) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Mean and standard deviation of each channel over all pixels, in units of 0..1.

        Computed from each channel's histogram in whole numbers, so neither depends on the order of
        the images. The deviation is the population's (divided by N·H·W); that of a channel that is
        the same everywhere is given as 1, so that ``Normalize`` makes it 0 throughout.

        Example:
            >>> images = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1)
            >>> labels = torch.tensor([0, 0])
            >>> ImageSet(images, labels, classes=("any",), name="pixels").mean_std()
            ((0.5,), (0.5,))
        """
        moments = [
            _mean_std_of_channel(self.images[:, channel]) for channel in range(self.channels)
        ]
        return tuple(mean for mean, _ in moments), tuple(std for _, std in moments)


def _mean_std_of_channel(pixels: Tensor) -> tuple[float, float]:
    """Mean and deviation in units of 0..1, exact up to the last division and root."""
    counts = torch.bincount(pixels.reshape(-1), minlength=256).tolist()
    number = sum(counts)
    total = sum(value * count for value, count in enumerate(counts))
    squares = sum(value * value * count for value, count in enumerate(counts))
    variance = (squares * number - total * total) / (number * number * 255 * 255)
    return total / (number * 255), float(variance**0.5) or 1.0


def _held_out(labels: Tensor, count: int, seed: int) -> Tensor:
    """Which images to hold out: bool, shape [N], True for ``count`` of them.

    By largest remainders: a class of n gives n * count / N rounded down, and the classes that lose
    most by the rounding one more. The images are shuffled, and of each class the first ones taken.
    """
    number = len(labels)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    shuffled = torch.randperm(number, generator=generator, device="cpu")
    in_order = labels[shuffled]
    sizes = torch.bincount(labels)
    quota, remainder = sizes * count // number, sizes * count % number
    beyond = _place_in_class(in_order, sizes) - quota[in_order]
    # each class's first image beyond its quota; stable, so the shuffle decides between equals
    candidates = shuffled[beyond == 0]
    candidates = candidates[remainder[labels[candidates]].argsort(descending=True, stable=True)]
    held_out = torch.zeros(number, dtype=torch.bool, device="cpu")
    held_out[shuffled[beyond < 0]] = True
    held_out[candidates[: count - int(quota.sum())]] = True
    return held_out


def _place_in_class(labels: Tensor, sizes: Tensor) -> Tensor:
    """How many images of its class come before each image: int64, shape [N]."""
    by_class = labels.argsort(stable=True)
    starts = sizes.cumsum(0) - sizes
    place = torch.empty_like(labels)
    place[by_class] = torch.arange(len(labels), device="cpu") - starts[labels[by_class]]
    return place


def _as_index(indices: Sequence[int] | npt.NDArray[Any] | Tensor, length: int) -> Tensor:
    index = indices if isinstance(indices, Tensor) else _as_tensor(indices)
    if index.numel() == 0:
        raise ValueError("indices must name at least one image, got none")
    if index.dtype == torch.bool or index.is_floating_point() or index.is_complex():
        raise TypeError(f"indices must be whole numbers, got dtype={index.dtype}")
    if index.dim() != 1:
        raise ValueError(f"indices must be one-dimensional, got shape={tuple(index.shape)}")
    index = index.to(torch.int64)  # torch finds no minimum of uint16
    low, high = int(index.min()), int(index.max())
    if low < 0 or high >= length:
        wrong = low if low < 0 else high
        raise ValueError(f"indices must be between 0 and {length - 1}, got {wrong}")
    return index


def _as_tensor(indices: Sequence[int] | npt.NDArray[Any]) -> Tensor:
    # a copy, as torch takes no array that runs backwards
    numbers = indices.copy() if isinstance(indices, np.ndarray) else indices
    try:
        return torch.as_tensor(numbers, device="cpu")
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"indices must be whole numbers, got {type(indices).__name__} ({error})"
        ) from None


def _check_images(images: object) -> None:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dtype != torch.uint8:
        raise TypeError(
            f"images must have dtype torch.uint8 (values 0..255), got dtype={images.dtype}"
        )
    if images.dim() != 4:
        raise ValueError(
            f"images must have the shape [N, C, H, W], got shape={tuple(images.shape)}"
        )
    if images.numel() == 0:
        raise ValueError(
            f"images must hold at least one image with pixels, got shape={tuple(images.shape)}"
        )


def _check_names(classes: object, name: object) -> None:
    if not isinstance(name, str):
        raise TypeError(f"name must be a str, got name={name!r}")
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise TypeError(f"classes must be a tuple of names, got classes={classes!r}")
    for entry in classes:
        if not isinstance(entry, str):
            raise TypeError(f"classes must hold only str, got {entry!r}")
    if len(set(classes)) != len(classes):
        twice = next(entry for entry in classes if classes.count(entry) > 1)
        raise ValueError(f"classes must differ from each other, got {twice!r} more than once")


def _checked_labels(labels: object, images: Tensor, num_classes: int) -> Tensor:
    """The labels as int64."""
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if labels.dtype == torch.bool or labels.is_floating_point() or labels.is_complex():
        raise TypeError(f"labels must have a whole-number dtype, got dtype={labels.dtype}")
    if labels.dim() != 1:
        raise ValueError(f"labels must have the shape [N], got shape={tuple(labels.shape)}")
    if len(labels) != len(images):
        raise ValueError(
            "images and labels must be equally many, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    if labels.device != images.device:
        raise ValueError(
            f"images and labels must be on one device, got {images.device} and {labels.device}"
        )
    labels = labels.to(torch.int64)  # torch finds no minimum of uint16
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"labels must be between 0 and {num_classes - 1} (the classes), got {wrong}"
        )
    return labels
