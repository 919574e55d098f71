"""Checks of what comes from outside: batches, a model's outputs, a loss, what makes the update."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from numbers import Real
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from fasttricks.schedules import Schedule


def check_batch(batch: Any) -> tuple[Tensor, Tensor]:
    """Return a batch's inputs and targets; raise a TypeError unless it is a pair of tensors."""
    try:
        inputs, targets = batch
    except (TypeError, ValueError):
        inputs = targets = None
    if isinstance(inputs, Tensor) and isinstance(targets, Tensor) and not isinstance(batch, Tensor):
        return inputs, targets
    raise TypeError(
        f"batches must be pairs of tensors, (inputs, targets), got {_kind(batch)}; "
        "make them in the loader, or wrap it"
    )


def check_batches(batches: object) -> None:
    """Raise a TypeError for one tensor in the place of batches, whose images would be batches."""
    if isinstance(batches, Tensor):
        raise TypeError(
            f"batches must be an iterable of batches, got one tensor of shape "
            f"{list(batches.shape)}; put it into a list"
        )


def inputs_of(batch: Any) -> Tensor:
    """Return a batch's inputs, which may come without targets."""
    return batch if isinstance(batch, Tensor) else check_batch(batch)[0]


def check_outputs(outputs: Any) -> Tensor:
    """Return a model's outputs; raise a TypeError unless they are one tensor."""
    if isinstance(outputs, Tensor):
        return outputs
    raise TypeError(
        f"model must return one tensor, got {_kind(outputs)}; wrap it in a module that returns "
        "what the loss takes"
    )


def check_mean(loss: Any) -> Tensor:
    """Return what a loss returned; raise unless it is a tensor of one number."""
    if not isinstance(loss, Tensor):
        raise TypeError(f"loss must return a tensor with one number, got {_kind(loss)}")
    if loss.numel() != 1:
        raise ValueError(
            f"loss must return one number, the mean over the images, got shape "
            f"{list(loss.shape)}; take its mean, as reduction='mean' does"
        )
    return loss


def check_loss(loss: object) -> None:
    """Raise a TypeError unless a loss can be called with outputs and targets."""
    if isinstance(loss, type):
        raise TypeError(
            f"loss must be a function of (outputs, targets), got the class {loss.__name__}; "
            f"pass {loss.__name__}()"
        )
    if not callable(loss):
        raise TypeError(
            f"loss must be a function of (outputs, targets), such as torch.nn.MSELoss(), "
            f"got loss={loss!r}"
        )


def check_metrics(metrics: object) -> None:
    """Raise a TypeError unless metrics are functions by name."""
    if not isinstance(metrics, Mapping):
        raise TypeError(f"metrics must be functions by name, got metrics={metrics!r}")
    for name, metric in metrics.items():
        if not callable(metric):
            raise TypeError(f"metrics must be functions by name, got {metric!r} for {name!r}")


def optimizers_of(optimizer: Any) -> list[Optimizer]:
    """Return one optimizer or several as a list.

    Raises:
        TypeError: If one is no optimizer, or needs an argument in each update.
        ValueError: If there is none.
    """
    several = isinstance(optimizer, Iterable) and not isinstance(optimizer, Optimizer)
    optimizers: list[Any] = list(optimizer) if several else [optimizer]
    if not optimizers:
        raise ValueError("optimizer must be one Optimizer or several, got an empty list")
    for one in optimizers:
        if not isinstance(one, Optimizer):
            owner = f" in {type(optimizer).__name__}" if several else ""
            raise TypeError(f"optimizer must be Optimizer objects, got {type(one).__name__}{owner}")
        if _needs_arguments(one):
            raise TypeError(
                f"optimizer must make its update by step() alone, got {type(one).__name__}, whose "
                "step needs a closure; it needs a loop of your own"
            )
    return optimizers


def listed(name: str, values: Any, of: str) -> list[Any]:
    """Return several values as a list; raise a TypeError for one alone."""
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be a list of {of}, got {type(values).__name__}")
    return list(values)


def schedulers_of(schedulers: Any) -> list[Any]:
    """Return schedulers as a list; raise a TypeError unless each has a ``step()``."""
    several = listed("schedulers", schedulers, "objects with a step()")
    for one in several:
        kind = one.__name__ if isinstance(one, type) else type(one).__name__
        if isinstance(one, type) or not callable(getattr(one, "step", None)):
            raise TypeError(
                f"schedulers must be objects with a step(), got {kind}; a schedule of the rate "
                "goes into lr, others into ScheduledGroups"
            )
        if _needs_arguments(one):
            raise TypeError(
                f"schedulers must move on by step() alone after each update, got {kind}, whose "
                "step needs an argument; call it in the on_epoch_end of a Callback"
            )
    return several


def check_schedule(lr: object) -> None:
    """Raise a TypeError unless ``lr`` is a schedule."""
    if isinstance(lr, Schedule):
        return
    if isinstance(lr, Real):
        hint = f"a rate is the optimizer's, or constant({lr:g})"
    elif isinstance(lr, list | tuple):
        hint = "one a group goes into schedulers=[ScheduledGroups(optimizer, {'lr': [...]})]"
    else:
        hint = "a scheduler goes into schedulers=[...]"
    raise TypeError(f"lr must be a Schedule such as one_cycle(0.4, 1000), got lr={lr!r}; {hint}")


def _needs_arguments(owner: object) -> bool:
    """Whether ``owner.step()`` lacks an argument, as far as signatures tell."""
    # torch's schedulers hang a wrapper on the optimizer that shows the signature of a function.
    of_class = getattr(type(owner), "step", None)
    return not (
        _can_be_called(owner.step)  # type: ignore[attr-defined]
        or (of_class is not None and _can_be_called(of_class, owner))
    )


def _can_be_called(function: Callable[..., object], *arguments: object) -> bool:
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError:
        return False
    except ValueError:  # some functions written in C have no signature
        return True
    return True


def _kind(value: object) -> str:
    if isinstance(value, list | tuple):
        return f"{type(value).__name__} of ({', '.join(type(one).__name__ for one in value)})"
    return type(value).__name__
