"""Where the time of a training step goes."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttricks._checks import check_integer
from fasttricks.engine._batch_loss import Batch
from fasttricks.engine._evaluate import start_training
from fasttricks.engine._files import replacing
from fasttricks.engine._trainer import Trainer
from fasttricks.engine._trial import endless, synchronize, trial_trainer, without_trace

_PARTS = ("data", "forward", "backward", "optimizer", "other")


@dataclass(frozen=True)
class StepProfile:
    """The mean time of a training step, in milliseconds, and its parts.

    Attributes:
        data: Waiting for the loader.
        forward: The model's forward pass; that of ``select``, which chooses images, is in
            ``other`` where the model is compiled.
        backward: The backward pass.
        optimizer: The optimizers' ``step``.
        other: All else: the copy to the device, the loss, clearing gradients, the loop.
        steps: Steps that were measured.
        images_per_second: Images of a step by its whole time.
    """

    data: float
    forward: float
    backward: float
    optimizer: float
    other: float
    steps: int
    images_per_second: float

    @property
    def total(self) -> float:
        """The whole step, in milliseconds: the sum of its parts."""
        return self.data + self.forward + self.backward + self.optimizer + self.other

    def text(self) -> str:
        """Write a table of the parts in milliseconds and as shares of the step."""
        lines = [f"{'part':<10} {'ms':>10} {'share':>7}"]
        for name in (*_PARTS, "total"):
            milliseconds: float = getattr(self, name)
            lines.append(f"{name:<10} {milliseconds:>10.3f} {milliseconds / self.total:>7.1%}")
        lines.append(f"{self.images_per_second:,.0f} images/s, mean of {self.steps} steps")
        return "\n".join(lines)


def profile_steps(
    trainer: Trainer,
    loader: Iterable[Batch],
    *,
    steps: int = 10,
    warmup: int = 2,
    path: Path | str | None = None,
) -> StepProfile:
    """Time a few training steps part by part, leaving no trace of them.

    The device is waited for at each border between parts, so on a GPU the parts are true and the
    whole is a little longer than without; a CUDA graph is left out. Schedules stand still
    meanwhile. With ``path`` as many steps run once more under torch's profiler, whose own cost so
    stays out of the table.

    Args:
        trainer: Its steps are measured; weights, optimizers, statistics and random states are put
            back.
        loader: Yields (images, targets); begun anew when it ends, and put back to its place.
        steps: Steps to measure, at least 1; 10 by default.
        warmup: Steps before those, not measured; 2 by default.
        path: Where to write a Chrome trace (.json, or .json.gz), for chrome://tracing or Perfetto.

    Returns:
        The ``StepProfile``; print its ``text()``.

    Raises:
        ValueError: If a number is out of its range or the loader is empty.

    Example:
        >>> from torch import nn
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, optimizer, precision="fp32", progress=False)
        >>> batches = [(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))]
        >>> profile = profile_steps(trainer, batches, steps=3)
        >>> profile.steps, trainer.step_count
        (3, 0)
    """
    check_integer("steps", steps, minimum=1)
    check_integer("warmup", warmup)
    trial = trial_trainer(trainer)
    # A replay has no parts, and nothing can be waited for within a recording.
    trial._gradients = trial._gradients.without_graph()
    with without_trace(trial, loader):
        start_training(trial.model)
        batches = endless(loader)
        laps, images = _Laps(trial.device), 0
        with _timed_parts(trial, laps):
            for _ in range(warmup):
                trial.step(next(batches))
            laps.restart()
            for _ in range(steps):
                batch = next(batches)
                laps.end("data")
                trial.step(batch)
                laps.end("other")
                images += len(batch[0])
        if path is not None:
            _write_trace(trial, batches, steps, Path(path))
    parts = {name: 1000 * laps.seconds[name] / steps for name in _PARTS}
    return StepProfile(**parts, steps=steps, images_per_second=images / sum(laps.seconds.values()))


class _Laps:
    """A stopwatch whose laps follow each other without a gap, so that they sum to the whole."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.restart()

    def restart(self) -> None:
        self.seconds = dict.fromkeys(_PARTS, 0.0)
        synchronize(self._device)
        self._last = time.perf_counter()

    def end(self, name: str) -> None:
        """Count the time since the last lap's end for ``name``."""
        synchronize(self._device)
        now = time.perf_counter()
        self.seconds[name] += now - self._last
        self._last = now


@contextmanager
def _timed_parts(trainer: Trainer, laps: _Laps) -> Iterator[None]:
    """Let the trainer's forward, backward and optimizer end laps of their own."""
    nested = 0

    # torch calls the hooks once more for the step that a subclass's step calls, and a model may
    # call itself: only the outermost call is a part.
    def before(*_: Any) -> None:
        nonlocal nested
        if not nested:
            laps.end("other")
        nested += 1

    def after(name: str) -> Callable[..., None]:
        def end(*_: Any) -> None:
            nonlocal nested
            nested -= 1
            if not nested:
                laps.end(name)

        return end

    plain = trainer.precision
    timed = copy.copy(plain)

    def backward(loss: Tensor) -> None:
        laps.end("other")
        plain.backward(loss)
        laps.end("backward")

    timed.backward = backward  # type: ignore[method-assign]
    # Of a compiled model its wrapper: hooks within would have it compiled anew.
    network = trainer._gradients.network(trainer)
    handles = [
        network.register_forward_pre_hook(before),
        network.register_forward_hook(after("forward")),
    ]
    for optimizer in trainer.optimizers:
        handles.append(optimizer.register_step_pre_hook(before))
        handles.append(optimizer.register_step_post_hook(after("optimizer")))
    trainer.precision = timed
    try:
        yield
    finally:
        trainer.precision = plain
        for handle in handles:
            handle.remove()


def _write_trace(trainer: Trainer, batches: Iterator[Batch], steps: int, path: Path) -> None:
    with torch.profiler.profile() as profiler:
        for _ in range(steps):
            with torch.profiler.record_function("data"):
                batch = next(batches)
            with torch.profiler.record_function("step"):
                trainer.step(batch)
    with replacing(path) as temporary:
        profiler.export_chrome_trace(str(temporary))
