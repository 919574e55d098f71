"""Pictures: the curves drawn are the history's."""

from __future__ import annotations

import pytest

from fasttricks.engine import History
from fasttricks.plots import plot_history


def test_the_lines_hold_the_historys_columns():
    history = History()
    history.append({"step": 5, "lr": 0.4, "loss": 2.0, "accuracy": 0.2, "val_accuracy": 0.25})
    history.append({"step": 10, "lr": 0.1, "loss": 1.0, "accuracy": 0.6, "val_accuracy": 0.5})
    loss, accuracy, rate = plot_history(history).axes
    assert [list(line.get_ydata()) for line in loss.lines] == [[2.0, 1.0]]
    assert [list(line.get_ydata()) for line in accuracy.lines] == [[20.0, 60.0], [25.0, 50.0]]
    assert list(rate.lines[0].get_xdata()) == [5, 10]
    assert list(rate.lines[0].get_ydata()) == [0.4, 0.1]
    assert [text.get_text() for text in accuracy.get_legend().get_texts()] == [
        "training",
        "validation",
    ]


def test_an_empty_history_is_refused():
    with pytest.raises(ValueError, match="at least one epoch"):
        plot_history(History())
