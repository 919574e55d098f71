"""Augmentation of whole batches: sample each image's own numbers, then apply them purely."""

from __future__ import annotations

from fasttricks.transforms._base import Pipeline, Transform
from fasttricks.transforms._cutout import Cutout, cutout
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._erasing import RandomErasing
from fasttricks.transforms._flip import AlternatingFlip, RandomHorizontalFlip
from fasttricks.transforms._intensity import RandomIntensity
from fasttricks.transforms._mix import CutMix, Mix, Mixup
from fasttricks.transforms._normalize import Normalize
from fasttricks.transforms._resize import ProgressiveResize
from fasttricks.transforms._translate import RandomTranslate

__all__ = [
    "AlternatingFlip",
    "CutMix",
    "Cutout",
    "Draws",
    "Mix",
    "Mixup",
    "Normalize",
    "Pipeline",
    "ProgressiveResize",
    "RandomErasing",
    "RandomHorizontalFlip",
    "RandomIntensity",
    "RandomTranslate",
    "Transform",
    "cutout",
]
