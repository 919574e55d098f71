"""Nested values as JSON and named tensors, and back: what a checkpoint holds without pickling."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Any

import torch
from torch import Tensor

# What JSON lacks is an object with one of these names as its first.
_TENSOR, _TUPLE, _ITEMS, _COUNTER, _FLOAT = "$tensor", "$tuple", "$items", "$counter", "$float"


def pack(value: Any, tensors: dict[str, Tensor], name: str) -> Any:
    """Return ``value`` as JSON can hold it; its tensors go into ``tensors``, named by their place.

    Args:
        value: None, numbers, text, tensors, and lists, tuples and dicts of them.
        tensors: Receives a copy of every tensor, on the CPU.
        name: The place of ``value``, for the tensors' names and for errors.

    Raises:
        TypeError: If there is anything else in ``value``.

    Example:
        >>> tensors = {}
        >>> pack({"a": (1, float("inf"))}, tensors, "x")
        {'a': {'$tuple': [1, {'$float': 'inf'}]}}
        >>> unpack(_, tensors)
        {'a': (1, inf)}
    """
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, Integral):  # NumPy's
        return int(value)
    if isinstance(value, Real):
        return float(value) if math.isfinite(value) else {_FLOAT: str(float(value))}
    if isinstance(value, Tensor):
        tensors[name] = value.detach().cpu().clone(memory_format=torch.contiguous_format)
        return {_TENSOR: name, **({"channels_last": True} if _is_channels_last(value) else {})}
    if isinstance(value, list | tuple):
        inner = [pack(one, tensors, f"{name}.{i}") for i, one in enumerate(value)]
        return inner if isinstance(value, list) else {_TUPLE: inner}
    if isinstance(value, Mapping):
        plain = all(isinstance(key, str) and not key.startswith("$") for key in value)
        if plain and not isinstance(value, Counter):
            return {key: pack(one, tensors, f"{name}.{key}") for key, one in value.items()}
        items = [
            [pack(key, tensors, f"{name}.key"), pack(one, tensors, f"{name}.{key}")]
            for key, one in value.items()
        ]
        return {_COUNTER if isinstance(value, Counter) else _ITEMS: items}
    raise TypeError(
        f"{name} must hold numbers, text, tensors, lists and dicts, got {type(value).__name__}"
    )


def unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what ``pack`` was given, tensors on the CPU.

    Raises:
        KeyError: If a tensor is missing.
    """
    if isinstance(value, list):
        return [unpack(one, tensors) for one in value]
    if not isinstance(value, dict):
        return value
    kind = next(iter(value), "")
    if kind == _TENSOR:
        tensor = tensors[value[_TENSOR]]
        channels_last = value.get("channels_last", False)
        return tensor.contiguous(memory_format=torch.channels_last) if channels_last else tensor
    if kind == _TUPLE:
        return tuple(unpack(value[_TUPLE], tensors))
    if kind == _FLOAT:
        return float(value[_FLOAT])
    if kind in (_ITEMS, _COUNTER):
        items = {unpack(key, tensors): unpack(one, tensors) for key, one in value[kind]}
        return Counter(items) if kind == _COUNTER else items
    return {key: unpack(one, tensors) for key, one in value.items()}


def _is_channels_last(tensor: Tensor) -> bool:
    return (
        tensor.ndim == 4
        and tensor.is_contiguous(memory_format=torch.channels_last)
        and not tensor.is_contiguous()
    )
