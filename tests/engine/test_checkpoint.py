"""Checkpoints: a run that goes on ends as one that was never interrupted; files whole or not."""

from __future__ import annotations

import json
import random
import sys
from collections import Counter

import numpy as np
import pytest
import torch
from heated_loss import Heated
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import fasttricks as ft
from fasttricks.engine import Callback, Precision, Trainer, WeightAverage
from fasttricks.engine import _checkpoint as checkpoint_module
from fasttricks.engine import _files as files_module
from fasttricks.engine._files import replacing_folder
from fasttricks.engine._tree import pack, unpack
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.optim import Muon
from fasttricks.schedules import one_cycle

EPOCHS, BATCHES = 4, 3
TIMES = {"images_per_second", "train_seconds", "eval_seconds"}


class Noise(nn.Module):
    """Draws from every generator there is, so that each must be where it was."""

    def forward(self, x):
        if self.training:
            x = x + 0.1 * random.random() + 0.1 * float(np.random.rand())  # noqa: NPY002
        return x


class Drift(Callback):
    """A callback whose state moves the training."""

    def __init__(self):
        self.total = torch.zeros(())

    def on_fit_start(self, trainer):
        self.total = torch.zeros(())

    def on_step_end(self, trainer):
        self.total += trainer.totals.loss
        with torch.no_grad():
            trainer.model[-1].bias.add_(0.001 * self.total)

    def state_dict(self):
        return {"total": self.total}

    def load_state_dict(self, state):
        self.total.copy_(state["total"])


def make_model():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        Noise(),
        nn.CELU(),
        nn.Dropout(0.2),
        nn.Flatten(),
        nn.Linear(4 * 36, 5),
    )


def make_optimizers(kind, model):
    matrices = [p for p in model.parameters() if p.ndim >= 2]
    vectors = [p for p in model.parameters() if p.ndim < 2]
    steps = EPOCHS * BATCHES
    if kind == "sgd":
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, nesterov=True)
        return optimizer, [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, steps)]
    if kind == "plain":
        return torch.optim.SGD(model.parameters(), lr=0.05), []
    if kind == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
        scheduler = ScheduledGroups(optimizer, {"lr": one_cycle(0.01, steps)})
        return optimizer, [scheduler]
    muon = Muon(matrices, lr=0.05)
    sgd = torch.optim.SGD(vectors, lr=0.05, momentum=0.5)
    milestones = torch.optim.lr_scheduler.MultiStepLR(sgd, [2, 5], gamma=0.5)
    return [muon, sgd], [ScheduledGroups(muon, {"lr": one_cycle(0.05, steps)}), milestones]


def make_trainer(kind="sgd", **options):
    model = make_model()
    optimizers, schedulers = make_optimizers(kind, model)
    options = {"precision": "fp32", "progress": False, "callbacks": [Drift()], **options}
    return Trainer(model, optimizers, schedulers=schedulers, **options)


def make_loader(kind="device"):
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (BATCHES * 8, 3, 8, 8), dtype=torch.uint8, generator=generator)
    labels = torch.arange(BATCHES * 8) % 5
    if kind == "device":
        image_set = ft.ImageSet(pixels, labels, classes=tuple("abcde"), name="noise")
        transforms = [ft.RandomTranslate(1), ft.Normalize(0.5, 0.25)]
        return ft.DeviceLoader(image_set, batch_size=8, transforms=transforms, shuffle=True)
    data = TensorDataset(pixels.float() / 255, labels)
    own = torch.Generator().manual_seed(3) if kind != "global" else None
    if kind == "batch sampler":
        batches = BatchSampler(RandomSampler(data, generator=own), 8, drop_last=True)
        return DataLoader(data, batch_sampler=batches)
    return DataLoader(data, batch_size=8, shuffle=True, generator=own)


@pytest.fixture(autouse=True)
def seeded():
    """The generators of the process as they were, and a beginning that is always the same."""
    states = random.getstate(), np.random.get_state()  # noqa: NPY002
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    yield
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002


