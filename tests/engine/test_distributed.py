"""Two processes under torchrun train as one does, and the parts that this is made of."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import fasttricks as ft
from fasttricks.engine import World, distributed

SCRIPT = Path(__file__).with_name("distributed_script.py")
ROOT = Path(__file__).parents[2]


def load_script():
    spec = importlib.util.spec_from_file_location("distributed_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


script = load_script()
CASES = [case.__name__ for case in script.CASES]


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Results of one process, in this one, and of two under torchrun."""
    alone, together = tmp_path_factory.mktemp("alone"), tmp_path_factory.mktemp("together")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    command += ["--nproc-per-node=2", str(SCRIPT), str(together)]
    paths = os.pathsep.join(map(str, (ROOT, ROOT / "tests/references")))
    variables = {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(
        command, env={**os.environ, **variables}, capture_output=True, text=True, timeout=300
    )
    assert run.returncode == 0, run.stderr[-3000:]
    script.run(World(0, 1, "cpu"), alone)
    return alone, together


def results(folder, name):
    rows = json.loads((folder / f"{name}.json").read_text())
    return load_file(folder / f"{name}.safetensors"), rows


@pytest.mark.parametrize("case", CASES)
def test_both_processes_hold_the_same_weights_bit_for_bit(folders, case):
    (first, _), (second, _) = (results(folders[1], f"{case}-{rank}") for rank in (0, 1))
    for name, value in first.items():
        assert name == "beside" or torch.equal(value, second[name]), name


# Batch norm's statistics are those of a process's share.
@pytest.mark.parametrize("case", [case for case in CASES if case != "normed"])
def test_two_processes_train_as_one_does(folders, case):
    (alone, rows), (together, their_rows) = (results(f, f"{case}-0") for f in folders)
    for name, value in alone.items():
        torch.testing.assert_close(together[name], value, rtol=1e-5, atol=1e-6)
    figures = ("loss", "accuracy", "error", "val_loss", "val_accuracy", "val_error", "lr", "step")
    for row, other in zip(rows, their_rows, strict=True):
        for name in figures:
            if name in row:
                assert other[name] == pytest.approx(row[name], abs=1e-6), name


def test_the_histories_of_both_processes_agree(folders):
    for case in CASES:
        (_, first), (_, second) = (results(folders[1], f"{case}-{rank}") for rank in (0, 1))
        for row, other in zip(first, second, strict=True):
            same = {k for k in row if not k.endswith("seconds") and k != "images_per_second"}
            assert {k: row[k] for k in same} == {k: other[k] for k in same}


def test_what_is_validated_is_the_model_that_is_left(folders):
    for rank in (0, 1):
        found, rows = results(folders[1], f"normed-{rank}")
        labels = torch.cat([targets for _, targets in script.make_val()])
        loss = torch.nn.functional.cross_entropy(found["logits"], labels)
        assert rows[-1]["val_loss"] == pytest.approx(loss.item(), abs=1e-6)


def test_a_buffer_with_gaps_is_shared_and_nothing_beside_it(folders):
    for rank in (0, 1):
        found, _ = results(folders[1], f"normed-{rank}")
        assert found["view"].tolist() == [[0, 2], [3, 5]]
        assert found["beside"].tolist() == [1 + 100 * rank, 4 + 100 * rank]


def test_a_resumed_run_of_two_processes_is_bit_identical_to_a_straight_one(folders):
    one, other = (results(folders[1], f"{case}-0") for case in ("resumed", "straight"))
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name
    assert [row["loss"] for row in one[1]] == [row["loss"] for row in other[1]]
    names = [entry.name for entry in (folders[1] / "checkpoints").iterdir()]
    assert names == ["epoch-0004"]


def test_what_is_not_shared_is_refused_in_every_process(folders):
    for rank in (0, 1):
        messages = json.loads((folders[1] / f"faults-{rank}.json").read_text())
        assert "the 2 processes, got world_size=1; pass rank=world.rank" in messages["whole"]
        assert "DataLoader with RandomSampler; pass it a torch.utils" in messages["sampler"]
        assert "val must be whole in each process" in messages["val"]
        assert "got a DataLoader with a DistributedSampler" in messages["val_sampler"]
        assert "val must be whole in each process" in messages["val_shuffled"]
        assert "batches must be whole in each process" in messages["evaluate"]
        assert "got 1 batches and 1 epochs, 2 batches and 1 epochs" in messages["lengths"]


def test_a_nan_in_one_process_stops_both_at_that_update(folders):
    for rank in (0, 1):
        messages = json.loads((folders[1] / f"faults-{rank}.json").read_text())
        assert messages["nan"].startswith("the loss became nan at update 2 with lr=0.05")


def test_alone_it_is_a_world_of_one(monkeypatch):
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    with distributed() as world:
        assert (world.rank, world.size) == (0, 1)
    assert not torch.distributed.is_initialized()


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "2")
    monkeypatch.setenv("RANK", "2")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with (
        pytest.raises(ValueError, match="got process 2 and 2 GPUs; pass --nproc-per-node=2"),
        distributed(),
    ):
        pass


# Shares of a loader -----------------------------------------------------------------------------


@pytest.mark.parametrize("world_size", [1, 2, 3, 5])
@pytest.mark.parametrize("shuffle", [False, True])
def test_the_shares_of_a_loader_are_its_batches(world_size, shuffle):
    options = {"shuffle": shuffle, "batch_size": 7 + (world_size == 5)}
    whole = script.make_loader(World(0, 1, "cpu"), **options)
    shares = [script.make_loader(World(r, world_size, "cpu"), **options) for r in range(world_size)]
    for _ in range(2):
        for (images, labels), *parts in zip(whole, *shares, strict=True):
            for rank, (own, own_labels) in enumerate(parts):
                # Bit for bit: what an image looks like does not depend on who asks for it.
                assert torch.equal(own, images[rank::world_size])
                assert torch.equal(own_labels, labels[rank::world_size])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rank": 2, "world_size": 2}, "rank must be under world_size, got rank=2 of 2"),
        ({"rank": -1, "world_size": 2}, "rank must be at least 0, got rank=-1"),
        ({"world_size": 0}, "world_size must be at least 1, got world_size=0"),
        ({"world_size": 6}, "got 5 images for world_size=6; use drop_last=True or"),
        ({"world_size": 9, "drop_last": True}, "got 8 images for world_size=9"),
    ],
)
def test_bad_shares_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        ft.DeviceLoader(script.make_set(), batch_size=8, **options)


def test_a_share_is_refused_where_there_is_one_process():
    model = script.make_model()
    trainer = script.make_trainer(model, torch.optim.SGD(model.parameters(), lr=0.1))
    with pytest.raises(ValueError, match="the 1 processes, got world_size=2"):
        trainer.fit(script.make_loader(World(0, 2, "cpu")), 1)
