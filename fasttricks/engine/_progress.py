"""What a person sees of a run: a live line on a terminal, and a line of text for each epoch."""

from __future__ import annotations

import importlib.util
import math
import sys
import time
from typing import TYPE_CHECKING, Any, TextIO

from typing_extensions import override

from fasttricks.engine._callbacks import Callback

if TYPE_CHECKING:
    from fasttricks.engine._history import Value
    from fasttricks.engine._trainer import Trainer

_REFRESH_SECONDS = 0.25


class Progress(Callback):
    """Show epoch, step, loss, accuracy (of classes), images per second and the time left.

    On a terminal with rich installed, a bar shows the current epoch while it runs; anywhere else
    nothing but one line an epoch is written.

    Args:
        stream: Where to write; standard output by default.
    """

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream
        self._bar: Any = None
        self._start = self._epoch_start = self._refreshed = 0.0
        self._done_before = 0

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Start the clock, and the bar where there is a terminal."""
        self._start, self._done_before = time.perf_counter(), trainer.batches_done
        stream = self._stream or sys.stdout
        if stream.isatty() and importlib.util.find_spec("rich"):
            from rich.console import Console
            from rich.progress import BarColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[text]}"),
            )
            self._bar = Bar(*columns, console=Console(file=stream), transient=True)
            self._bar.add_task("training", total=trainer.total_steps, text="")
            self._bar.start()

    @override
    def on_epoch_start(self, trainer: Trainer) -> None:
        """Start the epoch's clock."""
        self._epoch_start = time.perf_counter()

    @override
    def on_step_end(self, trainer: Trainer) -> None:
        """Refresh the bar a few times a second."""
        now = time.perf_counter()
        if self._bar is None or now - self._refreshed < _REFRESH_SECONDS:
            return
        self._refreshed = now
        done, totals = trainer.batches_done, trainer.totals
        accuracy = totals.accuracy
        text = (
            f"step {done}/{trainer.total_steps}  loss {totals.loss:.4f}  "
            f"{'' if math.isnan(accuracy) else f'acc {accuracy:.1%}  '}"
            f"{totals.images / (now - self._epoch_start):,.0f} images/s  left {self._left(trainer)}"
        )
        self._bar.update(
            0, completed=done, description=f"epoch {trainer.epoch}/{trainer.epochs:g}", text=text
        )

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Write the epoch's line."""
        parts = [
            f"epoch {min(trainer.epoch, trainer.epochs):>4g}/{trainer.epochs:g}",
            f"step {trainer.batches_done}/{trainer.total_steps}",
            f"loss {row['loss']:.4f}",
        ]
        if "accuracy" in row:
            parts += [f"acc {row['accuracy']:.1%}"]
        if "val_accuracy" in row:
            parts += [f"val acc {row['val_accuracy']:.2%}"]
        elif "val_loss" in row:
            parts += [f"val loss {row['val_loss']:.4f}"]
        parts += [
            f"{row['images_per_second']:,.0f} images/s",
            f"{row['train_seconds']:.1f} s",
            f"left {self._left(trainer)}",
        ]
        self._write("  ".join(parts))

    @override
    def on_fit_end(self, trainer: Trainer) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _left(self, trainer: Trainer) -> str:
        elapsed = time.perf_counter() - self._start
        speed = (trainer.batches_done - self._done_before) / elapsed  # of a resumed run, its own
        return format_seconds((trainer.total_steps - trainer.batches_done) / speed)

    def _write(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(line, highlight=False, soft_wrap=True)
        else:
            (self._stream or sys.stdout).write(line + "\n")
            (self._stream or sys.stdout).flush()


def format_seconds(seconds: float) -> str:
    """Write a duration as ``m:ss`` or ``h:mm:ss``.

    Example:
        >>> format_seconds(75), format_seconds(3700)
        ('1:15', '1:01:40')
    """
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
