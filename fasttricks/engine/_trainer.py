"""The training loop."""

from __future__ import annotations

import math
import time
import warnings
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import nullcontext
from itertools import islice
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks._checks import (
    check_choice,
    check_fraction,
    check_integer,
    check_positive,
    length_of,
)
from fasttricks.engine._batch_loss import Batch, Loss, with_loss
from fasttricks.engine._callbacks import Callback, callbacks_of
from fasttricks.engine._checkpoint import (
    CheckpointFolder,
    check_savable,
    choose_resume,
    read_checkpoint,
    save_checkpoint,
)
from fasttricks.engine._cuda_graph import check_recordable, check_settings
from fasttricks.engine._device import device_of
from fasttricks.engine._distributed import (
    check_equal_lengths,
    check_shared,
    deal,
    gather,
    rank,
    set_sampler_epoch,
    share_tensors,
    world_size,
)
from fasttricks.engine._evaluate import Evaluation, evaluate, predict, start_training
from fasttricks.engine._gradients import Gradients, clear_gradients
from fasttricks.engine._history import History, Value, keep_numbers
from fasttricks.engine._inputs import (
    check_batch,
    check_batches,
    check_loss,
    check_schedule,
    inputs_of,
    optimizers_of,
    schedulers_of,
)
from fasttricks.engine._lists import parameters_of
from fasttricks.engine._observe import Observer, observer_of
from fasttricks.engine._optimizer_state import begin_momenta, match_layouts, settings_of
from fasttricks.engine._precision import (
    Precision,
    all_finite,
    as_precision,
    gradients_are_finite,
)
from fasttricks.engine._progress import Progress
from fasttricks.engine._random import epoch_kept
from fasttricks.engine._speed import (
    RECORDING,
    check_tf32,
    compiler,
    records_graphs,
    selecting,
    tf32_matmul,
    use_channels_last,
    use_fused,
)
from fasttricks.engine._suspicions import warn_before_fit, warn_of_rates
from fasttricks.engine._totals import Metric, Totals, check_names
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.schedules import Schedule

__all__ = ["Batch", "Loss", "Scheduler", "Trainer"]

# Looking at the loss makes the host wait for a GPU: every so many updates, and at an epoch's end.
_LOOK_EVERY = 20


class Scheduler(Protocol):
    """Anything that moves on by one update, such as torch's learning-rate schedulers."""

    def step(self) -> Any:
        """Set the values of the next update."""


