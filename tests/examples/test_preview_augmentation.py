"""The preview as a user runs it: a picture of each, and one line for a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

import fasttricks.plots

EXAMPLE = Path(__file__).parents[2] / "examples" / "preview_augmentation.py"
RECIPES = ["article", "speedrun", "speedrun95", "speedrun96"]
NAMES = sorted(f"{name}.png" for name in [*RECIPES, "cutmix", "erasing", "mixup"])


@pytest.fixture
def without_network(monkeypatch, tmp_path):
    monkeypatch.setenv("FASTTRICKS_CACHE", str(tmp_path / "empty"))
    for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "")


def test_it_draws_every_picture(run, without_network, tmp_path):
    folder = tmp_path / "pictures"
    code, out, _ = run("--count", 3, "--epochs", 2, "--output", folder)
    assert code == 0
    assert sorted(path.name for path in folder.iterdir()) == NAMES
    assert all((folder / name).read_bytes().startswith(b"\x89PNG") for name in NAMES)
    assert all(str(folder / name) in out for name in NAMES)


@pytest.mark.parametrize("mirrored", [False, True])
def test_it_draws_what_the_recipes_do(run, npz, tmp_path, monkeypatch, mirrored):
    from matplotlib.figure import Figure

    drawn = []

    def keep(image_set, transforms, **options):
        drawn.append([repr(piece) for piece in transforms])
        return Figure()

    monkeypatch.setattr(fasttricks.plots, "preview_augmentation", keep)
    options = [] if mirrored else ["--no-flips"]
    assert run("--data", npz, *options, "--output", tmp_path / "pictures")[0] == 0
    assert drawn[0][0] == "RandomTranslate(padding=1, mode='reflect')"
    assert ("AlternatingFlip()" in drawn[0]) == mirrored
    assert [any("Cutout" in piece for piece in pieces) for pieces in drawn[:4]] == [0, 1, 1, 1]
    assert not any("Resize" in piece for pieces in drawn for piece in pieces)


def test_a_bad_count_is_one_line(run, tmp_path):
    code, _, error = run("--count", 0, "--output", tmp_path / "pictures")
    assert code == 2
    assert error == "error: --count must be greater than 0 and at most 100, got 0\n"
    assert not (tmp_path / "pictures").exists()
