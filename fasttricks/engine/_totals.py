"""The sums of an epoch, kept on the device until they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fasttricks.engine._distributed import sum_over_processes

# What the history has without any metric, but for the names that begin with val_.
COLUMNS = (
    *("epoch", "step", "lr", "loss", "accuracy", "images_per_second", "train_seconds"),
    *("skipped_steps", "eval_seconds"),
)

Metric = Callable[[Tensor, Tensor], Tensor]


def check_names(metrics: Mapping[str, object]) -> None:
    """Raise if a metric has the name of a column that the history has anyway."""
    for name in metrics:
        if name in COLUMNS or name.startswith("val_"):
            raise ValueError(
                f"names of metrics must not be those of the history's own columns, got {name!r}"
            )


class Totals:
    """Loss, accuracy and metrics, summed over the images so far.

    Args:
        device: Where the sums are kept.
        metrics: Functions of (outputs, targets) that return a mean over the images.
    """

    def __init__(self, device: torch.device, metrics: Mapping[str, Metric] | None = None) -> None:
        self.images = 0
        self.seconds = 0.0
        self._metric_functions = dict(metrics or {})
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)
        self._metrics = {name: torch.zeros((), device=device) for name in self._metric_functions}

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss, and how many outputs have their maximum at the target.

        Soft targets [N, num_classes] count by their largest class.
        """
        for name, metric in self._metric_functions.items():
            self._metrics[name] += metric(outputs.float(), targets) * len(targets)
        if targets.ndim > 1:
            targets = targets.argmax(1)
        self.images += len(targets)
        self._loss += loss * len(targets)
        self._correct += (outputs.argmax(1) == targets).sum()

    def add_fault(self, loss: Tensor) -> None:
        """Let a loss that is not finite, of any process, show in this one's mean as well."""
        self._loss += loss * 0

    def reduce(self) -> None:
        """Replace the sums by those of all processes."""
        images = torch.tensor(self.images, device=self._loss.device)
        sums = [images, self._loss, self._correct, *self._metrics.values()]
        images, self._loss, self._correct, *rest = sum_over_processes(sums)
        self.images = int(images)
        self._metrics = dict(zip(self._metrics, rest, strict=True))

    @property
    def loss(self) -> float:
        """Mean loss over the images so far."""
        return self._loss.item() / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Share of images so far whose largest output was their class."""
        return self._correct.item() / max(self.images, 1)

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the images so far."""
        return {name: value.item() / max(self.images, 1) for name, value in self._metrics.items()}
