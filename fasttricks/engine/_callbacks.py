"""Callbacks: small objects that ``Trainer.fit`` calls at the places named by their methods."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.nn import Module, Parameter
from typing_extensions import override

from fasttricks._checks import check_integer, is_library_class
from fasttricks.engine._checkpoint import check_savable
from fasttricks.engine._distributed import gather, rank
from fasttricks.engine._files import make_folder
from fasttricks.engine._goal import check_target, is_reached, resolve_mode
from fasttricks.engine._inputs import listed
from fasttricks.engine._precision import all_finite

if TYPE_CHECKING:
    from fasttricks.engine._history import Value
    from fasttricks.engine._trainer import Trainer


class Callback:
    """The base of callbacks; every method does nothing until it is overridden.

    What they are given is the trainer, whose ``model``, ``history``, ``step_count``, ``batch_loss``
    and so on they may read; ``trainer.stop = True`` ends the run after the epoch.

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
        """After an epoch and its validation.

        ``row`` is what the history keeps of it; numbers by other names may be added, and the
        callbacks after this one see them.
        """

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or when an error ends the run."""

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep of this object: numbers, text and tensors."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned; when a run is resumed, after ``on_fit_start``."""


def callbacks_of(callbacks: Any) -> list[Any]:
    """Return callbacks as a list; raise a TypeError unless each is one."""
    several = listed("callbacks", callbacks, "Callback objects")
    for one in several:
        if not isinstance(one, Callback):
            kind = f"the class {one.__name__}" if isinstance(one, type) else type(one).__name__
            raise TypeError(f"callbacks must be Callback objects, got {kind}")
    return several


class FreezeAfter(Callback):
    """Stop training some parameters after a number of updates.

    Autograd then skips whatever only they needed, which for a first layer is the whole gradient of
    the layer after it. What this callback froze trains again while the count is below ``steps``, as
    where a checkpoint of before is loaded.

    Args:
        parameters: What to freeze, such as ``model.conv1.parameters()``; one alone will do.
        steps: Number of updates in which they still train, counted by ``trainer.step_count``.

    Raises:
        ValueError: If ``steps`` is negative, or there are no parameters.
        TypeError: If they are no parameters, such as names.

    Reference:
        The whitening bias of airbench94 (Jordan 2024, arXiv 2404.00498, section 3.2).
    """

    def __init__(self, parameters: Iterable[Parameter] | Parameter, *, steps: int) -> None:
        check_integer("steps", steps)
        self.parameters = _parameters_in(parameters)
        self.steps = steps
        self._frozen: list[Parameter] = []  # by this callback

    @override
    def on_step_start(self, trainer: Trainer) -> None:
        """Freeze when the time has come, and thaw what was frozen if it is to come again."""
        if trainer.step_count >= self.steps:
            training = [parameter for parameter in self.parameters if parameter.requires_grad]
            for parameter in training:
                parameter.requires_grad_(False)
            self._frozen = [*self._frozen, *training]
        else:
            for parameter in self._frozen:
                parameter.requires_grad_(True)
            self._frozen = []


def _parameters_in(given: Any) -> list[Parameter]:
    """Return one parameter or several as a list, or raise."""
    several = isinstance(given, Iterable) and not isinstance(given, Tensor)
    parameters = list(given) if several else [given]
    if not parameters:
        raise ValueError("parameters must hold at least one parameter, got none")
    for one in parameters:
        if not isinstance(one, Parameter):
            hint = "; pass its parameters()" if isinstance(one, Module) else ""
            raise TypeError(f"parameters must be nn.Parameter, got {type(one).__name__}{hint}")
    return parameters


class _Watcher(Callback):
    """What callbacks share that watch a column of the history."""

    def __init__(self, metric: str, mode: str | None) -> None:
        self.metric = metric
        self.mode = resolve_mode(metric, mode)

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Refuse to watch a validation that there is not, unless a callback may make up for it."""
        foreign = not all(map(is_library_class, trainer.callbacks))
        if self.metric in ("val_loss", "val_accuracy") and not (trainer.has_val or foreign):
            raise ValueError(
                f"metric must be a column that the history will have, got metric={self.metric!r} "
                "without val; pass val=... to fit"
            )

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
        patience: Epochs without a new best, at least 1, after which to stop; no limit by default.

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
        if patience is not None:
            check_integer("patience", patience, minimum=1)
        super().__init__(metric, mode)
        if target is not None:
            check_target(target, metric)
        self.target = target
        self.patience = patience

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Stop at once if the run is a resumed one that had been stopped."""
        super().on_fit_start(trainer)
        if trainer.epoch and self.metric in trainer.history.rows[-1]:
            self.on_epoch_end(trainer, trainer.history.rows[-1])

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Stop if the target is reached, or patience at its end."""
        value = self._value(row)
        if self.target is not None:
            trainer.stop = trainer.stop or is_reached(value, self.target, self.mode)
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
        super().on_fit_start(trainer)
        if self.path.is_file():
            raise ValueError(f"path must be a folder, got the file {self.path}")
        if rank() == 0:
            make_folder(self.path.parent, name="path")

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Write a checkpoint if this epoch is the best."""
        self._value(row)
        is_best = self._best(trainer) == trainer.epoch - 1
        if gather(is_best and all_finite(trainer.model))[0]:
            trainer.save(self.path)
