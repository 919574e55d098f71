"""RandomErasing: area and shape against torchvision's rules, one rectangle an image."""

from __future__ import annotations

import math

import pytest
import torch
from torchvision.transforms import RandomErasing as TorchvisionErasing

from fasttricks import RandomErasing
from fasttricks.transforms import Draws


def boxes_of(transform, n=20_000, shape=(3, 32, 32)):
    return transform.sample(Draws(torch.arange(n), seed=0), (n, *shape))[:, 0]


def test_each_image_loses_one_rectangle_of_its_own():
    images = torch.ones(200, 3, 32, 32)
    erased = RandomErasing(p=1.0)(images, generator=torch.Generator().manual_seed(0)) == 0
    rows, columns = erased[:, 0].any(2), erased[:, 0].any(1)
    assert torch.equal(erased[:, 0], rows[:, :, None] & columns[:, None])
    assert torch.equal(erased[:, 0], erased[:, 1])
    assert len(erased.flatten(1).unique(dim=0)) > 190


@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 20, 48)])
def test_sizes_and_places_are_distributed_as_torchvisions(shape):
    ours = boxes_of(RandomErasing(p=1.0), shape=shape).double()
    torch.manual_seed(0)
    image = torch.zeros(shape)
    theirs = torch.tensor(
        [
            TorchvisionErasing.get_params(image, (0.02, 0.33), (0.3, 3.3), [0.0])[:4]
            for _ in range(6000)
        ],
        dtype=torch.float64,
    )
    top, left, height, width = theirs.unbind(1)
    pairs = {
        "height": (ours[:, 1] - ours[:, 0], height),
        "width": (ours[:, 3] - ours[:, 2], width),
        "top": (ours[:, 0], top),
        "left": (ours[:, 2], left),
        "area": ((ours[:, 1] - ours[:, 0]) * (ours[:, 3] - ours[:, 2]), height * width),
    }
    for name, (a, b) in pairs.items():
        error = math.sqrt(a.var() / len(a) + b.var() / len(b))
        assert abs(a.mean() - b.mean()) < 4 * error, name
        assert a.std().item() == pytest.approx(b.std().item(), rel=0.05), name


def test_area_is_uniform_in_scale_and_the_ratio_within_its_bounds():
    # sides of 1000 pixels, so that rounding does not matter
    top, bottom, left, right = boxes_of(
        RandomErasing(p=1.0, scale=(0.1, 0.2), ratio=(0.5, 2.0)), shape=(1, 1000, 1000)
    ).unbind(1)
    height, width = (bottom - top).double(), (right - left).double()
    share = height * width / 1e6
    assert share.min() > 0.0995
    assert share.max() < 0.2005
    assert share.mean().item() == pytest.approx(0.15, abs=0.001)
    log_ratio = (height / width).log()
    assert log_ratio.abs().max() < math.log(2.02)
    assert log_ratio.mean().item() == pytest.approx(0.0, abs=0.01)


def test_p_is_the_share_of_changed_images():
    boxes = boxes_of(RandomErasing(p=0.3))
    assert (boxes[:, 1] > 0).double().mean().item() == pytest.approx(0.3, abs=0.015)


def test_a_shape_that_never_fits_leaves_the_image_as_it_is():
    # the whole area of a strip 8 times as wide as high: any square shape is too high
    images = torch.ones(50, 1, 4, 32)
    transform = RandomErasing(p=1.0, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    assert torch.equal(transform(images), images)


def test_random_fill_is_noise_of_each_pixel():
    images = torch.full((64, 3, 32, 32), 9.0)
    erased = RandomErasing(p=1.0, fill="random")(images)
    noise = erased[erased != 9.0]
    assert noise.mean().item() == pytest.approx(0.0, abs=0.05)
    assert noise.std().item() == pytest.approx(1.0, abs=0.05)
    assert len(noise.unique()) > 0.99 * len(noise)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"p": -0.1}, ValueError, "p must be between 0 and 1, got p=-0.1"),
        ({"scale": (0.0, 0.3)}, ValueError, "smallest scale must be greater than 0"),
        ({"scale": (0.1, 1.3)}, ValueError, "largest scale must be between 0 and 1"),
        ({"scale": 0.1}, ValueError, "scale must be two numbers, got scale=0.1"),
        ({"ratio": (2.0, 1.0)}, ValueError, r"must be \(smallest, largest\), got ratio=\(2.0, 1.0"),
        ({"ratio": (1.0, math.nan)}, ValueError, "largest ratio must be finite"),
        ({"fill": "noise"}, ValueError, "got fill='noise'"),
        ({"p": "1"}, TypeError, "p must be a number"),
    ],
)
def test_bad_arguments_are_named(options, error, message):
    with pytest.raises(error, match=message):
        RandomErasing(**options)
