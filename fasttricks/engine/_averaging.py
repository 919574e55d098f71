"""Averages of weights as callbacks, which any other loop can use by their plain methods.

Every average holds a copy of the model and moves it towards the weights that are trained, for
parameters and batch-norm statistics alike:

    average <- decay * average + (1 - decay) * weights

Other buffers, which may be counts, indices or masks, are the model's own at the last such move.
They differ in when this happens, in the decay, and in what the model takes back.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel
from typing_extensions import override

from fasttricks._checks import check_fraction, check_integer, check_non_negative, length_of
from fasttricks.engine._callbacks import Callback
from fasttricks.engine._device import device_of
from fasttricks.engine._inputs import inputs_of
from fasttricks.engine._lists import by_dtype, copy_each
from fasttricks.engine._precision import Precision
from fasttricks.engine._preserve import preserve_training_state

if TYPE_CHECKING:
    from fasttricks.engine._batch_loss import Batch
    from fasttricks.engine._trainer import Trainer


class _Average(Callback):
    """What the averages share: their copy of the model, its beginning, and its place in a fit."""

    def __init__(self, batches: Iterable[Batch] | None = None) -> None:
        if length_of(batches) == 0:
            raise ValueError(
                "batches must hold at least one batch, got none; a loader with drop_last needs as "
                "many images as a batch"
            )
        self.batches = batches
        self.average: AveragedModel | None = None
        self._loaded: dict[str, Any] | None = None
        self._is_in_use = False  # by a fit, or a loop of one's own

    def start(self, model: nn.Module) -> None:
        """Begin from the model's weights, or from the state that was loaded before."""
        self.average, self._is_in_use = AveragedModel(model), True
        if self._loaded is not None:
            self.average.load_state_dict(self._loaded)
            self._loaded = None

    def hand_over(self, model: nn.Module, *, precision: Precision | None = None) -> None:
        """Put the average in the place of the model's weights, in place.

        Args:
            model: What takes it.
            precision: How to estimate the batch-norm statistics, where ``batches`` were given; in
                the model's own dtype by default.
        """
        average = self._started().module
        if self.batches is not None:
            context = nullcontext() if precision is None else precision.forward_context()
            # As in training: parts in evaluation mode are so here, and norms among them stay.
            for own, other in zip(average.modules(), model.modules(), strict=True):
                own.training = other.training or not model.training
            with preserve_training_state(nn.Identity(), [], self.batches), context:
                _estimate_statistics(average, self.batches)
            if not model.training:
                average.eval()
        model.load_state_dict(average.state_dict())

    @property
    def module(self) -> nn.Module:
        """The average, a model like the one that is trained, in the mode that it had at ``start``.

        Raises:
            RuntimeError: Before ``start``, or before a ``fit`` has begun.
        """
        found: nn.Module = self._started().module
        return found

    def state_dict(self) -> dict[str, Any]:
        """Return the average's tensors by name; those that were loaded if they wait for a start."""
        if self._loaded is not None or self.average is None:
            return dict(self._loaded or {})
        return dict(self.average.state_dict())

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned: now after ``start``, else when one begins."""
        if self.average is not None and self._is_in_use and state:
            self.average.load_state_dict(state)
        else:
            self._loaded = copy.deepcopy(dict(state)) or None

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Start from the model's weights."""
        self.start(trainer.model)

    @override
    def on_fit_end(self, trainer: Trainer) -> None:
        """Let a state that is loaded from here on wait for the next fit."""
        self._is_in_use = False

    def _hand_over_at_end(self, trainer: Trainer) -> None:
        if trainer.batches_done == trainer.total_steps:
            self.hand_over(trainer.model, precision=trainer.precision)

    def _started(self) -> AveragedModel:
        if self.average is None:
            raise RuntimeError(f"call start(model) of {type(self).__name__} before its other calls")
        return self.average

    @torch.no_grad()
    def _move_towards(self, model: nn.Module, decay: float) -> None:
        # AveragedModel's own way brings its count to the device, for which the host waits.
        average = self._started()
        (kept, kept_rest), (new, new_rest) = _parts(average.module), _parts(model)
        if average.n_averaged == 0:  # the first are taken as they are
            copy_each(kept, new)
        else:
            for own, others in by_dtype(kept, new):
                _lerp(own, others, decay)
        copy_each(kept_rest, new_rest)
        average.n_averaged += 1


