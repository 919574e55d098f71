"""Forward and backward pass as a CUDA graph: recorded once for each shape, then replayed whole.

A replay launches all kernels at once, where a small network on a fast GPU otherwise waits for
Python. The optimizer and the schedules stay outside, since their numbers change every update.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fasttricks.engine._memory import Undo

Counted = list[tuple[Tensor, Tensor, Tensor]]
Compute = Callable[[Tensor, Tensor], tuple[Tensor, Counted]]

_WARMUP = 3


@dataclass
class _Recording:
    graph: Any
    images: Tensor
    targets: Tensor
    result: tuple[Tensor, Counted]
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class GraphedGradients:
    """A function that fills the gradients of a batch, replayed from a CUDA graph.

    Batches of another shape, and a change of what is trained, are recorded anew.

    Args:
        model: Its parameters receive gradients.
        device: A CUDA device.

    Raises:
        ValueError: If the device is another.
    """

    def __init__(self, model: nn.Module, device: torch.device) -> None:
        if device.type != "cuda":
            raise ValueError(
                f"cuda_graph=True must meet a model on a CUDA device, got device {device.type!r}"
            )
        self._model = model
        self._device = device
        self._undo = Undo(model, device)
        self._recordings: dict[tuple[Any, ...], _Recording] = {}
        self._pool: Any = None

    def __call__(self, compute: Compute, images: Tensor, targets: Tensor) -> tuple[Tensor, Counted]:
        """Fill the gradients from a batch; the model's must be cleared before.

        Args:
            compute: Fills the gradients and returns the loss and what to count; on the device
                alone, without reading a value back.
            images: The batch's images.
            targets: Their targets.

        Returns:
            What ``compute`` returns; all but the loss is written over by the next call.
        """
        key = (
            *(images.shape, images.dtype, images.stride(), targets.shape, targets.dtype),
            tuple(parameter.requires_grad for parameter in self._model.parameters()),
        )
        if key not in self._recordings:
            self._recordings[key] = self._record(compute, images, targets)
        recording = self._recordings[key]
        recording.images.copy_(images)
        recording.targets.copy_(targets)
        recording.graph.replay()
        # Clearing took the gradients from the parameters; their memory is the graph's.
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        loss, counted = recording.result
        return loss.clone(), counted

    def _record(self, compute: Compute, images: Tensor, targets: Tensor) -> _Recording:
        images, targets = images.clone(), targets.clone()
        self._undo.keep()
        # Kernels are chosen and workspaces allocated on a side stream, which capture demands.
        stream = torch.cuda.Stream(self._device)
        stream.wait_stream(torch.cuda.current_stream(self._device))
        with torch.cuda.stream(stream):
            for _ in range(_WARMUP):
                compute(images, targets)
                self._clear()
        torch.cuda.current_stream(self._device).wait_stream(stream)
        self._undo.restore()
        graph = torch.cuda.CUDAGraph()
        # One pool for all: no two graphs run at a time, and what a replay returns is kept alive.
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute(images, targets)
        self._pool = graph.pool()
        gradients = [(parameter, parameter.grad) for parameter in self._model.parameters()]
        return _Recording(graph, images, targets, result, gradients)

    def _clear(self) -> None:
        for parameter in self._model.parameters():
            parameter.grad = None
