from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks.transforms import Normalize

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)


def batch(channels_last):
    images = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).repeat(2, 3, 1, 1)
    return images.contiguous(memory_format=torch.channels_last) if channels_last else images


def exact(images, mean=MEAN, std=STD):
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    columns = (torch.tensor(x, dtype=torch.float64).view(-1, 1, 1) for x in (mean, std))
    centre, spread = columns
    return (images.double() / scale - centre) / spread


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize(
    ("dtype", "eps"),
    [
        (torch.float16, 2**-11),
        (torch.bfloat16, 2**-8),
        (torch.float32, 2**-22),
        (torch.float64, 2**-51),
    ],
)
def test_normalize_is_the_formula_to_the_precision_of_its_dtype(dtype, eps, channels_last):
    images = batch(channels_last)
    result = Normalize(MEAN, STD, dtype)(images)
    assert result.dtype == dtype
    error = (result.double() - exact(images)).abs()
    # mean / std is about 2, and rounding acts on the terms of the difference
    assert bool((error <= eps * (exact(images).abs() + 2)).all())


def test_normalize_by_the_images_own_numbers_gives_mean_0_and_std_1():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (50, 3, 8, 8), dtype=torch.uint8, generator=generator)
    pixels = images.double().transpose(0, 1).flatten(1) / 255
    mean, std = pixels.mean(1), pixels.std(1, correction=0)
    result = (
        Normalize(mean.tolist(), std.tolist(), torch.float64)(images).transpose(0, 1).flatten(1)
    )
    torch.testing.assert_close(result.mean(1), torch.zeros(3).double(), atol=1e-12, rtol=0)
    torch.testing.assert_close(
        result.std(1, correction=0), torch.ones(3).double(), atol=1e-12, rtol=0
    )


@settings(max_examples=20)
@given(
    mean=st.floats(-1, 1),
    std=st.floats(0.01, 10),
    channels=st.integers(1, 4),
    dtype=st.sampled_from([torch.uint8, torch.float32, torch.float64]),
)
def test_one_number_stands_for_all_channels(mean, std, channels, dtype):
    images = torch.ones(2, channels, 3, 5, dtype=dtype)
    result = Normalize(mean, std, torch.float64)(images)
    assert torch.equal(
        result, Normalize([mean] * channels, [std] * channels, torch.float64)(images)
    )
    torch.testing.assert_close(result, exact(images, [mean], [std]))


def test_floating_images_are_not_divided_by_255():
    assert Normalize(0.5, 0.25)(torch.ones(1, 2, 2)).unique().tolist() == [2.0]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ((0.5, 0.0), ValueError, "std must be greater than 0, got std=0.0"),
        ((0.5, (0.2, -1.0)), ValueError, "std must be greater than 0, got std=-1.0"),
        ((float("nan"), 1.0), ValueError, "mean must be finite, got mean=nan"),
        (("grey", 1.0), TypeError, "mean must be a number, got mean='g'"),
        ((torch.ones(3, 1), 1.0), TypeError, r"mean must be a number, got mean=\[1.0\]"),
        (((), 1.0), ValueError, r"mean must have at least one number, got mean=\(\)"),
        ((0.5, 1.0, torch.uint8), TypeError, "floating torch.dtype, got dtype=torch.uint8"),
        ((0.5, 1.0, "float32"), TypeError, "floating torch.dtype, got dtype=float32"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    with pytest.raises(error, match=message):
        Normalize(*arguments)


def test_images_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match=r"mean must .* got 3 numbers and images of 1 channels"):
        Normalize(MEAN, 1.0)(torch.zeros(2, 1, 4, 4))
    with pytest.raises(ValueError, match=r"std must .* got 2 numbers and images of 3 channels"):
        Normalize(0.5, (1.0, 1.0))(torch.zeros(3, 4, 4))
    with pytest.raises(TypeError, match=r"got dtype=torch.int64"):
        Normalize(0.5, 1.0)(torch.zeros(3, 4, 4, dtype=torch.int64))


@pytest.mark.parametrize("make", [torch.tensor, np.array])
def test_tensors_and_arrays_are_taken_as_their_numbers(make):
    assert Normalize(make([0.5, 0.25]), make(0.5)) == Normalize((0.5, 0.25), 0.5)
