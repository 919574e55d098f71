"""The profile of a step: its parts are where the time went, and nothing stays changed."""

from __future__ import annotations

import copy
import json
import time

import pytest
import torch
from torch import nn

from fasttricks.engine import StepProfile, Trainer, profile_steps
from fasttricks.schedules import linear

PARTS = ("data", "forward", "backward", "optimizer", "other")


class Slow(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, seconds):
        ctx.seconds = seconds
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        time.sleep(ctx.seconds)
        return gradient, None


class Net(nn.Module):
    def __init__(self, sleep):
        super().__init__()
        self.sleep = sleep
        self.layers = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(), nn.Flatten(), nn.Linear(12, 2))

    def forward(self, images):
        time.sleep(self.sleep.get("forward", 0))
        return Slow.apply(self.layers(images), self.sleep.get("backward", 0))


class SGD(torch.optim.SGD):
    sleep = 0.0

    def step(self, closure=None):
        time.sleep(self.sleep)
        return super().step(closure)


class Loader:
    def __init__(self, sleep=0.0, batches=3):
        self.sleep, self.batches = sleep, batches

    def __len__(self):
        return self.batches

    def __iter__(self):
        for _ in range(self.batches):
            time.sleep(self.sleep)
            yield torch.randn(4, 3, 2, 2), torch.tensor([0, 1, 0, 1])


def make_trainer(sleep=None, **options):
    sleep = sleep or {}
    model = Net(sleep)
    # torch puts its hooks around a class's step once there is an optimizer of it: here, around the
    # step that the subclass's step calls as well.
    torch.optim.SGD(model.parameters(), lr=0.1)
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.sleep = sleep.get("optimizer", 0)
    loss = nn.CrossEntropyLoss()

    def slow_loss(outputs, targets):
        time.sleep(sleep.get("other", 0))
        return loss(outputs, targets)

    options = {"precision": "fp32", "progress": False, "loss": slow_loss, **options}
    return Trainer(model, optimizer, lr=linear(0.1, 0.0, total_steps=9), **options)


@pytest.mark.parametrize("part", PARTS)
def test_time_that_is_spent_in_a_part_is_found_there(part):
    trainer = make_trainer({part: 0.02})
    loader = Loader(0.02 if part == "data" else 0.0)
    profile = profile_steps(trainer, loader, steps=3, warmup=1)
    assert getattr(profile, part) >= 20
    assert profile.images_per_second <= 4 / 0.02
    assert profile.total == pytest.approx(1000 * 4 / profile.images_per_second)


def test_micro_batches_count_for_the_same_parts():
    profile = profile_steps(
        make_trainer({"forward": 0.02}, micro_batch_size=2), Loader(), steps=2, warmup=0
    )
    assert profile.forward >= 40


def test_a_compiled_model_is_not_compiled_anew():
    torch._dynamo.reset()
    images = torch.randn(4, 3, 2, 2)
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    trainer = Trainer(model, optimizer, compile="eager", precision="fp32", progress=False)
    batches = [(images, torch.tensor([0, 1, 0, 1]))] * 3
    for batch in batches:
        trainer.step(batch)
    graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert graphs > 0
    profile = profile_steps(trainer, batches, steps=2, warmup=1)
    assert profile.forward > 0
    trainer.step(batches[0])
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == graphs
    torch._dynamo.reset()


def test_the_table_has_the_parts_their_shares_and_their_sum():
    profile = StepProfile(1.0, 2.0, 4.0, 0.5, 2.5, steps=10, images_per_second=51200.0)
    assert profile.total == 10.0
    assert profile.text().splitlines() == [
        "part               ms   share",
        "data            1.000   10.0%",
        "forward         2.000   20.0%",
        "backward        4.000   40.0%",
        "optimizer       0.500    5.0%",
        "other           2.500   25.0%",
        "total          10.000  100.0%",
        "51,200 images/s, mean of 10 steps",
    ]


@pytest.mark.parametrize("traced", [False, True])
def test_it_leaves_no_trace(traced, tmp_path):
    trainer = make_trainer()
    model, optimizer = trainer.model, trainer.optimizers[0]
    trainer.fit(Loader(), epochs=1)
    model.eval()

    def everything():
        state = copy.deepcopy((model.state_dict(), optimizer.state_dict(), trainer.history.rows))
        hooks = [len(model._forward_hooks), len(model._forward_pre_hooks)]
        hooks += [len(optimizer._optimizer_step_pre_hooks)]
        hooks += [len(optimizer._optimizer_step_post_hooks)]
        counts = trainer.step_count, trainer.lr, trainer.totals.images, trainer.totals.loss
        return repr((state, hooks, counts, torch.get_rng_state().tolist(), model.training))

    before, precision = everything(), trainer.precision
    path = tmp_path / "trace.json" if traced else None
    profile_steps(trainer, Loader(), steps=2, path=path)
    assert everything() == before
    assert trainer.precision is precision
    assert "backward" not in vars(precision)


def test_the_training_that_follows_is_that_without_a_profile():
    weights = []
    for profiled in (False, True):
        torch.manual_seed(0)
        trainer = make_trainer()
        if profiled:
            profile_steps(trainer, Loader(), steps=2)
        trainer.fit(Loader(), epochs=2)
        weights.append([p.detach().clone() for p in trainer.model.parameters()])
    for one, other in zip(*weights, strict=True):
        assert torch.equal(one, other)


def test_the_trace_names_the_loader_and_the_steps(tmp_path):
    path = tmp_path / "traces" / "trace.json"
    profile_steps(make_trainer(), Loader(), steps=2, warmup=0, path=path)
    names = [event.get("name") for event in json.loads(path.read_text())["traceEvents"]]
    assert names.count("step") == names.count("data") == 2
    assert [entry.name for entry in path.parent.iterdir()] == ["trace.json"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps must be at least 1, got steps=0"),
        ({"warmup": -1}, "warmup must be at least 0, got warmup=-1"),
        ({"loader": Loader(batches=0)}, "loader must hold at least one batch, got an empty one"),
    ],
)
def test_bad_arguments_are_named(options, message):
    loader = options.pop("loader", Loader())
    with pytest.raises(ValueError, match=message):
        profile_steps(make_trainer(), loader, **options)
