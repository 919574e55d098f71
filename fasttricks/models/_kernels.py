"""Our own passes over images on a CPU, of ``_cpp``, where they can be compiled."""

from __future__ import annotations

from ctypes import CDLL, POINTER, Structure, c_float, c_int, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.jit._trace import is_tracing

from fasttricks import _native


class Side(Structure):
    """As in C++."""

    _fields_ = [
        ("matrix", c_void_p),
        *[(name, c_int64) for name in ("points", "singles", "pixels", "first", "size")],
    ]


class HalvingC(Structure):
    """As in C++."""

    _fields_ = [("which", c_void_p), ("carry", c_void_p), ("odd", c_int64)]


KERNEL_DTYPES = (torch.float32, torch.bfloat16)


def are_plain_images(x: Tensor) -> bool:
    """Whether these are images on a CPU, [N, C, H, W], whose memory can be worked on as it is."""
    return (
        type(x) is Tensor
        and x.device.type == "cpu"
        and not torch.compiler.is_compiling()
        and not is_tracing()
        # Whoever watches torch's operations, to count or to record them, would not see C++.
        and torch._C._len_torch_dispatch_stack() == 0
        and x.ndim == 4
        and x.numel() > 0
        and not x.is_neg()
    )


@lru_cache
def kernels() -> CDLL | None:
    """Return the compiled functions, which take sizes on trust, or None."""
    library = _native.load(Path(__file__).parent / "_cpp" / "kernels.cpp")
    if library is None:
        return None
    for name, (result, arguments) in _signatures().items():
        function = getattr(library, f"fasttricks_{name}")
        function.restype, function.argtypes = result, arguments
    return library


def _signatures() -> dict[str, tuple[Any, list[Any]]]:
    """What each function returns and takes."""
    number, memory = c_int64, c_void_p
    pool = [c_int, memory, memory, memory, number, number, number, number]
    act = [c_int, c_int, c_float, memory]
    rows, sums = [number, number], [number, memory]
    transform = [c_int, POINTER(Side), POINTER(Side), memory, c_int, memory, c_int]
    return {
        "winograd": (c_int, [*transform, *(number,) * 4, POINTER(HalvingC), number, number]),
        "max_pool": (None, pool),
        "max_pool_backward": (None, pool),
        "sums": (None, [c_int, memory, memory, *rows, *sums]),
        "norm_act": (None, [*act, memory, memory, *rows]),
        "norm_act_sums": (None, [*act, memory, memory, *rows, *sums]),
        "act_by_pixel": (None, [c_int, c_int, c_float, memory, memory, number, *rows]),
        "norm_act_backward": (None, [*act, memory, memory, memory, memory, *rows]),
    }
