"""The range-test example as a user runs it: its record, its pictures, its one-line errors."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "find_lr.py"


def test_it_tests_draws_and_trains_with_what_it_suggests(run, npz, tmp_path):
    folder = tmp_path / "run"
    sizes = ["--width", 8, "--batch-size", 16, 32, "--epochs", 3, "--device", "cpu"]
    code, out, _ = run("--data", npz, *sizes, "--output", folder)
    assert code == 0
    names = ["range-test-16.png", "range-test-32.png", "record.json"]
    assert sorted(path.name for path in folder.iterdir()) == names
    record = json.loads((folder / "record.json").read_text())
    assert (record["images"], record["held_out"]) == (160, 40)
    assert [row["batch_size"] for row in record["rows"]] == [16, 32]
    for row in record["rows"]:
        assert row["base_lr"] < row["max_lr"] < 10
        (accuracy,) = row["accuracies"]
        assert accuracy > 75  # half by chance
        assert row["grid"] == {}
        assert f"{row['max_lr']:.4g}" in out


def test_batches_that_a_small_set_makes_the_same_are_tried_once(run, npz, tmp_path):
    sizes = ["--width", 4, "--epochs", 0.5, "--device", "cpu"]  # batches of 512 and 768
    assert run("--data", npz, *sizes, "--output", tmp_path / "run")[0] == 0
    names = ["range-test-40.png", "record.json"]
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == names


def test_the_grid_is_trained_too(run, npz, tmp_path):
    sizes = ["--width", 4, "--batch-size", 32, "--epochs", 0.5, "--device", "cpu", "--seeds", 2]
    assert run("--data", npz, *sizes, "--grid", "--output", tmp_path / "run")[0] == 0
    (row,) = json.loads((tmp_path / "run" / "record.json").read_text())["rows"]
    assert [len(accuracies) for accuracies in row["grid"].values()] == [2] * 9


def test_peaks_of_ones_own_are_trained(run, npz, tmp_path):
    sizes = ["--width", 4, "--batch-size", 32, "--epochs", 0.5, "--device", "cpu"]
    peaks = ["--peaks", 0.1, 0.3]
    assert run("--data", npz, *sizes, *peaks, "--output", tmp_path / "run")[0] == 0
    (row,) = json.loads((tmp_path / "run" / "record.json").read_text())["rows"]
    assert list(row["grid"]) == ["0.1", "0.3"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--peaks", 0.1, -1],
        ["--width", 0],
        ["--epochs", 0],
        ["--images", -1],
        ["--batch-size", 0],
        ["--device", "tpu"],
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(run, npz, tmp_path, arguments):
    code, _, error = run("--data", npz, "--output", tmp_path / "run", *arguments)
    assert code == 2
    assert error.startswith("error: ")
    assert error.count("\n") == 1
    assert arguments[0].lstrip("-").replace("-", "_") in error.replace("-", "_")
    assert not (tmp_path / "run").exists()
