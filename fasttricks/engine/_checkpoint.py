"""Checkpoints: a folder that holds all that a training run needs to go on as if never interrupted.

``model.safetensors`` holds the module's ``state_dict``, ``training.safetensors`` every other tensor
(optimizers, random states, callbacks), ``state.json`` the rest, with a checksum of both.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fasttricks._checks import check_integer
from fasttricks.engine._batch_loss import with_loss
from fasttricks.engine._distributed import gather, rank, wait_for_all
from fasttricks.engine._files import make_folder, remove_folder, replacing_folder, write_json
from fasttricks.engine._lists import parameters_of
from fasttricks.engine._optimizer_state import load_optimizer
from fasttricks.engine._random import (
    loader_place,
    random_states,
    restore_loader_place,
    restore_random_states,
)
from fasttricks.engine._tree import pack, unpack
from fasttricks.lr_scheduler import ScheduledGroups

if TYPE_CHECKING:
    from fasttricks.engine._callbacks import Callback
    from fasttricks.engine._trainer import Trainer

_FORMAT = "fasttricks checkpoint 1"
_STATE, _TENSORS = "state.json", ("model.safetensors", "training.safetensors")
_NAME = re.compile(r"epoch-(\d{4,})")
_LEFTOVER = re.compile(r"\.epoch-\d+-[0-9a-f]{16}")
_ENTRIES = (
    *("counts", "history", "optimizers", "settings", "schedulers", "precision", "callbacks"),
    *("loaders", "random", "extra_state"),
)
# What a trainer counts; the first ones also outlast a fit.
_COUNTS = ("step_count", "train_seconds", "nonfinite_steps")
_FIT_COUNTS = ("epochs", "total_steps", "steps_per_epoch", "batches_done")


def save_checkpoint(trainer: Trainer, path: Path | str, *loaders: object) -> None:
    """Write a trainer's state to the folder ``path``, whole or not at all.

    With several processes all must call it; the first one writes, after which all go on.

    Raises:
        ValueError: If an optimizer has a parameter of neither the model nor the loss, which nothing
            would keep.
        TypeError: If a scheduler has no state to keep.
    """
    check_savable(trainer)
    states = gather(random_states())
    if rank() == 0:
        _write(trainer, Path(path), loaders, states)
    wait_for_all()


def check_savable(trainer: Trainer) -> None:
    """Raise if a checkpoint would not hold all that goes on: a parameter, a scheduler's place."""
    for scheduler in trainer.schedulers:
        if not (hasattr(scheduler, "state_dict") and hasattr(scheduler, "load_state_dict")):
            raise TypeError(
                "schedulers must have state_dict and load_state_dict where there are checkpoints, "
                f"got {type(scheduler).__name__} without"
            )
    kept = set(with_loss(trainer.model, trainer.loss).parameters())
    for parameter in parameters_of(trainer.optimizers):
        if parameter not in kept:
            raise ValueError(
                "optimizer must train parameters of the model or of the loss where there are "
                f"checkpoints, got another one of shape {tuple(parameter.shape)}; make it a "
                "parameter of either"
            )


def _write(
    trainer: Trainer, path: Path, loaders: tuple[object, ...], states: list[dict[str, Any]]
) -> None:
    from safetensors.torch import save

    entries = trainer.model.state_dict()
    model: dict[str, Tensor] = {}
    for name, value in entries.items():
        if isinstance(value, Tensor):
            pack(value, model, name)
    tensors: dict[str, Tensor] = {}
    state = {
        "extra_state": {name: value for name, value in entries.items() if name not in model},
        "loss": _state_of_loss(trainer),
        "counts": {
            name: getattr(trainer, name) for name in (*_COUNTS, *_FIT_COUNTS, "micro_batch_size")
        },
        "history": trainer.history.rows,
        "optimizers": [optimizer.state_dict() for optimizer in trainer.optimizers],
        "settings": trainer.settings,
        "schedulers": [_state_of(scheduler) for scheduler in trainer.schedulers],
        "precision": trainer.precision.state_dict(),
        "callbacks": [[type(one).__name__, _state_of(one)] for one in trainer.callbacks],
        "loaders": [loader_place(loader) for loader in loaders],
        "random": states,
    }
    packed = {name: pack(value, tensors, name) for name, value in state.items()}
    with replacing_folder(path) as folder:
        sums = {}
        for name, content in zip(_TENSORS, (model, tensors), strict=True):
            data = save(content)
            sums[name] = hashlib.sha256(data).hexdigest()
            (folder / name).write_bytes(data)
        write_json(folder / _STATE, {"format": _FORMAT, "sha256": sums, **packed})


