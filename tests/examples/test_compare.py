"""The comparisons as a user runs them, small."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "compare.py"
SMALL = ["--narrow", 16, "--epochs", 2, "--batch-size", 32, "--device", "cpu"]


@pytest.mark.parametrize(
    ("contest", "contenders"),
    [("schedules", 4), ("activations", 6), ("networks", 3), ("depths", 4)],
)
def test_every_contender_is_trained_once_a_seed(run, npz, tmp_path, contest, contenders):
    folder = tmp_path / "run"
    code, out, _ = run(contest, "--data", npz, "--seeds", 2, *SMALL, "--output", folder)
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == ["curves.png", "record.json"]
    record = json.loads((folder / "record.json").read_text())
    assert (record["images"], record["held_out"]) == (160, 40)
    assert len(record["runs"]) == contenders
    for name, runs in record["runs"].items():
        assert [one["seed"] for one in runs] == [0, 1]
        assert [len(one["history"]) for one in runs] == [2, 2]
        mean = (runs[0]["accuracy"] + runs[1]["accuracy"]) / 2
        assert record["summary"][name]["mean"] == pytest.approx(mean)
        assert f"{name:<18} held-out accuracy {mean:.2f} %" in out


def test_contenders_differ_in_what_the_contest_is_about(run, npz, tmp_path):
    arguments = ["--data", npz, "--seeds", 1, "--max-lr", 0.4, *SMALL]
    run("schedules", *arguments, "--output", tmp_path / "run")
    runs = json.loads((tmp_path / "run" / "record.json").read_text())["runs"]
    rates = {name: [row["lr"] for row in rows[0]["history"]] for name, rows in runs.items()}
    assert rates["constant"] == [0.4, 0.4]
    assert rates["halved"] == [0.2, 0.1]  # of 10 updates: halved after 4 and 8
    assert rates["one cycle"][0] > rates["one cycle"][1]


def test_a_small_set_has_some_twenty_updates_and_a_rate_that_fits(run, npz, tmp_path):
    arguments = ["--narrow", 16, "--epochs", 1, "--seeds", 1, "--device", "cpu"]
    assert run("schedules", "--data", npz, *arguments, "--output", tmp_path / "run")[0] == 0
    runs = json.loads((tmp_path / "run" / "record.json").read_text())["runs"]
    (row,) = runs["constant"][0]["history"]
    assert (row["step"], row["lr"]) == (10, 0.0125)  # batches of 16, 0.4 * 16 / 512


def test_a_training_that_diverges_counts_as_0(run, npz, tmp_path):
    too_high = ["--seeds", 1, "--max-lr", 1e5, *SMALL, "--output", tmp_path / "run"]
    code, _, _ = run("schedules", "--data", npz, *too_high)
    assert code == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    failed = [one for (one,) in record["runs"].values() if "error" in one]
    assert failed
    assert {one["accuracy"] for one in failed} == {0.0}


def test_a_training_that_only_its_evaluation_finds_diverged_counts_as_0(run, npz, tmp_path):
    once = ["--seeds", 1, "--narrow", 16, "--epochs", 1, "--batch-size", 160, "--device", "cpu"]
    arguments = ["--data", npz, *once, "--max-lr", 1e6, "--output", tmp_path / "run"]
    assert run("schedules", *arguments)[0] == 0
    record = json.loads((tmp_path / "run" / "record.json").read_text())
    (one,) = record["runs"]["constant"]
    assert (one["accuracy"], one["history"]) == (0.0, [])
    assert "val_loss" in one["error"]


def test_too_few_images_to_hold_some_out_are_refused(run, npz, tmp_path):
    arrays = {name: values[:9] for name, values in np.load(npz).items()}
    np.savez(tmp_path / "few.npz", **arrays)
    code, _, error = run("depths", "--data", tmp_path / "few.npz", "--output", tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1)
    assert "data must have at least ten images to train on, got ImageSet('few': 9" in error


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["colours"], "invalid choice: 'colours'"),
        (["depths", "--narrow", "0"], "--narrow must be greater than 0"),
        (["depths", "--max-lr", "-1"], "--max-lr must be greater than 0"),
        (["depths", "--batch-size", "161"], "--batch-size must be greater than 1 and at most 160"),
    ],
)
def test_bad_arguments_end_with_one_line_and_code_2(run, npz, tmp_path, arguments, words):
    code, _, error = run(*arguments, "--data", npz, "--output", tmp_path / "run")
    assert (code, error.count("\n")) == (2, 1)
    assert words in error
