"""The search for a batch size: as large as memory allows, and no larger than is of use."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks._checks import check_integer
from fasttricks.engine._batch_loss import Batch, Loss
from fasttricks.engine._evaluate import start_training
from fasttricks.engine._inputs import check_batch, check_outputs
from fasttricks.engine._memory import is_out_of_memory
from fasttricks.engine._trainer import Trainer
from fasttricks.engine._trial import synchronize, trial_trainer, without_trace

# A speed within this share of the best is as good: timings vary by about as much, and of two
# equally fast batches the smaller makes more updates an epoch.
_EQUALLY_FAST = 0.05


@dataclass(frozen=True)
class BatchSizes:
    """What ``find_batch_size`` found.

    Attributes:
        batch_size: The choice: the largest that fits if memory ran out, else the smallest whose
            speed is within 5 % of the best.
        largest: The largest size that fits, of those tried.
        sizes: Sizes that fit, rising.
        images_per_second: Training speed at each of ``sizes``.
        out_of_memory: The smallest size that did not fit; ``None`` if all did.
    """

    batch_size: int
    largest: int
    sizes: tuple[int, ...]
    images_per_second: tuple[float, ...]
    out_of_memory: int | None

    def text(self) -> str:
        """Write a table of sizes and speeds, the choice marked."""
        lines = ["batch size  images/s"]
        for size, speed in zip(self.sizes, self.images_per_second, strict=True):
            mark = " <" if size == self.batch_size else ""
            lines.append(f"{size:>10}  {speed:>8,.0f}{mark}")
        if self.out_of_memory is not None:
            lines.append(f"{self.out_of_memory:>10}  out of memory")
        return "\n".join(lines)


def find_batch_size(
    model: nn.Module | Trainer,
    batch: Batch,
    *,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    loss: Loss | None = None,
    min_batch_size: int = 16,
    max_batch_size: int = 1024,
    steps: int = 3,
    refine: bool = False,
    precision: str = "auto",
) -> BatchSizes:
    """Train a few updates at doubling batch sizes until memory runs out; choose, and undo it all.

    A size fits if whole updates do: forward, backward, and the optimizer with its state, without
    micro-batches. Where memory never runs out, speed decides. Afterwards weights, statistics, the
    optimizer and random states are what they were; the copy that this takes is in memory during the
    search, so there is a little more room than it finds.

    On a CPU too large a batch may end the process instead of raising: choose ``max_batch_size`` so
    that it is safe.

    Args:
        model: The module, or a ``Trainer``, whose model, optimizers, loss and precision are used.
        batch: Images and targets as they will come, any number; repeated or cut to each size.
        optimizer: One or several, as they will be used for training; none with a ``Trainer``.
        loss: Maps (outputs, targets) to the mean loss; cross-entropy by default.
        min_batch_size: The first size, doubled until ``max_batch_size``; 16 by default.
        max_batch_size: No size is above this; 1024 by default.
        steps: Updates that are timed at each size, after one that is not; 3 by default.
        refine: Between the largest power that fits and the next, halve the gap until it is a 16th.
        precision: As for ``Trainer``; "auto" by default.

    Returns:
        The ``BatchSizes``.

    Raises:
        ValueError: If a number is out of its range, the batch is empty, or not even
            ``min_batch_size`` fits.
        TypeError: If a module comes without an optimizer, or a ``Trainer`` with one, or the batch
            is no pair of tensors.
    """
    check_integer("min_batch_size", min_batch_size, minimum=1)
    check_integer("max_batch_size", max_batch_size, minimum=1)
    check_integer("steps", steps, minimum=1)
    if min_batch_size > max_batch_size:
        raise ValueError(
            f"min_batch_size must be at most max_batch_size, got min_batch_size={min_batch_size} "
            f"and max_batch_size={max_batch_size}"
        )
    if not len(check_batch(batch)[0]):
        raise ValueError("batch must hold at least one image, got an empty one")
    trainer = trial_trainer(model, optimizer, loss, precision)
    with without_trace(trainer):
        start_training(trainer.model)
        speeds, failed = _double(trainer, batch, min_batch_size, max_batch_size, steps)
        if refine and failed is not None and speeds:
            failed = _refine(trainer, batch, speeds, failed, steps)
        _free(trainer)
    if not speeds:
        raise ValueError(
            f"min_batch_size must fit in memory, got min_batch_size={min_batch_size}, which does "
            "not; lower it, or use a smaller model or a lower precision"
        )
    return _choose(speeds, failed)


def _double(
    trainer: Trainer, batch: Batch, smallest: int, largest: int, steps: int
) -> tuple[dict[int, float], int | None]:
    """Speed by size, and the first size that did not fit."""
    speeds: dict[int, float] = {}
    size = smallest
    while size <= largest:
        speed = _speed(trainer, batch, size, steps)
        if speed is None:
            return speeds, size
        speeds[size] = speed
        size *= 2
    return speeds, None


def _refine(
    trainer: Trainer, batch: Batch, speeds: dict[int, float], failed: int, steps: int
) -> int:
    """Add sizes between the largest that fits and the one that does not; return the latter."""
    fits = max(speeds)
    while failed - fits > max(1, fits // 16):
        middle = (fits + failed) // 2
        speed = _speed(trainer, batch, middle, steps)
        if speed is None:
            failed = middle
        else:
            speeds[middle], fits = speed, middle
    return failed


def _choose(speeds: dict[int, float], failed: int | None) -> BatchSizes:
    sizes = sorted(speeds)
    fast = (1 - _EQUALLY_FAST) * max(speeds.values())
    chosen = next(size for size in sizes if speeds[size] >= fast) if failed is None else sizes[-1]
    ordered = tuple(speeds[size] for size in sizes)
    return BatchSizes(chosen, sizes[-1], tuple(sizes), ordered, failed)


def _speed(trainer: Trainer, batch: Batch, size: int, steps: int) -> float | None:
    """Images per second of whole updates, or None if they do not fit."""
    try:
        return _timed(trainer, batch, size, steps)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    # Out of the handler, so that the error's frames hold no tensor any more.
    _free(trainer)
    return None


def _timed(trainer: Trainer, batch: Batch, size: int, steps: int) -> float:
    images, targets = (_of_size(tensor, size).to(trainer.device) for tensor in batch)
    if images.ndim == 4:
        images = images.contiguous(memory_format=trainer.memory_format)
    _update(trainer, images, targets)
    synchronize(trainer.device)
    start = time.perf_counter()
    for _ in range(steps):
        _update(trainer, images, targets)
    synchronize(trainer.device)
    return steps * size / (time.perf_counter() - start)


def _of_size(tensor: Tensor, size: int) -> Tensor:
    return tensor[torch.arange(size, device=tensor.device) % len(tensor)]


def _update(trainer: Trainer, images: Tensor, targets: Tensor) -> None:
    """One update of the whole batch, with none of a trainer's ways around a lack of memory."""
    for optimizer in trainer.optimizers:
        optimizer.zero_grad(set_to_none=True)
    with trainer.precision.forward_context():
        outputs = check_outputs(trainer.model(images))
    trainer.precision.backward(trainer.loss(outputs.float(), targets))
    trainer.precision.step(trainer.optimizers)


def _free(trainer: Trainer) -> None:
    trainer.model.zero_grad(set_to_none=True)
    if trainer.device.type == "cuda":
        torch.cuda.empty_cache()
