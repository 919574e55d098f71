"""The sums of an epoch, kept on the device until they are asked for."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from fasttricks.engine._distributed import sum_over_processes
from fasttricks.engine._inputs import check_metrics

# What the history has without any metric, but for the names that begin with val_.
COLUMNS = (
    *("epoch", "step", "lr", "loss", "accuracy", "images_per_second", "train_seconds"),
    *("skipped_steps", "eval_seconds"),
)

Metric = Callable[[Tensor, Tensor], Tensor]

# torch's losses ignore this label unless they are told another.
_IGNORED_BY_DEFAULT = -100


def check_names(metrics: Mapping[str, object]) -> None:
    """Raise if a metric is no function, or has the name of a column of the history's own."""
    check_metrics(metrics)
    for name in metrics:
        if name in COLUMNS or name.startswith("val_"):
            raise ValueError(
                f"names of metrics must not be those of the history's own columns, got {name!r}"
            )


def holds_labels(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets are classes, integers [N, ...] to outputs [N, K, ...] with K of 2 or more."""
    if targets.is_floating_point() or targets.dtype == torch.bool or outputs.ndim < 2:
        return False
    count, classes, *place = outputs.shape
    return classes > 1 and [count, *place] == [*targets.shape]


def holds_soft_labels(outputs: Tensor, targets: Tensor) -> bool:
    """Whether targets [N, K] are distributions over K classes; waits for the device."""
    if not _may_be_soft(outputs, targets):
        return False
    sums = targets.float().sum(1)  # of bf16's numbers, which are good to a part in 256
    return bool((targets >= 0).all() & ((sums - 1).abs() < 0.01).all())


def count_hits(outputs: Tensor, labels: Tensor, ignored: int | None) -> tuple[Tensor, Tensor | int]:
    """Return how many outputs have their maximum at the label, and how many labels count.

    Outputs with a NaN, which argmax would take for the maximum, are no hits.

    Args:
        outputs: [N, K, ...].
        labels: Integers [N, ...].
        ignored: The label that the loss leaves out, if there is one.
    """
    maximum, place = outputs.max(1)
    hits = (place == labels) & ~maximum.isnan()
    if ignored is None:
        return hits.sum(), labels.numel()
    counts = labels != ignored
    return (hits & counts).sum(), counts.sum()


def _may_be_soft(outputs: Tensor, targets: Tensor) -> bool:
    return (
        targets.is_floating_point()
        and targets.ndim == 2
        and targets.shape == outputs.shape
        and targets.shape[1] > 1
    )


class Totals:
    """Loss, accuracy and metrics, summed over the images so far.

    Args:
        device: Where the sums are kept.
        metrics: Functions of (outputs, targets) that return a mean over the images.
        ignored: The label that the loss leaves out, if there is one; it is not counted, but for
            images labelled -100, torch's default, which count as missed.
    """

    def __init__(
        self,
        device: torch.device,
        metrics: Mapping[str, Metric] | None = None,
        *,
        ignored: int | None = None,
    ) -> None:
        self.images = 0
        self.seconds = 0.0
        self._metric_functions = dict(metrics or {})
        self._loss = torch.zeros((), device=device)
        self._correct = torch.zeros((), device=device, dtype=torch.int64)
        self._labels: Tensor | int = 0
        self._ignored = ignored
        self._soft: bool | None = None
        self._metrics = {name: torch.zeros((), device=device) for name in self._metric_functions}

    def add(self, loss: Tensor, outputs: Tensor, targets: Tensor) -> None:
        """Count a batch: its mean loss, and how many outputs have their maximum at the target.

        Targets are labels [N, ...] or soft labels [N, num_classes], which count by their largest
        class; of others, those of a regression or with several classes an image, none counts.
        """
        for name, metric in self._metric_functions.items():
            value = metric(outputs.float(), targets)
            value = value.reshape(()) if isinstance(value, Tensor) and value.ndim else value
            self._metrics[name] += value * len(targets)
        self.images += len(targets)
        self._loss += loss * len(targets)
        if self._are_soft(outputs, targets):
            targets = targets.argmax(1)
        if holds_labels(outputs, targets):
            # An image without a label is rare, and looking for one costs every update a little.
            usual = targets.ndim == 1 and self._ignored == _IGNORED_BY_DEFAULT
            hits, labels = count_hits(outputs, targets, None if usual else self._ignored)
            self._correct += hits
            self._labels += labels

    def _are_soft(self, outputs: Tensor, targets: Tensor) -> bool:
        if not _may_be_soft(outputs, targets):
            return False
        # Looking at the numbers makes the host wait for a GPU: the first batch stands for all.
        if self._soft is None:
            self._soft = holds_soft_labels(outputs, targets)
        return self._soft

    def add_fault(self, loss: Tensor) -> None:
        """Let a loss that is not finite, of any process, show in this one's mean as well."""
        self._loss += loss * 0

    def reduce(self) -> None:
        """Replace the sums by those of all processes."""
        images = torch.tensor(self.images, device=self._loss.device)
        labels = torch.as_tensor(self._labels, device=self._loss.device)
        sums = [images, self._loss, self._correct, labels, *self._metrics.values()]
        images, self._loss, self._correct, self._labels, *rest = sum_over_processes(sums)
        self.images = int(images)
        self._metrics = dict(zip(self._metrics, rest, strict=True))

    @property
    def loss(self) -> float:
        """Mean loss over the images so far."""
        return self._loss.item() / max(self.images, 1)

    @property
    def accuracy(self) -> float:
        """Share of labels so far at which the output was largest; NaN if there were none."""
        labels = int(self._labels)
        return self._correct.item() / labels if labels else math.nan

    @property
    def metrics(self) -> dict[str, float]:
        """Mean of each metric over the images so far."""
        return {name: value.item() / max(self.images, 1) for name, value in self._metrics.items()}