def _state_of_loss(trainer: Trainer) -> dict[str, Any]:
    return trainer.loss.state_dict() if isinstance(trainer.loss, nn.Module) else {}


def _state_of(owner: object) -> Any:
    return owner.state_dict() if hasattr(owner, "state_dict") else None


@dataclass(frozen=True)
class Checkpoint:
    """What a checkpoint's folder holds, read and checked."""

    path: Path
    model: dict[str, Any]
    state: dict[str, Any]

    def check(self, trainer: Trainer, *, allow_changes: bool = False) -> None:
        """Raise a ValueError unless all of it fits the trainer's parts."""
        self._check_tensors("model", trainer.model.state_dict(), self.model, _TENSORS[0])
        if self.state["loss"] is not None:
            self._check_tensors("loss", _state_of_loss(trainer), self.state["loss"], _TENSORS[1])
        for name in ("optimizers", "schedulers"):
            count, own = len(self.state[name]), len(getattr(trainer, name))
            if count != own:
                raise self._misfit(_STATE, f"it has {count} {name}, and the trainer {own}")
        for mine, saved in zip(trainer.settings, self.state["settings"], strict=True):
            if mine["kind"] != saved["kind"]:
                text = f"it was written with {saved['kind']}, and the trainer has {mine['kind']}"
                raise self._misfit(_STATE, text)
        for optimizer, state in zip(trainer.optimizers, self.state["optimizers"], strict=True):
            sizes = [len(group["params"]) for group in state["param_groups"]]
            own_sizes = [len(group["params"]) for group in optimizer.param_groups]
            if sizes != own_sizes:
                kind = type(optimizer).__name__
                text = f"its {kind} has groups of {sizes} parameters, and the trainer's {own_sizes}"
                raise self._misfit(_STATE, text)
        for scheduler, state in zip(trainer.schedulers, self.state["schedulers"], strict=True):
            if isinstance(scheduler, ScheduledGroups):
                try:
                    scheduler.check_state_dict(state or {}, allow_changes=allow_changes)
                except ValueError as error:
                    raise self._misfit(_STATE, str(error)) from error

    def _check_tensors(
        self, owner: str, mine: dict[str, Any], saved: dict[str, Any], file: str
    ) -> None:
        for name in [*mine, *(saved.keys() - mine.keys())]:
            if _kind(mine.get(name)) != _kind(saved.get(name)):
                has = f"{_kind(saved.get(name))}, and the {owner} {_kind(mine.get(name))}"
                raise self._misfit(file, f"of {name!r} it has {has}")

    def restore(self, trainer: Trainer, *, allow_changes: bool = False) -> None:
        """Put back weights, optimizers, schedules, scale, counts and history.

        With ``allow_changes`` schedules of ours may be others, at the same place.
        """
        self.check(trainer, allow_changes=allow_changes)
        try:
            trainer.model.load_state_dict(self.model)
            if self.state["loss"] and isinstance(trainer.loss, nn.Module):
                trainer.loss.load_state_dict(self.state["loss"])
            for optimizer, state in zip(trainer.optimizers, self.state["optimizers"], strict=True):
                load_optimizer(optimizer, state)
            for scheduler, state in zip(trainer.schedulers, self.state["schedulers"], strict=True):
                if allow_changes and isinstance(scheduler, ScheduledGroups):
                    scheduler.load_state_dict(state, allow_changes=True)
                elif state is not None:
                    scheduler.load_state_dict(state)  # type: ignore[attr-defined]
            trainer.precision.load_state_dict(self.state["precision"])
        except (RuntimeError, ValueError, KeyError) as error:
            raise self._misfit(_STATE, str(error)) from error
        trainer.history.rows = [dict(row) for row in self.state["history"]]
        for name in _COUNTS:
            setattr(trainer, name, self.state["counts"][name])
        # Where memory ran out it would run out again.
        sizes = {trainer.micro_batch_size, self.state["counts"]["micro_batch_size"]} - {None}
        trainer.micro_batch_size = min(sizes, default=None)
        trainer.epoch_lr = trainer.lr
        trainer.last_checkpoint = self.path

    def restore_fit(self, trainer: Trainer, *loaders: object) -> None:
        """Put back the place within the call of ``fit``, and the loaders'."""
        self._check_settings(trainer)
        for kind, _, callback in self._callbacks(trainer):
            if callback is None and rank() == 0:  # who may have loggers that the others lack
                text = f"it keeps the state of a {kind}, which is not among the trainer's callbacks"
                raise self._misfit(_STATE, text)
        counts = self.state["counts"]
        if counts["steps_per_epoch"] != trainer.steps_per_epoch:
            raise self._misfit(
                _STATE,
                f"its epoch has {counts['steps_per_epoch']} batches, and train "
                f"{trainer.steps_per_epoch}",
            )
        trainer.batches_done = counts["batches_done"]
        is_done = trainer.batches_done >= trainer.total_steps
        if trainer.batches_done % trainer.steps_per_epoch and not is_done:
            raise self._misfit(_STATE, "it ends within an epoch, from where no run can go on")
        if not (self.state["loaders"] or is_done):
            text = "it was written outside of fit, without the place of a loader; use trainer.load"
            raise self._misfit(_STATE, text)
        for number, (loader, place) in enumerate(zip(loaders, self.state["loaders"], strict=False)):
            try:  # the first is trained on; others only measure
                restore_loader_place(loader, place, same=number == 0)
            except ValueError as error:
                raise self._misfit(_STATE, f"of its loader, {error}") from error

    def _check_settings(self, trainer: Trainer) -> None:
        if type(trainer.loss).__module__.startswith("torch."):  # of which these are arguments
            for name, value in _state_of_loss(trainer).items():
                saved = (self.state["loss"] or {}).get(name, value)
                if not torch.equal(value.cpu(), saved.cpu()):
                    text = f"its run began with the loss's {name}={saved.tolist()}, and this one "
                    raise self._misfit(_STATE, f"{text}with {value.tolist()}; give the same")
        for mine, saved in zip(trainer.settings, self.state["settings"], strict=True):
            for index, (group, other) in enumerate(
                zip(mine["groups"], saved["groups"], strict=True)
            ):
                for name in other:
                    if group.get(name) != other[name]:
                        raise self._misfit(
                            _STATE,
                            f"its run began with {name}={other[name]} in group {index} of "
                            f"{saved['kind']}, and this one with {name}={group.get(name)}; give "
                            "the same, or load it by trainer.load and set others then",
                        )

    def restore_callbacks(self, trainer: Trainer) -> None:
        """Put back the callbacks' states, the n-th of a kind into the n-th."""
        for _, state, callback in self._callbacks(trainer):
            if callback is not None:
                callback.load_state_dict(state)

    def _callbacks(self, trainer: Trainer) -> list[tuple[str, Any, Callback | None]]:
        """Return the kind of each callback that had a state, the state, and who is to take it."""
        waiting = [(type(callback).__name__, callback) for callback in trainer.callbacks]
        found = []
        for kind, state in self.state["callbacks"]:
            match = next((one for one in waiting if one[0] == kind), None)
            if match is not None:
                waiting.remove(match)
            if state:
                found.append((kind, state, None if match is None else match[1]))
        return found

    def restore_random_states(self) -> None:
        """Put back this process's random states."""
        states = self.state["random"]
        restore_random_states(states[rank() % len(states)])

    def _misfit(self, file: str, reason: str) -> ValueError:
        return ValueError(f"{self.path / file} does not fit this trainer: {reason}")


