"""What the hardware computes natively."""

from __future__ import annotations

import platform
from functools import lru_cache

import torch


@lru_cache
def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; emulated, it is far slower than fp32.

    So do CPUs with AVX512-BF16, AMX or Arm's BF16, and CUDA GPUs since Ampere. Of other devices it
    is not known, and the answer is no.
    """
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    return device.type == "cpu" and _cpu_multiplies_bf16()


def _cpu_multiplies_bf16() -> bool:
    if platform.machine().lower() in ("aarch64", "arm64"):
        # Apple's builds lack oneDNN and with it the question.
        return torch.backends.mkldnn.is_available() and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)
