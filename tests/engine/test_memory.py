"""Running out of memory: the step starts over in smaller parts, as if it had begun with them."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

from fasttricks import Trainer
from fasttricks.engine import _gradients, _trainer
from fasttricks.engine._memory import is_out_of_memory
from fasttricks.engine._speed import records_graphs


class Limited(nn.Module):
    """Runs out of memory with more than ``limit`` images, as late as in the backward pass."""

    def __init__(self, limit, where="forward", error=torch.OutOfMemoryError):
        super().__init__()
        self.limit, self.where, self.error = limit, where, error

    def forward(self, x):
        if len(x) > self.limit:
            if self.where == "forward":
                raise self.error("CUDA out of memory")
            if x.requires_grad:
                x.register_hook(self.fail)
        return x

    def fail(self, gradient):
        raise self.error("DefaultCPUAllocator: can't allocate memory")


def make_trainer(limit, **options):
    torch.manual_seed(0)
    where = options.pop("where", "forward")
    error = options.pop("error", torch.OutOfMemoryError)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3),
        nn.BatchNorm2d(4),
        nn.Dropout(0.5),
        Limited(limit, where, error),
        nn.Flatten(),
        nn.Linear(16, 2),
    )
    sgd = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    return Trainer(model, sgd, precision="fp32", progress=False, **options)


def batches(n=3, size=16):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, size, 3, 4, 4, generator=generator)
    return [(x, torch.arange(size) % 2) for x in images]


@pytest.mark.parametrize(
    ("where", "error"), [("forward", torch.OutOfMemoryError), ("backward", RuntimeError)]
)
def test_the_run_is_that_with_small_parts_from_the_start(where, error):
    halving = make_trainer(5, where=where, error=error)
    torch.manual_seed(3)
    with pytest.warns(RuntimeWarning, match="memory ran out") as caught:
        halving.fit(batches(), 1)
    assert [str(w.message) for w in caught] == ["memory ran out; micro_batch_size is now 4"]
    assert halving.micro_batch_size == 4
    small = make_trainer(5, where=where, micro_batch_size=4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        torch.manual_seed(3)
        small.fit(batches(), 1)
    for key, value in small.model.state_dict().items():
        assert torch.equal(value, halving.model.state_dict()[key]), key
    assert small.history["loss"] == halving.history["loss"]


def test_one_image_that_does_not_fit_is_an_error():
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(0).step(batches(1)[0])


def test_by_choice_and_for_other_errors_it_raises_at_once():
    with pytest.raises(torch.OutOfMemoryError):
        make_trainer(5, oom="raise").step(batches(1)[0])
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        make_trainer(99).step((torch.zeros(2, 3, 9, 9), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(ValueError, match="oom must be one of 'halve', 'raise', got oom='ignore'"):
        make_trainer(5, oom="ignore")


def test_a_size_that_fitted_before_loses_nothing_either():
    """Memory that was there may be gone, taken by another process."""
    trainers = [make_trainer(99), make_trainer(99)]
    first, second = batches(2)
    for trainer in trainers:
        torch.manual_seed(2)
        trainer.step(first)
    trainers[0].model[3].limit = 8
    trainers[1].micro_batch_size = 8
    for trainer in trainers:
        torch.manual_seed(3)
        if trainer is trainers[0]:
            with pytest.warns(RuntimeWarning, match="micro_batch_size is now 8"):
                trainer.step(second)
        else:
            trainer.step(second)
    for key, value in trainers[0].model.state_dict().items():
        assert torch.equal(value, trainers[1].model.state_dict()[key]), key


def test_a_compile_that_records_graphs_keeps_whole_batches(monkeypatch):
    """The next part would write over the memory of the gradients; on a CPU it records none."""
    assert records_graphs("max-autotune", torch.device("cuda"))
    assert not records_graphs("max-autotune", torch.device("cpu"))
    assert not records_graphs(True, torch.device("cuda"))
    for module in (_gradients, _trainer):
        monkeypatch.setattr(module, "records_graphs", lambda compile, device: True)
    with pytest.raises(ValueError, match="micro_batch_size must come without a compile that"):
        make_trainer(5, micro_batch_size=4)
    trainer = make_trainer(5)
    with pytest.raises(torch.OutOfMemoryError):
        trainer.step(batches()[0])
    assert trainer.micro_batch_size is None


@pytest.mark.parametrize(
    "text",
    [
        "CUDA out of memory. Tried to allocate 2 GiB",
        "[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: not enough memory",
        "GET was unable to find an engine to execute this computation",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    ],
)
def test_errors_of_memory_are_told_from_others(text):
    assert is_out_of_memory(RuntimeError(text))
    assert not is_out_of_memory(RuntimeError("shape mismatch"))
