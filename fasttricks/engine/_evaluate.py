"""Predictions and accuracy, plain or averaged over views of each image (test-time augmentation).

Shapes: images [N, C, H, W], logits [N, num_classes], targets [N].
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttricks._checks import check_choice
from fasttricks.engine._distributed import collect
from fasttricks.engine._precision import Precision
from fasttricks.engine._totals import Metric

TTA = ("none", "mirror", "translate", "mirror_translate")


@dataclass(frozen=True)
class Evaluation:
    """What ``evaluate`` measured.

    Attributes:
        accuracy: Share of images whose largest logit is their class, 0 to 1.
        loss: Mean cross-entropy, without label smoothing.
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
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    tta: str = "none",
    precision: Precision | str = "fp32",
    dealt: bool = False,
) -> Tensor:
    """Return the logits of every image, in order, with the model in evaluation mode.

    Args:
        model: Maps float images [N, C, H, W] to logits [N, num_classes]. Its training flags are
            put back afterwards.
        batches: Iterable of (images, targets), on the model's device.
        tta: Views that are averaged: "none" (default), the image alone; "mirror", with its mirror
            image; "translate", with two copies moved one pixel diagonally, which count half;
            "mirror_translate", the six views of both.
        precision: How to compute, a ``Precision`` or its name; "fp32" by default.
        dealt: The batches are every n-th of those that n processes share; the result is that of
            all. Off by default.

    Returns:
        Logits [N, num_classes] in fp32.

    Raises:
        ValueError: If ``tta`` is unknown or ``batches`` is empty.

    Reference:
        Views and weights as in airbench (Jordan 2024, arXiv 2404.00498, section 3.5).
    """
    return _predict(model, batches, tta, precision, dealt)[0]


def evaluate(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    *,
    tta: str = "none",
    precision: Precision | str = "fp32",
    metrics: Mapping[str, Metric] | None = None,
    dealt: bool = False,
) -> Evaluation:
    """Measure accuracy and loss over all images; the arguments are those of ``predict``.

    ``metrics`` are functions by name of all logits and targets, each of which returns a number.
    """
    start = time.perf_counter()
    logits, targets = _predict(model, batches, tta, precision, dealt)
    accuracy = (logits.argmax(1) == targets).sum().item() / len(targets)
    loss = F.cross_entropy(logits, targets).item()
    figures = {name: float(metric(logits, targets)) for name, metric in (metrics or {}).items()}
    return Evaluation(accuracy, loss, len(targets), time.perf_counter() - start, figures)


def _predict(
    model: nn.Module,
    batches: Iterable[tuple[Tensor, Tensor]],
    tta: str,
    precision: Precision | str,
    dealt: bool,
) -> tuple[Tensor, Tensor]:
    """Logits and targets of all batches."""
    check_choice("tta", tta, TTA)
    if isinstance(precision, str):
        precision = Precision(precision, device=_device_of(model))
    logits, targets = [], []
    # no_grad and not inference_mode, whose tensors cannot enter a later CUDA graph.
    with _evaluation_mode(model), torch.no_grad():
        for images, labels in batches:
            with precision.forward_context():
                logits.append(_averaged_logits(model, images, tta))
            targets.append(labels)
    if dealt:
        logits, targets = collect(logits), collect(targets)
    if not logits:
        raise ValueError("batches must hold at least one batch, got none")
    return torch.cat(logits), torch.cat(targets)


def _averaged_logits(model: nn.Module, images: Tensor, tta: str) -> Tensor:
    views = [(images, 0.5)]
    if tta in ("translate", "mirror_translate"):
        padded = F.pad(images, (1, 1, 1, 1), "reflect")
        views += [(padded[..., :-2, :-2], 0.25), (padded[..., 2:, 2:], 0.25)]
    if tta in ("mirror", "mirror_translate"):
        views += [(view.flip(-1), weight) for view, weight in views]
    total = sum(weight for _, weight in views)
    logits = [model(view).float() * (weight / total) for view, weight in views]
    return torch.stack(logits).sum(0)


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


def _device_of(model: nn.Module) -> torch.device:
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