def everything(trainer):
    """All that must be equal at the end of two runs: rows, tensors, numbers, the next draws."""
    rows = [{k: v for k, v in row.items() if k not in TIMES} for row in trainer.history.rows]
    tensors = dict(trainer.model.state_dict())
    for number, optimizer in enumerate(trainer.optimizers):
        pack(optimizer.state_dict(), tensors, f"optimizer {number}")
    numbers = [
        [{k: v for k, v in g.items() if k != "params"} for g in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]
    draws = torch.rand(2).tolist(), random.random(), float(np.random.rand())  # noqa: NPY002
    return rows, tensors, repr(numbers), draws, trainer.step_count, trainer.lr


def assert_equal(one, other, draws=True):
    assert one[1].keys() == other[1].keys()
    for name, value in one[1].items():
        assert torch.equal(value, other[1][name]), name
    assert one[0] == other[0]
    assert (one[2], *one[4:]) == (other[2], *other[4:])
    assert not draws or one[3] == other[3]


class BrokenOffError(Exception):
    pass


class BreakAt(Callback):
    """Ends the process, as it were, in the middle of the epoch after the given one."""

    def __init__(self, epoch):
        self.steps = epoch * BATCHES + 1

    def on_step_end(self, trainer):
        if trainer.step_count == self.steps:
            raise BrokenOffError


def interrupted_and_resumed(folder, epoch, kind="sgd", loader="device", **options):
    options.setdefault("callbacks", list)
    callbacks = options.pop("callbacks")
    broken = make_trainer(kind, callbacks=[*callbacks(), Drift(), BreakAt(epoch)], **options)
    val = make_loader()
    with pytest.raises(BrokenOffError):
        broken.fit(make_loader(loader), EPOCHS, val=val, checkpoints=folder)
    # A new process knows nothing of the old one's generators.
    torch.manual_seed(99)
    random.seed(99)
    np.random.seed(99)  # noqa: NPY002
    trainer = make_trainer(kind, callbacks=[*callbacks(), Drift()], **options)
    trainer.fit(make_loader(loader), EPOCHS, val=make_loader(), checkpoints=folder, resume=True)
    return trainer


def uninterrupted(kind="sgd", loader="device", **options):
    callbacks = options.pop("callbacks", list)
    trainer = make_trainer(kind, callbacks=[*callbacks(), Drift()], **options)
    trainer.fit(make_loader(loader), EPOCHS, val=make_loader())
    return trainer


def reseed():
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002


@pytest.mark.parametrize("epoch", range(1, EPOCHS))
def test_a_run_resumed_after_any_epoch_ends_as_an_uninterrupted_one(tmp_path, epoch):
    resumed = everything(interrupted_and_resumed(tmp_path, epoch))
    reseed()
    assert_equal(resumed, everything(uninterrupted()))


@pytest.mark.parametrize("kind", ["adamw", "muon"])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_optimizers_and_schedulers_of_all_kinds_go_on(tmp_path, kind, precision):
    resumed = everything(interrupted_and_resumed(tmp_path, 2, kind, precision=precision))
    reseed()
    assert_equal(resumed, everything(uninterrupted(kind, precision=precision)))


@pytest.mark.parametrize("loader", ["global", "generator", "batch sampler"])
def test_a_data_loader_goes_on_in_its_order(tmp_path, loader):
    resumed = everything(interrupted_and_resumed(tmp_path, 2, loader=loader))
    reseed()
    assert_equal(resumed, everything(uninterrupted(loader=loader)))


def test_an_average_of_weights_goes_on(tmp_path):
    def callbacks():
        return [WeightAverage(decay=0.8)]

    resumed = everything(interrupted_and_resumed(tmp_path, 2, callbacks=callbacks))
    reseed()
    assert_equal(resumed, everything(uninterrupted(callbacks=callbacks)))


def test_the_scale_of_fp16_goes_on(tmp_path):
    def precision(scale):
        precision = Precision("fp32")  # with a scaler, which runs on the CPU as well
        precision._scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)
        return precision

    trainer = make_trainer(precision=precision(4.0))
    trainer.fit(make_loader(), 1)
    trainer.precision.skipped_steps = 3
    trainer.save(tmp_path / "c")
    other = make_trainer(precision=precision(1.0))
    other.load(tmp_path / "c")
    assert other.precision.state_dict() == trainer.precision.state_dict()
    assert other.skipped_steps == 3


def test_a_run_that_is_done_is_left_as_it_is(tmp_path):
    trainer = make_trainer()
    trainer.fit(make_loader(), 2.5, checkpoints=tmp_path)
    again = make_trainer()
    history = again.fit(make_loader(), 2.5, checkpoints=tmp_path, resume=True)
    assert history.rows == trainer.history.rows
    assert_equal(everything(trainer), everything(again), draws=False)


