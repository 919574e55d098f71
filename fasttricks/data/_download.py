"""Fetches CIFAR-10's archive into the cache folder, with torchvision's address and md5."""

from __future__ import annotations

import hashlib
import os
import tempfile
import urllib.request
from http.client import HTTPException
from pathlib import Path
from typing import IO

from fasttricks.data._cifar10 import ARCHIVE_NAME
from fasttricks.data._errors import DataUnavailableError, reason_of
from fasttricks.data._progress import Progress

# for connecting and for each read: who has no network waits seconds, not minutes
_TIMEOUT_SECONDS = 8.0
_CHUNK_BYTES = 1 << 20


def fetch_cifar10(folder: Path, *, progress: Progress | None = None) -> Path:
    """The path of CIFAR-10's archive in ``folder``, downloaded first if it is not there yet.

    The file appears under its name only when it is whole and its md5 is right, so that two
    processes may fetch at once.

    Raises:
        ImportError: torchvision is not installed; it knows the address and the md5.
        DataUnavailableError: the download failed, or the folder cannot be written.
    """
    target = folder / ARCHIVE_NAME
    if target.is_file():
        return target
    url, md5 = _address()
    advice = f"get {ARCHIVE_NAME} by other means and pass its path to load_data"
    part: str | None = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        handle, part = tempfile.mkstemp(prefix=f".{ARCHIVE_NAME}.", dir=folder)
        with os.fdopen(handle, "wb") as file:
            digest = _stream(url, file, progress)
        if digest != md5:
            raise DataUnavailableError(
                f"the download of {url} has md5 {digest}, expected {md5}: {advice}"
            )
        os.chmod(part, 0o644)  # a cache may be shared; mkstemp's files are private
        os.replace(part, target)
        part = None
    except DataUnavailableError:
        raise
    except (OSError, HTTPException) as error:  # URLError and timeouts are OSErrors
        raise DataUnavailableError(
            f"cannot download CIFAR-10 from {url} to {folder} ({reason_of(error)}): {advice}"
        ) from None
    finally:
        if part is not None:
            os.unlink(part)
    return target


def _address() -> tuple[str, str]:
    try:
        from torchvision.datasets import CIFAR10
    except (ImportError, RuntimeError) as error:  # the latter where it does not fit torch
        raise ImportError(
            f"downloading CIFAR-10 needs a torchvision that fits torch ({reason_of(error)}): "
            "pip install torch torchvision"
        ) from None
    return CIFAR10.url, CIFAR10.tgz_md5


def _stream(url: str, file: IO[bytes], progress: Progress | None) -> str:
    """Copy what ``url`` holds to ``file``; its md5."""
    digest = hashlib.md5(usedforsecurity=False)
    with urllib.request.urlopen(url, timeout=_TIMEOUT_SECONDS) as response:
        total = int(response.headers.get("Content-Length") or 0)
        done = 0
        while chunk := response.read(_CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
            done += len(chunk)
            if progress is not None:
                progress(done, max(total, done), "downloading CIFAR-10")
    return digest.hexdigest()
