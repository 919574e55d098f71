"""Networks, the blocks they are made of, and initialisers for any module."""

from __future__ import annotations

from fasttricks.models._activation import ACTIVATIONS, Activation, make_activation
from fasttricks.models._blocks import ConvNormAct, Residual, batch_norm, global_max_pool, halve
from fasttricks.models._initialisation import (
    dirac_,
    patch_covariance,
    scale_head_,
    whiten_,
    whitening_filters,
)
from fasttricks.models._resnet9 import ResNet9, resnet9
from fasttricks.models._speedrun import SpeedrunNet, speedrun_net

__all__ = [
    "ACTIVATIONS",
    "Activation",
    "ConvNormAct",
    "ResNet9",
    "Residual",
    "SpeedrunNet",
    "batch_norm",
    "dirac_",
    "global_max_pool",
    "halve",
    "make_activation",
    "patch_covariance",
    "resnet9",
    "scale_head_",
    "speedrun_net",
    "whiten_",
    "whitening_filters",
]
