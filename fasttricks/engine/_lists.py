"""Lists of tensors: parted by dtype, as torch is quick on lists of one kind; an optimizer's."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer


def by_dtype(
    one: Sequence[Tensor], other: Sequence[Tensor]
) -> Iterable[tuple[list[Tensor], list[Tensor]]]:
    """Part two lists alike, so that each part has one dtype on either side.

    Example:
        >>> zero, one = torch.zeros(2), torch.ones(2, dtype=torch.int64)
        >>> [len(part) for part, _ in by_dtype([zero, one, zero], [zero, one, zero])]
        [2, 1]
    """
    parts: dict[object, tuple[list[Tensor], list[Tensor]]] = {}
    for a, b in zip(one, other, strict=True):
        first, second = parts.setdefault((a.dtype, b.dtype), ([], []))
        first.append(a)
        second.append(b)
    return parts.values()


def buffer_slots(model: nn.Module) -> list[tuple[nn.Module, str, Tensor | None]]:
    """Return where a model's buffers stand: a forward pass may put other tensors there."""
    return [(m, name, tensor) for m in model.modules() for name, tensor in m._buffers.items()]


def refill(slots: Iterable[tuple[nn.Module, str, Tensor | None]]) -> None:
    """Put buffers back where ``buffer_slots`` found them."""
    for module, name, tensor in slots:
        module._buffers[name] = tensor


def copy_each(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target."""
    for own, others in by_dtype(targets, sources):
        torch._foreach_copy_(own, others)


def parameters_of(optimizers: Iterable[Optimizer]) -> list[nn.Parameter]:
    """Return what optimizers train, each once."""
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    return list(dict.fromkeys(parameter for group in groups for parameter in group["params"]))
