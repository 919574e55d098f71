"""When memory runs out in a step: put back what the step had changed, and compute less at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fasttricks.engine._lists import buffer_slots, copy_each, refill

_WORDS = (
    *("out of memory", "can't allocate memory", "defaultcpuallocator", "alloc_failed"),
    "allocation_failed",  # cuDNN 9's, of the device or the host
    "unable to find an engine to execute",  # cuDNN's, where no workspace fits
)


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether an error says that a device's memory ran out, in the words of any backend."""
    text = str(error).lower()
    return isinstance(error, torch.OutOfMemoryError) or any(words in text for words in _WORDS)


class Undo:
    """What forward passes change besides gradients, batch-norm statistics and random states, kept.

    Args:
        model: Its buffers.
        device: Its random state, and the CPU's.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        self._model = model
        self._device = device
        self._slots: list[tuple[nn.Module, str, Tensor | None]] = []
        self._buffers: list[Tensor] = []
        self._copies: list[Tensor] = []
        self._random: list[Tensor] = []

    @torch.no_grad()
    def keep(self) -> None:
        """Keep the present state."""
        self._slots = buffer_slots(self._model)
        buffers = [tensor for _, _, tensor in self._slots if tensor is not None]
        if not _same(buffers, self._buffers):
            self._buffers, self._copies = buffers, [torch.empty_like(b) for b in buffers]
        copy_each(self._copies, buffers)
        self._random = [torch.get_rng_state()]
        if self._device.type == "cuda":
            self._random.append(torch.cuda.get_rng_state(self._device))
        elif self._device.type == "mps":
            self._random.append(torch.mps.get_rng_state())

    @torch.no_grad()
    def restore(self, *, random: bool = True) -> None:
        """Put the kept state back, that of random numbers only if asked for."""
        refill(self._slots)
        copy_each(self._buffers, self._copies)
        if random:
            torch.set_rng_state(self._random[0])
            if self._device.type == "cuda":
                torch.cuda.set_rng_state(self._random[1], self._device)
            elif self._device.type == "mps":
                torch.mps.set_rng_state(self._random[1])


def _same(one: list[Tensor], other: list[Tensor]) -> bool:
    return len(one) == len(other) and all(a is b for a, b in zip(one, other, strict=True))
