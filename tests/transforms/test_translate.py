from __future__ import annotations

import numpy as np
import pytest
import slow_transforms
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks.transforms import Draws, RandomTranslate


def batch(shape, dtype=torch.uint8, channels_last=True):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, shape, generator=generator).to(dtype)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


@settings(max_examples=60)
@given(data=st.data())
def test_translation_equals_pad_and_crop(data):
    mode = data.draw(st.sampled_from(["reflect", "zero"]))
    height, width = data.draw(st.integers(2, 9)), data.draw(st.integers(2, 9))
    limit = min(height, width) - 1 if mode == "reflect" else 12
    padding = data.draw(st.integers(0, limit))
    shape = (data.draw(st.integers(1, 5)), data.draw(st.integers(1, 4)), height, width)
    dtype = data.draw(st.sampled_from([torch.uint8, torch.float16, torch.bfloat16, torch.float32]))
    images = batch(shape, dtype, data.draw(st.booleans()))
    transform = RandomTranslate(padding, mode)
    shifts = transform.sample(
        Draws(torch.arange(shape[0]), seed=data.draw(st.integers(0, 99))), shape
    )
    padded = F.pad(
        images.float(), (padding,) * 4, mode="reflect" if mode == "reflect" else "constant"
    )
    result = transform.apply(images, shifts)
    for image, (dy, dx), got in zip(padded, shifts.tolist(), result, strict=True):
        top, left = padding + dy, padding + dx
        assert torch.equal(got.float(), image[:, top : top + height, left : left + width])


@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_translation_equals_the_slow_twin_at_every_shift(mode):
    image = batch((1, 2, 4, 5))
    transform = RandomTranslate(3, mode)
    for dy in range(-3, 4):
        for dx in range(-3, 4):
            slow = slow_transforms.translate(image[0].tolist(), dy, dx, mode=mode)
            assert transform.apply(image, torch.tensor([[dy, dx]]))[0].tolist() == slow


def test_every_shift_is_equally_likely_and_each_image_has_its_own():
    shifts = RandomTranslate(2).sample(Draws(torch.arange(25_000), seed=0), (25_000, 3, 32, 32))
    counts = torch.bincount((shifts[:, 0] + 2) * 5 + shifts[:, 1] + 2, minlength=25).double()
    assert counts.numel() == 25
    chi2 = float(((counts - 1000) ** 2 / 1000).sum())
    # 24 degrees of freedom: mean 24, standard deviation 7
    assert chi2 < 24 + 4 * 7


def test_no_padding_is_the_identity():
    images = batch((3, 3, 8, 8))
    assert torch.equal(RandomTranslate(0)(images), images)


def test_padding_may_be_of_numpy():
    images = batch((3, 3, 8, 8))
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    moved = RandomTranslate(np.uint8(2))(images, generator=generators[0])
    assert torch.equal(moved, RandomTranslate(2)(images, generator=generators[1]))


def test_a_zero_border_keeps_infinities_inside():
    images = torch.full((1, 1, 3, 3), torch.inf)
    moved = RandomTranslate(2, "zero").apply(images, torch.tensor([[2, 0]]))
    assert moved[0, 0].tolist() == [[torch.inf] * 3, [0.0] * 3, [0.0] * 3]


def test_a_shift_beyond_the_image_leaves_only_the_zero_border():
    images = torch.ones(1, 1, 3, 3)
    transform = RandomTranslate(5, "zero")
    assert transform.sample(Draws(torch.arange(1), seed=0), images.shape).shape == (1, 2)
    assert transform.apply(images, torch.tensor([[-4, 0]])).sum() == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((-1,), ValueError, "padding must be at least 0, got padding=-1"),
        ((1.5,), TypeError, "padding must be a whole number, got padding=1.5"),
        ((2, "edge"), ValueError, "mode must be one of 'reflect', 'zero', got mode='edge'"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        RandomTranslate(*arguments)


def test_padding_as_large_as_the_image_cannot_be_reflected():
    RandomTranslate(3)(torch.zeros(1, 4, 5))
    with pytest.raises(ValueError, match="got padding=4 and images of 4x5; use a smaller padding"):
        RandomTranslate(4)(torch.zeros(1, 4, 5))
