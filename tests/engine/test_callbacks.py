"""Callbacks apart from the averages: early stop and the loggers."""

from __future__ import annotations

import json
import math
import sys
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from fasttricks.engine import (
    Callback,
    EarlyStop,
    FreezeAfter,
    JSONLines,
    KeepBest,
    TensorBoard,
    Trainer,
)

ROWS = [
    {"epoch": 1, "step": 4, "loss": 2.0, "val_accuracy": 0.5},
    {"epoch": 2, "step": 8, "loss": 1.0, "val_accuracy": 0.94},
    {"epoch": 3, "step": 12, "loss": 1.5, "val_accuracy": 0.93},
]


def stops(callback):
    """After which rows the callback wants to stop, each in a run of its own."""
    trainers = [SimpleNamespace(stop=False) for _ in ROWS]
    for trainer, row in zip(trainers, ROWS, strict=True):
        callback.on_epoch_end(trainer, row)
    return [trainer.stop for trainer in trainers]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"target": 0.94}, [False, True, False]),
        ({"target": 0.93}, [False, True, True]),
        ({"target": 1.5, "metric": "loss"}, [False, True, True]),
        ({"target": 1.5, "metric": "loss", "mode": "max"}, [True, False, True]),
        ({"target": 0.5, "mode": "min"}, [True, False, False]),
    ],
)
def test_early_stop_stops_where_the_target_is_reached(options, expected):
    assert stops(EarlyStop(**options)) == expected


def test_early_stop_is_not_reached_by_nan():
    trainer = SimpleNamespace(stop=False)
    for mode in ("min", "max"):
        row = {"loss": math.nan}
        EarlyStop(target=0.0, metric="loss", mode=mode).on_epoch_end(trainer, row)
    assert not trainer.stop


def test_early_stop_names_a_column_that_is_missing():
    message = (
        r"metric must be a column .* which has epoch, loss, got metric='val_accuracy'; pass val"
    )
    with pytest.raises(ValueError, match=message):
        EarlyStop(target=0.9).on_epoch_end(SimpleNamespace(), {"epoch": 1, "loss": 1.0})


def test_early_stop_says_that_without_classes_there_is_no_accuracy():
    row = {"epoch": 1, "loss": 1.0, "val_loss": 1.0}
    for metric in ("accuracy", "val_accuracy"):
        with pytest.raises(ValueError, match=f"got metric='{metric}'; without classes as targets"):
            EarlyStop(target=0.9, metric=metric).on_epoch_end(SimpleNamespace(), row)
    with pytest.raises(ValueError, match="got metric='val_top5'$"):
        EarlyStop(target=0.9, metric="val_top5").on_epoch_end(SimpleNamespace(), row)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": math.nan}, "target must be finite, got target=nan"),
        ({"target": 0.9, "mode": "up"}, "mode must be one of 'max', 'min', got mode='up'"),
        ({}, "EarlyStop must have a target or a patience, got neither"),
        ({"patience": 0}, "patience must be at least 1, got patience=0"),
    ],
)
def test_early_stop_refuses_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        EarlyStop(**options)


def fit(*callbacks, epochs=2, trainer=None):
    if trainer is None:
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        options = {"precision": "fp32", "progress": False, "callbacks": callbacks}
        trainer = Trainer(model, optimizer, **options)
    batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1]))]
    trainer.fit(batches, epochs=epochs)
    return trainer


class Figures(Callback):
    """Puts figures into the history's rows, one an epoch."""

    def __init__(self, *values):
        self.values = values

    def on_epoch_end(self, trainer, row):
        row["figure"] = self.values[row["epoch"] - 1]
        trainer.history.rows[-1]["figure"] = row["figure"]


@pytest.mark.parametrize(
    ("options", "values", "epochs"),
    [
        ({"patience": 1}, (1, 2, 2, 3), 3),
        ({"patience": 2}, (1, 3, 2, 2, 9), 4),
        ({"patience": 2}, (1, 2, 3, 4), 4),
        ({"patience": 2, "mode": "min"}, (1, 2, 3, 4), 3),
        ({"patience": 2}, (math.nan, math.nan, 1, 1), 2),
        ({"patience": 2}, (math.nan, 1, math.nan, math.nan), 4),
        ({"patience": 3, "target": 2.5}, (1, 2, 3, 4), 3),
    ],
)
def test_patience_ends_after_epochs_without_a_new_best(options, values, epochs):
    stop = EarlyStop(metric="figure", **options)
    assert len(fit(Figures(*values), stop, epochs=len(values)).history) == epochs


def test_patience_counts_the_epochs_of_its_own_fit():
    trainer = fit(Figures(9, 1, 2, 2, 2, 5), EarlyStop(metric="figure", patience=2), epochs=1)
    assert len(fit(trainer=trainer, epochs=5).history) == 5


