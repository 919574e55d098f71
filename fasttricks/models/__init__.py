"""Networks, the blocks they are made of, and initialisers for any module."""

from __future__ import annotations

from fasttricks.models._activation import ACTIVATIONS, Activation, make_activation
from fasttricks.models._blocks import ConvNormAct, Residual, batch_norm, global_max_pool, halve
from fasttricks.models._celu import CELU
from fasttricks.models._change import fuse, replace_activation_
from fasttricks.models._drop_path import DropPath
from fasttricks.models._ghost_batch_norm import GhostBatchNorm2d
from fasttricks.models._initialisation import (
    dirac_,
    patch_covariance,
    scale_head_,
    whiten_,
    whitening_filters,
)
from fasttricks.models._registry import build, list_models
from fasttricks.models._resnet import (
    ResNet,
    resnet18,
    resnet34,
    resnet50,
    resnet101,
    resnet152,
)
from fasttricks.models._resnet9 import ResNet9, resnet9
from fasttricks.models._resnet_cifar import (
    CifarResNet,
    resnet20,
    resnet32,
    resnet44,
    resnet56,
    resnet110,
)
from fasttricks.models._speedrun import SpeedrunNet, speedrun_net
from fasttricks.models._summary import ModelSummary, Stage, summary
from fasttricks.models._vgg import VGG, vgg11, vgg13, vgg16, vgg19
from fasttricks.models._winograd import WinogradConv2d, use_winograd_

__all__ = [
    "ACTIVATIONS",
    "CELU",
    "VGG",
    "Activation",
    "CifarResNet",
    "ConvNormAct",
    "DropPath",
    "GhostBatchNorm2d",
    "ModelSummary",
    "ResNet",
    "ResNet9",
    "Residual",
    "SpeedrunNet",
    "Stage",
    "WinogradConv2d",
    "batch_norm",
    "build",
    "dirac_",
    "fuse",
    "global_max_pool",
    "halve",
    "list_models",
    "make_activation",
    "patch_covariance",
    "replace_activation_",
    "resnet9",
    "resnet18",
    "resnet20",
    "resnet32",
    "resnet34",
    "resnet44",
    "resnet50",
    "resnet56",
    "resnet101",
    "resnet110",
    "resnet152",
    "scale_head_",
    "speedrun_net",
    "summary",
    "use_winograd_",
    "vgg11",
    "vgg13",
    "vgg16",
    "vgg19",
    "whiten_",
    "whitening_filters",
]
