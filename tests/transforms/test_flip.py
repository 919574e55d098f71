from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from fasttricks.transforms import AlternatingFlip, Draws, RandomHorizontalFlip

SHAPE = (1000, 3, 4, 5)


def images():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(0, 256, SHAPE, dtype=torch.uint8, generator=generator)


@pytest.mark.parametrize("transform", [RandomHorizontalFlip(0.3), AlternatingFlip()])
def test_flips_are_mirror_images_or_the_images_themselves(transform):
    flip = transform.sample(Draws(torch.arange(1000), seed=0), SHAPE)
    result = transform.apply(images(), flip)
    for before, after, mirrored in zip(images(), result, flip, strict=True):
        assert after.tolist() == [
            [row[::-1] if mirrored else row for row in plane] for plane in before.tolist()
        ]


@pytest.mark.parametrize("transform", [RandomHorizontalFlip(0.3), AlternatingFlip()])
def test_flipping_twice_is_the_identity(transform):
    flip = transform.sample(Draws(torch.arange(1000), seed=0), SHAPE)
    assert torch.equal(transform.apply(transform.apply(images(), flip), flip), images())
    assert not torch.equal(transform.apply(images(), flip), images())


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_flipped_images_is_p(p):
    n = 20_000
    flipped = int(RandomHorizontalFlip(p).sample(Draws(torch.arange(n), seed=1), SHAPE).sum())
    assert abs(flipped - n * p) <= 4 * (n * p * (1 - p)) ** 0.5


def test_alternating_flip_shows_both_views_in_any_two_epochs_in_a_row():
    draws = Draws(torch.arange(1000), seed=3)
    views = [
        AlternatingFlip().apply(images(), AlternatingFlip().sample(draws.at_epoch(e), SHAPE))
        for e in range(5)
    ]
    for now, then in pairwise(views):
        assert torch.equal(now, then.flip(3))
    assert torch.equal(views[0], views[2])


def test_alternating_flip_mirrors_in_epoch_0_where_the_draw_is_below_a_half():
    draws = Draws(torch.arange(1000), seed=3, stream=2)
    below = draws.uniform(1)[:, 0] < 0.5
    assert torch.equal(AlternatingFlip().sample(draws, SHAPE), below)
    assert torch.equal(AlternatingFlip().sample(draws.at_epoch(7), SHAPE), ~below)


def test_alternating_flip_starts_at_random_by_seed_and_stream():
    draws = Draws(torch.arange(10_000), seed=3)
    first = AlternatingFlip().sample(draws, SHAPE)
    for other in (Draws(draws.indices, seed=4), draws.with_stream(1)):
        assert abs(int((first ^ AlternatingFlip().sample(other, SHAPE)).sum()) - 5000) < 200
    assert abs(int(first.sum()) - 5000) < 200


def test_alternating_flip_called_alone_is_a_random_flip():
    result = AlternatingFlip()(images())
    flipped = (result == images().flip(3)).flatten(1).all(1)
    kept = (result == images()).flatten(1).all(1)
    assert bool((flipped | kept).all())
    assert 400 < flipped.sum() < 600


@pytest.mark.parametrize(
    ("p", "error", "message"),
    [
        (1.5, ValueError, "p must be between 0 and 1, got p=1.5"),
        (float("nan"), ValueError, "p must be finite, got p=nan"),
        ("half", TypeError, "p must be a number, got p='half'"),
    ],
)
def test_a_bad_probability_is_named(p, error, message):
    with pytest.raises(error, match=message):
        RandomHorizontalFlip(p)
