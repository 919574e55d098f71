"""Warnings before a run, of what is no error and hardly ever meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer

from fasttricks.engine._batch_loss import with_loss
from fasttricks.engine._lists import parameters_of
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.schedules import Schedule

if TYPE_CHECKING:
    from fasttricks.engine._trainer import Trainer

# Of its largest value, under which a rate trains next to nothing.
_FADED = 0.01


def warn_of_rates(optimizers: Sequence[Optimizer], level: int) -> None:
    """Warn if groups of one optimizer have rates of their own, which one schedule would end."""
    for optimizer in optimizers:
        rates = [float(group["lr"]) for group in optimizer.param_groups]
        if len(set(rates)) > 1:
            shown = ", ".join(f"{rate:g}" for rate in rates)
            _warn(
                f"lr sets one rate in all groups of {type(optimizer).__name__}, which had {shown}; "
                "for a schedule a group pass "
                "schedulers=[ScheduledGroups(optimizer, {'lr': [...]})]",
                level,
            )


def warn_before_fit(trainer: Trainer, train: object, level: int) -> None:
    """Warn of parameters that nothing trains, and of schedules and sizes that are used up."""
    _warn_of_untrained(trainer, level + 1)
    for scheduler in trainer.schedulers:
        if isinstance(scheduler, ScheduledGroups):
            _warn_of_schedule(scheduler, trainer.total_steps - trainer.batches_done, level + 1)
    epoch, starts = getattr(train, "epoch", 0), getattr(train, "size_starts", ())
    if not trainer.history.rows and any(0 < start <= epoch for start in starts):
        _warn(
            f"train stands at its epoch {epoch}, past sizes of its ProgressiveResize, and the "
            "trainer at its first; call train.set_epoch(0) to begin anew",
            level,
        )


def _warn_of_untrained(trainer: Trainer, level: int) -> None:
    """Warn of layers of which no optimizer holds a parameter; a single one may be left out."""
    trained = set(parameters_of(trainer.optimizers))
    left = []
    for name, module in with_loss(trainer.model, trainer.loss).named_modules():
        own = [one for one in module.parameters(recurse=False) if one.requires_grad]
        if own and trained.isdisjoint(own):
            left.append(name.partition(".")[2] or type(module).__name__)
    if left:
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        _warn(
            f"no optimizer holds the parameters of {names}, which stay as they are; make the "
            "optimizer after the last change of the model, or call requires_grad_(False) on what "
            "is not to train",
            level,
        )


def _warn_of_schedule(scheduler: ScheduledGroups, updates: int, level: int) -> None:
    """Warn if the rates have faded well before the run ends."""
    given = scheduler.schedules.get("lr")
    total = getattr(scheduler, "total_steps", None)
    end = scheduler.last_epoch + updates
    if given is None or total is None or end <= total + total // 50:
        return
    steps = torch.arange(total, dtype=torch.float64)
    rates = [one(steps) for one in ([given] if isinstance(given, Schedule) else given)]
    if all(float(one[-1]) < _FADED * float(one.max()) for one in rates):
        last = max(float(one[-1]) for one in rates)
        _warn(
            f"the schedule of lr ends with update {total}, and the run with update {end}: the "
            f"last {end - max(total, scheduler.last_epoch)} would train at lr={last:g}; make it "
            "epochs * len(train) long, and a new trainer for a new run",
            level,
        )


def _warn(text: str, level: int) -> None:
    warnings.warn(text, UserWarning, stacklevel=level + 1)