def test_a_run_goes_on_with_other_images_to_measure_by_but_not_to_train_on(tmp_path):
    other = ft.DeviceLoader(
        ft.ImageSet(
            torch.zeros(BATCHES * 8, 3, 8, 8, dtype=torch.uint8),
            torch.zeros(BATCHES * 8, dtype=torch.int64),
            classes=tuple("abcde"),
            name="black",
        ),
        batch_size=8,
        transforms=[ft.RandomTranslate(1), ft.Normalize(0.5, 0.25)],
        shuffle=True,
    )
    make_trainer("plain").fit(make_loader(), 1, val=make_loader(), checkpoints=tmp_path)
    trainer = make_trainer("plain")
    with pytest.raises(ValueError, match=r"state\.json does not fit .* of its loader, images must"):
        trainer.fit(other, 2, val=make_loader(), checkpoints=tmp_path, resume=True)
    history = trainer.fit(make_loader(), 2, val=other, checkpoints=tmp_path, resume=True)
    assert len(history) == 2
    assert other.epoch == 2


def test_a_run_can_be_made_longer_but_not_from_within_an_epoch(tmp_path):
    def plain():
        return make_trainer("plain")

    plain().fit(make_loader(), 2, checkpoints=tmp_path / "a")
    history = plain().fit(make_loader(), 3, checkpoints=tmp_path / "a", resume=True)
    assert history["epoch"] == [1, 2, 3]
    plain().fit(make_loader(), 1.4, checkpoints=tmp_path / "b")
    with pytest.raises(ValueError, match="ends within an epoch"):
        plain().fit(make_loader(), 3, checkpoints=tmp_path / "b", resume=True)


def names(folder):
    return sorted(entry.name for entry in folder.iterdir())


@pytest.mark.parametrize(
    ("every", "keep", "expected"),
    [(1, 3, [3, 4, 5]), (2, 9, [2, 4, 5]), (2, 2, [4, 5]), (9, 1, [5])],
)
def test_they_come_every_so_many_epochs_and_the_last_stay(tmp_path, every, keep, expected):
    trainer = make_trainer("plain")
    trainer.fit(make_loader(), 5, checkpoints=tmp_path / "new" / "run", every=every, keep=keep)
    assert names(tmp_path / "new" / "run") == [f"epoch-{n:04d}" for n in expected]
    assert trainer.last_checkpoint == tmp_path / "new" / "run" / "epoch-0005"


def straight_run():
    """Everything of a run of four epochs, after which all begins as before it."""
    trainer = make_trainer()
    trainer.fit(make_loader(), 4)
    found = everything(trainer)
    reseed()
    return found


def test_a_stopped_run_has_a_last_one_and_can_go_on(tmp_path):
    class Stop(Callback):
        def on_epoch_end(self, trainer, row):
            trainer.stop = row["epoch"] == 2

    expected = straight_run()
    trainer = make_trainer(callbacks=[Stop(), Drift()])
    assert len(trainer.fit(make_loader(), 4, checkpoints=tmp_path, every=3)) == 2
    assert names(tmp_path) == ["epoch-0002"]
    resumed = make_trainer()
    assert len(resumed.fit(make_loader(), 4, checkpoints=tmp_path, resume=True)) == 4
    assert_equal(everything(resumed), expected)


@pytest.mark.parametrize("options", [{"target": 1e9}, {"patience": 1}])
def test_a_run_that_early_stop_ended_stays_ended(tmp_path, options):
    def make():
        return make_trainer(callbacks=[ft.EarlyStop(metric="step", mode="min", **options)])

    done = len(make().fit(make_loader(), 4, checkpoints=tmp_path))
    assert done == (1 if "target" in options else 2)
    assert len(make().fit(make_loader(), 4, checkpoints=tmp_path, resume=True)) == done


def test_a_run_goes_on_from_its_best_epoch(tmp_path):
    class Figure(Callback):
        def on_epoch_end(self, trainer, row):
            row["figure"] = trainer.history.rows[-1]["figure"] = abs(row["epoch"] - 2.2)

    expected = straight_run()
    keep = ft.KeepBest(tmp_path / "best", metric="figure", mode="min")
    make_trainer(callbacks=[Drift(), Figure(), keep]).fit(make_loader(), 4)
    resumed = make_trainer()
    resumed.fit(make_loader(), 4, resume=tmp_path / "best")
    assert resumed.history.rows[1].pop("figure") == pytest.approx(0.2)
    del resumed.history.rows[0]["figure"]
    assert_equal(everything(resumed), expected)


def test_a_run_resumed_with_another_column_to_watch_goes_on(tmp_path):
    interrupted_and_resumed(tmp_path, 2)
    last = tmp_path / "epoch-0004"
    rows = json.loads((last / "state.json").read_text(encoding="utf-8"))["history"]
    assert "val_error" not in rows[-1]
    watch = [ft.EarlyStop(metric="val_error", patience=1), ft.KeepBest(tmp_path / "best")]
    trainer = make_trainer(callbacks=[Drift(), *watch], metrics={"error": lambda o, t: o.mean()})
    done = trainer.fit(make_loader(), EPOCHS, val=make_loader(), resume=last)
    assert len(done) == EPOCHS