class WeightAverage(_Average):
    """Train as ever, and end with an exponential moving average of the weights.

    After each update ``average <- decay * average + (1 - decay) * weights``, from the first update
    on, for parameters and batch-norm statistics alike; after the last update of ``fit`` the average
    takes the place of the model's weights. Between, it is ``average.module``. In a loop of your
    own call ``start(model)``, ``update(model)`` after each update, and ``hand_over(model)``.

    Args:
        decay: Share of the average that an update leaves, 0 to 1; an update counts for about
            ``1 / (1 - decay)`` updates.
        every: Take the weights in after every so many updates, counted back from the last one, so
            that it is always among them in a run of the expected length; 1 by default.
        start_fraction: Share of the run, 0 to 1, after which averaging begins; 0 by default.
        batches: Batches (images, targets) on which the average's batch-norm statistics are
            estimated anew when the model takes it, in whole and not as a moving average: a few
            thousand training images, shuffled and in batches of one size, as each batch counts the
            same and should hold every class. Give them the ``Cutout`` of the training, whose zeros
            the weights reckon with, and after a ``ProxyLoader`` its choice; translation and flips
            may be left out. Their place and the random states are put back. None (default): the
            statistics are averaged too.

    Attributes:
        average: torch's ``AveragedModel``, from ``start`` on.

    Raises:
        ValueError: If ``decay`` or ``start_fraction`` is not between 0 and 1, ``every`` under 1, or
            ``batches`` empty.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> average = WeightAverage(decay=0.5)
        >>> average.start(model)
        >>> for value in (1.0, 2.0, 4.0):  # the first is taken as it is
        ...     _ = nn.init.constant_(model.weight, value)
        ...     average.update(model)
        >>> average.hand_over(model)
        >>> model.weight.item()
        2.75

    Reference:
        Polyak and Juditsky 1992; ``torch.optim.swa_utils``.
    """

    def __init__(
        self,
        *,
        decay: float,
        every: int = 1,
        start_fraction: float = 0.0,
        batches: Iterable[Batch] | None = None,
    ) -> None:
        check_fraction("decay", decay)
        check_integer("every", every, minimum=1)
        check_fraction("start_fraction", start_fraction)
        super().__init__(batches)
        self.decay = decay
        self.every = every
        self.start_fraction = start_fraction

    def update(self, model: nn.Module) -> None:
        """Take the model's weights in."""
        self._move_towards(model, self.decay)

    @override
    def on_step_end(self, trainer: Trainer) -> None:
        """Take the new weights in; after the last update, hand the average over."""
        done, total = trainer.batches_done, trainer.total_steps
        if done >= round(self.start_fraction * total) and (total - done) % self.every == 0:
            self.update(trainer.model)
        self._hand_over_at_end(trainer)

    @override
    def on_short_epoch(self, trainer: Trainer) -> None:
        """Hand the average over if the run ends here."""
        is_end = trainer.batches_done == trainer.total_steps
        if is_end and not int(self._started().n_averaged):  # without any it would be the first ones
            self.update(trainer.model)
        self._hand_over_at_end(trainer)


class Lookahead(_Average):
    """Every few updates pull the weights back onto a slow average of them, and go on from there.

    After every ``every`` updates ``slow <- decay * slow + (1 - decay) * weights``, then
    ``weights <- slow``; the optimizer's state stays. After the last update of ``fit`` the model
    takes the slow weights. With ``rise`` the decay grows over the run: when the share s of it is
    done, 0 to 1, it is ``decay * s^rise``: early on the slow weights follow closely, in the end
    hardly.

    The paper's form has a constant decay, 1 - alpha of the paper. That of hlb-CIFAR10 and of
    airbench94 is ``Lookahead(every=5, decay=0.95**5, rise=3)``. Theirs includes the batch-norm
    statistics, as do both forms here; the paper's own algorithm speaks of parameters alone.

    In a loop of your own call ``start(model)`` before the first update, ``update(model)`` after
    every ``every`` updates, and ``hand_over(model)`` at the end.

    Args:
        every: Updates between two pulls (k in the paper), at least 1; 5 by default.
        decay: Share of the slow weights that a pull leaves, 0 to 1; 0.5 by default. With ``rise``,
            its value at the end of the run.
        rise: Power of the share of the run that is done; 0 (default) keeps the decay constant.

    Attributes:
        average: torch's ``AveragedModel`` with the slow weights, from ``start`` on.

    Raises:
        ValueError: If ``every`` is under 1, ``decay`` not between 0 and 1, or ``rise`` negative.

    Example:
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = nn.init.zeros_(model.weight)
        >>> lookahead = Lookahead(decay=0.75)
        >>> lookahead.start(model)
        >>> _ = nn.init.ones_(model.weight)  # where five updates went
        >>> lookahead.update(model)
        >>> model.weight.item()
        0.25

    Reference:
        Zhang et al. 2019, "Lookahead Optimizer: k steps forward, 1 step back" (arXiv 1907.08610),
        algorithm 1; the rising decay: Jordan 2024, airbench94 (arXiv 2404.00498, section 3.4).
    """

    def __init__(self, *, every: int = 5, decay: float = 0.5, rise: float = 0.0) -> None:
        check_integer("every", every, minimum=1)
        check_fraction("decay", decay)
        check_non_negative("rise", rise)
        super().__init__()
        self.every = every
        self.decay = decay
        self.rise = rise

    @override
    def start(self, model: nn.Module) -> None:
        """Begin from the model's weights, or from the state that was loaded before."""
        super().start(model)
        # AveragedModel would take the first weights as they are; the slow ones begin before them.
        self._started().n_averaged.clamp_(min=1)

    @torch.no_grad()
    def update(self, model: nn.Module, *, share_done: float = 1.0) -> None:
        """Pull the slow weights and the model together, at this share of the run: 1 is its end."""
        check_fraction("share_done", share_done)
        self._move_towards(model, self.decay * share_done**self.rise)
        slow = self._started().module
        for weights, pulled in by_dtype(_parts(model)[0], _parts(slow)[0]):
            if weights[0].is_floating_point():
                torch._foreach_copy_(weights, pulled)

    @override
    def on_step_end(self, trainer: Trainer) -> None:
        """Pull if it is time; after the last update, hand the slow weights over."""
        done, total = trainer.batches_done, trainer.total_steps
        if done % self.every == 0:
            self.update(trainer.model, share_done=done / total)
        self._hand_over_at_end(trainer)

    @override
    def on_short_epoch(self, trainer: Trainer) -> None:
        """Hand the slow weights over if the run ends here."""
        self._hand_over_at_end(trainer)


