"""Reads folders of class folders: train/<class>/*.png and test/<class>/*.png (or val for test)."""

from __future__ import annotations

import os
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fasttricks.data._decode import decode_image
from fasttricks.data._errors import DataError
from fasttricks.data._image_set import ImageSet
from fasttricks.data._progress import Progress, report
from fasttricks.data._source import FileStamp, Pair, Source, name_of, stamp_file

IMAGE_SUFFIXES = (
    *(".png", ".jpg", ".jpeg", ".webp", ".bmp"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff"),
)


def find_folder(path: Path) -> Source:
    """The class folders at ``path`` as a source; every file is looked at, none opened."""
    train_folder = path / "train"
    # Where the test images have no labels, they have no class folders, and those of val count.
    found = [path / name for name in ("test", "val") if os.path.isdir(path / name)]
    test_folder = next((one for one in found if _has_folders(one)), [*found, path / "val"][0])
    if not os.path.isdir(train_folder):
        raise DataError(f"no train folder in {path}: expected {train_folder}/<class>/ with images")
    if not os.path.isdir(test_folder):
        raise DataError(
            f"no test folder in {path}: expected {path / 'test'}/<class>/ with images (or val)"
        )
    classes = _class_names(train_folder)
    _check_same_classes(train_folder, classes, test_folder, _class_names(test_folder))
    splits = [_scan_split(path, folder.name, classes) for folder in (train_folder, test_folder)]

    def read(progress: Progress | None) -> Pair:
        images = _decode_splits(path, splits, progress)
        label_of = {name: label for label, name in enumerate(classes)}
        train, test = (
            ImageSet(
                torch.from_numpy(array).permute(0, 3, 1, 2),
                torch.tensor(
                    [label_of[stamp.name.split("/")[1]] for stamp in stamps], device="cpu"
                ),
                classes,
                name_of(path),
            )
            for array, stamps in zip(images, splits, strict=True)
        )
        return train, test

    return Source(path, name_of(path), tuple(chain.from_iterable(splits)), read)


def _has_folders(folder: Path) -> bool:
    return any(_is_folder(entry) for entry in _entries_in(str(folder), seen=set()))


def _class_names(folder: Path) -> tuple[str, ...]:
    """The class folders in ``folder``, sorted as text (as torchvision's ImageFolder does)."""
    names = sorted(
        entry.name for entry in _entries_in(str(folder), seen=set()) if _is_folder(entry)
    )
    if not names:
        raise DataError(f"no class folders in {folder}: expected {folder}/<class>/ with images")
    return tuple(names)


def _check_same_classes(
    train: Path, train_classes: tuple[str, ...], test: Path, test_classes: tuple[str, ...]
) -> None:
    for missing in sorted(set(train_classes) ^ set(test_classes)):
        there, lacks = (train, test) if missing in train_classes else (test, train)
        raise DataError(
            f"class {missing!r} is in {there} but not in {lacks}: both need the same class folders"
        )


def _scan_split(root: Path, split: str, classes: tuple[str, ...]) -> list[FileStamp]:
    """Every image of a split, named ``split/class/...``, class by class, each sorted."""
    stamps: list[FileStamp] = []
    for name in classes:
        found = sorted(_images_below(str(root), f"{split}/{name}", seen=set()))
        if not found:
            suffixes = " ".join(IMAGE_SUFFIXES)
            raise DataError(
                f"no images in {root / split / name}: add images ({suffixes}) "
                "or remove the class from both splits"
            )
        stamps.extend(found)
    return stamps


def _images_below(root: str, inside: str, *, seen: set[tuple[int, int]]) -> Iterator[FileStamp]:
    """The image files in ``root/inside`` and the folders in it.

    Links are followed, but no folder is entered twice, so that a loop of links ends.
    """
    folder = os.path.join(root, inside)
    for entry in _entries_in(folder, seen=seen):
        name = f"{inside}/{entry.name}"
        if _is_folder(entry):
            yield from _images_below(root, name, seen=seen)
        elif entry.name.lower().endswith(IMAGE_SUFFIXES):
            yield stamp_file(entry.path, name=name)


def _entries_in(folder: str, *, seen: set[tuple[int, int]]) -> list[os.DirEntry[str]]:
    """What is in ``folder``, hidden names (.DS_Store, .ipynb_checkpoints, ...) left out."""
    try:
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:
            return []
        seen.add((status.st_dev, status.st_ino))
        with os.scandir(folder) as entries:
            return [entry for entry in entries if not entry.name.startswith(".")]
    except OSError as error:
        raise DataError(f"cannot read the folder {folder} ({error.strerror})") from None


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _decode_splits(
    root: Path, splits: list[list[FileStamp]], progress: Progress | None
) -> list[npt.NDArray[np.uint8]]:
    """The images of each split, shape [N, H, W, 3]; all of one size, the first image's."""
    total = sum(len(stamps) for stamps in splits)
    first_path = root / splits[0][0].name
    first = decode_image(first_path)
    arrays, done = [], 0
    for stamps in splits:
        array = np.empty((len(stamps), *first.shape), dtype=np.uint8)
        for row, stamp in zip(array, stamps, strict=True):
            path = root / stamp.name
            image = decode_image(path)
            if image.shape != first.shape:
                raise DataError(
                    f"all images must have one size, got {_size(first)} in {first_path} "
                    f"and {_size(image)} in {path}: resize them first, "
                    "or read each split by ImageSet.from_dataset(ImageFolder(...), size=...)"
                )
            row[...] = image
            done += 1
            report(progress, done, total, "decoding images")
        arrays.append(array)
    return arrays


def _size(image: npt.NDArray[np.uint8]) -> str:
    return f"{image.shape[1]}x{image.shape[0]}"
