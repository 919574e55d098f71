"""The search for a batch size: what fits, what is fast, and that it leaves no trace."""

from __future__ import annotations

import copy
import itertools

import pytest
import torch
from torch import nn

from fasttricks.engine import BatchSizes, Trainer, _batch_size, find_batch_size
from fasttricks.engine._batch_size import is_out_of_memory
from fasttricks.schedules import linear


class Limited(nn.Module):
    """A small network whose memory ends above a number of images, in one of its passes."""

    def __init__(self, limit, *, backward=False, error=torch.OutOfMemoryError):
        super().__init__()
        self.limit, self.backward, self.error, self.sizes = limit, backward, error, []
        self.norm = nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 2)

    def forward(self, images):
        self.sizes.append(len(images))
        outputs = self.head(self.norm(images).flatten(1))
        if len(images) > self.limit:
            if not self.backward:
                self.fail()
            outputs.register_hook(self.fail)
        return outputs

    def fail(self, *_):
        raise self.error("CUDA out of memory. Tried to allocate 2.00 GiB")


BATCH = (torch.arange(60.0).view(5, 3, 2, 2), torch.tensor([0, 1, 0, 1, 1]))


def adamw(model):
    return torch.optim.AdamW(model.parameters(), lr=0.01)


def search(model, **options):
    return find_batch_size(model, BATCH, optimizer=adamw(model), precision="fp32", **options)


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(
    ("limit", "largest"), [(16, 16), (17, 16), (100, 64), (127, 64), (128, 128)]
)
def test_it_finds_the_largest_power_that_fits(limit, largest, backward):
    found = search(Limited(limit, backward=backward), max_batch_size=4096, steps=1)
    assert (found.batch_size, found.largest) == (largest, largest)
    assert found.out_of_memory == 2 * largest
    assert found.sizes == tuple(2**k for k in range(4, 13) if 2**k <= largest)
    assert len(found.images_per_second) == len(found.sizes)
    assert min(found.images_per_second) > 0


@pytest.mark.parametrize("limit", [20, 47, 100, 127, 200])
def test_refined_it_is_within_a_16th_of_the_limit(limit):
    found = search(Limited(limit), min_batch_size=1, max_batch_size=4096, steps=1, refine=True)
    assert found.batch_size <= limit < found.out_of_memory
    assert found.out_of_memory - found.batch_size <= max(1, found.batch_size // 16)
    assert list(found.sizes) == sorted(found.sizes)


def test_a_trainer_is_searched_without_its_micro_batches():
    model = Limited(64)
    trainer = Trainer(
        model,
        adamw(model),
        lr=linear(0.1, 0.0, total_steps=9),
        precision="fp32",
        micro_batch_size=4,
        progress=False,
    )
    found = find_batch_size(trainer, BATCH, steps=1)
    assert found.batch_size == 64
    assert set(model.sizes) == {16, 32, 64, 128}
    assert (trainer.step_count, trainer.lr, trainer.micro_batch_size) == (0, 0.1, 4)


def everything(model, optimizer):
    state = copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))
    gradients = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
    flags = [module.training for module in model.modules()]
    return repr(state), repr(gradients), flags, torch.get_rng_state().tolist()


@pytest.mark.parametrize("used", [False, True])
def test_it_leaves_no_trace(used):
    model = Limited(50)
    optimizer = adamw(model)
    if used:
        model(BATCH[0]).sum().backward()
        optimizer.step()
    model.norm.eval()
    before = everything(model, optimizer)
    find_batch_size(model, BATCH, optimizer=optimizer, steps=1, refine=True, precision="fp32")
    assert everything(model, optimizer) == before


def test_an_error_of_another_kind_is_raised_and_leaves_no_trace():
    model = Limited(16)
    model.fail = lambda *_: (_ for _ in ()).throw(RuntimeError("shapes do not match"))
    optimizer = adamw(model)
    before = everything(model, optimizer)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        find_batch_size(model, BATCH, optimizer=optimizer, precision="fp32")
    assert everything(model, optimizer) == before


@pytest.mark.parametrize(
    ("milliseconds", "chosen"),
    [
        ({16: 16, 32: 16, 64: 16, 128: 16}, 128),  # as long whatever the size: the largest
        ({16: 16, 32: 32, 64: 64, 128: 128}, 16),  # as fast whatever the size: the smallest
        ({16: 16, 32: 20, 64: 39, 128: 79}, 32),  # 1.6, 1.64, 1.62: within 5 %
        ({16: 16, 32: 20, 64: 30, 128: 90}, 64),  # the fastest is in the middle
    ],
)
def test_where_memory_does_not_end_speed_decides(monkeypatch, milliseconds, chosen):
    clock, model = itertools.count(), Limited(10**6)

    def perf_counter():
        # Called before and after the timed updates of the size that was last forwarded.
        return 0.0 if next(clock) % 2 == 0 else 1e-3 * milliseconds[model.sizes[-1]]

    monkeypatch.setattr(_batch_size.time, "perf_counter", perf_counter)
    found = search(model, max_batch_size=128, steps=1)
    assert found.batch_size == chosen
    assert (found.largest, found.out_of_memory) == (128, None)
    speeds = [1000 * size / milliseconds[size] for size in (16, 32, 64, 128)]
    assert found.images_per_second == pytest.approx(speeds)


def test_the_table_marks_the_choice_and_where_memory_ended():
    found = BatchSizes(32, 32, (16, 32), (1234.5, 2000.0), 64)
    assert found.text().splitlines() == [
        "batch size  images/s",
        "        16     1,234",
        "        32     2,000 <",
        "        64  out of memory",
    ]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("whatever"), True),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried ..."), True),
        (RuntimeError("MPS backend out of memory (MPS allocated: 9.00 GB)"), True),
        (RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
    ],
)
def test_lack_of_memory_is_recognised_in_the_words_of_each_backend(error, expected):
    assert is_out_of_memory(error) is expected


def test_memory_that_ends_on_the_cpu_counts_as_well():
    class Huge(Limited):
        def fail(self, *_):
            torch.empty(2**55, dtype=torch.uint8)

    assert search(Huge(40), steps=1).batch_size == 32


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"min_batch_size": 0},
            ValueError,
            "min_batch_size must be at least 1, got min_batch_size=0",
        ),
        (
            {"max_batch_size": 8},
            ValueError,
            "at most max_batch_size, got min_batch_size=16 and max",
        ),
        ({"steps": 0}, ValueError, "steps must be at least 1, got steps=0"),
        ({"batch": (torch.zeros(0, 3), torch.zeros(0))}, ValueError, "at least one image"),
        ({"optimizer": None}, TypeError, "optimizer must be given with a module, got None"),
        (
            {"model": Limited(2)},
            ValueError,
            "must fit in memory, got min_batch_size=16, which does",
        ),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    model = options.pop("model", None) or Limited(100)
    arguments = {"batch": BATCH, "optimizer": adamw(model), "precision": "fp32", **options}
    with pytest.raises(error, match=message):
        find_batch_size(model, arguments.pop("batch"), **arguments)


def test_a_trainer_comes_without_an_optimizer():
    model = Limited(100)
    trainer = Trainer(model, adamw(model), precision="fp32", progress=False)
    with pytest.raises(TypeError, match="must be left out with a Trainer"):
        find_batch_size(trainer, BATCH, optimizer=adamw(model))
