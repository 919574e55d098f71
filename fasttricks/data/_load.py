"""load_data: from a path, whatever lies there, to a training and a test set."""

from __future__ import annotations

import os
from pathlib import Path

from fasttricks.data._cache import cache_root, entry_name, read_entry, write_entry
from fasttricks.data._cifar10 import (
    ARCHIVE_NAME,
    BATCHES_FOLDER,
    find_archive,
    find_batches,
    with_canonical_name,
    with_own_name,
)
from fasttricks.data._download import fetch_cifar10
from fasttricks.data._errors import DataError, DataNotFoundError
from fasttricks.data._folder import find_folder
from fasttricks.data._npz import find_npz
from fasttricks.data._progress import Progress
from fasttricks.data._source import Pair, Source, name_of


def load_data(
    path: str | os.PathLike[str] | None = None,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    progress: Progress | None = None,
) -> Pair:
    """Read a data set: ``(train, test)``.

    ``path`` may be

    - torchvision's CIFAR-10 folder (with ``cifar-10-batches-py/`` or only
      ``cifar-10-python.tar.gz`` in it), or either of these two themselves;
    - a folder ``train/<class>/*.png`` and ``test/<class>/*.png`` (or ``val``); the images are
      png, jpg, jpeg, webp, bmp, ppm, pgm, tif or tiff;
    - an ``.npz`` with ``x_train, y_train, x_test, y_test``: images uint8 [N, H, W, C] or
      [N, H, W], labels whole numbers [N] or [N, 1];
    - None: CIFAR-10, from the cache folder, downloaded first if need be.

    Image files and the archive are decoded once and kept as tensors in the cache folder, until a
    file of the source changes. The sets are named "CIFAR-10" if they hold exactly its images and
    labels, else after the path.

    Args:
        path: the file or folder.
        cache_dir: where to keep decoded images and the download. Default:
            ``$FASTTRICKS_CACHE``, else ``$XDG_CACHE_HOME/fasttricks``, else
            ``~/.cache/fasttricks``.
        progress: called as ``progress(done, total, what)`` while files are downloaded or decoded.

    Returns:
        Two ``ImageSet`` with the same classes, image size and channels.

    Raises:
        DataError: what lies there cannot be used; the message names the file and says what to do.
        DataNotFoundError: there is nothing at ``path`` (a DataError and a FileNotFoundError).
        DataUnavailableError: the download failed.
        ImportError: Pillow (image files) or torchvision (download) is missing.

    Example:
        >>> import numpy, tempfile
        >>> images, labels = numpy.zeros((4, 8, 8, 3), dtype=numpy.uint8), numpy.array([0, 1, 1, 0])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     arrays = dict(x_train=images, y_train=labels, x_test=images, y_test=labels)
        ...     numpy.savez(f"{folder}/pets.npz", **arrays)
        ...     train, test = load_data(f"{folder}/pets.npz")
        >>> train
        ImageSet('pets': 4 images of 3x8x8 (CxHxW), 2 classes)

    Reference:
        Krizhevsky, Learning Multiple Layers of Features from Tiny Images, 2009, chapter 3.
    """
    if path is None:
        path = fetch_cifar10(cache_root(cache_dir), progress=progress)
    source = find_source(path)
    if not source.worth_caching:
        return with_canonical_name(source.read(progress))
    root = cache_root(cache_dir)
    cached = read_entry(root, entry_name(source))
    if cached is not None:
        # the same files may have been read by another path
        return with_own_name(cached, source.name)
    pair = with_canonical_name(source.read(progress))
    write_entry(root, source, pair)
    return pair


def find_source(path: str | os.PathLike[str]) -> Source:
    """What lies at ``path``, recognised by its names alone."""
    if not isinstance(path, (str, os.PathLike)):
        raise TypeError(f"path must be a str or a path, got path={path!r}")
    if not os.path.exists(os.path.expanduser(path)):
        raise DataNotFoundError(f"data path does not exist: {os.fspath(path)}")
    path = Path(path).expanduser()
    if os.path.isdir(path):
        return _find_in_folder(path)
    if path.suffix.lower() == ".npz":
        return find_npz(path)
    if path.name.endswith(".tar.gz"):
        return find_archive(path, name=name_of(path))
    raise DataError(f"data path must be a folder, an .npz or {ARCHIVE_NAME}, got {path}")


def _find_in_folder(path: Path) -> Source:
    if os.path.isfile(path / "data_batch_1"):
        return find_batches(path, name=name_of(path))
    if os.path.isdir(path / BATCHES_FOLDER):
        return find_batches(path / BATCHES_FOLDER, name=name_of(path))
    if any(os.path.isdir(path / split) for split in ("train", "test", "val")):
        return find_folder(path)
    if os.path.isfile(path / ARCHIVE_NAME):
        return find_archive(path / ARCHIVE_NAME, name=name_of(path))
    raise DataError(
        f"no data set in {path}: expected train/<class>/ and test/<class>/ with images, "
        f"{BATCHES_FOLDER}/ or {ARCHIVE_NAME}"
    )
