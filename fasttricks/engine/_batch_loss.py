"""The loss of a batch, in parts that add up to it: over micro-batches and over processes.

Shapes: images [N, C, H, W], outputs [N, K, ...], targets [N, ...] or [N, K, ...].
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fasttricks.engine._distributed import sum_over_processes, world_size

Batch = tuple[Tensor, Tensor]  # images and targets
# Of each part of a batch: its mean loss, outputs and targets, for the epoch's totals.
Counted = list[tuple[Tensor, Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]


def with_loss(model: nn.Module, loss: object) -> nn.Module:
    """Return a module that holds the model and, if it is a module too, the loss."""
    return nn.ModuleList([model, loss] if isinstance(loss, nn.Module) else [model])


def in_parts(images: Tensor, targets: Tensor, size: int | None) -> list[Batch]:
    """Return the fewest parts of at most so many images, or the whole batch for None.

    They are as even as can be: of a few images batch norm learns nothing.
    """
    count = math.ceil(len(images) / (size or len(images)))
    return list(zip(images.tensor_split(count), targets.tensor_split(count), strict=True))


def share_of_batch(loss: Loss, targets: Tensor, *, parts: int) -> tuple[Loss, Tensor | float]:
    """Return a part's share in the loss of the batch, and what makes a mean of it.

    The shares of this process's parts add up to a number whose mean over the processes, as
    ``DistributedDataParallel`` takes it of the gradients, is the loss of the batch of all. A mean
    that leaves out ``ignore_index`` or goes by the classes' weights is divided once, by what the
    whole batch's would be.

    Args:
        loss: Maps (outputs, targets) to a mean over the images, or to a sum if its ``reduction``
            says so.
        targets: This process's, of all its parts.
        parts: How many there are.

    Returns:
        The function of a part's outputs and targets, and a number: times that, and divided by the
        part's images, the share is the mean over them.
    """
    processes, is_sum = world_size(), getattr(loss, "reduction", "mean") == "sum"
    if processes == parts == 1:
        return loss, 1 if is_sum else len(targets)
    if is_sum:
        return partial(_times, loss, processes), 1 / processes
    images: Tensor | float = len(targets)
    weight = _weight(loss, targets)
    if processes > 1:
        # Filled there: a number from the host's memory would make it wait for a GPU.
        count = torch.full((), float(len(targets)), device=targets.device)
        sums = sum_over_processes([count, count if weight is None else weight])
        images, divisor = (one / processes for one in sums)
        weight = None if weight is None else divisor
    if weight is None:
        return partial(_by_images, loss, images), images
    return partial(_divided, with_reduction(loss, "sum"), weight), images


def mean_over_processes(value: Tensor, count: float = 1.0) -> Tensor:
    """Return the mean of a scalar over the processes, in which this one counts so much."""
    if world_size() == 1:
        return value
    weight = torch.full((), float(count), device=value.device)
    total, weights = sum_over_processes([value * weight, weight])
    return total / weights


def with_reduction(loss: Loss, reduction: str) -> Loss:
    """Return a loss of torch's kind with another ``reduction``, and the same weights."""
    other = copy.copy(loss)
    other.reduction = reduction  # type: ignore[attr-defined]
    return other


def without_smoothing(loss: Loss) -> Loss:
    """Return a cross-entropy without its label smoothing, any other loss as it is."""
    if not isinstance(loss, nn.CrossEntropyLoss) or not loss.label_smoothing:
        return loss
    plain = copy.copy(loss)
    plain.label_smoothing = 0.0
    return plain


def _times(loss: Loss, factor: float, outputs: Tensor, targets: Tensor) -> Tensor:
    return loss(outputs, targets) * factor


def _by_images(loss: Loss, images: Tensor | float, outputs: Tensor, targets: Tensor) -> Tensor:
    return loss(outputs, targets) * (len(targets) / images)


def _weight(loss: Any, targets: Tensor) -> Tensor | None:
    """Return what the mean of ``loss`` divides by, None if that is the number of images."""
    if type(loss) not in (nn.CrossEntropyLoss, nn.NLLLoss) or targets.is_floating_point():
        return None
    counted: Tensor = targets != loss.ignore_index
    if loss.weight is not None:
        counted = loss.weight[targets.where(counted, 0).long()] * counted
    return counted.sum().float()


def _divided(loss: Loss, divisor: Tensor, outputs: Tensor, targets: Tensor) -> Tensor:
    return loss(outputs, targets) / divisor
