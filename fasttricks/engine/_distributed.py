"""Training in several processes, one a device, by torch's ``DistributedDataParallel``."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from itertools import islice, zip_longest
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DistributedSampler, RandomSampler, SequentialSampler

from fasttricks.engine._compiled import touch_parameters
from fasttricks.engine._lists import parameters_of

T = TypeVar("T")


@dataclass(frozen=True)
class World:
    """The processes that train together.

    Attributes:
        rank: This process's number, from 0.
        size: How many there are.
        device: The device of this process.
    """

    rank: int
    size: int
    device: str


@contextmanager
def distributed() -> Iterator[World]:
    """Join the processes that ``torchrun`` started, for the time of the block.

    With a GPU for each process they talk by NCCL, else by gloo on the CPU. Started without
    ``torchrun``, it is a world of one process and the same script trains alone.

    Yields:
        The ``World``: rank, size and device.

    Raises:
        ValueError: If there are GPUs, but fewer than processes on this machine.

    Example:
        >>> with distributed() as world:
        ...     world.rank, world.size
        (0, 1)
    """
    if "LOCAL_RANK" not in os.environ or "RANK" not in os.environ:
        yield World(0, 1, "cuda" if torch.cuda.is_available() else "cpu")
        return
    local, gpus = int(os.environ["LOCAL_RANK"]), torch.cuda.device_count()
    if gpus and local >= gpus:
        raise ValueError(
            f"each process must have a GPU of its own, got process {local} and {gpus} GPUs; "
            f"pass --nproc-per-node={gpus} to torchrun"
        )
    device = f"cuda:{local}" if gpus else "cpu"
    if gpus:
        torch.cuda.set_device(local)
    dist.init_process_group("nccl" if gpus else "gloo")
    try:
        yield World(dist.get_rank(), dist.get_world_size(), device)
    finally:
        dist.destroy_process_group()


def world_size() -> int:
    """Return how many processes train together, 1 without ``torch.distributed``."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Return this process's number among them, from 0."""
    return dist.get_rank() if world_size() > 1 else 0


def gather(value: T) -> list[T]:
    """Return the values of all processes, in order of rank, in each of them."""
    if world_size() == 1:
        return [value]
    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def wait_for_all() -> None:
    """Return once every process has come here."""
    if world_size() > 1:
        dist.barrier()


def sum_over_processes(values: Sequence[Tensor]) -> list[Tensor]:
    """Return each scalar's sum over all processes, in float64 on the way."""
    if world_size() == 1:
        return list(values)
    sums = torch.stack([value.double() for value in values])
    dist.all_reduce(sums)
    return [total.to(value.dtype) for total, value in zip(sums, values, strict=True)]


@torch.no_grad()
def share_tensors(tensors: Sequence[Tensor]) -> None:
    """Write those of the first process into those of the others."""
    if world_size() > 1:
        for tensor in tensors:
            dense = tensor.contiguous()  # what is sent is memory, strides are not
            dist.broadcast(dense, src=0)
            if dense is not tensor and rank() > 0:
                tensor.copy_(dense)


def average_gradients(optimizers: Sequence[Optimizer], *, but: nn.Module) -> None:
    """Give every process the mean of all processes' gradients, but for those of a ``Replica``."""
    if world_size() == 1:
        return
    averaged = set(but.parameters())
    for parameter in parameters_of(optimizers):
        if parameter.requires_grad and parameter not in averaged:
            if parameter.grad is None:  # the others' may have one
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad)
            parameter.grad /= world_size()


