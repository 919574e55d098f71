"""Loggers: callbacks that write each epoch's row where other programs read it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from typing_extensions import override

from fasttricks.engine._callbacks import Callback
from fasttricks.engine._files import make_folder, without_nonfinite

if TYPE_CHECKING:
    from fasttricks.engine._history import Value
    from fasttricks.engine._trainer import Trainer


class JSONLines(Callback):
    r"""Append each epoch's row to a file, one JSON object a line, as soon as the epoch is done.

    The file only ever grows: a run that is resumed goes on below its earlier lines, and epochs that
    it repeats stand there twice; the last line of an epoch counts. NaN and infinities, which JSON
    lacks, become null.

    Args:
        path: The file; it and its folder are made if they are missing.

    Raises:
        ValueError: If it is a folder; when a fit starts, if its folder cannot be made.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     log = JSONLines(f"{folder}/log.jsonl")
        ...     log.write({"epoch": 1, "loss": float("nan")})
        ...     Path(f"{folder}/log.jsonl").read_text()
        '{"epoch": 1, "loss": null}\n'
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.is_dir():
            raise ValueError(f"path must be a file, got the folder {self.path}")

    def write(self, row: dict[str, Value]) -> None:
        """Append a row."""
        line = json.dumps(without_nonfinite(row), allow_nan=False) + "\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # Closed each time: what is written is out of this process, and nothing stays open.
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                # A line that a crash cut off must not swallow this one.
                line = line if file.read(1) == b"\n" else "\n" + line
            file.write(line.encode())

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Make the folder, or refuse what could not be written."""
        if not self.path.exists():
            make_folder(self.path.parent, name="path")
        elif not os.access(self.path, os.W_OK):
            raise ValueError(f"path must be a file that can be written to, got {self.path}")

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Append the epoch's row."""
        self.write(row)


class TensorBoard(Callback):
    """Write each epoch's figures for TensorBoard, against the number of updates.

    Args:
        folder: The log folder, as for ``tensorboard --logdir``.

    Raises:
        ImportError: If tensorboard is not installed.
    """

    def __init__(self, folder: Path | str) -> None:
        _summary_writer()  # a missing package shows now, not after an hour
        self.folder = Path(folder)
        self._writer: Any = None

    @override
    def on_fit_start(self, trainer: Trainer) -> None:
        """Open the log; what lies beyond a resumed run's place is hidden."""
        past = trainer.step_count
        purge = past + 1 if past else None
        self._writer = _summary_writer()(str(self.folder), purge_step=purge)

    @override
    def on_epoch_end(self, trainer: Trainer, row: dict[str, Value]) -> None:
        """Write the epoch's figures."""
        for name, value in row.items():
            if name not in ("epoch", "step"):
                self._writer.add_scalar(name, value, row["step"])
        self._writer.flush()

    @override
    def on_fit_end(self, trainer: Trainer) -> None:
        """Close the log."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise ImportError("TensorBoard needs tensorboard; pip install tensorboard") from error
    return SummaryWriter
