"""Telling a loader the losses of its images, of which it may make the next epoch's choice."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from fasttricks.engine._batch_loss import Counted, Loss, without_smoothing
from fasttricks.engine._distributed import gather, world_size
from fasttricks.engine._speed import loss_per_image


class Observer:
    """Hands a loader the losses of each batch; with several processes, those of all once an epoch.

    Args:
        train: The loader, with ``observe_losses(losses, indices)``.
        loss: Mean loss of a batch, as trained with.

    Raises:
        ValueError: If the loss is not told by image.
    """

    def __init__(self, train: Any, loss: Loss) -> None:
        self._train = train
        # By smoothed losses those that are surest would count as hard.
        self._each = loss_per_image(without_smoothing(loss), f"a {type(train).__name__}")
        self._shares: list[tuple[Tensor, Tensor]] = []

    def tell(self, counted: Counted, indices: Tensor) -> None:
        """Note what was counted of the batch of these images."""
        with torch.no_grad():
            each = [self._each(outputs.float(), targets) for _, outputs, targets in counted]
        losses = torch.cat(each)
        if world_size() == 1:
            self._train.observe_losses(losses, indices)
        else:
            self._shares.append((losses, indices))

    def end_epoch(self) -> None:
        """Tell the losses of all processes, so that each of them makes the same choice."""
        if world_size() == 1:
            return
        whole = [torch.cat(tensors).cpu() for tensors in zip(*self._shares, strict=True)]
        self._shares.clear()
        for share in filter(None, gather(whole)):
            self._train.observe_losses(*share)


def observer_of(train: Iterable[Any], loss: Loss) -> Observer | None:
    """Return what tells the loader its losses, or None for one that does not ask for them."""
    return Observer(train, loss) if hasattr(train, "observe_losses") else None
