"""Telling a loader the losses of its images, of which it may make the next epoch's choice."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from fasttricks.engine._batch_loss import Loss, without_smoothing
from fasttricks.engine._cuda_graph import Counted
from fasttricks.engine._distributed import world_size
from fasttricks.engine._speed import loss_per_image

Observer = Callable[[Counted, Tensor], None]


def observer_of(train: object, loss: Loss) -> Observer | None:
    """Return what tells ``train.observe_losses`` those of a batch, [N], by its indices, or None.

    Raises:
        ValueError: If the loss is not told by image, or there are several processes, of which each
            would see the losses of its share alone.
    """
    observe = getattr(train, "observe_losses", None)
    if observe is None:
        return None
    name = type(train).__name__
    # By smoothed losses those that are surest would count as hard.
    each = loss_per_image(without_smoothing(loss), f"a {name}")
    if world_size() > 1:
        raise ValueError(f"a {name} must train in one process, got {world_size()}")

    def tell(counted: Counted, indices: Tensor) -> None:
        with torch.no_grad():
            losses = [each(outputs.float(), targets) for _, outputs, targets in counted]
        observe(torch.cat(losses), indices)

    return tell
