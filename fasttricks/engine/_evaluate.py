"""Predictions and their loss, plain or averaged over views of each image (test-time augmentation).

Shapes: images [N, C, H, W], outputs and targets as the loss takes them, for classes usually logits
[N, num_classes] and targets [N].
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttricks._checks import check_choice, check_fraction
from fasttricks.engine._batch_loss import without_smoothing
from fasttricks.engine._device import device_of
from fasttricks.engine._distributed import collect, world_size
from fasttricks.engine._inputs import (
    check_batch,
    check_batches,
    check_loss,
    check_mean,
    check_outputs,
    inputs_of,
)
from fasttricks.engine._precision import Precision, as_precision
from fasttricks.engine._random import epoch_kept
from fasttricks.engine._totals import Metric, count_hits, holds_labels, holds_soft_labels

TTA = ("none", "mirror", "translate", "mirror_translate")


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` measured.

    Attributes:
        accuracy: Share of labels, one an image or one a pixel, at which the logit is largest, 0 to
            1; soft labels count by their largest class. NaN where targets are no classes.
        loss: Mean loss over all images, a cross-entropy without its label smoothing; of a loss
            with ``reduction="sum"`` the sum divided by the number of images.
        num_images: How many images there were.
        seconds: Time taken.
        metrics: Other figures by name.
    """

    accuracy: float
    loss: float
    num_images: int
    seconds: float
    metrics: Mapping[str, float] = field(default_factory=dict)


def predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor] | Tensor],
    *,
    tta: str = "none",
    tta_share: float = 1.0,
    precision: Precision | str = "fp32",
    dealt: bool = False,
) -> Tensor:
    """Return the logits of every image, in order, with the model in evaluation mode.

    Args:
        model: Maps float images [N, C, H, W] to logits [N, num_classes]. Its training flags are
            put back afterwards.
        batches: Iterable of images, or of (images, targets) as for training, on the model's device.
            A ``DeviceLoader`` stays at its epoch.
        tta: Views that are averaged: "none" (default), the image alone; "mirror", with its mirror
            image; "translate", with two copies moved one pixel diagonally, which count half;
            "mirror_translate", the six views of both. Of one result a pixel, logits
            [N, K, h, w], each view's are turned and moved back first.
        tta_share: Share of each batch's images, 0 to 1, rounded up, that are seen in more than one
            view: those whose largest probability is lowest. All by default.
        precision: How to compute, a ``Precision`` or its name; "fp32" by default.
        dealt: Whether ``batches`` are this process's share of them, every n-th of n processes: then
            the results are gathered, and each process returns those of all. Off by default.

    Returns:
        Logits [N, num_classes] in fp32.

    Raises:
        ValueError: If ``tta`` is unknown, ``tta_share`` not between 0 and 1 or below 1 for outputs
            without classes, or ``batches`` is empty.
        TypeError: If the batches are neither tensors nor pairs of them, or the model returns no
            tensor.

    Reference:
        Views and weights as in airbench (Jordan 2024, arXiv 2404.00498, section 3.5), and fewer
        images in all of them as in Hiverge's recipe (2025).
    """
    views, precision = _Views(tta, tta_share), as_precision(precision, device_of(model))
    check_batches(batches)
    logits = []
    # no_grad and not inference_mode, whose tensors cannot enter a later CUDA graph.
    with _evaluation_mode(model), torch.no_grad(), epoch_kept(batches):
        for images in map(inputs_of, batches):
            with precision.forward_context():
                logits.append(views.average(model, images))
    return _joined(logits, dealt)


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    tta: str = "none",
    tta_share: float = 1.0,
    precision: Precision | str = "fp32",
    loss: Callable[[Tensor, Tensor], Tensor] | None = None,
    metrics: Mapping[str, Metric] | None = None,
    dealt: bool = False,
) -> Evaluation:
    """Measure loss and accuracy over all images; the other arguments are those of ``predict``.

    Args:
        model: As for ``predict``.
        batches: Iterable of (images, targets), on the model's device.
        tta: As for ``predict``.
        tta_share: As for ``predict``.
        precision: As for ``predict``.
        loss: Maps all outputs and targets to their mean loss; cross-entropy by default. An
            ``nn.CrossEntropyLoss`` is taken without its label smoothing, a trick of training.
        metrics: Functions by name of all outputs and targets, each of which returns a number.
        dealt: As for ``predict``.

    Returns:
        The ``Evaluation``. Its accuracy is counted for integer labels [N, ...] with outputs
        [N, K, ...], of which a label that the loss ignores is left out, and for soft labels [N, K]
        whose rows are distributions; K is at least 2. It is NaN for all others.

    Raises:
        ValueError: As for ``predict``, or if the loss is not one number.
        TypeError: If the batches are no pairs of tensors, the model returns no tensor, or the
            loss is no function.
    """
    start = time.perf_counter()
    if loss is not None:
        check_loss(loss)
    labels = []

    def images_of_all() -> Iterator[Tensor]:
        for images, targets in map(check_batch, batches):
            labels.append(targets)
            yield images

    with epoch_kept(batches):
        logits = predict(
            model, images_of_all(), tta=tta, tta_share=tta_share, precision=precision, dealt=dealt
        )
    targets = _joined(labels, dealt)
    loss = without_smoothing(nn.CrossEntropyLoss() if loss is None else loss)
    # What was gathered from other processes lies on the CPU, and a loss may hold tensors.
    device = device_of(model) if dealt and world_size() > 1 else logits.device
    mode = _evaluation_mode(loss) if isinstance(loss, nn.Module) else nullcontext()
    with mode, torch.no_grad():
        logits, targets = logits.to(device), targets.to(device)
        mean = check_mean(loss(logits, targets)).item()
    if getattr(loss, "reduction", "mean") == "sum":
        mean /= len(targets)
    accuracy = _accuracy(logits, targets, getattr(loss, "ignore_index", None))
    figures = {name: float(metric(logits, targets)) for name, metric in (metrics or {}).items()}
    return Evaluation(accuracy, mean, len(targets), time.perf_counter() - start, figures)


