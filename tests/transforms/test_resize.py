from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks.transforms import Draws, ProgressiveResize


def at(epoch, sizes, images):
    transform = ProgressiveResize(sizes)
    draws = Draws(torch.arange(len(images)), seed=0, epoch=epoch)
    return transform.apply(images, transform.sample(draws, tuple(images.shape)))


def test_each_size_holds_until_the_next_epoch_named():
    sizes = {6: None, 0: 24, 3: 28}
    images = torch.rand(2, 3, 32, 32)
    sides = [at(epoch, sizes, images).shape[3] for epoch in (0, 1, 2, 3, 5, 6, 7, 1000)]
    assert sides == [24, 24, 24, 28, 28, 32, 32, 32]


def test_before_the_first_epoch_named_images_stay_as_they_come():
    images = torch.rand(2, 3, 32, 32)
    assert torch.equal(at(1, {2: 24}, images), images)
    assert at(2, {2: 24}, images).shape == (2, 3, 24, 24)


@settings(max_examples=30)
@given(
    shape=st.tuples(*(st.integers(1, n) for n in (3, 4, 9, 9))),
    size=st.integers(1, 12),
    dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]),
    channels_last=st.booleans(),
)
def test_resizing_equals_interpolate(shape, size, dtype, channels_last):
    images = torch.rand(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    expected = F.interpolate(images, (size, size), mode="bilinear", antialias=False)
    assert torch.equal(at(0, {0: size}, images), expected)


def test_whole_numbers_are_rounded_from_float32():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, 3, 32, 32), dtype=torch.uint8, generator=generator)
    expected = F.interpolate(images.float(), (24, 24), mode="bilinear").round()
    result = at(0, {0: 24}, images)
    assert result.dtype == torch.uint8
    assert torch.equal(result.float(), expected)


def test_halving_by_hand():
    image = torch.tensor([[0.0, 2.0], [4.0, 10.0]])
    assert at(0, {0: 1}, image[None, None]).item() == 4.0


def test_called_alone_it_is_epoch_0():
    assert ProgressiveResize({0: 5, 1: None})(torch.zeros(3, 8, 8)).shape == (3, 5, 5)


def test_epochs_and_sizes_may_be_of_numpy():
    resize = ProgressiveResize({np.int64(0): np.uint8(5), np.int64(2): None})
    assert repr(resize) == repr(ProgressiveResize({0: 5, 2: None}))


@pytest.mark.parametrize(
    ("sizes", "error", "message"),
    [
        (24, TypeError, "sizes must map epochs to pixels.*got sizes=24"),
        ({}, ValueError, "sizes must have at least one epoch, got sizes={}"),
        ({-1: 24}, ValueError, "each epoch of sizes must be at least 0, got .*=-1"),
        ({0: 0}, ValueError, "each size of sizes must be at least 1, got .*=0"),
        ({0: 24.0}, TypeError, "each size of sizes must be a whole number, got .*=24.0"),
    ],
)
def test_bad_sizes_are_named(sizes, error, message):
    with pytest.raises(error, match=message):
        ProgressiveResize(sizes)


def test_later_changes_of_the_mapping_do_not_reach_the_transform():
    sizes = {0: 24}
    transform = ProgressiveResize(sizes)
    sizes[0] = 8
    assert transform.size_at(0) == 24