def _kind(value: object) -> str:
    if isinstance(value, Tensor):
        return f"{str(value.dtype).removeprefix('torch.')} {list(value.shape)}"
    return "none" if value is None else type(value).__name__


def read_checkpoint(path: Path | str) -> Checkpoint:
    """Read a checkpoint, or the latest one of a folder of checkpoints.

    Raises:
        ValueError: If there is none, or its files are damaged or of another format.
    """
    path = Path(path)
    if not (path / _STATE).exists():
        found = find_checkpoints(path)
        if not found:
            raise ValueError(f"no checkpoint in {path}: {path / _STATE} does not exist")
        path = found[-1]
    try:
        packed = json.loads((path / _STATE).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"{path / _STATE} cannot be read: {error}") from error
    if not isinstance(packed, dict) or packed.pop("format", None) != _FORMAT:
        raise ValueError(f"{path / _STATE} is no {_FORMAT!r}")
    try:
        sums = packed.pop("sha256")
        model, tensors = (_read_tensors(path / name, sums[name]) for name in _TENSORS)
        state = {name: unpack(packed[name], tensors) for name in _ENTRIES}
        state["loss"] = unpack(packed.get("loss"), tensors)  # older ones have none
        return Checkpoint(path, {**model, **state["extra_state"]}, state)
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{path / _STATE} is damaged: {error!r}") from error


