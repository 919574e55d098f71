"""Files are replaced whole or not at all."""

from __future__ import annotations

import json
import stat

import pytest

from fasttricks.engine import replacing, write_json


def test_a_finished_file_takes_the_name_and_nothing_is_left_over(tmp_path):
    path = tmp_path / "new folder" / "a.txt"
    with replacing(path) as temporary:
        temporary.write_text("new")
        assert not path.exists()
    assert path.read_text() == "new"
    assert [p.name for p in path.parent.iterdir()] == ["a.txt"]
    assert stat.S_IMODE(path.stat().st_mode) & 0o444 == 0o444


def test_an_error_leaves_the_old_file_as_it_was(tmp_path):
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write_half():
        with replacing(path) as temporary:
            temporary.write_text("ne")
            raise RuntimeError("half way")

    with pytest.raises(RuntimeError, match="half"):
        write_half()
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 1


def test_json_that_cannot_be_written_leaves_no_file(tmp_path):
    for value, error in ((float("nan"), ValueError), (object(), TypeError)):
        with pytest.raises(error):
            write_json(tmp_path / "a.json", {"value": value})
    assert not list(tmp_path.iterdir())
    write_json(tmp_path / "a.json", {"value": [1, "é"]})
    assert json.loads((tmp_path / "a.json").read_text(encoding="utf-8")) == {"value": [1, "é"]}
