"""History: rows in, columns, CSV and JSON out."""

from __future__ import annotations

import csv
import json
import math
import sys
from types import ModuleType

import pytest

from fasttricks.engine import History


@pytest.fixture
def history():
    history = History()
    history.append({"epoch": 1, "step": 5, "lr": 0.5, "loss": 2.25, "accuracy": 0.1})
    history.append(
        {"epoch": 2, "step": 10, "lr": 0.25, "loss": 1.5, "accuracy": 0.3, "val_accuracy": 0.5}
    )
    return history


def test_columns_line_up_with_epochs(history):
    assert len(history) == 2
    assert history["loss"] == [2.25, 1.5]
    assert history["val_accuracy"] == [None, 0.5]
    assert [row["epoch"] for row in history] == [1, 2]


def test_an_unknown_column_names_those_there_are(history):
    with pytest.raises(KeyError, match="no column 'speed'; it has epoch, step, lr, loss, accuracy"):
        history["speed"]


def test_csv_and_json_give_the_rows_back(history, tmp_path):
    history.to_csv(tmp_path / "h.csv")
    history.to_json(tmp_path / "h.json")
    with (tmp_path / "h.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [{k: float(v) for k, v in row.items() if v} for row in rows] == history.rows
    assert json.loads((tmp_path / "h.json").read_text()) == history.rows


def test_json_holds_null_for_what_it_lacks(history, tmp_path):
    history.append({"epoch": 3, "loss": math.nan, "val_loss": math.inf})
    history.to_json(tmp_path / "h.json")
    rows = json.loads((tmp_path / "h.json").read_text())
    assert rows[:2] == history.rows[:2]
    assert rows[2] == {"epoch": 3, "loss": None, "val_loss": None}


def test_rows_are_copied_in():
    history, row = History(), {"epoch": 1}
    history.append(row)
    row["epoch"] = 9
    assert history["epoch"] == [1]


def test_pandas_gets_rows_and_columns_and_is_named_where_it_is_missing(history, monkeypatch):
    module = ModuleType("pandas")
    module.DataFrame = lambda rows, columns: (rows, columns)
    monkeypatch.setitem(sys.modules, "pandas", module)
    assert history.to_pandas() == (history.rows, history.columns)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="to_pandas needs pandas; pip install pandas"):
        history.to_pandas()


def test_the_first_row_at_the_target_is_found(history):
    assert history.first(0.5)["step"] == 10
    assert history.first(0.3, metric="accuracy") is history.rows[1]
    assert history.first(2.25, metric="loss")["epoch"] == 1
    assert history.first(2.0, metric="loss")["epoch"] == 2
    assert history.first(2.0, metric="loss", mode="max")["epoch"] == 1
    assert history.first(0.6) is None
    history.append({"epoch": 3, "val_accuracy": math.nan})
    assert history.first(0.6) is None


def test_a_first_row_needs_a_column_and_a_target_in_its_range(history):
    with pytest.raises(KeyError, match="no column 'val_loss'"):
        history.first(1.0, metric="val_loss")
    with pytest.raises(ValueError, match="target must be between 0 and 1 .* 94 % are 0.94"):
        history.first(94)
    with pytest.raises(ValueError, match="mode must be"):
        history.first(0.5, mode="best")
