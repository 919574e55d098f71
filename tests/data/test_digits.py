from __future__ import annotations

import sys

import numpy as np
import pytest
import torch

from fasttricks.data import read_digits

sklearn_datasets = pytest.importorskip("sklearn.datasets")


@pytest.fixture(scope="module")
def digits():
    return read_digits()


def test_the_sets_have_the_promised_form(digits):
    train, test = digits
    assert (len(train), len(test)) == (1437, 360)
    assert train.image_size == test.image_size == (32, 32)
    assert train.channels == test.channels == 3
    assert train.classes == test.classes == tuple("0123456789")
    assert train.name == test.name == "digits (scikit-learn)"


def test_the_three_channels_are_equal(digits):
    for image_set in digits:
        assert torch.equal(image_set.images, image_set.images[:, :1].expand(-1, 3, -1, -1))


def test_every_class_gives_a_fifth_to_the_test_set(digits):
    train, test = digits
    held = torch.bincount(test.labels)
    total = held + torch.bincount(train.labels)
    assert ((held - total * 360 / 1797).abs() <= 1).all()


def test_every_digit_of_the_package_comes_once(digits):
    # at 8x8 nothing is enlarged: the pixels are the package's, 0..16 stretched to 0..255
    images = torch.cat([image_set.images[:, 0] for image_set in read_digits(8)]).flatten(1)
    labels = torch.cat([image_set.labels for image_set in digits])
    raw = sklearn_datasets.load_digits()
    stretched = np.rint(raw.data * 255 / 16).astype(np.uint8)
    ours = sorted(zip(images.tolist(), labels.tolist(), strict=True))
    assert ours == sorted(zip(stretched.tolist(), raw.target.tolist(), strict=True))


def test_enlarging_is_bilinear():
    # worked by hand for the first row of pixels: at four times the size, output column x lies at
    # (x + 1/2) / 4 - 1/2 of the input, held at the border
    small = torch.cat([image_set.images for image_set in read_digits(8)])[0, 0].double()
    large = torch.cat([image_set.images for image_set in read_digits(32)])[0, 0]
    place = ((torch.arange(32) + 0.5) / 4 - 0.5).clamp(0, 7)
    low, part = place.floor().long(), (place - place.floor()).double()
    high = (low + 1).clamp(max=7)
    units = (small * 16 / 255).round()
    rows = units[low] * (1 - part[:, None]) + units[high] * part[:, None]
    expected = rows[:, low] * (1 - part) + rows[:, high] * part
    assert torch.equal(large, (expected * 255 / 16).round().to(torch.uint8))


def test_the_split_is_always_the_same(digits):
    torch.manual_seed(99)
    assert torch.equal(read_digits()[1].images, digits[1].images)


@pytest.mark.parametrize(("size", "error"), [(7, ValueError), (32.0, TypeError)])
def test_sizes_that_make_no_sense_are_refused(size, error):
    with pytest.raises(error, match=f"got image_size={size}"):
        read_digits(size)


def test_without_scikit_learn_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match="pip install scikit-learn"):
        read_digits()
