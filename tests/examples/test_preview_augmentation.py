"""The preview as a user runs it: five pictures, and one line for a mistake."""

from __future__ import annotations

from pathlib import Path

import pytest

EXAMPLE = Path(__file__).parents[2] / "examples" / "preview_augmentation.py"
NAMES = ["article.png", "cutmix.png", "erasing.png", "mixup.png", "speedrun.png"]


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


def test_a_bad_count_is_one_line(run, tmp_path):
    code, _, error = run("--count", 0, "--output", tmp_path / "pictures")
    assert code == 2
    assert error == "error: --count must be greater than 0 and at most 100, got 0\n"
    assert not (tmp_path / "pictures").exists()
