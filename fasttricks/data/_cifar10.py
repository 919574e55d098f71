"""Reads CIFAR-10 as its authors and torchvision distribute it; recognises it in any form."""

from __future__ import annotations

import os
import tarfile
import zlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fasttricks.data._batch_pickle import array_from, load_batch
from fasttricks.data._errors import DataError, reason_of
from fasttricks.data._image_set import ImageSet
from fasttricks.data._progress import Progress
from fasttricks.data._source import Pair, Source, stamp_files

ARCHIVE_NAME = "cifar-10-python.tar.gz"
BATCHES_FOLDER = "cifar-10-batches-py"
_NAME = "CIFAR-10"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_TRAIN_BATCHES = tuple(f"data_batch_{number}" for number in range(1, 6))
_TEST_BATCH = "test_batch"
_META = "batches.meta"
# the real batches have 31 MB; what is much larger is something else and is not read into memory
_MAX_BATCH_BYTES = 1 << 28
# sum over the images of crc32(pixels in HWC order, started from the label): the order of the
# images does not matter, anything else does
_FINGERPRINTS = (107_255_981_865_454, 21_406_119_098_232)


def is_cifar10(train: ImageSet, test: ImageSet) -> bool:
    """Whether the two sets hold exactly CIFAR-10's images and labels, in any order."""
    shapes = tuple(train.images.shape), tuple(test.images.shape)
    if shapes != ((50_000, 3, 32, 32), (10_000, 3, 32, 32)):
        return False
    return (fingerprint(train), fingerprint(test)) == _FINGERPRINTS


def fingerprint(image_set: ImageSet) -> int:
    """A number that depends on each image with its label, and not on the order of the images."""
    images = image_set.images.permute(0, 2, 3, 1).numpy()
    labels = image_set.labels.tolist()
    return sum(zlib.crc32(image, label) for image, label in zip(images, labels, strict=True))


def with_canonical_name(pair: Pair) -> Pair:
    """The pair named "CIFAR-10" with its class names if that is what it is, else unchanged."""
    train, test = pair
    if not is_cifar10(train, test):
        return pair
    return replace(train, classes=CLASSES, name=_NAME), replace(test, classes=CLASSES, name=_NAME)


def with_own_name(pair: Pair, name: str) -> Pair:
    """The pair as ``name``, unless ``with_canonical_name`` has named it."""
    train, test = pair
    if (train.name, train.classes) == (_NAME, CLASSES):
        return pair
    return replace(train, name=name), replace(test, name=name)


def find_batches(folder: Path, *, name: str) -> Source:
    """The unpacked batches in ``folder`` as a source.

    They are one read away from tensors and so not worth caching.
    """
    names = (*_TRAIN_BATCHES, _TEST_BATCH)
    missing = [batch for batch in names if not os.path.isfile(folder / batch)]
    if missing:
        raise DataError(
            f"CIFAR-10's {', '.join(missing)} missing in {folder}: unpack {ARCHIVE_NAME} again"
        )
    if os.path.isfile(folder / _META):
        names = (*names, _META)

    def read(progress: Progress | None) -> Pair:
        contents = {}
        for done, batch in enumerate(names, start=1):
            contents[batch] = _read_file(folder / batch)
            _report(progress, done, len(names))
        return _decode_batches(contents, where=folder, name=name)

    return Source(folder, name, stamp_files(folder, names), read, worth_caching=False)


def find_archive(path: Path, *, name: str) -> Source:
    """The .tar.gz of the batches as a source."""

    def read(progress: Progress | None) -> Pair:
        return _decode_batches(_read_archive(path, progress), where=path, name=name)

    return Source(path, name, stamp_files(path.parent, [path.name]), read)


def _read_file(path: Path) -> bytes:
    try:
        with open(path, "rb") as file:
            content = file.read(_MAX_BATCH_BYTES + 1)
    except OSError as error:
        raise DataError(f"cannot read {path}: {error.strerror}") from None
    if len(content) > _MAX_BATCH_BYTES:
        raise DataError(
            f"{path} must have at most {_MAX_BATCH_BYTES} bytes: it is not a batch of CIFAR-10"
        )
    return content


def _read_archive(path: Path, progress: Progress | None) -> dict[str, bytes]:
    """The batches in the archive by name; only exact names count, nothing is unpacked."""
    wanted = {f"{BATCHES_FOLDER}/{name}": name for name in (*_TRAIN_BATCHES, _TEST_BATCH, _META)}
    contents: dict[str, bytes] = {}
    try:
        with tarfile.open(path, mode="r:gz") as archive:
            for member in archive:
                name = wanted.get(member.name.removeprefix("./"))
                if name is None or not member.isfile() or member.size > _MAX_BATCH_BYTES:
                    continue
                file = archive.extractfile(member)
                if file is not None:
                    contents[name] = file.read()
                    _report(progress, len(contents), len(wanted))
    except (tarfile.TarError, OSError, EOFError, zlib.error, ValueError) as error:
        raise DataError(
            f"{path} is damaged ({reason_of(error)}): remove it and download it again"
        ) from None
    missing = [name for name in (*_TRAIN_BATCHES, _TEST_BATCH) if name not in contents]
    if missing:
        raise DataError(
            f"{path} must hold CIFAR-10's batches, missing: {', '.join(missing)}; download it again"
        )
    return contents


def _report(progress: Progress | None, done: int, total: int) -> None:
    if progress is not None:
        progress(done, total, "reading batches")


def _decode_batches(contents: dict[str, bytes], *, where: Path, name: str) -> Pair:
    classes = _class_names(contents[_META], where) if _META in contents else tuple("0123456789")
    batches = {
        batch: _decode_batch(contents[batch], where=f"{batch} in {where}", num_classes=len(classes))
        for batch in (*_TRAIN_BATCHES, _TEST_BATCH)
    }
    train, test = (
        ImageSet(
            # the planes of each image are interleaved to HWC here, once
            torch.from_numpy(np.concatenate([batches[batch][0] for batch in names])),
            torch.from_numpy(np.concatenate([batches[batch][1] for batch in names])),
            classes,
            name,
        )
        for names in (_TRAIN_BATCHES, (_TEST_BATCH,))
    )
    return train, test


def _decode_batch(
    content: bytes, *, where: str, num_classes: int
) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """One batch as images [N, 3, 32, 32] and labels [N], checked."""
    entries = load_batch(content, where)
    images = array_from(entries.get("data"), where)
    labels = entries.get("labels")
    if images.ndim != 2 or images.shape[1] != 3 * 32 * 32 or len(images) == 0:
        raise DataError(
            f"the images of {where} must have the shape [N, 3072], got {list(images.shape)}"
        )
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"the labels of {where} must be a list of whole numbers")
    if len(labels) != len(images):
        raise DataError(
            f"{where} must have one label an image, "
            f"got {len(images)} images and {len(labels)} labels"
        )
    wrong = [label for label in labels if not 0 <= label < num_classes]
    if wrong:
        raise DataError(
            f"the labels of {where} must be between 0 and {num_classes - 1}, got {wrong[0]}"
        )
    return images.reshape(-1, 3, 32, 32), np.array(labels, dtype=np.int64)


def _class_names(content: bytes, where: Path) -> tuple[str, ...]:
    names = load_batch(content, f"{_META} in {where}").get("label_names")
    if isinstance(names, list):
        texts = [
            name.decode("utf-8", "replace") if isinstance(name, bytes) else name for name in names
        ]
        if texts and all(isinstance(text, str) for text in texts) and len(set(texts)) == len(texts):
            return tuple(texts)
    raise DataError(f"{_META} in {where} must hold a list label_names of different class names")