@pytest.mark.parametrize("event", ["on_step_start", "on_step_end"])
def test_one_from_within_an_epoch_is_refused(tmp_path, event):
    def save(trainer):
        if trainer.step_count == BATCHES:  # at a border, but the loader stands before it
            trainer.save(tmp_path / "c")

    callback = Callback()
    setattr(callback, event, save)
    make_trainer(callbacks=[Drift(), callback]).fit(make_loader(), 4)
    with pytest.raises(ValueError, match="written outside of fit, without the place of a loader"):
        make_trainer().fit(make_loader(), 4, resume=tmp_path / "c")


def test_one_without_the_place_of_a_loader_is_refused(tmp_path):
    class Stop(Callback):
        def on_epoch_end(self, trainer, row):
            trainer.stop = True

    trainer = make_trainer(callbacks=[Drift(), Stop()])
    trainer.fit(make_loader(), 4)
    trainer.save(tmp_path / "c")
    with pytest.raises(ValueError, match="written outside of fit, without the place of a loader"):
        make_trainer().fit(make_loader(), 4, resume=tmp_path / "c")


def test_callbacks_take_their_states_wherever_they_stand(tmp_path):
    class Other(Callback):
        pass

    interrupted_and_resumed(tmp_path, 2)
    drift = Drift()
    trainer = make_trainer(callbacks=[Other(), drift])
    trainer.load(tmp_path)
    assert drift.total > 0
    with pytest.raises(ValueError, match="state of a Drift, which is not among the trainer's"):
        make_trainer(callbacks=[Other()]).fit(
            make_loader(), EPOCHS, checkpoints=tmp_path, resume=True
        )


class Steps:
    """A scheduler without a state."""

    def step(self):
        pass


def test_a_scheduler_without_a_state_is_refused_where_there_are_checkpoints(tmp_path):
    model = make_model()
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, sgd, schedulers=[Steps()], precision="fp32", progress=False)
    message = "schedulers must have state_dict and load_state_dict where .* got Steps without"
    with pytest.raises(TypeError, match=message):
        trainer.fit(make_loader(), 4, checkpoints=tmp_path)
    with pytest.raises(TypeError, match=message):
        trainer.save(tmp_path / "c")
    trainer.callbacks = [ft.KeepBest(tmp_path / "best")]
    with pytest.raises(TypeError, match=message):
        trainer.fit(make_loader(), 4)
    assert trainer.step_count == 0
    assert not names(tmp_path)


def test_the_files_are_safetensors_and_json_with_the_weights_under_their_names(tmp_path):
    from safetensors.torch import load_file

    trainer = make_trainer()
    trainer.save(tmp_path / "c")
    assert names(tmp_path / "c") == ["model.safetensors", "state.json", "training.safetensors"]
    weights = load_file(tmp_path / "c" / "model.safetensors")
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(weights[name], value)
    json.loads((tmp_path / "c" / "state.json").read_text(encoding="utf-8"))


def test_loading_keeps_the_tensors_their_layout_and_the_rates_object(tmp_path):
    trainer = make_trainer("adamw")
    trainer.fit(make_loader(), 1)
    trainer.save(tmp_path / "c")
    other = make_trainer("adamw")
    weight, rate = other.model[0].weight, other.optimizers[0].param_groups[0]["lr"]
    other.load(tmp_path / "c")
    assert other.model[0].weight is weight
    assert other.optimizers[0].param_groups[0]["lr"] is rate
    moment = other.optimizers[0].state[weight]["exp_avg"]
    assert (
        moment.stride() == trainer.optimizers[0].state[trainer.model[0].weight]["exp_avg"].stride()
    )


def test_load_takes_the_latest_of_a_folder(tmp_path):
    make_trainer().fit(make_loader(), 3, checkpoints=tmp_path)
    other = make_trainer()
    other.load(tmp_path)
    assert other.history["epoch"] == [1, 2, 3]
    other.load(tmp_path / "epoch-0002")
    assert other.history["epoch"] == [1, 2]


def test_tied_weights_and_extra_state_come_back(tmp_path):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.one = nn.Linear(4, 4)
            self.other = nn.Linear(4, 4)
            self.other.weight = self.one.weight
            self.extra = 0

        def get_extra_state(self):
            return {"extra": self.extra, "tensor": torch.full((2,), float(self.extra))}

        def set_extra_state(self, state):
            assert state["tensor"].tolist() == [state["extra"]] * 2
            self.extra = state["extra"]

    def make():
        model = Tied()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        return Trainer(model, optimizer, precision="fp32", progress=False)

    trainer, other = make(), make()
    trainer.model.extra = 7
    trainer.save(tmp_path / "c")
    other.load(tmp_path / "c")
    assert other.model.extra == 7
    assert torch.equal(other.model.other.weight, trainer.model.one.weight)
    assert other.model.other.weight is other.model.one.weight


