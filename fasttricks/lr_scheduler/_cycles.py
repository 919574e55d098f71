"""OneCycleLR and CyclicLR with torch's arguments, as schedules on an optimizer's groups."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from torch.optim import Optimizer

from fasttricks._checks import check_choice, check_integer
from fasttricks.lr_scheduler._scheduled_groups import ScheduledGroups, group_count, per_group
from fasttricks.schedules import (
    Schedule,
    cycled_momentum,
    exp_range,
    one_cycle,
    triangular,
    triangular2,
)


class OneCycleLR(ScheduledGroups):
    """torch's ``OneCycleLR`` on :func:`fasttricks.schedules.one_cycle`.

    The values of updates 0 to ``total_steps - 1`` are torch's; beyond the end they hold instead of
    running on.

    Args:
        optimizer: The optimizer whose rates, and momentum or first beta, are driven.
        max_lr: Highest rate, or one per group.
        total_steps: Number of updates; or give ``epochs`` and ``steps_per_epoch``.
        epochs: Number of epochs.
        steps_per_epoch: Updates per epoch.
        pct_start: Fraction of the run spent rising; 0.3 by default.
        anneal_strategy: ``"cos"`` (default) or ``"linear"``.
        cycle_momentum: Whether to drive ``momentum`` or ``betas[0]`` as the mirror image; True by
            default.
        base_momentum: Momentum at the peak of the rate, or one per group; 0.85 by default.
        max_momentum: Momentum at the foot of the rate, or one per group; 0.95 by default.
        div_factor: ``max_lr`` over the initial rate; 25 by default.
        final_div_factor: Initial rate over the final rate; 1e4 by default.
        three_phase: Whether to come down to the initial rate first, and then to the final one;
            False by default.
        last_epoch: The last update done; default -1.
        past_end: ``"hold"`` (default) or ``"raise"``, as in :class:`ScheduledGroups`.

    Raises:
        ValueError: If no length is given, a number is out of range, or there is no momentum to
            cycle.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        >>> OneCycleLR(optimizer, max_lr=0.4, total_steps=100).last_values()
        [{'lr': 0.016, 'momentum': 0.95}]

    Reference:
        Smith and Topin, Super-Convergence, arXiv 1708.07120; Smith, arXiv 1803.09820.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        max_lr: float | Sequence[float],
        total_steps: int | None = None,
        epochs: int | None = None,
        steps_per_epoch: int | None = None,
        pct_start: float = 0.3,
        anneal_strategy: Literal["cos", "linear"] = "cos",
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.85,
        max_momentum: float | Sequence[float] = 0.95,
        div_factor: float = 25.0,
        final_div_factor: float = 1e4,
        three_phase: bool = False,
        last_epoch: int = -1,
        *,
        past_end: Literal["hold", "raise"] = "hold",
    ) -> None:
        check_choice("anneal_strategy", anneal_strategy, ("cos", "linear"))
        length = _run_length(total_steps, epochs, steps_per_epoch)
        rates = [
            one_cycle(
                rate,
                length,
                pct_start=pct_start,
                anneal="cosine" if anneal_strategy == "cos" else "linear",
                div_factor=div_factor,
                final_div_factor=final_div_factor,
                three_phase=three_phase,
            )
            for rate in per_group("max_lr", max_lr, group_count(optimizer))
        ]
        schedules = {"lr": rates}
        if cycle_momentum:
            schedules = _cycled(rates, optimizer, base_momentum, max_momentum)
        super().__init__(optimizer, schedules, past_end=past_end, last_epoch=last_epoch)


