"""The learning-rate range test: a short run at rising rates, and the numbers that it suggests.

The curve holds, for every update, its rate and the training loss before it. Rules read the smoothed
loss (an exponential moving average with its start corrected), against the logarithm of the rate.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
from torch import nn
from torch.optim import Optimizer

from fasttricks._checks import (
    check_choice,
    check_fraction,
    check_integer,
    check_number,
    check_positive,
    length_of,
)
from fasttricks.engine import Trainer
from fasttricks.engine._batch_loss import Batch, Loss
from fasttricks.engine._evaluate import start_training
from fasttricks.engine._trial import endless, trial_trainer, without_trace

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = ["RULES", "RangeTest", "lr_range_test", "suggest_range"]

Curve = npt.NDArray[np.float64]

# Smith 2015, section 3.2: a half cycle of 2 to 10 epochs works well.
_STEP_SIZE_EPOCHS = 4

# With less there is no level to tell a jump by.
_FEWEST_LOSSES = 3

# Found with ResNet9 at two batch sizes, on training images held out.
_PAST_THE_JUMP = 2.0


@dataclass(frozen=True)
class RangeTest:
    """The curve of a range test and what it suggests.

    Attributes:
        rates: The rate of each update, rising.
        losses: The training loss of each update.
        smoothed: The losses, smoothed.
        max_lr: Suggested peak of a one cycle or of a triangular schedule; see ``suggest_range``.
        base_lr: Suggested foot of a triangular schedule: where the loss begins to fall.
        step_size_epochs: Suggested half cycle, in epochs.
        step_size: The same in updates; ``None`` if the loader has no length.
        diverged: Whether the test ended early because the loss had risen too far.
    """

    rates: tuple[float, ...]
    losses: tuple[float, ...]
    smoothed: tuple[float, ...]
    max_lr: float
    base_lr: float
    step_size_epochs: int
    step_size: int | None
    diverged: bool

    def suggest(self, rule: str) -> float:
        """Return the rate that a rule by name reads off the curve.

        Args:
            rule: "minimum", a tenth of the rate at the lowest loss; "steep", the rate of the
                steepest fall; "valley", inside the longest fall, halfway through its middle third;
                "slide", from the right, the first rate where the slope changes no more.

        Raises:
            ValueError: If the rule is unknown.

        Reference:
            The rules of fastai's ``lr_find`` (Howard and Gugger 2020), written anew.
        """
        check_choice("rule", rule, RULES)
        return float(RULES[rule](np.array(self.rates), np.array(self.smoothed)))

    def plot(self, *, ax: Axes | None = None) -> Axes:
        """Draw the curve with the suggested rates; needs matplotlib."""
        from fasttricks.plots import plot_range_test

        return plot_range_test(self, ax=ax)


def lr_range_test(
    model: nn.Module | Trainer,
    optimizer: Optimizer | Sequence[Optimizer] | None = None,
    loader: Iterable[Batch] | None = None,
    loss: Loss | None = None,
    *,
    start_lr: float = 1e-4,
    end_lr: float = 10.0,
    num_steps: int = 100,
    ramp: str = "exponential",
    smoothing: float = 0.9,
    divergence: float = 4.0,
    precision: str = "auto",
) -> RangeTest:
    """Train for a few updates at rising rates, put everything back, and suggest rates.

    Update k of n uses ``start_lr (end_lr / start_lr)^(k / (n - 1))``, or with a linear ramp
    ``start_lr + (end_lr - start_lr) k / (n - 1)``. Groups keep the ratio of their rates to the
    first group's. Afterwards weights, statistics, gradients, the optimizer, random states and the
    loader's place are what they were, byte for byte, also after an error.

    Args:
        model: The module, or a ``Trainer``, whose model, optimizers, loss and precision are used.
        optimizer: One or several, as they will be used for training; none with a ``Trainer``.
        loader: Yields batches (images, targets); begun anew when it ends.
        loss: Maps (outputs, targets) to the mean loss; cross-entropy by default.
        start_lr: First rate, above 0; 1e-4 by default.
        end_lr: Last rate; 10 by default.
        num_steps: Updates, at least 10; 100 by default.
        ramp: "exponential" (default) or "linear".
        smoothing: Share of the moving average that an update leaves, 0 to 1; 0.9 by default.
        divergence: The test ends once the smoothed loss exceeds this many times its minimum; 4. For
            a loss that can be 0 or negative it ends once the loss has risen from its minimum by
            ``divergence - 1`` times its fall, counted from the highest of its first ten values.
        precision: As for ``Trainer``; "auto" by default.

    Returns:
        The ``RangeTest``.

    Raises:
        ValueError: If a number is out of its range, ``loader`` is missing or empty, or the loss is
            not finite at one of the first three updates.
        TypeError: If a module comes without an optimizer, or a ``Trainer`` with one.

    Reference:
        Smith 2015, "Cyclical learning rates for training neural networks" (arXiv 1506.01186),
        section 3.3.
    """
    check_positive("start_lr", start_lr)
    check_positive("end_lr", end_lr)
    if end_lr <= start_lr:
        raise ValueError(
            f"end_lr must be greater than start_lr, got end_lr={end_lr} and start_lr={start_lr}"
        )
    check_integer("num_steps", num_steps, minimum=10)
    check_choice("ramp", ramp, ("exponential", "linear"))
    check_fraction("smoothing", smoothing)
    if smoothing == 1:
        raise ValueError(f"smoothing must be under 1, got smoothing={smoothing}")
    check_number("divergence", divergence)
    if divergence <= 1:
        raise ValueError(f"divergence must be greater than 1, got divergence={divergence}")
    if loader is None:
        raise ValueError("loader must be given, got none; pass loader=...")
    trainer = trial_trainer(model, optimizer, loss, precision)
    rates = _ramp(start_lr, end_lr, num_steps, ramp)
    with without_trace(trainer, loader):
        losses, diverged = _sweep(trainer, loader, rates, smoothing, divergence)
    return _read_curve(rates[: len(losses)], np.array(losses), smoothing, diverged, loader)


def _ramp(start: float, end: float, steps: int, kind: str) -> Curve:
    return (
        np.geomspace(start, end, steps) if kind == "exponential" else np.linspace(start, end, steps)
    )


def _sweep(
    trainer: Trainer, loader: Iterable[Batch], rates: Curve, smoothing: float, divergence: float
) -> tuple[list[float], bool]:
    """Train at each rate; return the losses, and whether they rose too far before the end."""
    groups = [group for optimizer in trainer.optimizers for group in optimizer.param_groups]
    first = float(groups[0]["lr"])
    ratios = [float(group["lr"]) / first if first > 0 else 1.0 for group in groups]
    losses: list[float] = []
    average, lowest = 0.0, math.inf
    start_training(trainer.model)
    for rate, batch in zip(rates, endless(loader), strict=False):
        for group, ratio in zip(groups, ratios, strict=True):
            set_rate(group, rate * ratio)
        try:
            value = float(trainer.step(batch))
        except FloatingPointError:
            value = math.nan
        if not losses and not math.isfinite(value):
            raise ValueError(f"the loss must be finite at the first update, got {value}")
        if not math.isfinite(value) and len(losses) < _FEWEST_LOSSES:
            raise ValueError(
                f"start_lr must be a rate at which the model trains for a while, got "
                f"start_lr={rates[0]:g} and no finite loss after {len(losses)} updates; lower it"
            )
        if not math.isfinite(value):
            return losses, True
        losses.append(value)
        average = smoothing * average + (1 - smoothing) * value
        corrected = average / (1 - smoothing ** len(losses))
        lowest = min(lowest, corrected)
        # A loss that may be negative, as a log-likelihood, has no zero to measure its rise from.
        level = lowest if min(losses) > 0 else max(losses[:10]) - lowest
        if len(losses) > 10 and corrected - lowest > (divergence - 1) * level:
            return losses, True
    return losses, False


def set_rate(group: dict[str, Any], rate: float) -> None:
    """Set a group's rate; a tensor is written in place."""
    if hasattr(group["lr"], "fill_"):
        group["lr"].fill_(rate)
    else:
        group["lr"] = rate


