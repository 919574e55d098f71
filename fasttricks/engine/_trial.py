"""What trials share: a trainer for a few updates that leave no trace, and batches without end."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn
from torch.optim import Optimizer

from fasttricks.engine._batch_loss import Batch, Loss
from fasttricks.engine._history import History
from fasttricks.engine._preserve import preserve_training_state
from fasttricks.engine._trainer import Trainer


def trial_trainer(
    model: nn.Module | Trainer,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    loss: Loss | None = None,
    precision: str = "auto",
) -> Trainer:
    """Return a trainer of the same parts whose steps count, schedule and record nothing.

    Weights, optimizers and precision are shared: run its steps in ``without_trace``.

    Raises:
        TypeError: If a module comes without an optimizer, or a ``Trainer`` with one.
    """
    if isinstance(model, Trainer):
        if optimizer is not None or loss is not None:
            raise TypeError(
                "optimizer and loss must be left out with a Trainer, which has its own; a loader "
                "goes in by its name"
            )
        trial = copy.copy(model)
        trial.schedulers, trial.callbacks, trial.history = [], [], History()
        trial.totals = copy.deepcopy(model.totals)
        trial._observer = None
        return trial
    if optimizer is None:
        raise TypeError("optimizer must be given with a module, got None")
    # Not channels_last, which would lay the module's weights out anew for good.
    return Trainer(
        model, optimizer, loss=loss, precision=precision, channels_last=False, progress=False
    )


def without_trace(trial: Trainer, loader: object = None) -> AbstractContextManager[None]:
    """Return the context in which a trial's steps, on batches of ``loader``, leave no trace."""
    return preserve_training_state(
        trial.model, trial.optimizers, loader, precision=trial.precision, loss=trial.loss
    )


def endless(loader: Iterable[Batch]) -> Iterator[Batch]:
    """Yield a loader's batches, begun anew when it ends.

    Raises:
        ValueError: If the loader is empty.
    """
    while True:
        count = 0
        for batch in loader:
            count += 1
            yield batch
        if not count:
            raise ValueError("loader must hold at least one batch, got an empty one")


def synchronize(device: torch.device) -> None:
    """Wait until a device has done its work; a CPU has none behind its back."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type != "cpu":
        torch.get_device_module(device).synchronize()
