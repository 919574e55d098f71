"""Warnings before a run, of what is no error and hardly ever meant."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch.optim import Optimizer
from torch.optim.swa_utils import AveragedModel

from fasttricks.engine._batch_loss import with_loss
from fasttricks.engine._lists import parameters_of
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.lr_scheduler._scheduled_groups import as_list, longest
from fasttricks.schedules import Schedule

if TYPE_CHECKING:
    from fasttricks.engine._trainer import Trainer

# Of its largest value, under which a rate trains next to nothing.
_FADED = 0.01


def warn_of_rates(optimizers: Sequence[Optimizer], level: int) -> None:
    """Warn if groups of one optimizer have rates of their own, which one schedule would end."""
    for optimizer in optimizers:
        rates = [f"{float(group['lr']):g}" for group in optimizer.param_groups]
        if len(set(rates)) > 1:
            _warn(
                f"lr sets one rate in all groups of {type(optimizer).__name__}, which had "
                f"{', '.join(rates)}; for a schedule a group pass "
                "schedulers=[ScheduledGroups(optimizer, {'lr': [...]})]",
                level,
            )


def warn_before_fit(trainer: Trainer, train: object, level: int) -> None:
    """Warn of parameters that nothing trains, and of schedules and sizes that are used up."""
    _warn_of_untrained(trainer, level + 1)
    _warn_of_schedules(trainer, level + 1)
    epoch, starts = getattr(train, "epoch", 0), getattr(train, "size_starts", ())
    if not trainer.history.rows and any(0 < start <= epoch for start in starts):
        _warn(
            f"train stands at its epoch {epoch}, where the images of its ProgressiveResize have "
            "changed their size already; for a run from the beginning call train.set_epoch(0)",
            level,
        )


def _warn_of_untrained(trainer: Trainer, level: int) -> None:
    """Warn of layers of which no optimizer holds a parameter; a single one may be left out."""
    trained = set(parameters_of(trainer.optimizers))
    both = with_loss(trainer.model, trainer.loss)
    averages = [module for module in both.modules() if isinstance(module, AveragedModel)]
    others = {module for average in averages for module in average.modules()}
    left = []
    for name, module in both.named_modules():
        own = [one for one in module.parameters(recurse=False) if one.requires_grad]
        if own and trained.isdisjoint(own) and module not in others:
            left.append(name.partition(".")[2] or type(module).__name__)
    if left:
        names = ", ".join(left[:3]) + (", ..." if len(left) > 3 else "")
        _warn(
            f"no optimizer holds the parameters of {names}, which this run does not train; make "
            "the optimizer after the last change of the model, or call requires_grad_(False) on "
            "what is not to train, which saves its gradients too",
            level,
        )


def _warn_of_schedules(trainer: Trainer, level: int) -> None:
    """Warn if the rates of all optimizers have faded well before the run ends."""
    ours = [one for one in trainer.schedulers if isinstance(one, ScheduledGroups)]
    by_optimizer = {one.optimizer: one for one in ours if "lr" in one.schedules}
    ends = []
    for optimizer in trainer.optimizers:
        scheduler = by_optimizer.get(optimizer)
        length = None if scheduler is None else _faded_after(scheduler.schedules["lr"])
        if scheduler is None or length is None:
            return
        end = scheduler.last_epoch + trainer.total_steps - trainer.batches_done
        ends.append((length, end, end - max(length, scheduler.last_epoch)))
    length, end, left = max(ends)
    if left > max(1, length // 50):
        _warn(
            f"the schedule of lr ends with update {length}, and the run with update {end}: the "
            f"last {left} would train at next to nothing; make it epochs * len(train) long, and a "
            "new trainer for a new run",
            level,
        )


def _faded_after(given: Schedule | Sequence[Schedule]) -> int | None:
    """Return after how many updates all rates have faded to a hundredth; None if they never do."""
    schedules = as_list(given)
    length = longest(schedules)
    if length is None:
        return None
    steps = torch.arange(length, dtype=torch.float64)
    rates = [one(steps) for one in schedules]
    return length if all(one[-1] < _FADED * one.max() for one in rates) else None


def _warn(text: str, level: int) -> None:
    warnings.warn(text, UserWarning, stacklevel=level + 1)