# Whole or not at all ----------------------------------------------------------------------------


@pytest.mark.parametrize("writes", range(4))
def test_a_death_in_the_middle_of_a_write_leaves_the_old_ones_and_the_run_goes_on(
    tmp_path, monkeypatch, writes
):
    class Killed(BaseException):
        pass

    count = 0
    real_sync, real_tree = files_module.os.fsync, files_module.shutil.rmtree

    def dying_sync(handle):
        nonlocal count
        count += 1
        if count > 2 * 6 + writes:  # somewhere in the third checkpoint
            raise Killed
        real_sync(handle)

    with monkeypatch.context() as patch:
        patch.setattr(files_module.os, "fsync", dying_sync)
        # Who is killed cleans nothing up.
        patch.setattr(files_module.shutil, "rmtree", lambda *_, **__: None)
        with pytest.raises(Killed):
            make_trainer().fit(make_loader(), EPOCHS, checkpoints=tmp_path)
    assert files_module.shutil.rmtree is real_tree
    assert names(tmp_path)[1:] == ["epoch-0001", "epoch-0002"]
    assert names(tmp_path)[0].startswith(".epoch-0003-")
    torch.manual_seed(99)
    trainer = make_trainer()
    trainer.fit(make_loader(), EPOCHS, checkpoints=tmp_path, resume=True)
    assert names(tmp_path) == [f"epoch-{n:04d}" for n in (3, 4)]
    resumed = everything(trainer)
    reseed()
    whole = make_trainer()
    whole.fit(make_loader(), EPOCHS)
    assert_equal(resumed, everything(whole))


def test_an_error_while_writing_leaves_the_old_folder_and_no_rest(tmp_path, monkeypatch):
    trainer = make_trainer()
    trainer.save(tmp_path / "c")
    before = (tmp_path / "c" / "state.json").read_bytes()
    trainer.fit(make_loader(), 1)

    def fail(*_):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint_module, "write_json", fail)
        with pytest.raises(OSError, match="disk full"):
            trainer.save(tmp_path / "c")
    assert (tmp_path / "c" / "state.json").read_bytes() == before
    assert names(tmp_path) == ["c"]
    trainer.save(tmp_path / "c")
    assert (tmp_path / "c" / "state.json").read_bytes() != before
    assert names(tmp_path) == ["c"]


def test_a_folder_that_cannot_take_its_name_gives_it_back(tmp_path, monkeypatch):
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "old").touch()
    real = files_module.Path.rename

    def rename(self, target):
        if target == tmp_path / "c" and not (self / "old").exists():
            raise OSError("no")
        return real(self, target)

    monkeypatch.setattr(files_module.Path, "rename", rename)
    with pytest.raises(OSError, match="no"), replacing_folder(tmp_path / "c") as temporary:
        (temporary / "new").touch()
    assert names(tmp_path) == ["c"]
    assert names(tmp_path / "c") == ["old"]


# Refused ----------------------------------------------------------------------------------------


def test_a_folder_with_another_runs_checkpoints_is_refused(tmp_path):
    make_trainer().fit(make_loader(), 1, checkpoints=tmp_path)
    with pytest.raises(ValueError, match=r"without any of another run, .*pass resume=True"):
        make_trainer().fit(make_loader(), 1, checkpoints=tmp_path)


def flip_a_byte(path):
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)


def cut(path):
    path.write_bytes(path.read_bytes()[:100])


def drop_history(path):
    state = json.loads(path.read_text())
    del state["history"]
    path.write_text(json.dumps(state))


@pytest.mark.parametrize(
    ("file", "damage", "message"),
    [
        ("model.safetensors", flip_a_byte, "is damaged"),
        ("training.safetensors", cut, "is damaged"),
        ("training.safetensors", lambda path: path.unlink(), "cannot be read"),
        ("state.json", cut, "cannot be read"),
        ("state.json", lambda path: path.write_text("[1]"), "is no 'fasttricks checkpoint 1'"),
        ("state.json", lambda path: path.write_text('{"format": "x"}'), "is no 'fasttricks check"),
        ("state.json", drop_history, r"is damaged: KeyError\('history'\)"),
        ("state.json", lambda path: path.unlink(), "state.json does not exist"),
    ],
)
def test_a_damaged_or_foreign_checkpoint_is_named(tmp_path, file, damage, message):
    make_trainer().save(tmp_path / "c")
    damage(tmp_path / "c" / file)
    with pytest.raises(ValueError, match=rf"c.{file}.* {message}|{file} {message}|{message}") as e:
        make_trainer().load(tmp_path / "c")
    assert str(tmp_path / "c" / file) in str(e.value)


