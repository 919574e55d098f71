"""From files to batches: ``load_data`` and ``read_digits``, ``ImageSet``, ``DeviceLoader``."""

from __future__ import annotations

from ._device_loader import DeviceLoader
from ._digits import read_digits
from ._errors import DataError, DataNotFoundError, DataUnavailableError
from ._image_set import ImageSet
from ._load import load_data

__all__ = [
    "DataError",
    "DataNotFoundError",
    "DataUnavailableError",
    "DeviceLoader",
    "ImageSet",
    "load_data",
    "read_digits",
]