class CyclicLR(ScheduledGroups):
    """torch's ``CyclicLR`` on the three cyclical schedules of Smith 2015.

    torch's ``scale_fn`` and ``scale_mode`` are left out: hand a schedule of your own to
    :class:`ScheduledGroups` instead.

    Args:
        optimizer: The optimizer whose rates, and momentum or first beta, are driven.
        base_lr: Lowest rate, or one per group.
        max_lr: Highest rate, or one per group.
        step_size_up: Updates of the rising half; 2000 by default.
        step_size_down: Updates of the falling half; by default ``step_size_up``.
        mode: ``"triangular"`` (default), ``"triangular2"`` or ``"exp_range"``.
        gamma: Decay per update in mode ``"exp_range"``; 1 by default, which is none.
        cycle_momentum: Whether to drive ``momentum`` or ``betas[0]`` as the mirror image; True by
            default.
        base_momentum: Momentum at the peak of the rate, or one per group; 0.8 by default.
        max_momentum: Momentum at the foot of the rate, or one per group; 0.9 by default.
        last_epoch: The last update done; default -1.

    Raises:
        ValueError: If a number is out of range, or there is no momentum to cycle.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
        >>> CyclicLR(optimizer, base_lr=0.1, max_lr=0.4, step_size_up=4).last_values()
        [{'lr': 0.1, 'momentum': 0.9}]

    Reference:
        Smith, Cyclical Learning Rates for Training Neural Networks, arXiv 1506.01186.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        base_lr: float | Sequence[float],
        max_lr: float | Sequence[float],
        step_size_up: float = 2000,
        step_size_down: float | None = None,
        mode: Literal["triangular", "triangular2", "exp_range"] = "triangular",
        gamma: float = 1.0,
        *,
        cycle_momentum: bool = True,
        base_momentum: float | Sequence[float] = 0.8,
        max_momentum: float | Sequence[float] = 0.9,
        last_epoch: int = -1,
    ) -> None:
        check_choice("mode", mode, ("triangular", "triangular2", "exp_range"))
        sizes: dict[str, Any] = {"step_size_up": step_size_up, "step_size_down": step_size_down}
        lows = per_group("base_lr", base_lr, group_count(optimizer))
        highs = per_group("max_lr", max_lr, group_count(optimizer))
        rates = []
        for low, high in zip(lows, highs, strict=True):
            if mode == "exp_range":
                rates.append(exp_range(low, high, gamma=gamma, **sizes))
            else:
                cycle = triangular if mode == "triangular" else triangular2
                rates.append(cycle(low, high, **sizes))
        schedules = {"lr": rates}
        if cycle_momentum:
            schedules = _cycled(rates, optimizer, base_momentum, max_momentum)
        super().__init__(optimizer, schedules, last_epoch=last_epoch)


def _run_length(total_steps: int | None, epochs: int | None, steps_per_epoch: int | None) -> int:
    if total_steps is not None:
        return total_steps
    if epochs is None or steps_per_epoch is None:
        raise ValueError(
            "total_steps must be given, or both epochs and steps_per_epoch, got "
            f"total_steps=None, epochs={epochs} and steps_per_epoch={steps_per_epoch}"
        )
    check_integer("epochs", epochs, minimum=1)
    check_integer("steps_per_epoch", steps_per_epoch, minimum=1)
    return epochs * steps_per_epoch


def _cycled(
    rates: list[Schedule], optimizer: Optimizer, base_momentum: Any, max_momentum: Any
) -> dict[str, list[Schedule]]:
    """Return the schedules of the rates and of the momentum that mirrors them."""
    groups = optimizer.param_groups
    names = [name for name in ("betas", "momentum") if all(name in group for group in groups)]
    if not names:
        raise ValueError(
            "cycle_momentum needs an optimizer with momentum or betas, got cycle_momentum=True "
            f"and {type(optimizer).__name__}; pass cycle_momentum=False"
        )
    lows = per_group("base_momentum", base_momentum, len(groups))
    highs = per_group("max_momentum", max_momentum, len(groups))
    mirrors = [
        cycled_momentum(rate, base_momentum=low, max_momentum=high)
        for rate, low, high in zip(rates, lows, highs, strict=True)
    ]
    return {"lr": rates, names[0]: mirrors}
