"""Checkpoints: all that a run needs to go on as if it had never stopped, without pickle.

A checkpoint is a folder ``epoch-0007`` with ``tensors.safetensors`` and ``state.json``. It is made
under another name and renamed when all of it is on the disk, so one that has its name is whole.
"""

from __future__ import annotations

import json
import os
import random
import re
import secrets
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fasttricks.engine._trainer import Trainer

_FORMAT = 1
_NAME = re.compile(r"epoch-(\d{4,})")


def save_checkpoint(
    folder: Path, trainer: Trainer, loader: Iterable[Any], *, epoch: int, keep: int
) -> Path:
    """Write an epoch's checkpoint, whole or not at all; remove all but the newest ``keep``.

    Raises:
        TypeError: If an optimizer, a scheduler or a callback has a state that is neither tensors
            nor what JSON can hold.
    """
    tensors, state = _gather(trainer, loader)
    state |= {"format": _FORMAT, "epochs_done": epoch}
    try:
        text = json.dumps(state, indent=1, allow_nan=True)
    except TypeError as error:
        raise TypeError(
            "checkpoints hold tensors, numbers, text, lists and dicts; an optimizer, scheduler or "
            f"callback keeps something else in its state ({error})"
        ) from error
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"epoch-{epoch:04}"
    temporary = folder / f".{target.name}-{secrets.token_hex(6)}"
    try:
        temporary.mkdir()
        _write(temporary / "tensors.safetensors", _safetensors().save(tensors))
        _write(temporary / "state.json", text.encode())
        temporary.replace(target)
        _flush_folder(folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    for old in _checkpoints(folder)[:-keep]:
        shutil.rmtree(old)
    return target


def latest_checkpoint(folder: Path) -> Path | None:
    """Return the newest checkpoint in a folder, None if there is none."""
    found = _checkpoints(folder)
    return found[-1] if found else None


def load_checkpoint(
    path: Path, trainer: Trainer, loader: Iterable[Any]
) -> tuple[int, Callable[[], None]]:
    """Put a checkpoint into a trainer, whose ``fit`` has set the length of the run.

    Args:
        path: The checkpoint's folder.
        trainer: Of the same model, optimizers, schedulers and callbacks.
        loader: The training batches.

    Returns:
        The epochs that are done, and what restores the random states, to be called right before
        training goes on.

    Raises:
        ValueError: If the checkpoint is damaged, or of another run; nothing is changed then, but
            for weights if the optimizers differ.
    """
    tensors, state = _read(path)
    for name in ("total_steps", "steps_per_epoch"):
        if state[name] != getattr(trainer, name):
            raise ValueError(
                f"{name} must be that of the checkpoint {path}, got {name}="
                f"{getattr(trainer, name)} and saved {name}={state[name]}; resume with the same "
                "epochs and loader"
            )
    try:
        _restore(trainer, loader, tensors, state)
    except (KeyError, IndexError, RuntimeError, ValueError) as error:
        raise ValueError(f"the checkpoint {path} is of another run: {error}") from error
    return state["epochs_done"], lambda: _restore_random_states(loader, tensors, state)


def _gather(trainer: Trainer, loader: Iterable[Any]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors: dict[str, Tensor] = {}
    state: dict[str, Any] = {
        "step_count": trainer.step_count,
        "batches_done": trainer.batches_done,
        "total_steps": trainer.total_steps,
        "steps_per_epoch": trainer.steps_per_epoch,
        "train_seconds": trainer.train_seconds,
        "nonfinite_steps": trainer.nonfinite_steps,
        "history": trainer.history.rows,
        "model": _split(trainer.model.state_dict(), "model", tensors),
        "optimizers": [
            _split(optimizer.state_dict(), f"optimizer.{place}", tensors)
            for place, optimizer in enumerate(trainer.optimizers)
        ],
        "schedulers": [
            _split(_state_of(scheduler), f"scheduler.{place}", tensors)
            for place, scheduler in enumerate(trainer.schedulers)
        ],
        "callbacks": [
            _split(_state_of(callback), f"callback.{place}", tensors)
            for place, callback in enumerate(trainer.callbacks)
        ],
        "precision": trainer.precision.state_dict(),
        "loader_epoch": getattr(loader, "epoch", None),
        "python_random": random.getstate(),
    }
    tensors["random.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        for place, value in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"random.cuda.{place}"] = value
    for place, generator in enumerate(_generators(loader)):
        tensors[f"random.loader.{place}"] = generator.get_state()
    if "numpy" in sys.modules:
        kind, keys, *rest = sys.modules["numpy"].random.get_state()
        state["numpy_random"] = [kind, keys.tolist(), *rest]
    return tensors, state


def _restore(
    trainer: Trainer, loader: Iterable[Any], tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    trainer.model.load_state_dict(_join(state["model"], tensors))
    for name, things in (("optimizers", trainer.optimizers), ("schedulers", trainer.schedulers)):
        if len(state[name]) != len(things):
            raise ValueError(f"it has {len(state[name])} {name}, the trainer {len(things)}")
    for optimizer, saved in zip(trainer.optimizers, state["optimizers"], strict=True):
        optimizer.load_state_dict(_join(saved, tensors))
    for scheduler, saved in zip(trainer.schedulers, state["schedulers"], strict=True):
        if saved is not None:
            scheduler.load_state_dict(_join(saved, tensors))  # type: ignore[attr-defined]
    with_state = [saved for saved in state["callbacks"] if saved is not None]
    able = [callback for callback in trainer.callbacks if _has_state(callback)]
    if len(with_state) != len(able):
        raise ValueError(f"it has {len(with_state)} callbacks with a state, got {len(able)}")
    for callback, saved in zip(able, with_state, strict=True):
        callback.load_state_dict(_join(saved, tensors))  # type: ignore[attr-defined]
    trainer.precision.load_state_dict(state["precision"])
    trainer.history.rows[:] = state["history"]
    for name in ("step_count", "batches_done", "train_seconds", "nonfinite_steps"):
        setattr(trainer, name, state[name])
    if state["loader_epoch"] is not None and hasattr(loader, "set_epoch"):
        loader.set_epoch(state["loader_epoch"])


def _restore_random_states(
    loader: Iterable[Any], tensors: dict[str, Tensor], state: dict[str, Any]
) -> None:
    torch.set_rng_state(tensors["random.cpu"])
    version, words, gauss = state["python_random"]
    random.setstate((version, tuple(words), gauss))
    cuda = [tensors[name] for name in tensors if name.startswith("random.cuda.")]
    if cuda and torch.cuda.is_available() and torch.cuda.device_count() == len(cuda):
        torch.cuda.set_rng_state_all(cuda)
    for place, generator in enumerate(_generators(loader)):
        if (saved := tensors.get(f"random.loader.{place}")) is not None:
            generator.set_state(saved)
    if "numpy_random" in state and "numpy" in sys.modules:
        kind, keys, *rest = state["numpy_random"]
        numpy = sys.modules["numpy"]
        numpy.random.set_state((kind, numpy.array(keys, dtype=numpy.uint32), *rest))


def _split(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """Move the tensors of a structure to ``tensors``; what is left is JSON."""
    if isinstance(value, Tensor):
        # A copy, as safetensors refuses two names for one memory.
        tensors[name] = value.detach().cpu().contiguous().clone()
        return {"tensor": name}
    if isinstance(value, dict):
        pairs = [[key, _split(v, f"{name}.{key}", tensors)] for key, v in value.items()]
        return {"dict": pairs}
    if isinstance(value, tuple):
        return {"tuple": [_split(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]}
    if isinstance(value, list):
        return [_split(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
    return value


def _join(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The structure that ``_split`` took apart."""
    if isinstance(value, list):
        return [_join(inner, tensors) for inner in value]
    if not isinstance(value, dict):
        return value
    if "tensor" in value:
        return tensors[value["tensor"]]
    if "tuple" in value:
        return tuple(_join(inner, tensors) for inner in value["tuple"])
    return {key: _join(inner, tensors) for key, inner in value["dict"]}


def _read(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    safetensors = _safetensors()
    try:
        state = json.loads((path / "state.json").read_text(encoding="utf-8"))
        tensors = safetensors.load((path / "tensors.safetensors").read_bytes())
        known = state["format"] == _FORMAT
    # safetensors' error has a module of its own
    except Exception as error:
        raise ValueError(
            f"the checkpoint {path} is damaged ({type(error).__name__}: {error}); remove it to go "
            "on from the one before"
        ) from error
    if not known:
        raise ValueError(f"the checkpoint {path} has format {state['format']}, not {_FORMAT}")
    return tensors, state


def _checkpoints(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if _NAME.fullmatch(path.name)]
    return sorted(found, key=lambda path: int(path.name.partition("-")[2]))


def _generators(loader: object) -> Iterator[torch.Generator]:
    """The generators that a ``DataLoader`` and its samplers own."""
    samplers = [getattr(loader, name, None) for name in ("sampler", "batch_sampler")]
    for owner in (loader, *samplers):
        if isinstance(generator := getattr(owner, "generator", None), torch.Generator):
            yield generator


def _has_state(thing: object) -> bool:
    return hasattr(thing, "state_dict") and hasattr(thing, "load_state_dict")


def _state_of(thing: Any) -> Any:
    return thing.state_dict() if _has_state(thing) else None


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _flush_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _safetensors() -> Any:
    try:
        import safetensors.torch
    except ImportError as error:
        raise ImportError("checkpoints need safetensors; pip install safetensors") from error
    return safetensors.torch
