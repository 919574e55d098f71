"""A training step as a CUDA graph: recorded once for each shape, then replayed whole.

A replay launches all kernels at once, where a small network on a fast GPU otherwise waits for
Python. What a recording read as a Python number it repeats for ever; what it read from a tensor it
reads anew, so the optimizers' rates become tensors, which the schedules write between two replays.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.optim import Muon

Counted = list[tuple[Tensor, Tensor, Tensor]]
Compute = Callable[[Tensor, Tensor], tuple[Tensor, Counted]]

# Kernels are chosen and workspaces and optimizer states allocated before a recording.
_WARMUP = 3


@dataclass
class _Recording:
    graph: Any
    images: Tensor
    targets: Tensor
    result: tuple[Tensor, Counted]
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class Graphed:
    """A function of a batch, replayed from a CUDA graph.

    The first three batches of a shape are computed as usual. Another shape, a change of what is
    trained, and another number or tensor in an optimizer's groups or state are recorded anew.

    Args:
        model: Its parameters receive gradients.
        device: A CUDA device.
        optimizers: Those whose update is part of the function; none if it only fills gradients.

    Raises:
        ValueError: If the device is another, or the update of an optimizer cannot be recorded.
    """

    def __init__(
        self, model: nn.Module, device: torch.device, optimizers: Sequence[Optimizer] = ()
    ) -> None:
        _check_device(device)
        self._model = model
        self._device = device
        self._optimizers = optimizers
        make_capturable(optimizers, device)
        self._stream: Any = None
        self._pool: Any = None
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._written = self._what_updates_write()

    @property
    def updates(self) -> bool:
        """Whether the update is part of the graph."""
        return bool(self._optimizers)

    def __call__(self, compute: Compute, images: Tensor, targets: Tensor) -> tuple[Tensor, Counted]:
        """Compute from a batch; the gradients must be cleared before.

        Args:
            compute: Fills the gradients, and makes the update if it is part of the graph; returns
                the loss and what to count. It works on the device alone, and reads no value back.
            images: The batch's images.
            targets: Their targets.

        Returns:
            What ``compute`` returns; all but the loss is written over by the next call.
        """
        self._forget_if_stale()
        key = (
            *(images.shape, images.dtype, images.stride(), targets.shape, targets.dtype),
            tuple(parameter.requires_grad for parameter in self._model.parameters()),
        )
        if key not in self._recordings:
            self._seen[key] += 1
            if self._seen[key] <= _WARMUP:
                return self._beside(compute, images, targets)
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

    def _beside(self, compute: Compute, images: Tensor, targets: Tensor) -> tuple[Tensor, Counted]:
        """Compute on a stream of its own, as what comes before a recording must be."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = compute(images, targets)
        usual.wait_stream(self._stream)
        return result

    def _record(self, compute: Compute, images: Tensor, targets: Tensor) -> _Recording:
        images, targets = images.clone(), targets.clone()
        graph = torch.cuda.CUDAGraph()
        # One pool for all: no two graphs run at a time, and what a replay returns is kept alive.
        with torch.cuda.graph(graph, pool=self._pool):
            result = compute(images, targets)
        self._pool = graph.pool()
        gradients = [
            (parameter, parameter.grad)
            for parameter in self._model.parameters()
            if not self.updates  # after the update nobody needs them
        ]
        return _Recording(graph, images, targets, result, gradients)

    def _forget_if_stale(self) -> None:
        """Forget what was recorded if a replay would not do what the optimizers would do now."""
        if not self.updates:
            return
        make_capturable(self._optimizers, self._device)
        written = self._what_updates_write()
        if not _same(written, self._written):
            self._written = written
            self._recordings.clear()
            self._seen.clear()

    def _what_updates_write(self) -> list[Any]:
        """All that a recording holds of the optimizers: numbers, and the tensors themselves."""
        held: list[Any] = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                held.extend(value for name, value in group.items() if name != "params")
                for parameter in group["params"]:
                    held.extend(optimizer.state.get(parameter, {}).values())
        return held


def make_capturable(optimizers: Sequence[Optimizer], device: torch.device) -> None:
    """Let the updates of optimizers be recorded: their rates become tensors on the device.

    Raises:
        ValueError: If an optimizer is neither a ``Muon`` nor one with a ``capturable`` or ``fused``
            implementation.
    """
    for optimizer in optimizers:
        # It would warn of the updates before the recording.
        optimizer._warned_capturable_if_run_uncaptured = True
        for group in optimizer.param_groups:
            if "capturable" in group:
                group["capturable"] = True
            elif "fused" in group:
                group["fused"], group["foreach"] = True, False
            elif not isinstance(optimizer, Muon):
                raise ValueError(
                    "cuda_graph='step' must meet optimizers whose update can be recorded, such as "
                    f"Muon, SGD or AdamW, got {type(optimizer).__name__}; use cuda_graph=True"
                )
            rate = group["lr"]
            if not isinstance(rate, Tensor) or rate.device != device:
                group["lr"] = torch.as_tensor(rate, dtype=torch.float32).to(device)


def check_capturable(schedulers: Sequence[object], *, precision: str, nonfinite: str) -> None:
    """Raise a ValueError if a whole step could not be recorded with these settings."""
    rule = "cuda_graph='step' must come with"
    if precision == "fp16":
        raise ValueError(
            f"{rule} precision='bf16' or 'fp32', got 'fp16', whose overflows Python looks at in "
            "every update; use cuda_graph=True"
        )
    if nonfinite == "skip":
        raise ValueError(
            f"{rule} nonfinite='raise', got 'skip', for which Python looks at the loss in every "
            "update; use cuda_graph=True"
        )
    for scheduler in schedulers:
        if isinstance(scheduler, ScheduledGroups) and scheduler.schedules.keys() != {"lr"}:
            names = ", ".join(scheduler.schedules)
            raise ValueError(f"{rule} schedules of lr alone, got those of {names}; use True")


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f"cuda_graph must meet a model on a CUDA device, got {device.type!r}")


def _same(one: list[Any], other: list[Any]) -> bool:
    """Whether all numbers are equal and all tensors one and the same."""
    return len(one) == len(other) and all(
        a is b or (not isinstance(a, Tensor) and not isinstance(b, Tensor) and a == b)
        for a, b in zip(one, other, strict=True)
    )
