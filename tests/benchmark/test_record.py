"""The run folder: complete, readable without pickle, refused early when it cannot be written."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from fasttricks.benchmark import RUN_FILES, describe_environment, make_run_folder, write_run
from fasttricks.engine import History
from fasttricks.models._kernels import kernels


def make_history():
    history = History()
    for epoch in (1, 2):
        history.append(
            {"epoch": epoch, "step": 3 * epoch, "lr": 0.1, "loss": 1 / epoch, "accuracy": 0.5}
        )
    return history


def test_a_run_folder_gives_record_history_and_weights_back(tmp_path):
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    write_run(tmp_path / "run", record={"seed": 7}, history=make_history(), model=model)
    assert sorted(p.name for p in (tmp_path / "run").iterdir()) == sorted(RUN_FILES)
    assert json.loads((tmp_path / "run" / "record.json").read_text()) == {"seed": 7}
    assert len((tmp_path / "run" / "history.csv").read_text().splitlines()) == 3
    assert (tmp_path / "run" / "curves.png").read_bytes().startswith(b"\x89PNG")
    weights = load_file(tmp_path / "run" / "model.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(weights[name], value)
    # Whoever may read the record may read the weights.
    assert len({path.stat().st_mode for path in (tmp_path / "run").iterdir()}) == 1


def test_a_record_that_json_cannot_hold_leaves_no_record(tmp_path):
    with pytest.raises(TypeError):
        write_run(tmp_path, record={"x": object()}, history=make_history(), model=nn.Linear(2, 2))
    assert not (tmp_path / "record.json").exists()


def test_numbers_that_json_lacks_become_null(tmp_path):
    record = {"history": [{"loss": float("nan"), "step": 1}], "seconds": float("inf")}
    write_run(tmp_path, record=record, history=make_history(), model=nn.Linear(2, 2))
    written = json.loads((tmp_path / "record.json").read_text())
    assert written == {"history": [{"loss": None, "step": 1}], "seconds": None}


def test_an_interrupted_rewrite_leaves_no_record_of_the_run_before(tmp_path):
    write_run(tmp_path, record={"seed": 1}, history=make_history(), model=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="at least one epoch"):
        write_run(tmp_path, record={"seed": 2}, history=History(), model=nn.Linear(2, 2))
    assert not (tmp_path / "record.json").exists()


def test_the_environment_names_processor_and_versions():
    environment = describe_environment()
    json.dumps(environment)
    assert environment["versions"]["torch"] == torch.__version__
    assert environment["hardware"]["threads"] == torch.get_num_threads()
    assert environment["hardware"]["processor"]
    assert environment["hardware"]["native"] == ([] if kernels() is None else ["kernels.cpp"])


def test_a_file_in_the_folders_place_is_refused(tmp_path):
    (tmp_path / "taken").write_text("")
    with pytest.raises(ValueError, match="output must be a folder, got the file .*taken"):
        make_run_folder(tmp_path / "taken")
    with pytest.raises(ValueError, match="cannot be made"):
        make_run_folder(tmp_path / "taken" / "inside")


def test_a_new_folder_is_made_with_its_parents(tmp_path):
    assert make_run_folder(tmp_path / "a" / "b").is_dir()


def test_tied_weights_are_written(tmp_path):
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[1].weight = model[0].weight
    write_run(tmp_path, record={}, history=make_history(), model=model)
    found = load_file(tmp_path / "model.safetensors")
    assert torch.equal(found["0.weight"], found["1.weight"])