@pytest.mark.parametrize(("mode", "best"), [("max", 3), ("min", 2), (None, 3)])
def test_the_best_epochs_checkpoint_is_kept(tmp_path, mode, best):
    kept = {}

    class Weights(Callback):
        def on_epoch_end(self, trainer, row):
            kept[row["epoch"]] = trainer.model[1].weight.detach().clone()

    keep = KeepBest(tmp_path / "best", metric="figure", mode=mode)
    trainer = fit(Figures(2, 1, math.nan if mode == "min" else 3, 3), Weights(), keep, epochs=4)
    trainer.load(tmp_path / "best")
    assert len(trainer.history) == best
    assert torch.equal(trainer.model[1].weight, kept[best])


def test_weights_that_are_not_finite_are_not_kept(tmp_path):
    class Break(Callback):
        def on_epoch_end(self, trainer, row):
            torch.nn.init.constant_(trainer.model[1].weight, math.inf)

    with pytest.raises(FloatingPointError, match="weights are no longer finite"):
        fit(Figures(1), Break(), KeepBest(tmp_path / "best", metric="figure"))
    assert not (tmp_path / "best").exists()


# JSON lines --------------------------------------------------------------------------------------


def lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_json_lines_holds_the_rows_of_the_history_and_goes_on_below_them(tmp_path):
    path = tmp_path / "new" / "log.jsonl"
    trainer = fit(JSONLines(path))
    assert lines(path) == trainer.history.rows
    fit(trainer=trainer, epochs=1)
    assert lines(path) == trainer.history.rows
    assert len(lines(path)) == 3
    fit(JSONLines(str(path)))
    assert len(lines(path)) == 5


def test_json_lines_is_on_the_disk_after_each_epoch(tmp_path):
    path, seen = tmp_path / "log.jsonl", []

    class Watch(JSONLines):
        def on_epoch_end(self, trainer, row):
            super().on_epoch_end(trainer, row)
            seen.append(len(lines(path)))

    fit(Watch(path), epochs=3)
    assert seen == [1, 2, 3]


def test_json_lines_writes_null_for_what_json_lacks(tmp_path):
    path = tmp_path / "log.jsonl"
    JSONLines(path).write({"epoch": 1, "a": math.nan, "b": math.inf, "c": -math.inf, "d": 0.1})
    assert lines(path) == [{"epoch": 1, "a": None, "b": None, "c": None, "d": 0.1}]


