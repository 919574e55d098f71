"""Pictures. matplotlib is imported when the first one is drawn."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from fasttricks.engine import History

__all__ = ["plot_history"]


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


def _new_figure(**options: Any) -> Figure:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError('drawing needs matplotlib; pip install "fasttricks[examples]"') from error
    # A Figure of its own, not pyplot's: no global state, no window, no backend to choose.
    return Figure(layout="constrained", **options)
