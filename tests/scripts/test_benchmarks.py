"""The benchmarks as they are run, on images so few and small that their figures mean nothing."""

from __future__ import annotations

import importlib.util
import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def path(monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])  # the scripts add what they import


def test_loader_share_measures_every_recipe_at_every_size(path, tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (3 * 1536, 16, 16, 3)).astype("u1")
    labels = np.arange(len(images)) % 10
    data, output = tmp_path / "noise.npz", tmp_path / "share.json"
    np.savez(data, x_train=images, y_train=labels, x_test=images[:10], y_test=labels[:10])
    script = str(FOLDER / "loader_share.py")
    options = ["--data", data, "--output", output, "--steps", 1, "--device", "cpu"]
    monkeypatch.setattr(sys, "argv", [script, *map(str, options)])
    runpy.run_path(script, run_name="__main__")
    rows = json.loads(output.read_text())["rows"]
    sizes = {
        name: [r["image_size"] for r in rows if r["recipe"] == name]
        for name in ("speedrun", "speedrun95", "article")
    }
    assert sizes == {"speedrun": [12, 14, 16], "speedrun95": [12, 14, 16], "article": [16]}
    assert all(0 < row["loading_share"] < 1 for row in rows)


def test_a_race_counts_the_operations_of_every_contender(path):
    spec = importlib.util.spec_from_file_location("race", FOLDER / "time_to_accuracy.py")
    race = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(race)
    found = {name: race.flops_per_image(name, 32) for name in race.CONTENDERS}
    # Multiply-adds of a forward pass by hand, where the maps have 31, 15, 7 and 3 pixels a side.
    widths, sides = {"speedrun": (64, 256, 256), "airbench95": (128, 384, 384)}, (31, 15, 7, 3)
    for name, (first, second, third) in widths.items():
        convolutions = [(24, first), (first, first), (first, second), (second, second)]
        convolutions += [(second, third), (third, third)]
        where = [sides[i] for i in (0, 1, 1, 2, 2, 3)]
        macs = [9 * a * b * side**2 for (a, b), side in zip(convolutions, where, strict=True)]
        whiten, head = 12 * 24 * 31**2, 10 * third
        # Backward costs twice that, less the gradients of the images, which nothing needs.
        assert found[name] == 2 * (whiten + macs[0] * 2 + 3 * sum(macs[1:]) + 3 * head)
    assert found["speedrun"] == found["airbench94_muon"] == found["fulcrum_e1"]
    assert found["speedrun"] == found["speedrun_compiled"]
    assert found["airbench95"] > found["speedrun95"] == found["speedrun95_compiled"]
    assert found["speedrun95"] > found["speedrun"]
