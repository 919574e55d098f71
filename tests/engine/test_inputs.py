"""What comes from outside and cannot work is named: before the work where it can be, or at once."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from random_batches import make_batches
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau, StepLR
from torch.utils.data import DataLoader, IterableDataset

from fasttricks.engine import Callback, Trainer, evaluate, find_batch_size, predict
from fasttricks.schedules import constant


def make_model(*more):
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 5), *more)


def sgd(model):
    return torch.optim.SGD(model.parameters(), lr=0.1)


def make_trainer(model=None, optimizer=sgd, **options):
    model = model or make_model()
    options = {"precision": "fp32", "progress": False, **options}
    if callable(optimizer):
        optimizer = optimizer(model)
    if options.get("schedulers") == "plateau":
        options["schedulers"] = [ReduceLROnPlateau(optimizer)]
    return Trainer(model, optimizer, **options)


class Closure(torch.optim.SGD):
    def step(self, closure):
        return super().step(closure)


OPTIONS = [
    ({"optimizer": []}, ValueError, "optimizer must be one Optimizer or several, got an empty"),
    ({"optimizer": 0.1}, TypeError, "optimizer must be Optimizer objects, got float"),
    (
        {"optimizer": lambda m: torch.optim.LBFGS(m.parameters())},
        TypeError,
        r"make its update by step\(\) alone, got LBFGS, whose step needs a closure",
    ),
    ({"optimizer": lambda m: [sgd(m), Closure(m.parameters())]}, TypeError, "got Closure"),
    ({"schedulers": "plateau"}, TypeError, "got ReduceLROnPlateau, whose step needs an argument"),
    ({"schedulers": [constant(0.1)]}, TypeError, r"with a step\(\), got .*goes into lr"),
    ({"schedulers": [StepLR]}, TypeError, r"objects with a step\(\), got StepLR"),
    (
        {"schedulers": SimpleNamespace(step=print)},
        TypeError,
        r"a list of objects with a step\(\), got SimpleNamespace",
    ),
    ({"metrics": {"a": 5}}, TypeError, "metrics must be functions by name, got 5 for 'a'"),
    ({"metrics": [len]}, TypeError, "metrics must be functions by name, got metrics=.<built-in"),
    ({"loss": "mse"}, TypeError, r"such as torch.nn.MSELoss\(\), got loss='mse'"),
    ({"loss": nn.MSELoss}, TypeError, r"got the class MSELoss; pass MSELoss\(\)"),
    ({"optimizer": DataLoader([0])}, TypeError, "objects, got Tensor in DataLoader"),
    ({"callbacks": Callback()}, TypeError, "a list of Callback objects, got Callback"),
    ({"callbacks": [Callback]}, TypeError, "Callback objects, got the class Callback"),
    ({"lr": 0.1}, TypeError, r"lr must be a Schedule .* got lr=0.1; .* or constant\(0.1\)"),
    ({"lr": SimpleNamespace(step=1)}, TypeError, r"a scheduler goes into schedulers=\["),
    ({"lr": [constant(0.1)]}, TypeError, r"one a group goes into schedulers=\[ScheduledGroups\("),
    ({"model": nn.Conv3d(3, 4, 3)}, ValueError, "channels_last must be False for Conv3d, whose"),
    ({"precision": 16}, TypeError, "one of 'auto', .* or a Precision, got precision=16"),
]


@pytest.mark.parametrize(("options", "error", "message"), OPTIONS)
def test_parts_that_cannot_train_are_named_before_the_work(options, error, message):
    with pytest.raises(error, match=message):
        make_trainer(**options)


def test_parts_that_can_train_are_taken():
    model = make_model()
    optimizer = sgd(model)
    # torch's schedulers put a wrapper of theirs around the optimizer's step.
    schedulers = (one for one in (StepLR(optimizer, 1), SimpleNamespace(step=lambda: None)))
    make_trainer(model, (one for one in [optimizer]), schedulers=schedulers).fit(make_batches(2), 1)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.001)


class Stream(IterableDataset):
    def __iter__(self):
        yield from ((torch.zeros(3, 8, 8), 0) for _ in range(8))


def test_runs_that_cannot_work_are_named_before_the_work():
    class Started(Callback):
        def on_fit_start(self, trainer):
            raise AssertionError

    trainer, stream = make_trainer(callbacks=[Started()]), DataLoader(Stream(), batch_size=4)
    with pytest.raises(ValueError, match="val must hold at least one batch, got an empty one"):
        trainer.fit(make_batches(1), 1, val=[])
    with pytest.raises(TypeError, match="train must have a length, got DataLoader without one; pa"):
        trainer.fit(stream, 1)


def test_a_val_without_a_length_is_taken():
    stream = DataLoader(Stream(), batch_size=4)
    assert "val_loss" in make_trainer().fit(make_batches(1), 1, val=stream).rows[0]


IMAGES, TARGETS = make_batches(1)[0]
BATCHES = [
    (((IMAGES, IMAGES), TARGETS), r"got tuple of \(tuple, Tensor\)"),
    ((IMAGES.numpy(), TARGETS.numpy()), r"got tuple of \(ndarray, ndarray\)"),
    ([IMAGES, TARGETS, TARGETS], r"got list of \(Tensor, Tensor, Tensor\)"),
    (IMAGES, "got Tensor"),
    (IMAGES[:2], "got Tensor"),  # which could be taken apart into two
    ({"images": IMAGES, "targets": TARGETS}, "got dict"),
    (None, "got NoneType"),
]


@pytest.mark.parametrize(("batch", "message"), BATCHES)
def test_a_batch_that_is_no_pair_of_tensors_is_named(batch, message):
    message = r"batches must be pairs of tensors, \(inputs, targets\), " + message
    trainer = make_trainer()
    for call in (
        lambda: trainer.step(batch),
        lambda: trainer.fit([batch], 1),
        lambda: trainer.evaluate([batch]),
        lambda: evaluate(make_model(), [batch]),
        lambda: find_batch_size(trainer, batch),
        *(
            []
            if isinstance(batch, torch.Tensor)  # images without targets, which can be predicted
            else [lambda: trainer.predict([batch]), lambda: predict(make_model(), [batch])]
        ),
    ):
        with pytest.raises(TypeError, match=message):
            call()


class Twice(nn.Module):
    def forward(self, x):
        return x, x


def test_outputs_that_are_no_tensor_are_named():
    message = r"model must return one tensor, got tuple of \(Tensor, Tensor\); wrap it"
    batch = (IMAGES, TARGETS)
    trainer = make_trainer(make_model(Twice()))
    for call in (
        lambda: trainer.step(batch),
        lambda: make_trainer(make_model(Twice()), select=0.5).step(batch),
        lambda: trainer.evaluate([batch]),
        lambda: find_batch_size(trainer, batch, max_batch_size=16),
    ):
        with pytest.raises(TypeError, match=message):
            call()


LOSSES = [
    (nn.CrossEntropyLoss(reduction="none"), ValueError, r"one number, .* got shape \[12\]; take"),
    (lambda outputs, targets: 0.5, TypeError, "a tensor with one number, got float"),
]


@pytest.mark.parametrize(("loss", "error", "message"), LOSSES)
def test_a_loss_that_returns_no_single_number_is_named(loss, error, message):
    for micro_batch_size in (None, 12):
        trainer = make_trainer(loss=loss, micro_batch_size=micro_batch_size)
        with pytest.raises(error, match=message):
            trainer.step((IMAGES, TARGETS))
        with pytest.raises(error, match=message):
            trainer.evaluate([(IMAGES, TARGETS)])
        with pytest.raises(error, match=message):
            find_batch_size(trainer, (IMAGES, TARGETS), min_batch_size=12)


def test_evaluate_names_a_loss_that_is_none():
    with pytest.raises(TypeError, match="got the class MSELoss"):
        evaluate(make_model(), [(IMAGES, TARGETS)], loss=nn.MSELoss)
    with pytest.raises(TypeError, match="or a Precision, got precision=16"):
        evaluate(make_model(), [(IMAGES, TARGETS)], precision=16)


def test_bytes_where_numbers_should_be_are_named():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(144, 2))
    trainer, batch = make_trainer(model), (torch.zeros(4, 3, 8, 8).byte(), torch.zeros(4).long())
    for work in (trainer.step, lambda b: trainer.evaluate([b]), lambda b: trainer.predict([b])):
        with pytest.raises(RuntimeError, match="images are uint8: give the loader a Normalize"):
            work(batch)