class StochasticWeightAverage(_Average):
    """End with the plain mean of the weights at the ends of the last epochs.

    The mean is over the epochs that end at ``start_fraction`` of the run or later; an epoch cut
    short by the run's end counts as one. After the last update the model takes the mean, and its
    batch-norm statistics, which no average of statistics can give, are estimated anew by a pass
    over training batches. The rate during those epochs should stay high enough to move the weights:
    constant, or one cycle an epoch.

    In a loop of your own call ``start(model)``, ``update(model)`` after each such epoch, and
    ``hand_over(model)``.

    Args:
        batches: Training batches (images, targets) for the statistics, usually the loader that is
            trained on; its place and the random states are put back. None: the statistics are
            averaged like the weights.
        start_fraction: Share of the run, 0 to 1, from which on ends of epochs count; 0.75 by
            default, as in the paper.

    Attributes:
        average: torch's ``AveragedModel``, from ``start`` on.

    Raises:
        ValueError: If ``start_fraction`` is not between 0 and 1, or ``batches`` is empty.

    Reference:
        Izmailov et al. 2018, "Averaging weights leads to wider optima and better generalization"
        (arXiv 1803.05407), algorithm 1 and section 3.2.
    """

    def __init__(self, batches: Iterable[Batch] | None, *, start_fraction: float = 0.75) -> None:
        check_fraction("start_fraction", start_fraction)
        super().__init__(batches)
        self.start_fraction = start_fraction

    def update(self, model: nn.Module) -> None:
        """Take the model's weights in; each of n such counts for 1/n."""
        taken = int(self._started().n_averaged)
        self._move_towards(model, taken / (taken + 1))

    @override
    def on_step_end(self, trainer: Trainer) -> None:
        """Take an epoch's last weights in; after the last update, hand the mean over."""
        self._end_of_batch(trainer)

    @override
    def on_short_epoch(self, trainer: Trainer) -> None:
        """Take the epoch's last weights in, which came sooner than expected."""
        self._end_of_batch(trainer)

    def _end_of_batch(self, trainer: Trainer) -> None:
        done, total = trainer.batches_done, trainer.total_steps
        epoch_ends = done % trainer.steps_per_epoch == 0 or done == total
        if epoch_ends and done >= round(self.start_fraction * total):
            self.update(trainer.model)
        self._hand_over_at_end(trainer)


def _parts(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """Return what is averaged, weights and the statistics of norms, and the other buffers."""
    averaged: list[Tensor] = list(model.parameters())
    others: list[Tensor] = []
    for name, buffer in model.named_buffers():
        is_statistic = name.rpartition(".")[2] in ("running_mean", "running_var")
        (averaged if is_statistic else others).append(buffer)
    return averaged, others


def _lerp(averages: list[Tensor], values: list[Tensor], decay: float) -> None:
    """Move averages of one dtype; whole numbers are cut off, as torch's AveragedModel does."""
    if averages[0].is_floating_point() or averages[0].is_complex():
        torch._foreach_lerp_(averages, values, 1 - decay)
        return
    for average, value in zip(averages, values, strict=True):
        average.copy_(average * decay + value * (1 - decay))


@torch.no_grad()
def _estimate_statistics(model: nn.Module, batches: Iterable[Batch]) -> None:
    """Set the statistics of the batch norms in training mode to their means over the batches."""
    norms = [m for m in model.modules() if isinstance(m, _BatchNorm) and m.training]
    if not norms:
        return
    momenta = [norm.momentum for norm in norms]
    device = device_of(model)
    started = False
    try:
        for images in map(inputs_of, batches):
            if not started:
                started = True
                for norm in norms:
                    norm.reset_running_stats()
                    norm.momentum = None  # every batch counts the same
            model(images.to(device))
    finally:
        for norm, momentum in zip(norms, momenta, strict=True):
            norm.momentum = momentum
    if not started:
        warnings.warn(
            "batches must hold at least one batch when the average is handed over, got none; the "
            "batch-norm statistics are averaged ones",
            RuntimeWarning,
            stacklevel=3,
        )