class Replica:
    """The model as this process trains it: its gradients are summed over all processes.

    Args:
        model: Wrapped anew whenever parameters are frozen or thawed, of which torch's wrapper
            would wait for gradients that never come.
        wrap: What else to wrap around, such as ``torch.compile``; None for nothing.
    """

    def __init__(self, model: nn.Module, wrap: Callable[[nn.Module], nn.Module] | None) -> None:
        self._model = model
        self._wrap = wrap
        self._trained: list[bool] = []
        self._replica: nn.parallel.DistributedDataParallel | None = None
        self._module: nn.Module = model

    def module(self) -> nn.Module:
        """Return what to call in place of the model."""
        trained = [parameter.requires_grad for parameter in self._model.parameters()]
        if self._replica is None or trained != self._trained:
            self._trained = trained
            if self._replica is not None and self._wrap is not None:
                touch_parameters(self._model)
            self._replica = nn.parallel.DistributedDataParallel(self._model)
            self._module = self._wrap(self._replica) if self._wrap else self._replica
        return self._module

    def without_sum(self, *, when: bool) -> AbstractContextManager[Any]:
        """Return the context of a part of a batch that is not the last: its gradients wait."""
        return self._replica.no_sync() if when and self._replica is not None else nullcontext()


def check_shared(train: object, val: object, *, cuda_graph: bool = False) -> None:
    """Raise unless each process trains on a share of its own and is given all of ``val``."""
    size = world_size()
    share = getattr(train, "world_size", size)
    if share != size:
        raise ValueError(
            f"train must be shared among the {size} processes, got world_size={share}; "
            "pass rank=world.rank, world_size=world.size to the DeviceLoader"
        )
    check_whole("val", val)
    if size == 1:
        return
    sampler = _sampler_of(train)
    if isinstance(sampler, RandomSampler | SequentialSampler):
        raise ValueError(
            f"train must be shared among the {size} processes, got a DataLoader with "
            f"{type(sampler).__name__}; pass it a torch.utils.data.DistributedSampler"
        )
    if cuda_graph:
        raise ValueError(f"cuda_graph must train in one process, got {size}; leave it out")


def check_whole(name: str, batches: object) -> None:
    """Raise unless batches that are dealt out to the processes are the same in each of them."""
    hint = f"{name} must be whole in each process, since its batches are dealt out, got"
    if getattr(batches, "world_size", 1) != 1:
        raise ValueError(f"{hint} a share; leave rank and world_size out of its DeviceLoader")
    if world_size() == 1:
        return
    sampler = _sampler_of(batches)
    if isinstance(sampler, DistributedSampler):
        raise ValueError(f"{hint} a DataLoader with a DistributedSampler; leave that out")
    if isinstance(sampler, RandomSampler):
        raise ValueError(f"{hint} a DataLoader that shuffles; leave that out")


def check_equal_lengths(length: int, epochs: float) -> None:
    """Raise in all processes unless all of them train for as many batches and epochs."""
    found = gather((length, epochs))
    if len(set(found)) > 1:
        each = ", ".join(f"{count} batches and {passes:g} epochs" for count, passes in found)
        raise ValueError(f"train and epochs must be as long in every process, got {each}")


def set_sampler_epoch(train: object, epoch: int) -> None:
    """Have a ``DistributedSampler`` shuffle anew, which it does only when it is told the epoch."""
    sampler = _sampler_of(train)
    may = world_size() > 1 or isinstance(sampler, DistributedSampler)
    if may and hasattr(sampler, "set_epoch"):
        sampler.set_epoch(epoch)


def _sampler_of(loader: object) -> Any:
    """Return the sampler of a loader, or of its batch sampler: a DataLoader's own is idle then."""
    batches = getattr(loader, "batch_sampler", None)
    inner = getattr(batches, "sampler", None)
    found = [one for one in (inner, batches, getattr(loader, "sampler", None)) if one is not None]
    return found[0] if found else None


def deal(batches: Iterable[T]) -> Iterator[T]:
    """Yield every n-th of the batches, n processes, from this process's own on."""
    check_whole("batches", batches)
    return islice(iter(batches), rank(), None, world_size())


def collect(dealt: list[Tensor]) -> list[Tensor]:
    """Return what all processes made of the batches that were dealt, in the batches' order."""
    if world_size() == 1:
        return dealt
    hands = gather([tensor.cpu() for tensor in dealt])
    rounds = zip_longest(*hands)
    # On the CPU, also where there are no results of this process's own that tell a device.
    return [one for row in rounds for one in row if one is not None]
