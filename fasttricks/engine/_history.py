"""What a training run recorded: one row an epoch."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from fasttricks.engine._files import replacing, without_nonfinite, write_json
from fasttricks.engine._goal import check_target, is_reached, resolve_mode

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Value = int | float


class History:
    """The rows that ``Trainer.fit`` recorded, one an epoch, in order.

    A row maps a name to a number: ``epoch`` (1 for the first), ``step`` (updates so far), ``lr``
    (the rate that the epoch's last update used), ``loss`` and ``accuracy`` (means over the epoch's
    training images), ``images_per_second``, ``train_seconds`` (so far, evaluation left out), and
    with validation ``val_loss``, ``val_accuracy`` and ``eval_seconds``; each of the trainer's
    ``metrics`` by its name, with ``val_`` before it for the validation; in fp16, and where
    ``nonfinite="skip"``, ``skipped_steps`` (updates left out so far). Accuracies are between 0 and
    1, and there are none where the targets are no classes.

    Example:
        >>> history = History()
        >>> history.append({"epoch": 1, "loss": 2.3})
        >>> history["loss"]
        [2.3]
    """

    def __init__(self) -> None:
        self.rows: list[dict[str, Value]] = []

    def append(self, row: Mapping[str, Value]) -> None:
        """Add the row of an epoch."""
        self.rows.append(dict(row))

    def __repr__(self) -> str:
        return f"History({len(self)} epochs: {', '.join(self.columns)})"

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[dict[str, Value]]:
        return iter(self.rows)

    def __getitem__(self, name: str) -> list[Value | None]:
        """Return a column: one value an epoch, ``None`` where an epoch has none.

        Raises:
            KeyError: If no row has this name.
        """
        if name not in self.columns:
            raise KeyError(f"history has no column {name!r}; it has {', '.join(self.columns)}")
        return [row.get(name) for row in self.rows]

    @property
    def columns(self) -> list[str]:
        """The names that occur, in order of first appearance."""
        return list(dict.fromkeys(name for row in self.rows for name in row))

    def first(
        self, target: float, *, metric: str = "val_accuracy", mode: str | None = None
    ) -> dict[str, Value] | None:
        """Return the row of the first epoch in which a figure reached a target, None if it did not.

        Its ``train_seconds`` are DAWNBench's time to accuracy, evaluation left out.

        Args:
            target: The figure to reach, such as 0.94.
            metric: The column that is compared, "val_accuracy" by default.
            mode: "max" if higher is better, "min" if lower is; by default "min" for a column whose
                name ends in "loss", else "max".

        Raises:
            KeyError: If no row has this column.
            ValueError: If ``mode`` is unknown, or the target no value of the metric.

        Example:
            >>> history = History()
            >>> history.append({"epoch": 1, "train_seconds": 20.0, "val_accuracy": 0.91})
            >>> history.append({"epoch": 2, "train_seconds": 41.0, "val_accuracy": 0.942})
            >>> history.first(0.94)["train_seconds"]
            41.0
        """
        check_target(target, metric)
        mode = resolve_mode(metric, mode)
        for row, value in zip(self.rows, self[metric], strict=True):
            if value is not None and is_reached(value, target, mode):
                return row
        return None

    def to_csv(self, path: Path | str) -> None:
        """Write one line an epoch under a line of names; an empty field where there is no value."""
        with (
            replacing(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            writer = csv.DictWriter(file, self.columns, restval="")
            writer.writeheader()
            writer.writerows(self.rows)

    def to_json(self, path: Path | str) -> None:
        """Write the rows as a JSON list of objects; NaN and infinities become null."""
        write_json(path, without_nonfinite(self.rows))

    def to_pandas(self) -> Any:
        """Return a pandas ``DataFrame``, one row an epoch, NaN where there is no value.

        Raises:
            ImportError: If pandas is not installed.
        """
        try:
            from pandas import DataFrame
        except ImportError as error:
            raise ImportError("to_pandas needs pandas; pip install pandas") from error
        return DataFrame(self.rows, columns=self.columns)

    def plot(self, *, x: str = "step") -> Figure:
        """Draw loss, accuracy if any, and learning rate against "step", "epoch" or "train_seconds".

        See ``fasttricks.plots.plot_history``; needs matplotlib.
        """
        from fasttricks.plots import plot_history

        return plot_history(self, x=x)


def keep_numbers(row: dict[str, Any], callback: object) -> None:
    """Turn what a callback added to a row into numbers; raise if it is none.

    Raises:
        TypeError: If it is no number, nor a tensor or an array of one.
    """
    for name, value in list(row.items()):
        if type(value) in (int, float):
            continue
        if isinstance(value, int | float) or getattr(value, "size", None) == 1:
            row[name] = float(value)
            continue
        if isinstance(value, Tensor) and value.numel() == 1:
            row[name] = value.item()
            continue
        del row[name]
        raise TypeError(
            f"{type(callback).__name__} must add numbers to the row of an epoch, got "
            f"{name}={value!r}"
        )
