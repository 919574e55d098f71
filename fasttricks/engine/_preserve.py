"""Training that leaves no trace: everything a few updates change, kept and put back."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks.engine._batch_loss import with_loss
from fasttricks.engine._lists import buffer_slots, parameters_of, refill
from fasttricks.engine._precision import Precision
from fasttricks.engine._random import (
    epoch_kept,
    generators_of,
    random_states,
    restore_random_states,
)

Restore = Callable[[], object]


@contextmanager
def preserve_training_state(
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    loader: object = None,
    *,
    precision: Precision | None = None,
    loss: object = None,
) -> Iterator[None]:
    """Run a block of training and put everything back afterwards, byte for byte, errors included.

    Kept are parameters, buffers, gradients, training flags and ``requires_grad``, of the model and
    of a loss that is a module; the optimizers' parameters, groups and state; the scale of fp16; the
    random states of torch, Python, and NumPy if it is loaded; and the loader's place: a
    ``DeviceLoader``'s epoch, the generators of a ``DataLoader`` and its sampler, or all that a
    ``ProxyLoader`` has learned. Tensors are written in place: references to them stay good.

    Args:
        model: Its parameters, buffers and flags.
        optimizers: Their parameters, groups and state.
        loader: A ``DeviceLoader``, ``ProxyLoader`` or ``DataLoader``, or anything that holds no
            place of its own.
        precision: Its scaler, if it has one.
        loss: Its parameters, buffers and flags, if it is a module.

    Example:
        >>> layer = nn.Linear(2, 2)
        >>> optimizer = torch.optim.SGD(layer.parameters(), lr=0.1)
        >>> before = layer.weight.detach().clone()
        >>> with preserve_training_state(layer, [optimizer]):
        ...     layer(torch.ones(1, 2)).sum().backward()
        ...     optimizer.step()
        >>> torch.equal(layer.weight, before), layer.weight.grad is None
        (True, True)
    """
    undo: list[Restore] = [
        _keep_tensors(with_loss(model, loss), optimizers),
        *(_keep_optimizer(optimizer) for optimizer in optimizers),
        partial(restore_random_states, random_states()),
        *(partial(one.set_state, one.get_state()) for one in generators_of(loader)),
    ]
    if precision is not None:
        state = copy.deepcopy(precision.state_dict())
        undo.append(lambda: precision.load_state_dict(state))
    # One that learns itself knows what to keep.
    kept = loader.preserved() if hasattr(loader, "preserved") else epoch_kept(loader)
    with kept:
        try:
            yield
        finally:
            for restore in undo:
                restore()


def _keep_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> Restore:
    parameters = list(dict.fromkeys([*model.parameters(), *parameters_of(optimizers)]))
    values = [(t, t.detach().clone()) for t in chain(parameters, model.buffers())]
    slots = buffer_slots(model)
    kept = [
        (p, p.requires_grad, p.grad, None if p.grad is None else p.grad.clone()) for p in parameters
    ]
    modes = {module: module.training for module in model.modules()}

    @torch.no_grad()
    def restore() -> None:
        refill(slots)
        for tensor, value in values:
            tensor.copy_(value)
        for parameter, trains, gradient, content in kept:
            parameter.requires_grad_(trains)
            if gradient is not None and content is not None:
                gradient.copy_(content)
            parameter.grad = gradient
        for module, mode in modes.items():
            module.training = mode

    return restore


def _keep_optimizer(optimizer: Optimizer) -> Restore:
    state = {parameter: _keep_entries(own) for parameter, own in optimizer.state.items()}
    groups = [
        _keep_entries({name: value for name, value in group.items() if name != "params"})
        for group in optimizer.param_groups
    ]

    @torch.no_grad()
    def restore() -> None:
        optimizer.state.clear()
        for parameter, kept in state.items():
            optimizer.state[parameter] = _restored(kept)
        for group, kept in zip(optimizer.param_groups, groups, strict=True):
            group.update(_restored(kept))

    return restore


def _keep_entries(entries: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    return {name: (value, _copy(value)) for name, value in entries.items()}


def _restored(kept: dict[str, tuple[Any, Any]]) -> dict[str, Any]:
    """The entries as they were, their tensors written in place."""
    return {
        name: value.copy_(content) if isinstance(value, Tensor) else content
        for name, (value, content) in kept.items()
    }


def _copy(value: Any) -> Any:
    return value.detach().clone() if isinstance(value, Tensor) else copy.deepcopy(value)
