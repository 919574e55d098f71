"""Pictures. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttricks._axes import new_axes
from fasttricks._checks import check_choice, check_integer
from fasttricks.transforms import Draws, Mix, Pipeline, Transform
from fasttricks.transforms._draws import MIX_STREAM

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fasttricks.data import ImageSet
    from fasttricks.engine import History
    from fasttricks.lr_range_test import RangeTest

__all__ = ["plot_history", "plot_range_test", "preview_augmentation"]


# The columns that a run can be drawn against, and what stands under the picture.
_PROGRESS = {"step": "update", "epoch": "epoch", "train_seconds": "seconds of training"}


def plot_history(history: History, *, x: str = "step") -> Figure:
    """Draw a run's loss, accuracy and learning rate against its progress, side by side.

    A history without an accuracy, whose targets were no classes, has no panel for it.

    Args:
        history: At least one row.
        x: What to draw against: "step" (updates, the default), "epoch" or "train_seconds".

    Returns:
        A matplotlib figure that belongs to no window: show it in a notebook, or save it.

    Raises:
        ValueError: If the history is empty or ``x`` is none of these.
        ImportError: If matplotlib is not installed.
    """
    check_choice("x", x, _PROGRESS)
    if not len(history):
        raise ValueError("history must hold at least one epoch, got an empty one; call fit first")
    figures = [("loss", "loss", 1)]
    if {"accuracy", "val_accuracy"} & set(history.columns):
        figures.append(("accuracy", "accuracy (%)", 100))
    figure = _new_figure(figsize=(11 * (len(figures) + 1) / 3, 3.4))
    *panels, rates = figure.subplots(1, len(figures) + 1)
    places = history[x]
    for panel, (name, title, scale) in zip(panels, figures, strict=True):
        # The training loss is the one that is minimised, label smoothing and all.
        training = "training objective" if name == "loss" else "training"
        for column, label in ((name, training), (f"val_{name}", "validation")):
            if column in history.columns:
                values = [None if value is None else scale * value for value in history[column]]
                panel.plot(places, values, marker="o", markersize=3, label=label)
        panel.legend(frameon=False)
        panel.set(title=title)
    rates.plot(places, history["lr"], color="tab:green", marker="o", markersize=3)
    rates.set(title="learning rate")
    for panel in figure.axes:
        panel.set(xlabel=_PROGRESS[x])
        panel.grid(alpha=0.3)
    return figure


def plot_range_test(result: RangeTest, *, ax: Axes | None = None) -> Axes:
    """Draw a range test: the losses, raw and smoothed, against the rate, and what is suggested.

    Args:
        result: What ``lr_range_test`` returned.
        ax: Axes to draw on; those of a new figure of pyplot by default.

    Returns:
        The axes; ``.figure.savefig(...)`` keeps the picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if ax is None:
        ax = new_axes(figsize=(6, 4), layout="constrained")
    ax.plot(result.rates, result.losses, color="0.75", linewidth=1, label="loss")
    ax.plot(result.rates, result.smoothed, color="tab:blue", label="smoothed")
    ax.axvline(
        result.base_lr, color="tab:green", linestyle="--", label=f"base_lr {result.base_lr:.3g}"
    )
    ax.axvline(result.max_lr, color="tab:red", linestyle="--", label=f"max_lr {result.max_lr:.3g}")
    ax.axvspan(result.base_lr, result.max_lr, color="tab:green", alpha=0.08)
    # A diverged end would press the rest of the curve flat, so it is as high as the loss began, or
    # as its usual values where training began near its lowest.
    low, usual = min(result.smoothed), max(result.losses[0], median(result.losses))
    height = max(usual - low, 1e-6)
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    ax.set_ylim(low - 0.1 * height, low + 1.5 * height)
    ax.legend(frameon=False)
    return ax


def preview_augmentation(
    image_set: ImageSet,
    transforms: Sequence[Transform[Any]],
    *,
    mix: Mix | None = None,
    count: int = 8,
    epochs: int = 1,
    seed: int = 0,
) -> Figure:
    """Draw a grid: some images as they are, and a row after each piece of the augmentation.

    The numbers are those that a ``DeviceLoader`` with this seed draws, but for a mix's partners.
    Rows of floating images, as after ``Normalize``, are scaled to the range of the row.

    Args:
        image_set: The images; the first of each class come first.
        transforms: The pieces, as for ``DeviceLoader``.
        mix: A ``Mixup`` or ``CutMix`` for one more row; partners are any of the images drawn.
        count: How many images, at least 1.
        epochs: Repeat the rows for so many epochs, at least 1.
        seed: Of the draws.

    Returns:
        A matplotlib figure that belongs to no window: show it in a notebook, or save it.

    Raises:
        ValueError: If a number is out of its range.
        ImportError: If matplotlib is not installed.
    """
    check_integer("count", count, minimum=1)
    check_integer("epochs", epochs, minimum=1)
    chosen = _some_of_each_class(image_set.labels, count)
    images = image_set.images[chosen]
    rows = [("as they are", images)]
    pieces = Pipeline(transforms).transforms
    for epoch in range(epochs):
        suffix = f", epoch {epoch}" if epochs > 1 else ""
        batch = images
        for stream, piece in enumerate(pieces):
            draws = Draws(chosen, seed=seed, epoch=epoch, stream=stream)
            batch = piece.apply(batch, piece.sample(draws, tuple(batch.shape)))
            rows.append((repr(piece) + suffix, batch))
        if mix is not None:
            draws = Draws(chosen, seed=seed, epoch=epoch, stream=MIX_STREAM)
            other = mix.partners(draws, len(batch))
            nothing = torch.zeros(len(batch), 1, device=batch.device)
            mixed, _ = mix.mix(batch, nothing, batch[other], nothing, draws=draws)
            rows.append((repr(mix) + suffix, mixed))
    figure = _new_figure(figsize=(max(4.0, 1.1 * len(chosen)), 1.4 * len(rows)), layout="none")
    for row, (title, batch) in enumerate(rows):
        panel = figure.add_axes((0.01, 1 - (row + 0.99) / len(rows), 0.98, 0.82 / len(rows)))
        panel.imshow(_strip(batch).numpy(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
        panel.set_anchor("W")
        panel.set_title(title, loc="left", fontsize=8, pad=3)
        panel.axis("off")
    return figure


def _some_of_each_class(labels: Tensor, count: int) -> Tensor:
    """The first image of each class, then the second of each, and so on: int64, shape [count]."""
    order = labels.argsort(stable=True)
    sorted_labels = labels[order]
    first = torch.searchsorted(sorted_labels, sorted_labels)
    rank = torch.arange(len(labels), device=labels.device) - first
    return order[rank.argsort(stable=True)][:count]


def _strip(images: Tensor) -> Tensor:
    """Images side by side, as matplotlib draws them: float in 0..1, [H, W] or [H, W, 3]."""
    if images.is_floating_point():
        images = images.float()
        low, high = images.min(), images.max()
        images = (images - low) / (high - low).clamp(min=1e-6)
    else:
        images = images.float() / 255
    gap = max(1, images.shape[3] // 16)
    padded = pad(images, (0, gap), value=1.0).permute(2, 0, 3, 1).cpu()
    strip = padded.flatten(1, 2)[:, :-gap]
    return strip[..., :3] if strip.shape[2] >= 3 else strip[..., 0]


def _new_figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib; pip install "fasttricks[examples]"') from error
    # A Figure of its own, not pyplot's: no global state, no window, no backend to choose.
    return Figure(**{"layout": "constrained", **options})
