"""The on-and-off comparison as a user runs it, small."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "tricks.py"
SMALL = ["--widths", 8, 8, 8, "--epochs", 2, "--batch-size", 32, "--device", "cpu"]


def test_every_trick_is_turned_round_once_a_seed(run, npz, tmp_path):
    folder = tmp_path / "run"
    code, out, _ = run("--data", npz, "--seeds", 2, *SMALL, "--output", folder)
    assert code == 0
    record = json.loads((folder / "record.json").read_text())
    assert list(record["rows"]) == ["usual", *record["usual"]]
    assert all([row["seed"] for row in rows] == [0, 1] for rows in record["rows"].values())
    for name, worth in record["worth"].items():
        usual, other = (record["rows"][key] for key in ("usual", name))
        sign = 1 if record["usual"][name] else -1
        by_hand = [
            sign * (a["accuracy"] - b["accuracy"]) for a, b in zip(usual, other, strict=True)
        ]
        assert worth["mean"] == pytest.approx(sum(by_hand) / 2)
        assert f"{name:<16} on minus off: {worth['mean']:.2f} points" in out
    for usual, one_view in zip(record["rows"]["usual"], record["rows"]["views"], strict=True):
        assert one_view == usual | {"accuracy": usual["accuracy_one_view"]}  # trained once


def test_one_trick_alone_can_be_asked_for(run, npz, tmp_path):
    arguments = ["--tricks", "cutout", "--cutout-size", 3, "--seeds", 1]
    code, out, _ = run("--data", npz, *arguments, *SMALL, "--output", tmp_path / "run")
    assert code == 0
    assert out.count("held-out accuracy") == 2


@pytest.mark.parametrize("arguments", [["--seeds", 0], ["--tricks", "magic"], ["--images", 0]])
def test_bad_arguments_end_with_one_line_and_code_2(run, npz, tmp_path, arguments):
    code, _, error = run("--data", npz, *arguments, "--output", tmp_path / "run")
    assert code == 2
    assert error.startswith(f"error: {'argument ' if 'magic' in arguments else ''}{arguments[0]}")
    assert not (tmp_path / "run").exists()
