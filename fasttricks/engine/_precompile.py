"""Compilation and recording before the clock runs."""

from __future__ import annotations

import copy
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from fasttricks.data import DeviceLoader
from fasttricks.engine._batch_loss import Batch
from fasttricks.engine._callbacks import FreezeAfter
from fasttricks.engine._cuda_graph import WARMUP
from fasttricks.engine._evaluate import start_training
from fasttricks.engine._proxy_loader import ProxyLoader
from fasttricks.engine._trainer import Trainer
from fasttricks.engine._trial import synchronize, trial_trainer, without_trace
from fasttricks.optim import Muon

# A CUDA graph is recorded in the last of these; the first makes the optimizers' states, and counts
# for none.
_UPDATES = 1 + WARMUP + 1
_EVER = 2**62
# Optimizers whose state is of tensors that begin at zero.
_FROM_ZERO = (Muon, torch.optim.SGD, torch.optim.Adam, torch.optim.AdamW)


def precompile(trainer: Trainer, loader: Iterable[Batch]) -> float:
    """Let a trainer compile and record what it will, in updates that leave no trace.

    The one-time cost of ``torch.compile`` and of recording a CUDA graph then falls outside the
    epochs. A ``DeviceLoader``, alone or in a ``ProxyLoader``, is run with every batch size and
    image size still to come, of a short last batch and of ``ProgressiveResize``, each with the
    parameters that ``FreezeAfter`` leaves trainable at the first and at the last update of that
    size; any other loader with its first batch only. More than eight of these in all are beyond
    ``torch._dynamo.config.recompile_limit`` (``cache_size_limit`` in torch 2.6): raise it. Without
    either switch it warms caches and libraries.

    With ``cuda_graph="step"`` the states of Muon, SGD, Adam and AdamW are there afterwards and hold
    zeros, as they would begin; the updates of others are recorded once more in training.

    Args:
        trainer: Its updates are made; weights, optimizers, statistics and random states are put
            back.
        loader: What it will train on, put back to its place.

    Returns:
        The seconds that it took.

    Raises:
        ValueError: If the loader is empty.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(12, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, optimizer, precision="fp32", progress=False)
        >>> batches = [(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))]
        >>> precompile(trainer, batches) > 0, trainer.step_count
        (True, 0)
    """
    start = time.perf_counter()
    trial = trial_trainer(trainer)
    freezes = [copy.copy(one) for one in trainer.callbacks if isinstance(one, FreezeAfter)]
    with without_trace(trial, loader):
        start_training(trial.model)
        for batch, update in _batches(loader):
            trial.step_count = trainer.step_count + update
            for freeze in freezes:
                freeze.on_step_start(trial)
            for _ in range(_UPDATES if trial.cuda_graph else 2):
                trial.step(batch)
        trial.model.zero_grad(set_to_none=True)
        synchronize(trial.device)
        recorded = [dict(optimizer.state) for optimizer in trial.optimizers]
    if trainer.cuda_graph == "step":
        for optimizer, states in zip(trainer.optimizers, recorded, strict=True):
            _begin_in(optimizer, states)
    trainer.micro_batch_size = trial.micro_batch_size  # where memory ran out it would run out again
    return time.perf_counter() - start


@torch.no_grad()
def _begin_in(optimizer: Optimizer, states: dict[Any, dict[str, Any]]) -> None:
    """Let states that there were none of begin in those tensors, which a recording reads."""
    if type(optimizer) not in _FROM_ZERO:
        return
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            is_new = parameter in states and parameter not in optimizer.state
            if not is_new or group.get("dampening"):
                continue
            for value in states[parameter].values():
                if isinstance(value, Tensor):
                    value.zero_()
            optimizer.state[parameter] = states[parameter]


def _batches(loader: Any) -> Iterator[tuple[Batch, int]]:
    """Yield a batch of each size to come at the first and at the last update that has it.

    Updates rise, as what is frozen then stays so.
    """
    inner = loader.loader if isinstance(loader, ProxyLoader) else loader
    if not isinstance(inner, DeviceLoader):
        for batch in loader:
            yield from ((batch, update) for update in (0, _EVER))
            return
        raise ValueError("loader must hold at least one batch, got an empty one")
    now = loader.epoch
    epochs = [now, *(start for start in loader.size_starts if start > now)]
    for epoch, following in zip(epochs, [*epochs[1:], None], strict=True):
        loader.set_epoch(epoch)
        first = (epoch - now) * len(loader)
        last = _EVER if following is None else (following - now) * len(loader) - 1
        images, targets = next(iter(loader))
        sizes = sorted({len(images), loader.last_batch_size}, reverse=True)
        for update in (first, last):
            yield from (((images[:size], targets[:size]), update) for size in sizes)
