"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Callable, Iterable, Sequence, Sized
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks._checks import check_choice, check_integer, check_positive
from fasttricks.engine._callbacks import Callback
from fasttricks.engine._checkpoint import latest_checkpoint, load_checkpoint, save_checkpoint
from fasttricks.engine._evaluate import TTA, Evaluation, evaluate, predict
from fasttricks.engine._history import History, Value
from fasttricks.engine._memory import Snapshot, is_out_of_memory
from fasttricks.engine._precision import Precision
from fasttricks.engine._progress import Progress
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.schedules import Schedule

Batch = tuple[Tensor, Tensor]
Loss = Callable[[Tensor, Tensor], Tensor]


class Scheduler(Protocol):
    """Anything that moves on by one update, such as torch's learning-rate schedulers."""

    def step(self) -> Any:
        """Set the values of the next update."""


class Trainer:
    """Trains a module on batches of images and targets: mixed precision, schedules, a record.

    The step is the one that you would write: forward under autocast, loss in fp32, backward,
    optimizer, schedule. A batch larger than ``micro_batch_size`` is computed in parts whose
    gradients add up to those of the whole batch (batch norm sees the parts).

    Args:
        model: Maps images [N, C, H, W] to logits, already on its device; convolution weights are
            put into channels_last memory format unless ``channels_last`` is off.
        optimizer: One optimizer or several that step together.
        lr: A schedule for the learning rate of every group of every optimizer. For other entries,
            or a schedule per group, pass ``ScheduledGroups`` in ``schedulers``.
        schedulers: Objects whose ``step()`` is called after each update.
        loss: Maps (outputs, targets) to the mean loss over the images; cross-entropy by default.
        precision: "auto" (default), "fp32", "bf16", "fp16", or a ``Precision``.
        channels_last: Compute in channels_last memory format; on by default.
        micro_batch_size: Largest number of images computed at once; the whole batch by default.
        grad_clip: Largest norm of the gradients of all parameters together; larger ones are scaled
            down to it. Not clipped by default.
        nonfinite: "raise" (default) ends the run when the loss is NaN or infinite; "skip" leaves
            out that update, with weights, statistics and schedules as they were, at the price of
            waiting for the device in every update.
        oom: What an update does that runs out of memory: "halve" (default) the micro-batch, with a
            warning, and start over with nothing lost, or "raise".
        compile: Train through ``torch.compile``, True for its usual backend or a backend's name;
            every image size is compiled for itself. Evaluation runs the module as it is.
        callbacks: ``Callback`` objects, called in order.
        progress: Show a live display on a terminal, else a line an epoch; on by default.

    Attributes:
        history: Rows of all epochs so far.
        step_count: Updates so far, over all calls of ``fit``.
        nonfinite_steps: Updates left out for their loss, with ``nonfinite="skip"``.
        stop: Set it in ``on_epoch_end`` to end the run there, as ``EarlyStop`` does.

    Raises:
        ValueError: If an argument is out of its range or the model's precision is not available.
        TypeError: If an optimizer or callback is none.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, optimizer, precision="fp32", progress=False)
        >>> batches = [(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))]
        >>> len(trainer.fit(batches, epochs=3))
        3
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        lr: Schedule | None = None,
        schedulers: Sequence[Scheduler] = (),
        loss: Loss | None = None,
        precision: Precision | str = "auto",
        channels_last: bool = True,
        micro_batch_size: int | None = None,
        grad_clip: float | None = None,
        nonfinite: Literal["raise", "skip"] = "raise",
        oom: Literal["halve", "raise"] = "halve",
        compile: bool | str = False,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        self.optimizers = [optimizer] if isinstance(optimizer, Optimizer) else list(optimizer)
        _check_types("optimizer", self.optimizers, Optimizer)
        _check_types("callbacks", callbacks, Callback)
        if micro_batch_size is not None:
            check_integer("micro_batch_size", micro_batch_size, minimum=1)
        if grad_clip is not None:
            check_positive("grad_clip", grad_clip)
        check_choice("nonfinite", nonfinite, ("raise", "skip"))
        check_choice("oom", oom, ("halve", "raise"))
        self.model = model
        self._compiled: Callable[[Tensor], Tensor] = model
        if compile:
            backend = compile if isinstance(compile, str) else "inductor"
            check_choice(
                "compile", backend, [*torch.compiler.list_backends(()), "eager", "aot_eager"]
            )
            self._compiled = torch.compile(model, backend=backend, dynamic=False)
        self.device = next((p.device for p in model.parameters()), torch.device("cpu"))
        self.loss = loss or nn.CrossEntropyLoss()
        if isinstance(precision, str):
            precision = Precision(precision, device=self.device)
        self.precision = precision
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            model.to(memory_format=torch.channels_last)
        self.schedulers: list[Scheduler] = list(schedulers)
        if lr is not None:
            self.schedulers += [ScheduledGroups(one, {"lr": lr}) for one in self.optimizers]
        self.micro_batch_size = micro_batch_size
        self.grad_clip = grad_clip
        self.nonfinite = nonfinite
        self.nonfinite_steps = 0
        self.oom = oom
        # Batches whose step did not run out of memory need no way back.
        self._fitting: set[tuple[torch.Size, int | None]] = set()
        self.callbacks = [*callbacks, *([Progress()] if progress else [])]
        self.history = History()
        self.step_count = 0
        self.train_seconds = 0.0
        self.epoch_lr = self.lr
        self.epochs: float = 0
        self.total_steps = 0
        self.steps_per_epoch = 0
        self.batches_done = 0
        self.stop = False
        self.last_checkpoint: Path | None = None
        self.totals = _Totals(self.device)

    @property
    def lr(self) -> float:
        """The next update's learning rate, of the first group of the first optimizer."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    def step(self, batch: Batch) -> Tensor:
        """Make one update from a batch, images [N, C, H, W] and targets [N]; return its mean loss.

        In fp16 an update whose gradients overflow is skipped, and the schedules stay in place: a
        run with k skipped updates ends k values before the end of its schedules.

        Raises:
            ValueError: If the batch holds no image.
        """
        images, targets = self._to_device(batch)
        if not len(images):
            raise ValueError("batch must hold at least one image, got an empty one")
        # What an interrupted step left behind must not enter this one.
        self._clear_gradients()
        fits = (images.shape, self.micro_batch_size) in self._fitting
        before = None if fits and self.nonfinite == "raise" else Snapshot(self.model, self.device)
        while True:
            try:
                total, seen = self._forward_and_backward(images, targets)
                break
            except RuntimeError as error:
                part_size = min(self.micro_batch_size or len(images), len(images))
                if self.oom == "raise" or part_size == 1 or not is_out_of_memory(error):
                    raise
            # Out of the handler, so that the error's frames hold no tensor any more.
            self._clear_gradients()
            if before is not None:
                before.restore()
            self.micro_batch_size = part_size // 2
            warnings.warn(
                f"memory ran out with {part_size} images at once; micro_batch_size is now "
                f"{self.micro_batch_size}",
                RuntimeWarning,
                stacklevel=2,
            )
        self._fitting.add((images.shape, self.micro_batch_size))
        if self.nonfinite == "skip" and not bool(total.isfinite()):
            if before is not None:
                before.restore()
            self._clear_gradients()
            self.nonfinite_steps += 1
            return total
        for part_seen in seen:
            self.totals.add(*part_seen)
        if self.precision.step(self.optimizers, max_norm=self.grad_clip):
            self.step_count += 1
            for scheduler in self.schedulers:
                scheduler.step()
        self._clear_gradients()
        return total

    def _forward_and_backward(
        self, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, list[tuple[Tensor, Tensor, Tensor]]]:
        """Accumulate the gradients of a batch, part by part: its mean loss, and each part's."""
        total = torch.zeros((), device=self.device)
        part_size = self.micro_batch_size or len(images)
        seen = []
        for part, part_targets in zip(
            images.split(part_size), targets.split(part_size), strict=True
        ):
            with self.precision.forward_context():
                outputs = self._compiled(part)
            loss = self.loss(outputs.float(), part_targets)
            self.precision.backward(loss * (len(part) / len(images)))
            total += loss.detach() * (len(part) / len(images))
            seen.append((loss.detach(), outputs.detach(), part_targets))
        return total, seen

    def fit(
        self,
        train: Iterable[Batch],
        epochs: float,
        *,
        val: Iterable[Batch] | None = None,
        checkpoints: Path | str | None = None,
        every: int = 1,
        keep: int = 2,
        resume: bool = False,
    ) -> History:
        """Train for a number of epochs and return the history.

        Args:
            train: Iterable with a length that yields (images, targets), anew for each epoch: a
                ``DeviceLoader``, a ``DataLoader``, a list.
            epochs: Passes over ``train``, more than 0; a fraction ends within an epoch.
            val: Batches to evaluate on after each epoch; that time is not counted as training.
            checkpoints: Folder for checkpoints; none are written by default.
            every: Epochs from one to the next; the run's end has one in any case.
            keep: How many stay, the newest ones.
            resume: Go on from the newest checkpoint in the folder, with the same weights in the end
                as a run that was never interrupted; from the start if there is none.

        Raises:
            ValueError: If ``epochs`` is not positive, ``train`` is empty, the checkpoint is damaged
                or of another run, or there is one without ``resume``.
            TypeError: If ``train`` has no length.
            FloatingPointError: If the loss is NaN or infinite.
        """
        check_positive("epochs", epochs)
        if not isinstance(train, Sized):
            raise TypeError(
                f"train must have a length, got {type(train).__name__}; pass a list or loader"
            )
        if not len(train):
            raise ValueError("train must hold at least one batch, got an empty loader")
        self.epochs, self.steps_per_epoch, self.batches_done = epochs, len(train), 0
        self.total_steps = max(1, round(epochs * len(train)))
        self.stop = False
        check_integer("every", every, minimum=1)
        check_integer("keep", keep, minimum=1)
        folder = None if checkpoints is None else Path(checkpoints)
        if resume and folder is None:
            raise ValueError("resume needs the folder of the checkpoints, got checkpoints=None")
        done, go_on = 0, None
        last = math.ceil(self.total_steps / len(train))
        if folder is not None and (path := latest_checkpoint(folder)) is not None:
            if not resume:
                raise ValueError(
                    f"checkpoints must be a folder without any of another run, got {folder} with "
                    f"{path.name}; pass resume=True to go on, or another folder"
                )
            done, go_on = load_checkpoint(path, self, train)
            self.last_checkpoint = path
        try:
            self._call("on_fit_start")
            if go_on is not None:
                go_on()
            for epoch in range(done + 1, last + 1):
                self._train_epoch(train)
                self._end_epoch(len(self.history) + 1, val)
                if folder is not None and (epoch % every == 0 or epoch == last or self.stop):
                    self.last_checkpoint = save_checkpoint(
                        folder, self, train, epoch=epoch, keep=keep
                    )
                if self.stop:
                    break
        finally:
            self._call("on_fit_end")
        return self.history

    def evaluate(self, batches: Iterable[Batch], *, tta: str = "none") -> Evaluation:
        """Measure accuracy and loss; see ``fasttricks.engine.evaluate``."""
        check_choice("tta", tta, TTA)
        batches = map(self._to_device, batches)
        return evaluate(self.model, batches, tta=tta, precision=self.precision)

    def predict(self, batches: Iterable[Batch], *, tta: str = "none") -> Tensor:
        """Return the logits [N, num_classes] of every image; see ``fasttricks.engine.predict``."""
        check_choice("tta", tta, TTA)
        batches = map(self._to_device, batches)
        return predict(self.model, batches, tta=tta, precision=self.precision)

    def describe(self) -> dict[str, Any]:
        """Return the settings of this trainer in words, for a run's record."""
        return {
            "model": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "loss": repr(self.loss),
            "label_smoothing": getattr(self.loss, "label_smoothing", 0.0),
            "precision": self.precision.name,
            "micro_batch_size": self.micro_batch_size,
            "grad_clip": self.grad_clip,
            "compiled": self._compiled is not self.model,
            "skipped_steps": self.precision.skipped_steps + self.nonfinite_steps,
            "channels_last": self.memory_format is torch.channels_last,
            "optimizers": [repr(optimizer) for optimizer in self.optimizers],
            "schedules": [repr(scheduler) for scheduler in self.schedulers],
        }

    def _train_epoch(self, train: Iterable[Batch]) -> None:
        self._call("on_epoch_start")
        self.totals = _Totals(self.device)
        self.model.train()
        start = time.perf_counter()
        left = self.total_steps - self.batches_done
        # A whole epoch is iterated to its end, where loaders move on to the next one.
        for batch in train if left >= self.steps_per_epoch else islice(train, left):
            self._call("on_step_start")
            self.epoch_lr = self.lr
            self.step(batch)
            self.batches_done += 1
            # On a CPU the loss is there to look at; elsewhere looking at it would stall the device.
            if self.device.type == "cpu":
                self._check_loss()
            self._call("on_step_end")
        if not self.totals.images:
            raise ValueError("train must yield batches anew each epoch, got none in this one")
        self._check_loss()  # waits for the device, so that the time below is that of finished work
        self.totals.seconds = time.perf_counter() - start
        self.train_seconds += self.totals.seconds

    def _end_epoch(self, epoch: int, val: Iterable[Batch] | None) -> None:
        totals = self.totals
        row: dict[str, Value] = {
            "epoch": epoch,
            "step": self.step_count,
            "lr": self.epoch_lr,
            "loss": totals.loss,
            "accuracy": totals.accuracy,
            "images_per_second": totals.images / totals.seconds,
            "train_seconds": self.train_seconds,
        }
        if val is not None:
            result = self.evaluate(val)
            row |= {
                "val_loss": result.loss,
                "val_accuracy": result.accuracy,
                "eval_seconds": result.seconds,
            }
        self.history.append(row)
        for callback in self.callbacks:
            callback.on_epoch_end(self, row)

    def _check_loss(self) -> None:
        if not math.isfinite(self.totals.loss):
            saved = self.last_checkpoint
            raise FloatingPointError(
                f"the loss became {self.totals.loss} at update {self.step_count} with "
                f"lr={self.epoch_lr:g}; lower the learning rate, or use precision='fp32'"
                + ("" if saved is None else f"; the last checkpoint is {saved}")
            )

    def _to_device(self, batch: Batch) -> Batch:
        images, targets = batch
        if images.ndim == 4:
            # Only towards CUDA is it safe not to wait: work there is ordered behind the copy.
            images = images.to(
                self.device,
                memory_format=self.memory_format,
                non_blocking=self.device.type == "cuda",
            )
        return images.to(self.device), targets.to(self.device)

    def _clear_gradients(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        self.model.zero_grad(set_to_none=True)

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)


class _Totals:
    """Sums over an epoch, kept on the device until they are asked for."""

    def __init__(self, device: torch.device) -> None:
        self.images = 0
        self.seconds = 0.0
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss, and how many outputs have their maximum at the target.

        Soft targets [N, num_classes] count by their largest class.
        """
        if targets.ndim > 1:
            targets = targets.argmax(1)
        self.images += len(targets)
        self._loss += loss * len(targets)
        self._correct += (outputs.argmax(1) == targets).sum()

    @property
    def loss(self) -> float:
        """Mean loss over the images so far."""
        return self._loss.item() / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Share of images so far whose largest output was their class."""
        return self._correct.item() / max(self.images, 1)


def _check_types(name: str, values: Sequence[object], expected: type) -> None:
    for value in values:
        if not isinstance(value, expected):
            raise TypeError(
                f"{name} must be {expected.__name__} objects, got {type(value).__name__}"
            )
