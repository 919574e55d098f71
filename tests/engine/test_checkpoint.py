"""Checkpoints: a resumed run is the uninterrupted one, bit for bit; a crash leaves a whole one."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from fasttricks import (
    CyclicLR,
    DeviceLoader,
    ImageSet,
    Muon,
    Normalize,
    RandomHorizontalFlip,
    Trainer,
    WeightAverage,
    one_cycle,
    split_for_muon,
)
from fasttricks.engine import Callback, _checkpoint


class Noise(nn.Module):
    """Draws from every global generator, so that a state that is not restored shows."""

    def forward(self, x):
        if not self.training:
            return x
        number = random.random() + float(np.random.rand())  # noqa: NPY002
        return x + 0.01 * number * torch.randn_like(x)


class Crash(Callback):
    """Raise in the middle of an epoch."""

    def __init__(self, step):
        self.step = step

    def on_step_end(self, trainer):
        if trainer.batches_done == self.step:
            raise KeyboardInterrupt


def make_loader(kind):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(24) % 3
    if kind == "device":
        data = ImageSet(pixels, labels, classes=("a", "b", "c"), name="noise")
        transforms = [RandomHorizontalFlip(), Normalize(0.5, 0.25)]
        return DeviceLoader(data, batch_size=8, transforms=transforms, shuffle=True)
    own = torch.Generator().manual_seed(7) if kind == "generator" else None
    dataset = TensorDataset(pixels.float() / 255, labels)
    return DataLoader(dataset, batch_size=8, shuffle=True, generator=own)


def make_trainer(name, *more):
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)  # noqa: NPY002
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), Noise(), nn.Flatten(), nn.Linear(144, 3)
    )
    options = {}
    if name == "SGD":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
        options["lr"] = one_cycle(0.1, 12)
    elif name == "AdamW":
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01)
        options["schedulers"] = [CyclicLR(optimizer, 0.001, 0.01, step_size_up=3)]
    else:
        muon, rest = split_for_muon(model)
        optimizer = [Muon(muon, lr=0.02), torch.optim.SGD(rest, lr=0.1, momentum=0.9)]
        torch_scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer[1], 0.9)
        options["schedulers"] = [torch_scheduler]
    callbacks = [WeightAverage(decay=0.8), *more]
    return Trainer(
        model, optimizer, precision="fp32", progress=False, callbacks=callbacks, **options
    )


def without_times(history):
    timed = ("images_per_second", "train_seconds", "eval_seconds")
    return [{k: v for k, v in row.items() if k not in timed} for row in history.rows]


@pytest.mark.parametrize("stop", [1, 2, 3])
@pytest.mark.parametrize(
    ("name", "kind"),
    [("SGD", "device"), ("AdamW", "generator"), ("Muon", "device"), ("SGD", "torch")],
)
def test_a_resumed_run_is_the_uninterrupted_one(tmp_path, name, kind, stop):
    whole = make_trainer(name)
    whole.fit(make_loader(kind), 4)
    broken = make_trainer(name, Crash(3 * stop + 2))
    with pytest.raises(KeyboardInterrupt):
        broken.fit(make_loader(kind), 4, checkpoints=tmp_path)
    resumed = make_trainer(name)
    torch.manual_seed(99)  # a process of its own has other numbers
    resumed.fit(make_loader(kind), 4, checkpoints=tmp_path, resume=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key
    assert without_times(resumed.history) == without_times(whole.history)
    assert resumed.step_count == whole.step_count == 12
    assert resumed.lr == whole.lr


def test_the_newest_stay_and_every_says_how_often(tmp_path):
    make_trainer("SGD").fit(make_loader("device"), 4, checkpoints=tmp_path / "a", keep=2)
    assert sorted(p.name for p in (tmp_path / "a").iterdir()) == ["epoch-0003", "epoch-0004"]
    make_trainer("SGD").fit(make_loader("device"), 4, checkpoints=tmp_path / "b", every=3)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == ["epoch-0003", "epoch-0004"]
    files = sorted(p.name for p in (tmp_path / "b" / "epoch-0004").iterdir())
    assert files == ["state.json", "tensors.safetensors"]


def test_a_finished_run_is_not_trained_again(tmp_path):
    first = make_trainer("SGD")
    first.fit(make_loader("device"), 2, checkpoints=tmp_path)
    again = make_trainer("SGD")
    history = again.fit(make_loader("device"), 2, checkpoints=tmp_path, resume=True)
    assert len(history) == 2
    for key, value in first.model.state_dict().items():
        assert torch.equal(value, again.model.state_dict()[key]), key


def test_checkpoints_of_another_run_are_not_overwritten(tmp_path):
    make_trainer("SGD").fit(make_loader("device"), 2, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="got .* with epoch-0002; pass resume=True to go on"):
        make_trainer("SGD").fit(make_loader("device"), 2, checkpoints=tmp_path)


def test_without_a_checkpoint_it_starts_anew(tmp_path):
    trainer = make_trainer("SGD")
    trainer.fit(make_loader("device"), 1, checkpoints=tmp_path / "none", resume=True)
    assert trainer.step_count == 3


@pytest.mark.parametrize("what", ["tensors.safetensors", "state.json"])
def test_a_crash_while_writing_leaves_the_one_before(tmp_path, monkeypatch, what):
    write, calls = _checkpoint._write, []

    def broken(path, content):
        calls.append(path.name)
        if path.name == what and len(calls) > 2:  # in the second checkpoint
            path.write_bytes(content[: len(content) // 2])
            raise OSError("no space left")
        write(path, content)

    monkeypatch.setattr(_checkpoint, "_write", broken)
    with pytest.raises(OSError, match="no space left"):
        make_trainer("SGD").fit(make_loader("device"), 3, checkpoints=tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["epoch-0001"]
    monkeypatch.undo()
    whole, resumed = make_trainer("SGD"), make_trainer("SGD")
    whole.fit(make_loader("device"), 3)
    resumed.fit(make_loader("device"), 3, checkpoints=tmp_path, resume=True)
    for key, value in whole.model.state_dict().items():
        assert torch.equal(value, resumed.model.state_dict()[key]), key


@pytest.mark.parametrize("name", ["tensors.safetensors", "state.json"])
def test_a_damaged_checkpoint_is_named(tmp_path, name):
    make_trainer("SGD").fit(make_loader("device"), 1, checkpoints=tmp_path)
    path = tmp_path / "epoch-0001" / name
    path.write_bytes(path.read_bytes()[:50])
    with pytest.raises(ValueError, match=r"epoch-0001 is damaged .* remove it to go on"):
        make_trainer("SGD").fit(make_loader("device"), 1, checkpoints=tmp_path, resume=True)


def test_a_checkpoint_of_another_run_is_refused(tmp_path):
    make_trainer("SGD").fit(make_loader("device"), 2, checkpoints=tmp_path)
    with pytest.raises(ValueError, match="total_steps must be .* got total_steps=9 and saved .*=6"):
        make_trainer("SGD").fit(make_loader("device"), 3, checkpoints=tmp_path, resume=True)
    with pytest.raises(ValueError, match="is of another run: it has 1 optimizers, the trainer 2"):
        make_trainer("Muon").fit(make_loader("device"), 2, checkpoints=tmp_path, resume=True)
    state = json.loads((tmp_path / "epoch-0002" / "state.json").read_text())
    (tmp_path / "epoch-0002" / "state.json").write_text(json.dumps(state | {"format": 99}))
    with pytest.raises(ValueError, match="has format 99, not 1"):
        make_trainer("SGD").fit(make_loader("device"), 2, checkpoints=tmp_path, resume=True)


def test_a_state_that_json_cannot_hold_is_named_and_nothing_is_left(tmp_path):
    class Odd(Callback):
        def state_dict(self):
            return {"thing": object()}

        def load_state_dict(self, state):
            pass

    with pytest.raises(TypeError, match="keeps something else in its state"):
        make_trainer("SGD", Odd()).fit(make_loader("device"), 1, checkpoints=tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_names_the_last_checkpoint(tmp_path):
    class Spoil(Callback):
        def on_epoch_start(self, trainer):
            if len(trainer.history) == 2:
                trainer.model[-1].bias.data.fill_(torch.nan)

    with pytest.raises(FloatingPointError, match="the last checkpoint is .*epoch-0002$"):
        make_trainer("SGD", Spoil()).fit(make_loader("device"), 4, checkpoints=tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resume": True}, "resume needs the folder of the checkpoints"),
        ({"checkpoints": "x", "every": 0}, "every must be at least 1, got every=0"),
        ({"checkpoints": "x", "keep": 0}, "keep must be at least 1, got keep=0"),
    ],
)
def test_bad_arguments_are_named(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        make_trainer("SGD").fit(make_loader("device"), 1, **options)
    assert list(tmp_path.iterdir()) == []