def test_json_lines_ends_a_line_that_was_cut_off(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"epoch": 1}\n{"epo')
    JSONLines(path).write({"epoch": 2})
    assert path.read_text() == '{"epoch": 1}\n{"epo\n{"epoch": 2}\n'


# TensorBoard -------------------------------------------------------------------------------------


@pytest.fixture
def writers(monkeypatch):
    """The writers that were made, in place of those of tensorboard."""
    made = []

    class Writer:
        def __init__(self, folder, purge_step=None):
            self.folder, self.purge_step, self.scalars, self.closed = folder, purge_step, [], False
            made.append(self)

        def add_scalar(self, name, value, step):
            self.scalars.append((name, value, step))

        def flush(self):
            self.flushed = len(self.scalars)

        def close(self):
            self.closed = True

    module = ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = Writer
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    return made


def test_tensorboard_gets_every_figure_at_its_update(writers, tmp_path):
    trainer = fit(TensorBoard(tmp_path))
    (writer,) = writers
    assert (writer.folder, writer.purge_step) == (str(tmp_path), None)
    expected = [
        (name, value, row["step"])
        for row in trainer.history.rows
        for name, value in row.items()
        if name not in ("epoch", "step")
    ]
    assert writer.scalars == expected
    assert writer.flushed == len(expected)
    assert writer.closed


def test_tensorboard_hides_what_lies_beyond_the_place_where_a_run_goes_on(writers, tmp_path):
    trainer = fit(TensorBoard(tmp_path))
    fit(trainer=trainer)
    assert [writer.purge_step for writer in writers] == [None, 3]


def test_tensorboard_that_is_not_installed_is_named_at_once(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(ImportError, match="TensorBoard needs tensorboard; pip install tensorboard"):
        TensorBoard(tmp_path)


def test_the_trainer_ends_after_the_epoch_that_reached_the_target():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    batches = [(torch.zeros(4, 1, 2, 2), torch.tensor([0, 1, 0, 1]))]
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    stop = EarlyStop(target=10.0, metric="loss")  # any loss is below
    ended = []

    class End(Callback):
        def on_fit_end(self, trainer):
            ended.append(trainer.step_count)

    trainer = Trainer(model, sgd, precision="fp32", progress=False, callbacks=[stop, End()])
    assert len(trainer.fit(batches, epochs=5)) == 1
    assert ended == [1]
    # the next fit starts anew, and is stopped anew
    assert len(trainer.fit(batches, epochs=5)) == 2
    stop.target = 0.0
    assert len(trainer.fit(batches, epochs=3)) == 5


def test_a_column_of_ones_own_is_watched_kept_and_logged(tmp_path):
    class Rising(Callback):
        def on_epoch_end(self, trainer, row):
            row["f1"] = 0.1 * trainer.epoch

    log = JSONLines(tmp_path / "log.jsonl")
    stop = EarlyStop(metric="f1", patience=2)
    keep = KeepBest(tmp_path / "best", metric="f1")
    trainer = fit(Rising(), stop, keep, log, epochs=4)
    assert trainer.history["f1"] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert [row["f1"] for row in lines(log.path)] == trainer.history["f1"]
    trainer.load(tmp_path / "best")
    assert len(trainer.history) == 4


def test_a_percentage_is_no_accuracy():
    for metric in ("accuracy", "val_accuracy"):
        with pytest.raises(ValueError, match="between 0 and 1 .* got target=60; 60 % are 0.6"):
            EarlyStop(target=60, metric=metric)
    EarlyStop(target=60, metric="f1_percent")
    with pytest.raises(ValueError, match="between 0 and 1"):
        EarlyStop(target=-1)


@pytest.mark.parametrize("metric", ["val_accuracy", "val_loss"])
def test_what_no_validation_gives_is_missed_before_the_first_update(tmp_path, metric):
    for callback in (EarlyStop(patience=1, metric=metric), KeepBest(tmp_path, metric=metric)):
        model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        trainer = Trainer(model, sgd, precision="fp32", callbacks=[callback])
        with pytest.raises(ValueError, match=f"got metric='{metric}' without val; pass val="):
            trainer.fit([(torch.zeros(4, 1, 2, 2), torch.zeros(4).long())], 1)
        assert trainer.step_count == 0


def test_a_callback_may_give_what_the_validation_would(tmp_path):
    class Validates(Callback):
        def on_epoch_end(self, trainer, row):
            row["val_accuracy"] = 0.5

    trainer = fit(Validates(), EarlyStop(target=0.4), KeepBest(tmp_path / "best"), epochs=3)
    assert trainer.history["val_accuracy"] == [0.5]
    assert (tmp_path / "best").is_dir()


@pytest.mark.parametrize(
    "value", [torch.tensor(1.5), torch.tensor([1.5]), np.float32(1.5), np.array(1.5), 1.5]
)
def test_what_a_callback_adds_becomes_a_number(tmp_path, value):
    class Adds(Callback):
        def on_epoch_end(self, trainer, row):
            row["mine"] = value

    trainer = fit(Adds(), JSONLines(tmp_path / "log"), epochs=1)
    assert type(trainer.history["mine"][0]) is float
    assert lines(tmp_path / "log")[0]["mine"] == 1.5
    trainer.history.to_json(tmp_path / "h.json")


@pytest.mark.parametrize("value", ["good", None, torch.ones(2), [1.0]])
def test_what_is_no_number_is_refused_by_the_callbacks_name(value):
    class Adds(Callback):
        def on_epoch_end(self, trainer, row):
            row["mine"] = value

    with pytest.raises(TypeError, match="Adds must add numbers to the row of an epoch, got mine="):
        fit(Adds(), epochs=1)


def test_a_log_is_written_wherever_it_can_be(tmp_path):
    log = tmp_path / "log.jsonl"
    log.touch()
    tmp_path.chmod(0o555)
    try:
        fit(JSONLines(log), JSONLines("/dev/null"), epochs=1)
    finally:
        tmp_path.chmod(0o755)
    assert len(lines(log)) == 1


def test_places_that_cannot_be_written_are_named_before_the_first_update(tmp_path):
    file = tmp_path / "file"
    file.write_text("mine")
    with pytest.raises(ValueError, match="path must be a file, got the folder"):
        JSONLines(tmp_path)
    keep = {"metric": "loss"}
    for callback in (KeepBest(file / "x", **keep), KeepBest(file, **keep), JSONLines(file / "x")):
        with pytest.raises(ValueError, match="path must .* got .*file"):
            fit(callback)
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, sgd, precision="fp32", progress=False)
    with pytest.raises(ValueError, match="checkpoints must lie in a folder that can be made, got"):
        trainer.fit([(torch.zeros(4, 1, 2, 2), torch.zeros(4).long())], 1, checkpoints=file / "x")
    assert file.read_text() == "mine"
    assert trainer.step_count == 0


def test_freeze_after_takes_parameters_and_nothing_else():
    layer = nn.Linear(2, 2)
    assert FreezeAfter(layer.bias, steps=1).parameters == [layer.bias]
    assert len(FreezeAfter(layer.parameters(), steps=1).parameters) == 2
    for wrong, got in ((layer, "Linear; pass its parameters"), (["bias"], "str"), ("ab", "str")):
        with pytest.raises(TypeError, match=rf"nn.Parameter, got {got}"):
            FreezeAfter(wrong, steps=1)
    with pytest.raises(ValueError, match="at least one parameter"):
        FreezeAfter([], steps=1)


def test_a_callback_reads_each_batchs_loss():
    losses = []

    class Read(Callback):
        def on_step_end(self, trainer):
            losses.append(trainer.batch_loss.item())

    trainer = fit(Read(), epochs=1)
    assert sum(losses) / len(losses) == pytest.approx(trainer.history["loss"][0])
    assert not trainer.batch_loss.requires_grad
