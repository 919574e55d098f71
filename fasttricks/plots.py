"""Pictures. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from fasttricks.engine import History
    from fasttricks.lr_range_test import RangeTest

__all__ = ["plot_history", "plot_range_test"]


def plot_history(history: History) -> Figure:
    """Draw a run's loss, accuracy and learning rate against its updates, side by side.

    Args:
        history: At least one row.

    Returns:
        A matplotlib figure that belongs to no window: show it in a notebook, or save it.

    Raises:
        ValueError: If the history is empty.
        ImportError: If matplotlib is not installed.
    """
    if not len(history):
        raise ValueError("history must hold at least one epoch, got an empty one; call fit first")
    figure = _new_figure(figsize=(11, 3.4))
    panels = figure.subplots(1, 3)
    steps = history["step"]
    for panel, name, scale in ((panels[0], "loss", 1), (panels[1], "accuracy", 100)):
        # The training loss is the one that is minimised, label smoothing and all.
        training = "training objective" if name == "loss" else "training"
        for column, label in ((name, training), (f"val_{name}", "validation")):
            if column in history.columns:
                values = [None if value is None else scale * value for value in history[column]]
                panel.plot(steps, values, marker="o", markersize=3, label=label)
        panel.legend(frameon=False)
    panels[2].plot(steps, history["lr"], color="tab:green", marker="o", markersize=3)
    for panel, title in zip(panels, ("loss", "accuracy (%)", "learning rate"), strict=True):
        panel.set(title=title, xlabel="update")
        panel.grid(alpha=0.3)
    return figure


def plot_range_test(result: RangeTest, *, ax: Axes | None = None) -> Axes:
    """Draw a range test: the losses, raw and smoothed, against the rate, and what is suggested.

    Args:
        result: What ``lr_range_test`` returned.
        ax: Axes to draw on; those of a new figure by default.

    Returns:
        The axes; ``.figure.savefig(...)`` keeps the picture.

    Raises:
        ImportError: If matplotlib is not installed.
    """
    if ax is None:
        ax = _new_figure(figsize=(6, 4)).subplots()
    ax.plot(result.rates, result.losses, color="0.75", linewidth=1, label="loss")
    ax.plot(result.rates, result.smoothed, color="tab:blue", label="smoothed")
    ax.axvline(
        result.base_lr, color="tab:green", linestyle="--", label=f"base_lr {result.base_lr:.3g}"
    )
    ax.axvline(result.max_lr, color="tab:red", linestyle="--", label=f"max_lr {result.max_lr:.3g}")
    ax.axvspan(result.base_lr, result.max_lr, color="tab:green", alpha=0.08)
    # A diverged end would press the rest of the curve flat.
    low, start = min(result.smoothed), result.losses[0]
    ax.set(xscale="log", xlabel="learning rate", ylabel="training loss")
    ax.set_ylim(low - 0.1 * (start - low), start + 0.5 * (start - low) + 1e-6)
    ax.legend(frameon=False)
    return ax


def _new_figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib; pip install "fasttricks[examples]"') from error
    # A Figure of its own, not pyplot's: no global state, no window, no backend to choose.
    return Figure(layout="constrained", **options)