def _accuracy(outputs: Tensor, targets: Tensor, ignored: int | None) -> float:
    if holds_soft_labels(outputs, targets):
        targets = targets.argmax(1)
    if not holds_labels(outputs, targets):
        return math.nan
    hits, labels = count_hits(outputs, targets, ignored)
    return hits.item() / int(labels) if int(labels) else math.nan


def _joined(tensors: list[Tensor], dealt: bool) -> Tensor:
    """Return what there is of all batches, of all processes if they were dealt out, in order."""
    if dealt:
        tensors = collect(tensors)
    if not tensors:
        raise ValueError("batches must hold at least one batch, got none")
    return torch.cat(tensors)


@dataclass(frozen=True)
class _View:
    """Images as they are seen, their weight, and how they came about."""

    images: Tensor
    weight: float
    moved: int = 0  # by so many pixels, down and to the right
    mirrored: bool = False  # after that

    def back(self, logits: Tensor, size: tuple[int, ...]) -> Tensor:
        """Return maps [N, K, h, w] where those of the images themselves lie; other outputs as is.

        ``size`` is that of the images, of which a map is a scaled or a cropped one. It is moved by
        whole pixels of its own: those of half an image's size and less stay.
        """
        if logits.ndim != 4 or not _is_map(tuple(logits.shape[2:]), size):
            return logits
        if self.mirrored:
            logits = logits.flip(-1)
        down, right = (
            round(side / full) for side, full in zip(logits.shape[2:], size, strict=True)
        )
        if self.moved and min(down, right) > 0:
            padded = F.pad(logits, (right, right, down, down), "replicate")
            if self.moved > 0:
                return padded[..., 2 * down :, 2 * right :]
            return padded[..., : -2 * down, : -2 * right]
        return logits


def _is_map(size: tuple[int, ...], of: tuple[int, ...]) -> bool:
    """Whether one size is that of the other scaled, or with as much cut off on all sides."""
    (h, w), (height, width) = size, of
    scaled = abs(h * width - w * height) <= max(height, width)
    return scaled or abs((height - h) - (width - w)) <= 1


@dataclass(frozen=True)
class _Views:
    """What an image is seen as, and the share of a batch that is seen as more than itself."""

    tta: str
    share: float

    def __post_init__(self) -> None:
        check_choice("tta", self.tta, TTA)
        check_fraction("tta_share", self.share)

    def average(self, model: nn.Module, images: Tensor) -> Tensor:
        """Return a batch's logits, each the mean over the image's views."""
        plain = check_outputs(model(images)).float()
        if self.share == 1 or self.tta == "none":
            return self._mean(model, images, plain)
        chosen = self._least_certain(plain)
        if not len(chosen):
            return plain
        return plain.index_copy(0, chosen, self._mean(model, images[chosen], plain[chosen]))

    def _mean(self, model: nn.Module, images: Tensor, plain: Tensor) -> Tensor:
        """Return the mean over all views, of which ``plain`` are the logits of the first."""
        first, *others = views = self._of(images)
        total = sum(view.weight for view in views)
        logits = [
            view.back(model(view.images).float(), tuple(images.shape[2:])) * (view.weight / total)
            for view in others
        ]
        return torch.stack([plain * (first.weight / total), *logits]).sum(0)

    def _of(self, images: Tensor) -> list[_View]:
        """Return the views, the images themselves first."""
        views = [_View(images, 0.5)]
        if self.tta in ("translate", "mirror_translate"):
            padded = F.pad(images, (1, 1, 1, 1), "reflect")
            views.append(_View(padded[..., :-2, :-2], 0.25, moved=1))
            views.append(_View(padded[..., 2:, 2:], 0.25, moved=-1))
        if self.tta in ("mirror", "mirror_translate"):
            views += [replace(v, images=v.images.flip(-1), mirrored=True) for v in views]
        return views

    def _least_certain(self, logits: Tensor) -> Tensor:
        """Return the indices of the images that get all views."""
        if logits.ndim < 2 or logits.shape[1] < 2:
            raise ValueError(
                f"tta_share must be 1 for outputs without classes, got tta_share={self.share} and "
                f"outputs of shape {list(logits.shape)}"
            )
        certainty = logits.softmax(1).amax(1)
        if certainty.ndim > 1:
            certainty = certainty.flatten(1).mean(1)
        count = math.ceil(self.share * len(logits) - 1e-9)  # 0.7 of 10 is 7, whatever floats say
        return certainty.topk(count, largest=False).indices


def start_training(model: nn.Module) -> None:
    """Put a model into training mode, unless it is there: parts that were frozen in it stay so."""
    if not model.training:
        model.train()


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    # Each module's own flag is kept: a frozen part may be in evaluation mode on purpose.
    training = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, flag in training.items():
            module.training = flag
