"""Callbacks: small objects that ``Trainer.fit`` calls at the places named by their methods."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

from torch.nn import Parameter
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from typing_extensions import override

from fasttricks._checks import check_fraction, check_integer

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
        if trainer.step_count >= self.steps:
            for parameter in self.parameters:
                parameter.requires_grad_(False)


class WeightAverage(Callback):
    """Train as ever, and end with an exponential moving average of the weights.

    After each update ``average <- decay * average + (1 - decay) * weights``, from the first update
    on, for parameters and batch-norm statistics alike; after the last update of ``fit`` the average
    takes the place of the model's weights. Between, it is ``average.module``.

    Args:
        decay: Share of the average that an update leaves, 0 to 1; an update counts for about
            ``1 / (1 - decay)`` updates.

    Attributes:
        average: torch's ``AveragedModel``, from ``fit`` on.

    Raises:
        ValueError: If ``decay`` is not between 0 and 1.

    Reference:
        Polyak and Juditsky 1992; ``torch.optim.swa_utils``.
    """

    def __init__(self, *, decay: float) -> None:
        check_fraction("decay", decay)
        self.decay = decay
        self.average: AveragedModel | None = None

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Start from the model's weights."""
        average_of = get_ema_multi_avg_fn(self.decay)
        self.average = AveragedModel(trainer.model, multi_avg_fn=average_of, use_buffers=True)

    @override
    def on_step_end(self, trainer: Trainer) -> None:
        """Take the new weights in; after the last update, hand the average over."""
        if self.average is None:
            return
        self.average.update_parameters(trainer.model)
        if trainer.batches_done == trainer.total_steps:
            trainer.model.load_state_dict(self.average.module.state_dict())
