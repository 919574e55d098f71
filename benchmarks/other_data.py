"""Make an .npz for a race on other data: small images of one size, with any number of classes.

    python benchmarks/other_data.py GTSRB --root data --size 24 --output gtsrb.npz
    python benchmarks/other_data.py pictures --classes 40 --size 32 --output pictures.npz

The data set is one of torchvision's, by the name of its class, downloaded to --root if it is not
there, with a part to train on ("train", else "trainval") and one to test on ("test", else "val"),
or a folder with class folders in train/ and in test/ or val/, whose images may have any size. (Tiny
ImageNet's val/ must be sorted into class folders.) EMNIST is several: --split letters names one.
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
TRAIN_PARTS, TEST_PARTS = ("train", "trainval"), ("test", "val")


def open_data(source: str, root: str, split: str | None) -> tuple[Split, Split]:
    """Return the images and labels to train on and those to test on."""
    if Path(source).is_dir():
        return from_folder(Path(source))
    return from_torchvision(source, root, split)


def class_folders(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*") if path.is_dir())


def from_folder(folder: Path) -> tuple[Split, Split]:
    # Tiny ImageNet's test/ is a folder of images without labels.
    parts = [part for part in (folder / "test", folder / "val") if class_folders(part)]
    alike = [part for part in parts if class_folders(part) == class_folders(folder / "train")]
    if not parts:
        raise SystemExit(f"expected class folders in test/ or val/ of {folder}, got none")
    test_folder = (alike or parts)[0]
    train, test = (
        torchvision.datasets.ImageFolder(str(part)) for part in (folder / "train", test_folder)
    )
    if train.classes != test.classes:
        different = sorted({*train.classes} ^ {*test.classes})
        raise SystemExit(f"train/ and {test_folder.name}/ must have the same classes: {different}")
    return train, test


def parameters_of(kind: type) -> set[str]:
    """Return the names that a class takes, with those that it passes on to its base."""
    found: set[str] = set()
    for base in kind.__mro__:
        parameters = inspect.signature(base).parameters
        found |= parameters.keys()
        if all(p.kind is not p.VAR_KEYWORD for p in parameters.values()):
            break
    return found


def from_torchvision(name: str, root: str, split: str | None) -> tuple[Split, Split]:
    kind: Any = getattr(torchvision.datasets, name, None)
    names = parameters_of(kind) if inspect.isclass(kind) else set()
    by_split, by_train = ("download" in names and key in names for key in ("split", "train"))
    if not (by_split or by_train):
        raise SystemExit(f"expected a folder, or a data set of torchvision to download: {name!r}")
    several = by_split and by_train  # EMNIST, where a split is a data set
    if several != (split is not None):
        need = "name one of its data sets" if several else "be left out"
        raise SystemExit(f"--split must {need} for {name}, got {split}")
    if not by_train:
        return first_part(kind, root, TRAIN_PARTS), first_part(kind, root, TEST_PARTS)
    own = {"split": split} if several else {}
    try:
        train, test = (kind(root, train=train, download=True, **own) for train in (True, False))
    except ValueError as error:
        raise SystemExit(f"{name}: {error}") from error
    return train, test


def first_part(kind: Any, root: str, names: Sequence[str]) -> Split:
    """Return the first of a data set's parts that it has."""
    problem = None
    for name in names:
        try:
            part: Split = kind(root, split=name, download=True)
            return part
        except ValueError as error:  # a name that it does not know
            problem = error
    raise SystemExit(f"{kind.__name__} must have one of the parts {', '.join(names)}: {problem}")


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
    parser.add_argument("--split", help="of EMNIST: which of its data sets, such as letters")
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
    args.output.parent.mkdir(parents=True, exist_ok=True)  # a download may take minutes
    train, test = open_data(args.source, args.root, args.split)
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
