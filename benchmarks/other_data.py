"""Make an .npz for a race on other data: small images of one size, with any number of classes.

    python benchmarks/other_data.py GTSRB --root data --size 24 --output gtsrb.npz
    python benchmarks/other_data.py pictures --classes 40 --size 32 --output pictures.npz

The data set is one of torchvision's whose parts are "train" and "test", by the name of its class,
downloaded to --root if it is not there, or a folder with class folders in train/ and in test/ (or
val/), whose images may have any size. (Tiny ImageNet's val/ must be sorted into class folders.)
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torchvision
from PIL import Image

Split = Sequence[tuple[Image.Image, int]]


def open_data(source: str, root: str) -> tuple[Split, Split]:
    """Return the images and labels to train on and those to test on."""
    return from_folder(Path(source)) if Path(source).is_dir() else from_torchvision(source, root)


def from_folder(folder: Path) -> tuple[Split, Split]:
    test_folder = folder / ("test" if (folder / "test").is_dir() else "val")
    train, test = (
        torchvision.datasets.ImageFolder(str(part)) for part in (folder / "train", test_folder)
    )
    if train.classes != test.classes:
        different = sorted({*train.classes} ^ {*test.classes})
        raise SystemExit(f"train/ and {test_folder.name}/ must have the same classes: {different}")
    return train, test


def from_torchvision(name: str, root: str) -> tuple[Split, Split]:
    kind: Any = getattr(torchvision.datasets, name, None)
    parameters = () if kind is None else inspect.signature(kind).parameters
    if "download" in parameters and "split" in parameters:
        parts: list[dict[str, Any]] = [{"split": "train"}, {"split": "test"}]
    elif "download" in parameters and "train" in parameters:
        parts = [{"train": True}, {"train": False}]
    else:
        raise SystemExit(f"expected a folder, or a data set of torchvision to download: {name!r}")
    train, test = (kind(root, download=True, **part) for part in parts)
    return train, test


def read(split: Split, number: int) -> tuple[Image.Image, int]:
    """Return an image and its label, or end with a line that says which one cannot be read."""
    try:
        return split[number]
    except (OSError, ValueError) as error:
        names = getattr(split, "samples", None)
        name = names[number][0] if names else f"image {number}"
        raise SystemExit(f"{name} cannot be read: {error}") from error


def arrays(
    split: Split, *, size: int, classes: int | None, images: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Return images [N, size, size, 3] and labels [N]: those of the first classes, drawn at random.

    Each class has an image at least. Without a number of images, all of them, in their own order.
    """
    pixels, labels = [], []
    for number in range(len(split)):
        image, label = read(split, number)
        if classes is None or label < classes:
            resized = image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR)
            pixels.append(np.asarray(resized))
            labels.append(label)
    order = np.arange(len(labels))
    if images is not None:
        if images > len(labels):
            raise SystemExit(f"--images must be at most {len(labels)}, got {images}")
        order = np.random.default_rng(0).permutation(len(labels))
        first = np.unique(np.asarray(labels)[order], return_index=True)[1]
        if images < len(first):
            raise SystemExit(f"--images must be at least {len(first)}, the classes, got {images}")
        others = np.setdiff1d(np.arange(len(labels)), first)
        order = order[np.sort(np.concatenate([first, others])[:images])]
    return np.stack(pixels)[order], np.asarray(labels)[order]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", help="a folder, or the name of a data set of torchvision")
    parser.add_argument("--root", default="data", help="torchvision's folder (default: data)")
    parser.add_argument("--size", type=int, default=32, help="pixels a side (default: 32)")
    parser.add_argument("--classes", type=int, help="only the first so many (default: all)")
    parser.add_argument("--images", type=int, help="training images (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="the .npz")
    args = parser.parse_args()
    for name in ("size", "classes", "images"):
        number = getattr(args, name)
        if number is not None and number < 1:
            raise SystemExit(f"--{name} must be at least 1, got {number}")
    if args.output.suffix != ".npz":
        raise SystemExit(f"--output must end with .npz, got {args.output}")
    train, test = open_data(args.source, args.root)
    options = {"size": args.size, "classes": args.classes}
    found = {}
    found["x_train"], found["y_train"] = arrays(train, images=args.images, **options)
    found["x_test"], found["y_test"] = arrays(test, images=None, **options)
    np.savez(args.output, **found)
    train_shape, test_shape = found["x_train"].shape, found["x_test"].shape
    classes = len(np.unique(found["y_train"]))
    print(f"{args.output}: {train_shape} to train, {test_shape} to test, {classes} classes")


if __name__ == "__main__":
    main()