def other_width():
    model = make_model()
    model[-1] = nn.Linear(4 * 36, 6)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def other_names():
    model = nn.Sequential(make_model())
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def other_groups():
    model = make_model()
    return model, torch.optim.SGD([{"params": [p]} for p in model.parameters()], lr=0.1)


def two_optimizers():
    model = make_model()
    return model, [torch.optim.SGD([p], lr=0.1) for p in list(model.parameters())[:2]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (other_width, r"model.safetensors does not .* '6.weight' it has float32 \[5, 144\], and"),
        (other_names, "does not fit this trainer: of '0.0.weight' it has none"),
        (other_groups, r"its SGD has groups of \[6\] parameters, and the trainer's \[1, 1,"),
        (two_optimizers, "it has 1 optimizers, and the trainer 2"),
    ],
)
def test_a_checkpoint_of_another_training_is_refused_before_anything_changes(
    tmp_path, make, message
):
    model = make_model()
    one = Trainer(
        model, torch.optim.SGD(model.parameters(), lr=0.1), precision="fp32", progress=False
    )
    one.fit(make_loader(), 1)
    one.save(tmp_path / "c")
    other = Trainer(*make(), precision="fp32", progress=False)
    before = {name: value.clone() for name, value in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=message):
        other.load(tmp_path / "c")
    for name, value in other.model.state_dict().items():
        assert torch.equal(value, before[name])
    assert len(other.history) == 0


def test_another_schedule_and_another_loader_are_refused(tmp_path):
    make_trainer("adamw").fit(make_loader(), EPOCHS, checkpoints=tmp_path)
    model = make_model()
    optimizer = torch.optim.AdamW(model.parameters(), lr=torch.tensor(0.01))
    other = Trainer(model, optimizer, lr=one_cycle(0.5, 7), precision="fp32", progress=False)
    with pytest.raises(ValueError, match=r"does not fit this trainer: total_steps must be the sav"):
        other.load(tmp_path)
    batches = [(torch.zeros(2, 3, 8, 8), torch.zeros(2, dtype=torch.int64))]
    with pytest.raises(ValueError, match="its epoch has 3 batches, and train 1"):
        make_trainer("adamw").fit(batches, 9, checkpoints=tmp_path, resume=True)


def plain_trainer(kind=torch.optim.SGD, **settings):
    model = make_model()
    optimizer = kind(model.parameters(), **{"lr": 0.05, **settings})
    return Trainer(model, optimizer, precision="fp32", progress=False)


def test_another_kind_of_optimizer_is_refused_by_name(tmp_path):
    plain_trainer().save(tmp_path / "c")
    other = plain_trainer(torch.optim.AdamW)
    with pytest.raises(ValueError, match="it was written with SGD, and the trainer has AdamW"):
        other.load(tmp_path / "c")
    assert not other.optimizers[0].state


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.06}, r"began with lr=0.05 in group 0 of SGD, and this one with lr=0.06; give"),
        ({"weight_decay": 0.1}, r"weight_decay=0 in group 0 .* with weight_decay=0.1"),
        ({"momentum": 0.9, "nesterov": True}, r"momentum=0 in group 0 .* with momentum=0.9"),
    ],
)
def test_a_run_goes_on_with_its_own_numbers_or_others_set_on_purpose(tmp_path, settings, message):
    plain_trainer().fit(make_loader(), 2, checkpoints=tmp_path)
    other = plain_trainer(**settings)
    with pytest.raises(ValueError, match=message):
        other.fit(make_loader(), 3, checkpoints=tmp_path, resume=True)
    assert len(other.history) == 0
    other.load(tmp_path)
    assert other.lr == 0.05
    other.optimizers[0].param_groups[0].update(settings)
    assert len(other.fit(make_loader(), 1)) == 3


def test_how_the_optimizer_computes_may_change(tmp_path):
    plain_trainer(foreach=True).fit(make_loader(), 2, checkpoints=tmp_path)
    other = plain_trainer(foreach=False)
    assert len(other.fit(make_loader(), 3, checkpoints=tmp_path, resume=True)) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"checkpoints": "x", "every": 0}, "every must be at least 1, got every=0"),
        ({"checkpoints": "x", "keep": 0}, "keep must be at least 1, got keep=0"),
        ({"resume": True}, "resume needs the folder of the checkpoints"),
        ({"resume": "nowhere"}, "no checkpoint in nowhere"),
        ({"checkpoints": __file__}, "checkpoints must be a folder, got the file"),
    ],
)
def test_bad_arguments_are_named_before_anything_is_written(options, message):
    with pytest.raises(ValueError, match=message):
        make_trainer().fit(make_loader(), 1, **options)


