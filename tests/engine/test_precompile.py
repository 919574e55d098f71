"""What compiles before the clock runs: everything, and without a trace."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch._dynamo.utils import counters

from fasttricks.data import DeviceLoader, ImageSet
from fasttricks.engine import FreezeAfter, Trainer, precompile
from fasttricks.transforms import Normalize, ProgressiveResize


class Net(nn.Module):
    """A module without a length, as most are."""

    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.rest = nn.Sequential(
            *(nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.2)),
            *(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 2)),
        )

    def forward(self, images):
        return self.rest(self.conv(images))


def make_trainer(**options):
    torch.manual_seed(0)
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    freeze = FreezeAfter([model.conv.bias], steps=2)
    options = {"precision": "fp32", "progress": False, "callbacks": [freeze], **options}
    return Trainer(model, optimizer, **options)


def make_loader(batch_size=8):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (24, 3, 8, 8), dtype=torch.uint8, generator=generator)
    image_set = ImageSet(pixels, torch.arange(24) % 2, classes=("a", "b"), name="noise")
    transforms = [Normalize(0.5, 0.25), ProgressiveResize({0: 6, 1: 7, 3: None})]
    return DeviceLoader(image_set, batch_size=batch_size, transforms=transforms, shuffle=True)


def graphs():
    return counters["stats"]["unique_graphs"]


@pytest.mark.parametrize("batch_size", [8, 9])
def test_nothing_is_left_to_compile_for_any_size_frozen_or_not(batch_size):
    torch._dynamo.reset()
    trainer, loader = make_trainer(compile="eager"), make_loader(batch_size)
    before = graphs()
    assert precompile(trainer, loader) > 0
    made = graphs() - before
    assert made >= 3  # of 6, 7 and 8 pixels; what stops training may be one more
    trainer.fit(loader, 4)
    assert graphs() - before == made


def test_it_leaves_no_trace():
    plain, prepared = make_trainer(), make_trainer()
    state = torch.get_rng_state()
    loader = make_loader()
    assert precompile(prepared, loader) > 0
    assert torch.equal(torch.get_rng_state(), state)
    assert prepared.step_count == loader.epoch == prepared.train_seconds == 0
    assert not prepared.optimizers[0].state
    assert all(p.grad is None and p.requires_grad for p in prepared.model.parameters())
    plain.fit(make_loader(), 4)
    torch.set_rng_state(state)
    prepared.fit(loader, 4)
    for one, other in zip(
        plain.model.state_dict().values(), prepared.model.state_dict().values(), strict=True
    ):
        assert torch.equal(one, other)


def test_within_a_run_it_begins_where_the_run_is():
    trainer, loader = make_trainer(), make_loader()
    trainer.fit(loader, 2)
    before = copy.deepcopy(trainer.model.state_dict())
    precompile(trainer, loader)
    assert loader.epoch == 2
    assert trainer.step_count == 6
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(value, before[name])


def test_a_list_counts_by_its_first_batch():
    trainer = make_trainer()
    assert precompile(trainer, list(make_loader())) > 0
    with pytest.raises(ValueError, match="loader must hold at least one batch, got an empty one"):
        precompile(trainer, [])


def test_a_short_last_batch_is_compiled_for_before_and_after_what_freezes():
    torch._dynamo.reset()
    trainer = make_trainer(compile="eager")
    trainer.callbacks[0].steps = 4  # in the second epoch of three batches, the last of 4 images
    image_set = ImageSet(
        torch.zeros(24, 3, 8, 8, dtype=torch.uint8), torch.arange(24) % 2, ("a", "b"), "black"
    )
    loader = DeviceLoader(image_set, batch_size=10, transforms=[Normalize(0.5, 0.25)])
    before = graphs()
    precompile(trainer, loader)
    made = graphs() - before
    assert made == 4
    trainer.fit(loader, 3)
    assert graphs() - before == made
