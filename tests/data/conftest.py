"""Little data sets on disk, and the plain arrays that reading them has to give back."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SPLITS = ("train", "test")
BATCHES = (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch")


def random_images(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


@pytest.fixture
def make_images() -> Callable[..., np.ndarray]:
    return random_images


@pytest.fixture
def make_tree(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray]]]:
    """``make_tree(name)`` writes train and test with class folders; with them come the pixels."""

    def make(
        name: str = "tree", classes: tuple[str, ...] = ("cat", "dog"), size: int = 6
    ) -> tuple[Path, dict[str, np.ndarray]]:
        root, pixels = tmp_path / name, {}
        for number, split in enumerate(SPLITS):
            images = random_images(3 * len(classes), size, size + 1, 3, seed=number)
            for index, image in enumerate(images):
                folder = root / split / classes[index // 3]
                folder.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image).save(folder / f"{index}.png")
            pixels[split] = images
        return root, pixels

    return make


@pytest.fixture
def make_batches(tmp_path: Path) -> Callable[..., tuple[Path, dict[str, np.ndarray], list[int]]]:
    """``make_batches()`` writes CIFAR-10's files with few images; returns folder, pixels, labels.

    The pixels and labels are those of the training set, in order, then those of the test set.
    """

    def make(
        name: str = "little", number: int = 3, protocol: int = 2
    ) -> tuple[Path, dict[str, np.ndarray], list[int]]:
        folder = tmp_path / name / "cifar-10-batches-py"
        folder.mkdir(parents=True)
        planes = random_images(6 * number, 3, 32, 32)
        labels = [index % 10 for index in range(6 * number)]
        for index, batch in enumerate(BATCHES):
            part = slice(index * number, (index + 1) * number)
            entries = {"data": planes[part].reshape(number, -1), "labels": labels[part]}
            (folder / batch).write_bytes(pickle.dumps(entries, protocol=protocol))
        names = [f"class {index}" for index in range(10)]
        (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, protocol=2))
        pixels = {"train": planes[: 5 * number], "test": planes[5 * number :]}
        return folder.parent, pixels, labels

    return make
