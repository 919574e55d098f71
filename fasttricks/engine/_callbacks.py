"""Callbacks: small objects that ``Trainer.fit`` calls at the places named by their methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch.nn import Parameter
from typing_extensions import override

from fasttricks._checks import check_integer

if TYPE_CHECKING:
    from fasttricks.engine._history import Value
    from fasttricks.engine._trainer import Trainer


class Callback:
    """The base of callbacks; every method does nothing until it is overridden.

    Order of the calls: ``on_fit_start``; for each epoch ``on_epoch_start``, for each batch
    ``on_step_start`` and ``on_step_end``, then ``on_epoch_end``; at last ``on_fit_end``, also after
    an error.
    """

    def on_fit_start(self, trainer: Trainer) -> None:
        """Before the first epoch; ``trainer.total_steps`` and ``trainer.epochs`` are known."""

    def on_epoch_start(self, trainer: Trainer) -> None:
        """Before an epoch's first batch."""

    def on_step_start(self, trainer: Trainer) -> None:
        """Before a batch's forward pass."""

    def on_step_end(self, trainer: Trainer) -> None:
        """After a batch's update."""

    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """After an epoch and its validation; ``row`` is what the history keeps of it."""

    def on_fit_end(self, trainer: Trainer) -> None:
        """After the last epoch, or when an error ends the run."""


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
        if trainer.step_count == self.steps:
            for parameter in self.parameters:
                parameter.requires_grad_(False)
