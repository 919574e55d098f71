"""Augmentation of whole batches: sample each image's own numbers, then apply them purely."""

from __future__ import annotations

from ._base import Pipeline, Transform
from ._cutout import Cutout, cutout
from ._draws import Draws
from ._flip import AlternatingFlip, RandomHorizontalFlip
from ._normalize import Normalize
from ._resize import ProgressiveResize
from ._translate import RandomTranslate

__all__ = [
    "AlternatingFlip",
    "Cutout",
    "Draws",
    "Normalize",
    "Pipeline",
    "ProgressiveResize",
    "RandomHorizontalFlip",
    "RandomTranslate",
    "Transform",
    "cutout",
]