def _smooth(losses: Curve, smoothing: float) -> Curve:
    average, out = 0.0, []
    for count, value in enumerate(losses, start=1):
        average = smoothing * average + (1 - smoothing) * value
        out.append(average / (1 - smoothing**count))
    return np.array(out)


def _read_curve(
    rates: Curve, losses: Curve, smoothing: float, diverged: bool, loader: Iterable[Batch]
) -> RangeTest:
    smoothed = _smooth(losses, smoothing)
    max_lr, base_lr = suggest_range(rates, losses, smoothed)
    length = length_of(loader)
    return RangeTest(
        rates=tuple(map(float, rates)),
        losses=tuple(map(float, losses)),
        smoothed=tuple(map(float, smoothed)),
        max_lr=max_lr,
        base_lr=base_lr,
        step_size_epochs=_STEP_SIZE_EPOCHS,
        step_size=None if length is None else _STEP_SIZE_EPOCHS * length,
        diverged=diverged,
    )


def suggest_range(rates: Curve, losses: Curve, smoothed: Curve) -> tuple[float, float]:
    """Read max_lr and base_lr off a curve.

    Beyond a certain rate the loss of a network with batch norm jumps up and comes back, again and
    again. Its lowest point, on which other rules lean, then falls anywhere; the first jump hardly
    moves from seed to seed. ``max_lr`` is twice its rate: the best peak of a one
    cycle, which warms up to it, lies past it by about that (``docs/results/range-test.md``).
    Where the loss never jumps, or never comes back, it is the rate at which nine tenths of the
    smoothed fall are done. ``base_lr`` is where one tenth is, at most a quarter of ``max_lr``.

    Args:
        rates: The rate of each update, rising; at least 10.
        losses: The loss of each update.
        smoothed: The losses, smoothed.

    Returns:
        ``(max_lr, base_lr)``.
    """
    jump, comes_back = _first_jump(losses)
    lowest = int(smoothed[:jump].argmin())
    top = float(smoothed[: lowest + 1].max())
    fall = top - float(smoothed[lowest])
    done = (top - smoothed[: lowest + 1]) / fall if fall > 0 else np.ones(lowest + 1)
    if comes_back:
        max_lr = float(min(_PAST_THE_JUMP * rates[jump], rates[-1]))
    else:
        max_lr = float(rates[int(np.argmax(done >= 0.9))])
    after_top = int(smoothed[: lowest + 1].argmax())
    began = after_top + int(np.argmax(done[after_top:] >= 0.1))
    return max_lr, float(min(rates[began], max_lr / 4))


