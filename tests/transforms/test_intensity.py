from __future__ import annotations

import pytest
import torch

from fasttricks.transforms import Draws, RandomIntensity


def test_every_image_gets_its_own_shift_and_scale():
    images = torch.rand(5, 3, 4, 4, dtype=torch.float64)
    transform = RandomIntensity(shift=0.5, scale=0.25)
    offset, factor = transform.sample(Draws(torch.arange(5), seed=1), tuple(images.shape))
    result = transform.apply(images, (offset, factor))
    for image, a, b, changed in zip(images, offset, factor, result, strict=True):
        torch.testing.assert_close(changed, (image + a.double()) * b.double())
    assert len(offset.unique()) == len(factor.unique()) == 5


def test_numbers_fill_their_ranges_evenly():
    transform = RandomIntensity(shift=0.5, scale=0.25)
    offset, factor = transform.sample(Draws(torch.arange(20_000), seed=0), (20_000, 3, 8, 8))
    for value, low, high in ((offset, -0.5, 0.5), (factor, 0.75, 1.25)):
        assert low <= value.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < value.max() <= high
        # The mean of 20,000 uniform numbers is within 4 standard errors of the middle.
        assert abs(value.mean() - (low + high) / 2) < 4 * (high - low) / (12 * 20_000) ** 0.5
    assert abs(torch.corrcoef(torch.stack([offset, factor]))[0, 1]) < 0.03


def test_zero_changes_nothing():
    images = torch.rand(2, 3, 4, 4)
    assert torch.equal(RandomIntensity(shift=0, scale=0)(images), images)


def test_bad_numbers_and_integer_images_are_refused():
    with pytest.raises(ValueError, match="shift must be at least 0, got shift=-1"):
        RandomIntensity(shift=-1)
    with pytest.raises(ValueError, match="scale must be between 0 and 1, got scale=2"):
        RandomIntensity(scale=2)
    with pytest.raises(TypeError, match=r"images must be uint8 or floating, got dtype"):
        RandomIntensity()(torch.zeros(1, 3, 4, 4, dtype=torch.int32))


def test_uint8_images_are_taken_as_fractions_and_clipped():
    images = torch.tensor([0, 100, 255], dtype=torch.uint8).view(1, 1, 1, 3)
    params = torch.tensor([0.1]), torch.tensor([1.1])
    # (0 + 0.1) 1.1 = 0.11 -> 28, (0.3922 + 0.1) 1.1 = 0.5414 -> 138, 1.21 -> 255.
    result = RandomIntensity(shift=0.1, scale=0.1).apply(images, params)
    assert result.flatten().tolist() == [28, 138, 255]
