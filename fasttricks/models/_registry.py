"""Every network by its name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from torch import nn

from fasttricks._checks import check_choice
from fasttricks.models._resnet import resnet18, resnet34, resnet50, resnet101, resnet152
from fasttricks.models._resnet9 import resnet9
from fasttricks.models._resnet_cifar import resnet20, resnet32, resnet44, resnet56, resnet110
from fasttricks.models._speedrun import speedrun_net
from fasttricks.models._vgg import vgg11, vgg13, vgg16, vgg19

_BUILDERS: Mapping[str, Callable[..., nn.Module]] = MappingProxyType(
    {
        "resnet9": resnet9,
        "resnet18": resnet18,
        "resnet20": resnet20,
        "resnet32": resnet32,
        "resnet34": resnet34,
        "resnet44": resnet44,
        "resnet50": resnet50,
        "resnet56": resnet56,
        "resnet101": resnet101,
        "resnet110": resnet110,
        "resnet152": resnet152,
        "speedrun_net": speedrun_net,
        "vgg11": vgg11,
        "vgg13": vgg13,
        "vgg16": vgg16,
        "vgg19": vgg19,
    }
)


def list_models() -> list[str]:
    """Return the names that ``build`` knows.

    Example:
        >>> "resnet9" in list_models()
        True
    """
    return list(_BUILDERS)


def build(name: str, /, **options: Any) -> nn.Module:
    """Build a network by its name, as from a configuration file.

    Args:
        name: One of ``list_models()``.
        options: The builder's arguments by name, ``num_classes`` among them.

    Returns:
        The new network.

    Raises:
        ValueError: If the name isn't known, or the builder has no such option.

    Example:
        >>> type(build("resnet20", num_classes=100)).__name__
        'CifarResNet'
    """
    check_choice("name", name, _BUILDERS)
    builder = _BUILDERS[name]
    known = inspect.signature(builder).parameters
    for option in options:
        if option not in known:
            raise ValueError(f"{name} has the options {', '.join(known)}, got {option!r}")
    return builder(**options)
