"""Callbacks: small objects that ``Trainer.fit`` calls at the places named by their methods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch.nn import Parameter
from typing_extensions import override

from fasttricks._checks import check_choice, check_integer, check_number
from fasttricks.engine._checkpoint import check_savable
from fasttricks.engine._distributed import gather
from fasttricks.engine._precision import all_finite

if TYPE_CHECKING:
    from fasttricks.engine._history import Value
    from fasttricks.engine._trainer import Trainer


class Callback:
    """The base of callbacks; every method does nothing until it is overridden.

    Order of the calls: ``on_fit_start``; for each epoch ``on_epoch_start``, for each batch
    ``on_step_start`` and ``on_step_end``, after an epoch that was shorter than its loader's length
    ``on_short_epoch``, then ``on_epoch_end``; at last ``on_fit_end``, also after an error.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first epoch; ``trainer.total_steps`` and ``trainer.epochs`` are known."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before an epoch's first batch."""

    def on_step_start(self, trainer: Trainer) -> None:
        """Before a batch's forward pass."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After a batch's update."""

    def on_short_epoch(self, trainer: Trainer) -> None:
        """After the last batch of an epoch that had fewer than its loader's length.

        ``trainer.batches_done`` counts the missing ones: the epoch is over, and so is the run where
        it equals ``trainer.total_steps``, which no ``on_step_end`` has seen.
        """

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """After an epoch and its validation; ``row`` is what the history keeps of it."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or when an error ends the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this object: numbers, text and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; when a run is resumed, after ``on_fit_start``."""


class FreezeAfter(Callback):
    """Stop training some parameters after a number of updates.

    Autograd then skips whatever only they needed, which for a first layer is the whole gradient of
    the layer after it.

    Args:
        parameters: What to freeze.
        steps: Number of updates in which they still train, counted by ``trainer.step_count``.

    Raises:
        ValueError: If ``steps`` is negative.

    Reference:
        The whitening bias of airbench94 (Jordan 2024, arXiv 2404.00498, section 3.2).
    """

    def __init__(self, parameters: Iterable[Parameter], *, steps: int) -> None:
        check_integer("steps", steps)
        self.parameters = list(parameters)
        self.steps = steps

    @override
    def on_step_start(self, trainer: Trainer) -> None:
        """Freeze when the time has come."""
        if trainer.step_count >= self.steps:
            for parameter in self.parameters:
                parameter.requires_grad_(False)


class _Watcher(Callback):
    """What callbacks share that watch a column of the history."""

    def __init__(self, metric: str, mode: str | None) -> None:
        if mode is not None:
            check_choice("mode", mode, ("max", "min"))
        self.metric = metric
        self.mode = mode or ("min" if metric.endswith("loss") else "max")

    def _value(self, row: dict[str, Value]) -> float:
        if self.metric not in row:
            raise ValueError(
                f"metric must be a column of the history, which has {', '.join(row)}, "
                f"got metric={self.metric!r}{self._hint(row)}"
            )
        return row[self.metric]

    def _best(self, trainer: Trainer) -> int | None:
        """Return the epoch of this fit, from 0, that was best, the first of equals; None of NaN."""
        rows = trainer.history.rows[-trainer.epoch :] if trainer.epoch else []
        values = [row.get(self.metric, math.nan) for row in rows]  # a resumed run's may lack it
        known = [number for number, value in enumerate(values) if not math.isnan(value)]
        best = max if self.mode == "max" else min
        return best(known, key=values.__getitem__, default=None)

    def _hint(self, row: dict[str, Value]) -> str:
        """What to do about a column that is missing."""
        if self.metric.startswith("val_") and "val_loss" not in row:
            return "; pass val=... to fit"
        if self.metric in ("accuracy", "val_accuracy"):
            return "; without classes as targets there is none: watch a loss, or a metric of yours"
        return ""


class EarlyStop(_Watcher):
    """End the run once a figure of the history reaches a target, or gets no better any more.

    It sets ``trainer.stop = True`` after that epoch. The model keeps the weights of then: an
    average of weights is not handed over, and is found in its callback's ``average.module``; those
    of the best epoch are for ``KeepBest`` to keep. A resumed run stops where it had stopped.

    Args:
        target: The figure to reach, such as 0.94; none by default.
        metric: The history's column that is compared, "val_accuracy" by default.
        mode: "max" if higher is better, "min" if lower is; by default "min" for a column whose name
            ends in "loss", else "max".
        patience: Epochs without a new best, at least 1, after which to stop; as many as there are
            by default.

    Raises:
        ValueError: If there is neither ``target`` nor ``patience``, or one is out of its range, or
            ``mode`` unknown; after the first epoch, if the history has no such column, such as an
            accuracy where targets are no classes.

    Example:
        >>> stop_at_94_percent = EarlyStop(target=0.94)
        >>> stop_at_94_percent.mode
        'max'
    """

    def __init__(
        self,
        *,
        target: float | None = None,
        metric: str = "val_accuracy",
        mode: str | None = None,
        patience: int | None = None,
    ) -> None:
        if target is None and patience is None:
            raise ValueError("EarlyStop must have a target or a patience, got neither")
        if target is not None:
            check_number("target", target)
        if patience is not None:
            check_integer("patience", patience, minimum=1)
        super().__init__(metric, mode)
        self.target = target
        self.patience = patience

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Stop at once if the run is a resumed one that had been stopped."""
        if trainer.epoch and self.metric in trainer.history.rows[-1]:
            self.on_epoch_end(trainer, trainer.history.rows[-1])

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Stop if the target is reached, or patience at its end."""
        value = self._value(row)
        if self.target is not None:
            reached = value >= self.target if self.mode == "max" else value <= self.target
            trainer.stop = trainer.stop or reached
        if self.patience is not None:
            best = self._best(trainer)
            waited = trainer.epoch - (0 if best is None else best + 1)
            trainer.stop = trainer.stop or waited >= self.patience


class KeepBest(_Watcher):
    """Keep a checkpoint of the epoch in which a figure of the history was best.

    It is written by ``trainer.save`` after each epoch that is better than all before it in this
    call of ``fit``, in the place of the one before; ``trainer.load(path)`` brings it back, and
    ``fit(..., resume=path)`` goes on from it. Of weights that are not finite there is none. Put it
    last among the callbacks, so that it keeps the states of all; of several processes each needs
    one, and the first decides.

    Args:
        path: The checkpoint's folder.
        metric: The history's column that is compared, "val_accuracy" by default. Where it is of
            test images, they have chosen the weights: keep by a held-out part.
        mode: As for ``EarlyStop``.

    Raises:
        ValueError: If ``mode`` is unknown; when a fit starts, if no checkpoint could be written;
            after the first epoch, if the history has no such column.
        TypeError: When a fit starts, if a scheduler has no state to keep.

    Example:
        >>> keep = KeepBest("runs/first/best", metric="val_loss")
        >>> keep.mode
        'min'
    """

    def __init__(
        self, path: Path | str, *, metric: str = "val_accuracy", mode: str | None = None
    ) -> None:
        super().__init__(metric, mode)
        self.path = Path(path)

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Refuse what could not be written."""
        check_savable(trainer)

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Write a checkpoint if this epoch is the best."""
        self._value(row)
        is_best = self._best(trainer) == trainer.epoch - 1
        if gather(is_best and all_finite(trainer.model))[0]:
            trainer.save(self.path)