def _read_tensors(path: Path, expected: str) -> dict[str, Tensor]:
    from safetensors.torch import load

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if hashlib.sha256(data).hexdigest() != expected:
        raise ValueError(f"{path} is damaged: it is not the file that state.json was written with")
    tensors: dict[str, Tensor] = load(data)
    return tensors


def find_checkpoints(folder: Path | str) -> list[Path]:
    """Return the checkpoints in a folder, in the order of their epochs."""
    folder = Path(folder)
    entries = list(folder.iterdir()) if folder.is_dir() else []
    return sorted((one for one in entries if _NAME.fullmatch(one.name)), key=_epoch_of)


def _epoch_of(checkpoint: Path) -> int:
    return int(checkpoint.name.removeprefix("epoch-"))


@dataclass
class CheckpointFolder:
    """Where ``fit`` writes its checkpoints, how often, and how many it keeps.

    Args:
        folder: Holds ``epoch-0001`` and so on; made if it is missing.
        every: Epochs between two of them; the last epoch always has one.
        keep: How many of the latest stay.
    """

    folder: Path
    every: int = 1
    keep: int = 2

    def __post_init__(self) -> None:
        check_integer("every", self.every, minimum=1)
        check_integer("keep", self.keep, minimum=1)
        self.folder = Path(self.folder)
        if self.folder.exists() and not self.folder.is_dir():
            raise ValueError(f"checkpoints must be a folder, got the file {self.folder}")

    def start(self, resumed: Checkpoint | None) -> None:
        """Refuse to mix two runs, and remove what an earlier process left unfinished."""
        found = find_checkpoints(self.folder)
        if found and resumed is None:
            raise ValueError(
                f"checkpoints must be a folder without any of another run, got {self.folder} with "
                f"{found[-1].name}; pass resume=True to go on, or another folder"
            )
        epoch = 0 if resumed is None else len(resumed.state["history"])
        if found and _epoch_of(found[-1]) > epoch:
            raise ValueError(
                f"checkpoints must be a folder without any later than epoch {epoch}, from which "
                f"the run goes on, got {self.folder} with {found[-1].name}; pass another folder, "
                "or move the later ones away"
            )
        wait_for_all()
        if rank() == 0:
            make_folder(self.folder, name="checkpoints")
            for entry in self.folder.iterdir():
                if _LEFTOVER.fullmatch(entry.name):
                    shutil.rmtree(entry, ignore_errors=True)

    def epoch_ended(self, trainer: Trainer, *loaders: object, is_last: bool) -> None:
        """Write a checkpoint if it is time, or the run ends here, and remove the oldest."""
        epoch = len(trainer.history)
        is_last = is_last or trainer.batches_done >= trainer.total_steps
        if trainer.epoch % self.every and not is_last:
            return
        path = self.folder / f"epoch-{epoch:04d}"
        save_checkpoint(trainer, path, *loaders)
        trainer.last_checkpoint = path
        if rank() == 0:
            for old in find_checkpoints(self.folder)[: -self.keep]:
                remove_folder(old)


def choose_resume(resume: bool | Path | str, store: CheckpointFolder | None) -> Checkpoint | None:
    """Return the checkpoint to go on from: the latest of the folder, or the one that is named."""
    if resume is False:
        return None
    if resume is not True:
        return read_checkpoint(resume)
    if store is None:
        raise ValueError("resume needs the folder of the checkpoints, got checkpoints=None")
    return read_checkpoint(store.folder) if find_checkpoints(store.folder) else None