class Trainer:
    """Trains a module on batches of images and targets: mixed precision, schedules, a record.

    The step is the one that you would write: forward under autocast, loss in fp32, backward,
    optimizer, schedule. A batch larger than ``micro_batch_size`` is computed in parts, as even as
    can be, whose gradients add up to those of the whole batch (batch norm sees the parts).

    A part of the model that you put into evaluation mode, such as a batch norm that is to keep its
    statistics, stays there as long as the model itself is in training mode; ``model.train()`` is
    called if it is not, and reaches all parts.

    Args:
        model: Maps images [N, C, H, W] to logits, already on its device; convolution weights are
            put into channels_last memory format unless ``channels_last`` is off.
        optimizer: One optimizer or several that step together.
        lr: A schedule for the learning rate of every group of every optimizer, all alike, with a
            warning if those of one optimizer differ. For other entries, or a schedule per group or
            optimizer, pass ``ScheduledGroups`` in ``schedulers``.
        schedulers: Objects whose ``step()`` is called after each update.
        loss: Maps (outputs, targets) to the mean loss over the images; cross-entropy by default.
            ``val`` is measured by it too, a cross-entropy without its label smoothing.
        label_smoothing: Share of the target that the cross-entropy spreads over all classes, 0 to
            1; 0 by default, and only without a ``loss`` of your own.
        metrics: Functions by name that map (outputs, targets) to a mean over the images; they
            become columns of the history, with ``val_`` before the name for those of ``val``.
        precision: "auto" (default), "fp32", "bf16", "fp16", or a ``Precision``.
        channels_last: Compute in channels_last memory format; on by default. A model that calls
            ``view`` on what a convolution or pooling returns needs ``flatten`` or ``reshape``
            instead, or False here.
        micro_batch_size: Largest number of images computed at once; the whole batch by default. Not
            with a ``compile`` that records CUDA graphs itself.
        grad_clip: Largest norm of all gradients together; longer ones are scaled down to it.
        select: Share of each batch that is trained on, above 0 to 1: a forward pass without
            gradients finds the images with the highest losses, the mean of each image's own where
            there are several. Needs a loss with ``reduction="mean"``.
        nonfinite: What a NaN or infinite loss does: "raise" (default) ends ``fit``, "skip" leaves
            that update out, also for gradients that are not finite, with weights, statistics and
            schedules as they were, at the price of waiting for the device in every update.
        oom: What an update does whose forward or backward pass runs out of memory: "halve"
            (default) the micro-batch, with a warning, and start over with nothing lost, or "raise",
            as it does wherever a CUDA graph holds the memory.
        compile: Train through ``torch.compile``: True, or a mode or backend by name; every image
            size is compiled for itself. Evaluation runs the module as it is. Off by default.
        fused: Use the fused implementation of the optimizers that have one; off by default.
        tf32: Multiply fp32 matrices in TF32, on CUDA; off by default.
        cuda_graph: Replay forward and backward pass from a CUDA graph; with "step" the update too,
            whose optimizers then keep their rates in tensors (see ``docs/training.md``). Off by
            default.
        callbacks: ``Callback`` objects, called in order.
        progress: Show a live display on a terminal, else a line an epoch; on by default.

    Attributes:
        history: Rows of all epochs so far.
        step_count: Updates so far, over all calls of ``fit``.
        train_seconds: Seconds of training so far, over all calls of ``fit``, without evaluation.
        epochs: What ``fit`` was called with.
        steps_per_epoch: Batches of an epoch of the ``fit`` that runs or ran last.
        total_steps: Batches of that whole ``fit``.
        batches_done: How many of them are done.
        batch_loss: Mean loss of the last batch, a tensor on its device that stays as it is until
            the next update; NaN before the first.
        has_val: Whether the ``fit`` that runs or ran last has a ``val``.
        nonfinite_steps: Updates left out for their numbers, with ``nonfinite="skip"``.
        stop: Set it, in any process, to end ``fit`` after the epoch. A checkpoint does not keep it:
            a run that was stopped can be resumed.
        last_checkpoint: The folder of the last checkpoint that was written or loaded, or None.

    Raises:
        ValueError: If an argument is out of its range, or the model's device cannot do what is
            asked for.
        TypeError: If an optimizer, scheduler, loss, metric, precision or callback is none, or a
            ``step()`` needs an argument, as that of LBFGS or ReduceLROnPlateau.

    Example:
        >>> model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        >>> trainer = Trainer(model, optimizer, precision="fp32", progress=False)
        >>> batches = [(torch.zeros(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))]
        >>> len(trainer.fit(batches, epochs=3))
        3

    Reference:
        ``select``: Jiang et al. 2019, "Accelerating deep learning by focusing on the biggest
        losers" (arXiv 1910.00762), with the highest losses of a batch in place of a random choice.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        lr: Schedule | None = None,
        schedulers: Sequence[Scheduler] = (),
        loss: Loss | None = None,
        label_smoothing: float = 0.0,
        metrics: Mapping[str, Metric] | None = None,
        precision: Precision | str = "auto",
        channels_last: bool = True,
        micro_batch_size: int | None = None,
        grad_clip: float | None = None,
        select: float = 1.0,
        nonfinite: Literal["raise", "skip"] = "raise",
        oom: Literal["halve", "raise"] = "halve",
        compile: bool | str = False,
        fused: bool = False,
        tf32: bool = False,
        cuda_graph: bool | Literal["step"] = False,
        callbacks: Sequence[Callback] = (),
        progress: bool = True,
    ) -> None:
        self.optimizers = optimizers_of(optimizer)
        if loss is not None:
            check_loss(loss)
        self.callbacks: list[Callback] = callbacks_of(callbacks)
        if micro_batch_size is not None:
            check_integer("micro_batch_size", micro_batch_size, minimum=1)
        if grad_clip is not None:
            check_positive("grad_clip", grad_clip)
        check_choice("nonfinite", nonfinite, ("raise", "skip"))
        check_choice("oom", oom, ("halve", "raise"))
        check_choice("cuda_graph", cuda_graph, (False, True, "step"))
        check_fraction("label_smoothing", label_smoothing)
        if loss is not None and label_smoothing:
            raise ValueError(
                f"label_smoothing must be left to the loss that is given, got "
                f"label_smoothing={label_smoothing}"
            )
        if metrics is not None:
            check_names(metrics)
        self.metrics = dict(metrics or {})
        self.model = model
        self.device = device_of(model)
        self.loss = nn.CrossEntropyLoss(label_smoothing=label_smoothing) if loss is None else loss
        self.precision = as_precision(precision, self.device)
        self.memory_format = torch.channels_last if channels_last else torch.contiguous_format
        self.micro_batch_size = micro_batch_size
        self.grad_clip = grad_clip
        self.nonfinite, self.oom = nonfinite, oom
        self.compile, self.fused, self.tf32 = compile, fused, tf32
        if tf32:
            check_tf32(self.device)
        self.schedulers: list[Scheduler] = schedulers_of(schedulers)
        if lr is not None:
            check_schedule(lr)
        selecting(self.loss, select)
        compiler(compile)
        if cuda_graph:
            check_recordable(self.device, self.optimizers if cuda_graph == "step" else ())
        if cuda_graph == "step":
            check_settings(self.schedulers, precision=self.precision.name, nonfinite=nonfinite)
        if cuda_graph and compile in RECORDING:
            raise ValueError(
                f"cuda_graph must come with a compile that records no graphs itself, got "
                f"compile={compile!r}; use True or 'max-autotune-no-cudagraphs'"
            )
        if micro_batch_size is not None and records_graphs(compile, self.device):
            raise ValueError(
                f"micro_batch_size must come without a compile that records graphs, whose "
                f"gradients of one part the next would write over, got compile={compile!r}; use "
                "True or 'max-autotune-no-cudagraphs'"
            )
        # From here on the model and the optimizers are changed, once all of this has been checked.
        if fused:
            use_fused(self.optimizers)
        if channels_last:
            use_channels_last(model)
            for one in self.optimizers:
                match_layouts(one)  # of one that has been in use
        if lr is not None:
            warn_of_rates(self.optimizers, level=3)
            self.schedulers += [ScheduledGroups(one, {"lr": lr}) for one in self.optimizers]
        self.settings = [settings_of(one) for one in self.optimizers]
        self.cuda_graph = cuda_graph
        self._gradients = Gradients(
            model,
            self.loss,
            compile=compile,
            select=select,
            cuda_graph=cuda_graph,
            optimizers=self.optimizers,
        )
        self.callbacks += [Progress()] if progress and rank() == 0 else []
        self.history = History()
        self.step_count = self.nonfinite_steps = 0
        self.train_seconds = 0.0
        self.epoch_lr: float | Tensor = self.lr
        self.epochs: float = 0
        self.total_steps = self.steps_per_epoch = self.batches_done = 0
        self.batch_loss = torch.tensor(math.nan, device=self.device)
        self.has_val = False
        self.stop = False
        self._observer: Observer | None = None  # to whom a loader's losses are told
        self._indices: Tensor | None = None  # of the images of the batch that is trained on
        self._given = torch.float32  # the dtype of the last images
        self._stops = False  # what the processes have agreed on
        self._loaders: tuple[object, ...] = ()  # those whose place a checkpoint can keep now
        self.last_checkpoint: Path | None = None
        self.totals = self._new_totals()

    @property
    def lr(self) -> float:
        """The next update's learning rate, of the first group of the first optimizer."""
        return float(self.optimizers[0].param_groups[0]["lr"])

    @property
    def epoch(self) -> int:
        """The epoch of the ``fit`` that runs or ran last, from 1, that its last batch was of."""
        return -(-self.batches_done // self.steps_per_epoch) if self.batches_done else 0

    @property
    def skipped_steps(self) -> int:
        """Updates left out so far: overflows of fp16, and what ``nonfinite="skip"`` skipped."""
        return self.precision.skipped_steps + self.nonfinite_steps

    def step(self, batch: Batch) -> Tensor:
        """Make one update from a batch, images [N, C, H, W] and targets [N]; return its mean loss.

        In fp16 an update whose gradients overflow is skipped, and the schedules stay in place: a
        run with k skipped updates ends k values before the end of its schedules.

        Raises:
            ValueError: If the batch holds no image, or the loss is not one number.
            TypeError: If the batch is no pair of tensors, or the model returns no tensor.
            FloatingPointError: On a CPU, if the loss is NaN or infinite, before the update;
                elsewhere ``fit`` looks now and then.
        """
        images, targets = self._to_device(batch)
        if not len(images):
            raise ValueError("batch must hold at least one image, got an empty one")
        try:
            with tf32_matmul() if self.tf32 else nullcontext():
                loss, counted = self._gradients.fill(self, images, targets)
        except RuntimeError as error:
            self._explain(error)
            raise
        self.batch_loss = loss.detach()
        # On a CPU the loss is there to look at; elsewhere looking at it stalls the device.
        if self.nonfinite == "raise" and self.device.type == "cpu" and not loss.isfinite():
            self._gradients.take_back(self.optimizers)
            self.epoch_lr = self.lr
            raise FloatingPointError(self.fault(f"the loss became {loss.item()}", next_update=True))
        if self.nonfinite == "skip" and not self._is_finite(loss):
            self._gradients.take_back(self.optimizers)
            self.nonfinite_steps += 1
            return loss
        if self._observer is not None and self._indices is not None:
            self._observer.tell(counted, self._indices)
        for part in counted:
            self.totals.add(*part)
        if world_size() > 1:
            self.totals.add_fault(loss)
        if self.fused and not self._gradients.updates:
            begin_momenta(self.optimizers)
        if self._gradients.updates or self.precision.step(self.optimizers, max_norm=self.grad_clip):
            self.step_count += 1
            for scheduler in self.schedulers:
                scheduler.step()
        clear_gradients(self.optimizers)
        return loss

    def fit(
        self,
        train: Iterable[Batch],
        epochs: float,
        *,
        val: Iterable[Batch] | None = None,
        checkpoints: Path | str | None = None,
        every: int = 1,
        keep: int = 2,
        resume: bool | Path | str = False,
    ) -> History:
        """Train for a number of epochs and return the history.

        Args:
            train: Iterable with a length that yields (images, targets), anew for each epoch: a
                ``DeviceLoader``, a ``DataLoader``, a list. If an epoch yields fewer batches than
                the length, ``fit`` warns and still does all that is due at the end of an epoch; if
                it yields more, ``fit`` warns and leaves the rest out. A ``PrunedLoader`` receives
                the losses of each batch, and needs a loss with ``reduction="mean"``.
            epochs: Passes over ``train``, more than 0; a fraction ends within an epoch.
            val: Batches to evaluate on after each epoch; that time is not counted as training.
            checkpoints: Folder for checkpoints, ``epoch-0001`` and so on; none by default.
            every: Epochs between two of them, at least 1; the last epoch always has one.
            keep: How many of the latest stay; 2 by default.
            resume: Go on from the latest of ``checkpoints``, or start if there is none; or the path
                of a checkpoint. The run ends as it would have without the interruption, bit for
                bit.

        Raises:
            ValueError: If a number is out of its range, ``train`` or ``val`` is empty,
                ``checkpoints`` holds those of another run, or a checkpoint is damaged, of another
                model, of optimizers or schedules with other numbers, of callbacks that are missing
                here, or of a ``DeviceLoader`` with other images, batches or transforms.
            TypeError: If ``train`` has no length, or yields anything but pairs of tensors; if
                ``val`` can be run through but once; if there are ``checkpoints``, and a scheduler
                has no state to keep.
            FloatingPointError: If the loss is NaN or infinite.
        """
        check_positive("epochs", epochs)
        length = length_of(train)
        if length is None:
            raise TypeError(
                f"train must have a length, got {type(train).__name__} without one; pass a list or "
                "loader, of a stream one whose data set has a __len__"
            )
        if not length:
            raise ValueError("train must hold at least one batch, got an empty loader")
        if length_of(val) == 0:
            raise ValueError("val must hold at least one batch, got an empty one; pass None")
        if isinstance(val, Generator | map | zip) and epochs > 1:
            raise TypeError(
                f"val must yield its batches anew each epoch, got {type(val).__name__}, which the "
                "first one uses up; pass a list or loader"
            )
        observer = observer_of(train, self.loss)
        check_shared(train, val, cuda_graph=bool(self.cuda_graph))
        check_equal_lengths(length, epochs)
        self.epochs, self.steps_per_epoch, self.batches_done = epochs, length, 0
        self.total_steps = max(1, round(epochs * length))
        self.stop, self.last_checkpoint = False, None
        self.has_val = val is not None
        self._warned_of_length = False
        store = None if checkpoints is None else CheckpointFolder(Path(checkpoints), every, keep)
        resumed = choose_resume(resume, store)
        if store is not None:
            check_savable(self)
            store.start(resumed)
        if resumed is not None:
            resumed.check(self)
            resumed.restore_fit(self, train, val)
            resumed.restore(self)
        both, trained = with_loss(self.model, self.loss), parameters_of(self.optimizers)
        share_tensors(list(dict.fromkeys([*both.parameters(), *trained, *both.buffers()])))
        self._observer = observer
        try:
            self._call("on_fit_start")
            if resumed is not None:
                resumed.restore_callbacks(self)
                resumed.restore_random_states()
            self._agree()
            if rank() == 0:
                warn_before_fit(self, train, level=3)
            for _ in range(math.ceil((self.total_steps - self.batches_done) / length)):
                if self._stops:
                    break
                self._train_epoch(train)
                self._end_epoch(len(self.history) + 1, train, val)
                if store is not None:
                    store.epoch_ended(self, train, val, is_last=self._stops)
        finally:
            self._observer = self._indices = None
            self._call("on_fit_end")
        return self.history

    def evaluate(
        self, batches: Iterable[Batch], *, tta: str = "none", tta_share: float = 1.0
    ) -> Evaluation:
        """Measure the trainer's loss, accuracy and metrics; see ``fasttricks.engine.evaluate``.

        The accuracy is NaN where the targets are no classes. Of several processes all must call it.
        """
        with epoch_kept(batches):
            return self._evaluated(batches, tta=tta, tta_share=tta_share)

    def _evaluated(self, batches: Iterable[Batch], **views: Any) -> Evaluation:
        try:
            return evaluate(
                self.model,
                map(self._to_device, deal(batches)),
                precision=self.precision,
                loss=self.loss,
                metrics=self.metrics,
                dealt=True,
                **views,
            )
        except RuntimeError as error:
            self._explain(error)
            raise

    def predict(
        self, batches: Iterable[Batch | Tensor], *, tta: str = "none", tta_share: float = 1.0
    ) -> Tensor:
        """Return the logits [N, num_classes] of every image; see ``fasttricks.engine.predict``.

        Of several processes all must call it.
        """
        check_batches(batches)
        images = map(self._images_moved, map(inputs_of, deal(batches)))
        try:
            with epoch_kept(batches):
                return predict(
                    self.model,
                    images,
                    tta=tta,
                    tta_share=tta_share,
                    precision=self.precision,
                    dealt=True,
                )
        except RuntimeError as error:
            self._explain(error)
            raise

    def save(self, path: Path | str) -> None:
        """Write a checkpoint, a folder: all that ``load`` needs, whole or not at all.

        Of several processes all must call it. One that a callback's ``on_epoch_end`` writes can be
        resumed by ``fit``; it holds what the callbacks after that one were before the epoch's end.

        Raises:
            ValueError: If an optimizer trains a parameter of neither the model nor the loss.
            TypeError: If a scheduler has no state to keep.
        """
        save_checkpoint(self, path, *self._loaders)

    def load(self, path: Path | str, *, allow_changes: bool = False) -> None:
        """Put back what a checkpoint holds: model, optimizers, schedules, history, random states.

        The optimizers' numbers become the saved ones; to go on with others, set them afterwards.
        Loaders stay where they are: in a new process call their ``set_epoch``; the losses of a
        ``PrunedLoader`` and the network of a ``ProxyLoader`` are put back by ``fit(resume=True)``
        alone.

        Args:
            path: The folder of a checkpoint, or one that holds several, of which the latest counts.
            allow_changes: Whether ``lr`` and other ``ScheduledGroups`` may have other schedules
                than the saved ones, such as longer ones to go on with a run that is over; they hold
                from the saved place on. There must be as many as before, ``lr=constant(...)`` for a
                rate that stays. Schedulers of torch become what they were.

        Raises:
            ValueError: If there is none, or it is damaged or of another model or optimizer, or of
                other schedules and ``allow_changes`` is False.
        """
        checkpoint = read_checkpoint(path)
        checkpoint.restore(self, allow_changes=allow_changes)
        checkpoint.restore_callbacks(self)
        checkpoint.restore_random_states()

    def describe(self) -> dict[str, Any]:
        """Return the settings of this trainer in words, for a run's record."""
        return {
            "model": type(self.model).__name__,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "loss": repr(self.loss),
            "label_smoothing": getattr(self.loss, "label_smoothing", 0.0),
            "precision": self.precision.name,
            "micro_batch_size": self.micro_batch_size,
            "channels_last": self.memory_format is torch.channels_last,
            "grad_clip": self.grad_clip,
            "select": self._gradients.select,
            "nonfinite": self.nonfinite,
            "skipped_steps": self.skipped_steps,
            "compiled": self.compile,
            "tf32": self.tf32,
            "cuda_graph": self.cuda_graph,
            "processes": world_size(),
            "optimizers": [repr(optimizer) for optimizer in self.optimizers],
            "schedules": [repr(scheduler) for scheduler in self.schedulers],
        }

    def _train_epoch(self, train: Iterable[Batch]) -> None:
        self._call("on_epoch_start")
        self.totals = self._new_totals()
        start_training(self.model)
        set_sampler_epoch(train, len(self.history))
        start = time.perf_counter()
        done, left = self.batches_done, self.total_steps - self.batches_done
        # A whole epoch is iterated to its end, where loaders move on to the next one.
        for batch in train if left >= self.steps_per_epoch else islice(train, left):
            if self.batches_done - done == self.steps_per_epoch:
                self._warn_of_length("more", "the rest is left out", level=4)
                break
            self._indices = getattr(train, "last_indices", None)
            self._call("on_step_start")
            rate = self.optimizers[0].param_groups[0]["lr"]
            # A rate on a GPU is read at the epoch's end: now it would make the host wait.
            self.epoch_lr = rate.clone() if isinstance(rate, Tensor) else rate
            self.step(batch)
            self.batches_done += 1
            if self.device.type != "cpu" and self.batches_done % _LOOK_EVERY == 0:
                self._check_loss()
            self._call("on_step_end")
        if self.batches_done == done:
            raise ValueError("train must yield batches anew each epoch, got none in this one")
        self._check_loss()  # waits for the device, so that the time below is that of finished work
        expected = min(left, self.steps_per_epoch)
        if self.batches_done - done < expected:
            self._end_short_epoch(self.batches_done - done, done + expected)
        self.totals.seconds = time.perf_counter() - start
        self.train_seconds += self.totals.seconds
        self.totals.reduce()
        if not self.totals.images:
            raise FloatingPointError(self.fault("no loss of the whole epoch was finite"))

    def _end_epoch(self, epoch: int, train: Iterable[Batch], val: Iterable[Batch] | None) -> None:
        # The running statistics are each process's own since the last update began, and what is
        # measured and saved is one model.
        share_tensors(list(with_loss(self.model, self.loss).buffers()))
        if self._observer is not None:
            self._observer.end_epoch()
        totals = self.totals
        row: dict[str, Value] = {
            "epoch": epoch,
            "step": self.step_count,
            "lr": float(self.epoch_lr),
            "loss": totals.loss,
            **_if_any("accuracy", totals.accuracy),
            **totals.metrics,
            "images_per_second": totals.images / totals.seconds,
            "train_seconds": self.train_seconds,
        }
        if self.precision.name == "fp16" or self.nonfinite == "skip":
            row["skipped_steps"] = self.skipped_steps
        if val is not None:
            # A loader of its own moves on, to other draws the next time; the training's may not.
            trained_on = train, getattr(train, "loader", None)  # that in a ProxyLoader
            is_one = any(val is one for one in trained_on)
            result = self.evaluate(val) if is_one else self._evaluated(val)
            row |= {
                "val_loss": result.loss,
                **_if_any("val_accuracy", result.accuracy),
                **{f"val_{name}": value for name, value in result.metrics.items()},
                "eval_seconds": result.seconds,
            }
        self.history.append(row)
        row = self.history.rows[-1]  # to which callbacks may add figures of theirs
        self._loaders = train, val
        try:
            for callback in self.callbacks:
                callback.on_epoch_end(self, row)
                keep_numbers(row, callback)
        finally:
            self._loaders = ()
        self._agree()
        # A gradient may be NaN where the loss is not, and nothing could go on from such weights.
        if not all_finite(self.model):
            raise FloatingPointError(self.fault("the weights are no longer finite"))

    def _agree(self) -> None:
        """Let all processes end the run if one is to; it would leave the others waiting."""
        self._stops = any(gather(self.stop))

    def _end_short_epoch(self, count: int, end: int) -> None:
        """Go to the place where the epoch was to end, with a warning the first time."""
        what = "schedules made for its length stop short"
        self._warn_of_length(str(count), what, level=5)
        self.batches_done = end
        self._call("on_short_epoch")

    def _warn_of_length(self, count: str, what: str, *, level: int) -> None:
        if not self._warned_of_length:
            self._warned_of_length = True
            warnings.warn(
                f"train has a length of {self.steps_per_epoch} batches and yielded {count} in an "
                f"epoch: {what}; give it the length that it has",
                RuntimeWarning,
                stacklevel=level,
            )

    def _new_totals(self) -> Totals:
        return Totals(self.device, self.metrics, ignored=getattr(self.loss, "ignore_index", None))

    def _is_finite(self, loss: Tensor) -> bool:
        # An overflow of fp16's gradients is for the scaler to see, which lowers its scale then.
        return bool(loss.isfinite()) and (
            self.precision.name == "fp16" or gradients_are_finite(self.optimizers)
        )

    def _check_loss(self) -> None:
        loss = self.totals.loss
        if not math.isfinite(loss):
            raise FloatingPointError(self.fault(f"the loss became {loss}"))

    def _explain(self, error: RuntimeError) -> None:
        """Add to an error of what the trainer does, or was given, what to do about it."""
        text = str(error)
        if self.memory_format is torch.channels_last and "view size is not compatible" in text:
            hint = (
                "The trainer computes in channels_last: call reshape or flatten in place of view "
                "in the model, or pass channels_last=False"
            )
        elif self._given == torch.uint8 and ("unsigned char" in text or "ByteTensor" in text):
            hint = "The images are uint8: give the loader a Normalize, or scale them in the model"
        else:
            return
        error.args = (f"{text}\n{hint}",)

    def fault(self, what: str, *, next_update: bool = False) -> str:
        """Return the message of an error of the numbers: what, where, and from where to go on."""
        saved, update = self.last_checkpoint, self.step_count + next_update
        return (
            f"{what} at update {update} with lr={float(self.epoch_lr):g}; lower the "
            "learning rate, or use precision='fp32'"
            + (f"; the last checkpoint is {saved}" if saved is not None else "")
        )

    def _to_device(self, batch: Batch) -> Batch:
        images, targets = check_batch(batch)
        return self._images_moved(images), self._moved(targets)

    def _images_moved(self, images: Tensor) -> Tensor:
        self._given = images.dtype
        return self._moved(
            images, self.memory_format if images.ndim == 4 else torch.preserve_format
        )

    def _moved(self, tensor: Tensor, layout: torch.memory_format = torch.preserve_format) -> Tensor:
        # Only towards CUDA is it safe not to wait: work there is ordered behind the copy.
        waits = self.device.type != "cuda"
        return tensor.to(self.device, non_blocking=not waits, memory_format=layout)

    def _call(self, event: str) -> None:
        for callback in self.callbacks:
            getattr(callback, event)(self)


def _if_any(name: str, accuracy: float) -> dict[str, float]:
    """The accuracy as an entry of a row, and no entry where targets are no classes."""
    return {} if math.isnan(accuracy) else {name: accuracy}
