"""Progress: a line an epoch in a file, a live bar on a terminal."""

from __future__ import annotations

import io
import re

import pytest
import torch
from torch import nn

from fasttricks.engine import Callback, Progress, Trainer
from fasttricks.engine import _progress as progress_module


class Terminal(io.StringIO):
    def isatty(self):
        return True


def train(stream, epochs=2):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"precision": "fp32", "progress": False, "callbacks": [Progress(stream)]}
    batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))] * 3
    Trainer(model, optimizer, **options).fit(batches, epochs, val=batches)
    return stream.getvalue()


def test_a_file_gets_one_line_an_epoch():
    lines = train(io.StringIO()).splitlines()
    assert len(lines) == 2
    pattern = (
        r"epoch    1/2  step 3/6  loss \d\.\d{4}  acc \d+\.\d%  val acc \d+\.\d\d%  "
        r"[\d,]+ images/s  \d+\.\d s  left \d:\d\d"
    )
    assert re.fullmatch(pattern, lines[0])


def test_a_terminal_sees_step_loss_and_time_left_while_it_runs(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress_module, "_REFRESH_SECONDS", 0)
    text = train(Terminal())
    assert "epoch    2/2" in text
    assert re.search(r"step [1-6]/6\s+loss", text)
    assert "images/s" in text


def test_a_terminal_sees_no_accuracy_where_there_is_none(monkeypatch):
    pytest.importorskip("rich")
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(progress_module, "_REFRESH_SECONDS", 0)
    stream = Terminal()
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"precision": "fp32", "progress": False, "callbacks": [Progress(stream)]}
    batches = [(torch.randn(4, 3, 2, 2), torch.zeros(4, 1))] * 3
    Trainer(model, optimizer, loss=nn.MSELoss(), **options).fit(batches, 1, val=batches)
    text = stream.getvalue()
    assert re.search(r"loss \d\.\d{4}  [\d,]+ images/s", text)
    assert "acc" not in text


def test_a_resumed_run_judges_what_is_left_by_its_own_speed(monkeypatch, tmp_path):
    class Clock(Callback):
        seconds = 0

        def perf_counter(self):
            return self.seconds

        def on_step_end(self, trainer):
            self.seconds += 60

    def times_left(**options):
        clock, stream = Clock(), io.StringIO()
        monkeypatch.setattr(progress_module, "time", clock)
        model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        callbacks = [clock, Progress(stream)]
        trainer = Trainer(model, optimizer, precision="fp32", progress=False, callbacks=callbacks)
        batches = [(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))] * 3
        trainer.fit(batches, 4, **options)
        return re.findall(r"left (\S+)", stream.getvalue())

    assert times_left(checkpoints=tmp_path, keep=4) == ["9:00", "6:00", "3:00", "0:00"]
    assert times_left(resume=tmp_path / "epoch-0002")[-2:] == ["3:00", "0:00"]


def test_a_second_fit_counts_its_own_epochs():
    stream = io.StringIO()
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    options = {"precision": "fp32", "progress": False, "callbacks": [Progress(stream)]}
    trainer = Trainer(model, optimizer, **options)
    for _ in range(2):
        trainer.fit([(torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 2, 0]))] * 3, 1.5)
    found = re.findall(r"epoch +(\S+)", stream.getvalue())
    assert found == ["1/1.5", "1.5/1.5"] * 2


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (59.6, "1:00"), (3599, "59:59"), (36000, "10:00:00")]
)
def test_durations_read_as_clocks(seconds, text):
    assert progress_module.format_seconds(seconds) == text