def test_going_on_from_an_older_one_loses_none_of_the_later(tmp_path):
    make_trainer().fit(make_loader(), 4, checkpoints=tmp_path, keep=4)
    later = names(tmp_path)
    other = make_trainer()
    with pytest.raises(
        ValueError, match=r"later than epoch 1, from which .* with epoch-0004; pass"
    ):
        other.fit(make_loader(), 4, checkpoints=tmp_path, resume=tmp_path / "epoch-0001")
    assert names(tmp_path) == later
    elsewhere = tmp_path / "elsewhere"
    other.fit(make_loader(), 4, checkpoints=elsewhere, resume=tmp_path / "epoch-0001")
    assert names(elsewhere) == ["epoch-0003", "epoch-0004"]
    assert other.last_checkpoint == elsewhere / "epoch-0004"


def heated_trainer():
    model, loss = make_model(), Heated()
    optimizer = torch.optim.SGD([*model.parameters(), *loss.parameters()], lr=0.05, momentum=0.9)
    return Trainer(model, optimizer, loss=loss, precision="fp32", progress=False)


def test_a_loss_with_a_state_goes_on_with_it(tmp_path):
    straight, resumed = heated_trainer(), heated_trainer()
    straight.fit(make_loader(), 4)
    reseed()
    heated_trainer().fit(make_loader(), 2, checkpoints=tmp_path)
    resumed.fit(make_loader(), 4, checkpoints=tmp_path, resume=True)
    for one, other in ((straight.loss, resumed.loss), (straight.model, resumed.model)):
        for name, value in one.state_dict().items():
            assert torch.equal(value, other.state_dict()[name]), name
    assert resumed.loss.calls == 4 * BATCHES


def weighted_trainer(*weights):
    loss = nn.CrossEntropyLoss(weight=torch.tensor(weights) if weights else None)
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05)
    return Trainer(model, optimizer, loss=loss, precision="fp32", progress=False)


def test_a_run_goes_on_with_the_same_weights_of_classes_only(tmp_path):
    mine, others = (1.0, 2.0, 1.0, 1.0, 1.0), (1.0, 5.0, 1.0, 1.0, 1.0)
    weighted_trainer(*mine).fit(make_loader(), 1, checkpoints=tmp_path)
    options = {"checkpoints": tmp_path, "resume": True}
    with pytest.raises(ValueError, match=r"the loss's weight=\[1.0, 2.0, .* one with \[1.0, 5.0"):
        weighted_trainer(*others).fit(make_loader(), 2, **options)
    plain = weighted_trainer()
    before = plain.model[0].weight.clone()
    with pytest.raises(ValueError, match=r"of 'weight' it has float32 \[5\], and the loss none"):
        plain.fit(make_loader(), 2, **options)
    assert torch.equal(plain.model[0].weight, before)
    assert len(weighted_trainer(*mine).fit(make_loader(), 2, **options)) == 2


def test_a_loss_that_is_no_module_is_left_alone(tmp_path):
    class Loss:
        def state_dict(self):
            return {"self": self}

        def __call__(self, outputs, targets):
            return nn.functional.cross_entropy(outputs, targets)

    trainer = plain_trainer()
    trainer.loss = Loss()
    trainer.fit(make_loader(), 1, checkpoints=tmp_path)


def test_a_checkpoint_without_a_loss_is_one_of_before(tmp_path):
    plain_trainer().save(tmp_path / "c")
    state = json.loads((tmp_path / "c" / "state.json").read_text())
    del state["loss"]
    (tmp_path / "c" / "state.json").write_text(json.dumps(state))
    plain_trainer().load(tmp_path / "c")


def test_a_parameter_that_nothing_would_keep_is_refused_before_training(tmp_path):
    trainer = heated_trainer()
    trainer.loss = nn.CrossEntropyLoss()
    message = r"parameters of the model or of the loss .* got another one of shape \(\); make it"
    with pytest.raises(ValueError, match=message):
        trainer.fit(make_loader(), 1, checkpoints=tmp_path / "run")
    with pytest.raises(ValueError, match=message):
        trainer.save(tmp_path / "c")
    assert names(tmp_path) == []
    trainer.fit(make_loader(), 1)


