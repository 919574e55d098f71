"""The random states of a process, and a loader's place, as values that a checkpoint can hold."""

from __future__ import annotations

import random
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


def random_states() -> dict[str, Any]:
    """Return the states of torch (CPU, CUDA and MPS), Python, and NumPy if it is loaded."""
    version, numbers, gauss = random.getstate()
    states: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, torch.tensor(numbers), gauss),
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    if "numpy" in sys.modules:
        name, keys, *rest = sys.modules["numpy"].random.get_state()
        states["numpy"] = (name, torch.from_numpy(keys.astype("int64")), *rest)
    return states


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what ``random_states`` returned."""
    torch.set_rng_state(states["torch"])
    version, numbers, gauss = states["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    if "cuda" in states and torch.cuda.is_available():
        for device, state in enumerate(states["cuda"][: torch.cuda.device_count()]):
            torch.cuda.set_rng_state(state, device)
    if "mps" in states and torch.backends.mps.is_available():
        torch.mps.set_rng_state(states["mps"])
    if "numpy" in states and "numpy" in sys.modules:
        name, keys, *rest = states["numpy"]
        sys.modules["numpy"].random.set_state((name, keys.numpy().astype("uint32"), *rest))


def loader_place(loader: Any) -> dict[str, Any]:
    """Return where a loader stands: its own state, its epoch, the generators it draws from."""
    place: dict[str, Any] = {}
    if _has_state(loader):
        place["state"] = loader.state_dict()
    if hasattr(loader, "set_epoch") and hasattr(loader, "epoch"):
        place["epoch"] = loader.epoch
    place["generators"] = [generator.get_state() for generator in generators_of(loader)]
    return place


def restore_loader_place(loader: object, place: dict[str, Any], *, same: bool = True) -> None:
    """Put a loader where ``loader_place`` found it.

    Where it need not be the same data, one that has an epoch takes that alone.

    Raises:
        ValueError: If it must be the same and has a state, and the place is of one without.
    """
    if same and _has_state(loader) and "state" not in place:
        kind = type(loader).__name__
        raise ValueError(
            f"there is no state for a {kind}; give one of the kind it was written with"
        )
    if "state" in place and hasattr(loader, "load_state_dict") and (same or "epoch" not in place):
        loader.load_state_dict(place["state"])
    if "epoch" in place and hasattr(loader, "set_epoch"):
        loader.set_epoch(place["epoch"])
    for generator, state in zip(generators_of(loader), place["generators"], strict=False):
        generator.set_state(state)


def _has_state(loader: object) -> bool:
    return hasattr(loader, "state_dict") and hasattr(loader, "load_state_dict")


@contextmanager
def epoch_kept(batches: object) -> Iterator[None]:
    """Put a loader that counts its epochs, as a ``DeviceLoader``, back to the one of before.

    Training on it goes on as if nothing had looked at it between.
    """
    epoch = getattr(batches, "epoch", None)
    try:
        yield
    finally:
        if epoch is not None and hasattr(batches, "set_epoch"):
            batches.set_epoch(epoch)


def generators_of(loader: object) -> Iterator[torch.Generator]:
    """Yield the generators of a loader, of its samplers, and of the samplers within those."""
    owners, seen = [loader], {id(None), id(loader)}
    for owner in owners:
        generator = getattr(owner, "generator", None)
        if isinstance(generator, torch.Generator) and id(generator) not in seen:
            seen.add(id(generator))
            yield generator
        for inner in (getattr(owner, name, None) for name in ("sampler", "batch_sampler")):
            if id(inner) not in seen:
                seen.add(id(inner))
                owners.append(inner)
