"""Our own passes over images on a CPU, of ``_kernels.cpp``, where they can be compiled."""

from __future__ import annotations

from ctypes import CDLL, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from fasttricks import _native

KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def are_plain_images(x: Tensor) -> bool:
    """Whether these are images on a CPU, [N, C, H, W], whose memory can be worked on as it is."""
    return (
        x.device.type == "cpu"
        and type(x) is Tensor
        and x.ndim == 4
        and x.numel() > 0
        and not torch.compiler.is_compiling()
    )


@lru_cache
def kernels() -> CDLL | None:
    """Return the compiled functions, which take sizes on trust, or None."""
    library = _native.load(Path(__file__).with_suffix(".cpp"))
    if library is not None:
        number, memory = c_int64, c_void_p
        transform = library.fasttricks_winograd
        transform.argtypes = [
            *(c_int, c_int, memory, number, number),
            *(memory, memory, memory, number, number),
            *(memory, memory, number),
        ]
        transform.restype = c_int
        for pool in (library.fasttricks_max_pool, library.fasttricks_max_pool_backward):
            pool.argtypes = [c_int, memory, memory, memory, number, number, number, number]
            pool.restype = None
    return library
