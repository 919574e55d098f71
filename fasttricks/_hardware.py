"""What the hardware computes natively, and torch exactly."""

from __future__ import annotations

import platform

import torch


def multiplies_bf16(device: torch.device) -> bool:
    """Whether the device multiplies bf16 natively; emulated, it is slower than fp32.

    So do CPUs with AVX512-BF16, AMX or Arm's BF16, and CUDA GPUs since Ampere. Of other devices it
    is not known, and the answer is no.
    """
    if device.type == "cuda":  # the properties: torch.compile takes them for constants
        return torch.cuda.get_device_properties(device).major >= 8
    return device.type == "cpu" and CPU_MULTIPLIES_BF16


def _cpu_multiplies_bf16() -> bool:
    if platform.machine().lower() in ("aarch64", "arm64"):
        # Apple's builds lack oneDNN and with it the question.
        return torch.backends.mkldnn.is_available() and bool(
            torch.ops.mkldnn._is_mkldnn_bf16_supported()
        )
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(bool(getattr(torch.cpu, probe, bool)()) for probe in probes)


CPU_MULTIPLIES_BF16 = _cpu_multiplies_bf16()


def cpu_rounds_fp32_products() -> bool:
    """Whether torch was told to multiply fp32 matrices in fewer bits on a CPU.

    ``torch.set_float32_matmul_precision("medium")`` is one way to tell it.
    """
    matmul = getattr(torch.backends.mkldnn, "matmul", None)  # since torch 2.9
    if matmul is None:
        return torch.get_float32_matmul_precision() != "highest"
    return matmul.fp32_precision in ("bf16", "tf32")