def _first_jump(losses: Curve) -> tuple[int, bool]:
    """Return where the loss first jumps, the end if nowhere, and whether it comes back.

    It jumps when it lies above its lowest level so far by three tenths of the fall to there, and by
    four deviations of the noise, which the flat start of the ramp shows. It comes back when a later
    level lies within half of that.
    """
    start = max(3, len(losses) // 5)
    noise = float(np.diff(losses[:start]).std() / math.sqrt(2))
    top = float(losses[:start].mean())
    # Of three in a row the middle one: a single lucky batch is no level.
    level = np.median(np.lib.stride_tricks.sliding_window_view(losses, 3), axis=1)
    for update in range(start, len(losses)):
        low = float(level[: update - 2].min())
        height = max(0.3 * (top - low), 4 * noise)
        if top - low > 4 * noise and losses[update] - low > height:
            return update, bool((level[update:] - low < height / 2).any())
    return len(losses), False


def _minimum(rates: Curve, smoothed: Curve) -> float:
    return float(rates[smoothed.argmin()] / 10)


def _steep(rates: Curve, smoothed: Curve) -> float:
    slopes = np.diff(smoothed) / np.diff(np.log(rates))
    return float(rates[slopes.argmin()])


def _valley(rates: Curve, smoothed: Curve) -> float:
    # Longest falling subsequence ending at each point, and where it began: O(n^2) of 100 points.
    length = np.ones(len(smoothed), dtype=int)
    begin = np.arange(len(smoothed))
    for end in range(len(smoothed)):
        before = np.flatnonzero(smoothed[:end] > smoothed[end])
        if len(before):
            best = before[length[before].argmax()]
            length[end], begin[end] = length[best] + 1, begin[best]
    end = int(length.argmax())
    return float(rates[int(begin[end] + (end - begin[end]) / 2)])


def _slide(rates: Curve, smoothed: Curve, *, width: int = 15, threshold: float = 0.005) -> float:
    slopes = np.gradient(smoothed)
    right = len(smoothed) - 1
    width = min(width, right)
    while right - width > 0 and abs(slopes[right] - slopes[right - width]) > threshold:
        right -= 1
    return float(rates[right - width])


RULES: dict[str, Callable[[Curve, Curve], float]] = {
    "minimum": _minimum,
    "steep": _steep,
    "valley": _valley,
    "slide": _slide,
}