def test_numbers_of_numpy_are_saved_as_numbers(tmp_path):
    trainer = plain_trainer(lr=np.float32(0.05))
    trainer.micro_batch_size = np.int64(4)
    trainer.fit(make_loader(), np.int64(1), checkpoints=tmp_path)
    other = plain_trainer(lr=np.float32(0.05))
    other.fit(make_loader(), 2, checkpoints=tmp_path, resume=True)
    assert other.micro_batch_size == 4


def test_weights_that_are_not_finite_are_never_written(tmp_path):
    class Poison(Callback):
        def on_epoch_end(self, trainer, row):
            if row["epoch"] == 2:
                trainer.model[0].weight.data[0] = torch.nan

    trainer = make_trainer(callbacks=[Poison()])
    with pytest.raises(
        FloatingPointError, match=r"weights are no longer finite at update 6 .*epoch-0001$"
    ):
        trainer.fit(make_loader(), 4, checkpoints=tmp_path)
    assert names(tmp_path) == ["epoch-0001"]


def test_a_loss_that_is_not_finite_names_the_last_good_one(tmp_path):
    class Poison(Callback):
        def on_epoch_start(self, trainer):
            if len(trainer.history) == 2:
                trainer.model[0].weight.data[0] = torch.nan

    trainer = make_trainer(callbacks=[Poison()])
    with pytest.raises(FloatingPointError, match=r"became nan at update 7 .*epoch-0002$"):
        trainer.fit(make_loader(), 4, checkpoints=tmp_path)


# Values -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": [True, None, "x"], "c": (0.1, -0.0)},
        {1: 2, (3, 4): {"$tensor": 5}},
        [float("inf"), float("-inf"), 1e-320],
        {"$tuple": 1},
        {},
        Counter({2: 1, 5: 3}),
    ],
)
def test_values_come_back_as_they_were(value):
    tensors = {}
    text = json.dumps(pack(value, tensors, "v"), allow_nan=False)
    back = unpack(json.loads(text), tensors)
    assert back == value
    assert repr(back) == repr(value)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8, torch.int64])
def test_tensors_come_back_with_dtype_and_layout(dtype):
    value = torch.arange(48).reshape(2, 3, 2, 4).to(dtype)
    for tensor in (value, value.contiguous(memory_format=torch.channels_last), value[0, 0, 0, 0]):
        tensors = {}
        back = unpack(json.loads(json.dumps(pack({"t": tensor}, tensors, "v"))), tensors)["t"]
        assert back.dtype == dtype
        assert torch.equal(back, tensor)
        assert back.stride() == tensor.stride()


def test_what_cannot_be_kept_is_named_with_its_place():
    with pytest.raises(TypeError, match=r"state\.a\.1 must hold numbers, .*, got object"):
        pack({"a": [1, object()]}, {}, "state")


def test_nothing_is_pickled(tmp_path, monkeypatch):
    def fail(*_, **__):
        raise AssertionError("pickled")

    for name in ("dump", "dumps", "load", "loads"):
        monkeypatch.setattr(sys.modules["pickle"], name, fail)
    trainer = make_trainer()
    trainer.fit(make_loader(), 1)
    trainer.save(tmp_path / "c")
    trainer.load(tmp_path / "c")


def test_a_run_that_is_over_goes_on_by_a_longer_schedule(tmp_path):
    def trainer_of(epochs):
        model = make_model()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        schedule = one_cycle(0.1, epochs * BATCHES)
        return Trainer(model, optimizer, lr=schedule, precision="fp32", progress=False)

    trainer_of(2).fit(make_loader(), 2, checkpoints=tmp_path / "short")
    longer = trainer_of(4)
    before = [parameter.clone() for parameter in longer.model.parameters()]
    with pytest.raises(
        ValueError, match=r"total_steps=6; allow it by allow_changes=True, which .*load"
    ):
        longer.load(tmp_path / "short")
    with pytest.raises(ValueError, match="allow_changes=True"):
        longer.fit(make_loader(), 4, checkpoints=tmp_path / "short", resume=True)
    for kept, parameter in zip(before, longer.model.parameters(), strict=True):
        assert torch.equal(kept, parameter)  # what is refused changes nothing
    longer = trainer_of(4)
    longer.load(tmp_path / "short", allow_changes=True)
    assert longer.lr == pytest.approx(one_cycle(0.1, 4 * BATCHES)(2 * BATCHES))
    history = longer.fit(make_loader(), 2)
    assert len(history) == 4
    assert longer.step_count == 4 * BATCHES
    assert history["lr"][2:] == pytest.approx(
        [one_cycle(0.1, 4 * BATCHES)(n * BATCHES - 1) for n in (3, 4)]
    )
