"""From files to batches: ``load_data`` and ``read_digits``, ``ImageSet``, and the loaders."""

from __future__ import annotations

from fasttricks.data._device_loader import DeviceLoader
from fasttricks.data._digits import read_digits
from fasttricks.data._errors import DataError, DataNotFoundError, DataUnavailableError
from fasttricks.data._image_set import ImageSet
from fasttricks.data._load import load_data
from fasttricks.data._pruned_loader import PrunedLoader

__all__ = [
    "DataError",
    "DataNotFoundError",
    "DataUnavailableError",
    "DeviceLoader",
    "ImageSet",
    "PrunedLoader",
    "load_data",
    "read_digits",
]
