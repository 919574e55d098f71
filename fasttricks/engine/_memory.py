"""What to do when a device's memory runs out."""

from __future__ import annotations

import torch
from torch import Tensor, nn


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device's memory ran out, in the words of any backend."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(
        words in text for words in ("out of memory", "can't allocate memory", "alloc_failed")
    )


class Snapshot:
    """What a step that fails half-way has changed: buffers and random states.

    Args:
        model: Its buffers, such as batch norm's statistics.
        device: The device whose random state counts, beside the CPU's.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._device = device
        self._buffers: list[tuple[Tensor, Tensor]] = [(b, b.clone()) for b in model.buffers()]
        self._cpu = torch.get_rng_state()
        self._cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None

    @torch.no_grad()
    def restore(self) -> None:
        """Put everything back, and give free memory back to the device."""
        for buffer, before in self._buffers:
            buffer.copy_(before)
        torch.set_rng_state(self._cpu)
        if self._cuda is not None:
            torch.cuda.set_rng_state(self._cuda, self._device)
            torch.cuda.empty_cache()
