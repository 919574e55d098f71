from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
import slow_transforms
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from fasttricks.transforms import Cutout, Draws, Pipeline, _cutout, cutout
from fasttricks.transforms._cutout import erase

DTYPES = [torch.uint8, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64]


def draws(n, seed=0):
    return Draws(torch.arange(n), seed=seed)


def erased_mask(transform, n, height, width, seed=0):
    """Which pixels of each image are erased, [N, H, W]; every channel alike."""
    images = torch.ones(n, 2, height, width)
    result = transform.apply(images, transform.sample(draws(n, seed), tuple(images.shape)))
    assert torch.equal(result[:, 0], result[:, 1])
    return result[:, 0] == 0


def chi_square(counts, expected):
    """Distance from the expected counts in standard deviations of a chi-square."""
    chi2 = sum((counts.get(key, 0) - e) ** 2 / e for key, e in expected.items())
    freedom = len(expected) - 1
    return (chi2 - freedom) / (2 * freedom) ** 0.5


@settings(max_examples=60)
@given(data=st.data())
def test_cutout_erases_what_the_slow_twin_erases_and_nothing_else(data):
    n, channels = data.draw(st.integers(0, 3)), data.draw(st.integers(1, 4))
    height, width = data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9))
    size = data.draw(st.integers(1, 12) | st.tuples(st.integers(1, 12), st.integers(1, 12)))
    options = {
        "holes": data.draw(st.integers(1, 3)),
        "p": data.draw(st.sampled_from([0.0, 0.5, 1.0])),
        "inside": data.draw(st.booleans()),
    }
    dtype = data.draw(st.sampled_from(DTYPES))
    seed = data.draw(st.integers(0, 100))
    images = torch.randint(1, 200, (n, channels, height, width)).to(dtype)
    if data.draw(st.booleans()):
        images = images.contiguous(memory_format=torch.channels_last)
    transform = Cutout(size, fill=7, **options)
    counter = Draws(torch.arange(n) + 5, seed=seed, epoch=2, stream=1)
    result = transform.apply(images, transform.sample(counter, tuple(images.shape)))
    for position in range(n):
        erased = slow_transforms.cutout_pixels(
            (height, width),
            size if isinstance(size, tuple) else (size, size),
            seed=seed,
            epoch=2,
            stream=1,
            index=position + 5,
            **options,
        )
        expected = images[position].clone()
        for y, x in erased:
            expected[:, y, x] = 7
        assert torch.equal(result[position], expected)


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 8])
def test_a_square_away_from_the_border_is_exactly_size_pixels_wide(size):
    transform = Cutout(size)
    boxes = transform.sample(draws(2000), (2000, 3, 32, 32))[:, 0]
    top, bottom, left, right = boxes.unbind(1)
    away = (top > 0) & (bottom < 32) & (left > 0) & (right < 32)
    assert away.sum() > 500
    areas = erased_mask(transform, 2000, 32, 32).sum((1, 2))
    assert areas[away].unique().tolist() == [size**2]
    assert areas[~away].max() <= size**2


@pytest.mark.parametrize("size", [1, 3, 4, 10])
@pytest.mark.parametrize(("height", "width"), [(6, 6), (5, 8)])
def test_clipped_squares_follow_the_exact_distribution_over_all_centres(size, height, width):
    n = 30_000
    share = n / (height * width)
    expected_squares, expected_areas = Counter(), Counter()
    for y in range(height):
        for x in range(width):
            pixels = slow_transforms.erased_pixels(
                (height, width), (size, size), (y, x), inside=False
            )
            expected_squares[tuple(sorted(pixels))] += share
            expected_areas[len(pixels)] += share
    masks = erased_mask(Cutout(size), n, height, width)
    unique, counts = masks.flatten(1).unique(dim=0, return_counts=True)
    squares = {
        tuple(map(tuple, mask.view(height, width).nonzero().tolist())): count
        for mask, count in zip(unique, counts.tolist(), strict=True)
    }
    assert set(squares) == set(expected_squares)
    if len(squares) > 1:
        assert chi_square(squares, expected_squares) < 4
    areas = Counter(masks.sum((1, 2)).tolist())
    assert set(areas) == set(expected_areas)
    if len(areas) > 1:
        assert chi_square(areas, expected_areas) < 4


def test_the_mean_area_at_32_pixels_is_the_enumerated_one():
    size, n = 8, 20_000
    # rows that remain of 8, by centre: 4 to 7 at the first four, then 8, and 7 to 5 at the end
    rows = [min(32, c + 4) - max(0, c - 4) for c in range(32)]
    assert sorted(rows) == [4, 5, 5, 6, 6, 7, 7] + [8] * 25
    area = (sum(rows) / 32) ** 2
    observed = erased_mask(Cutout(size), n, 32, 32).sum((1, 2)).double()
    assert abs(float(observed.mean()) - area) < 4 * float(observed.std()) / n**0.5


def test_inside_squares_are_whole_and_uniform_over_every_place():
    n = 30_000
    masks = erased_mask(Cutout(3, inside=True), n, 5, 8)
    assert masks.sum((1, 2)).unique().tolist() == [9]
    first = masks.flatten(1).int().argmax(1)
    counts = dict(Counter(first.tolist()))
    expected = {y * 8 + x: n / 18 for y in range(3) for x in range(6)}
    assert set(counts) == set(expected)
    assert chi_square(counts, expected) < 4


def test_the_uniformity_check_sees_a_centre_that_avoids_the_border():
    expected = dict.fromkeys(range(36), 100.0)
    avoiding = dict.fromkeys(range(35), 100 * 36 / 35)
    assert chi_square(avoiding, expected) > 4


def test_each_image_has_its_own_square():
    boxes = Cutout(8).sample(draws(500), (500, 3, 32, 32))
    assert len(boxes.flatten(1).unique(dim=0)) > 300


def test_holes_are_placed_independently():
    n = 20_000
    first, second = erased_place(Cutout(1, holes=2), n)
    pairs = torch.bincount(first * 16 + second, minlength=256)
    expected = dict.fromkeys(range(256), n / 256)
    assert chi_square(dict(enumerate(pairs.tolist())), expected) < 4


def erased_place(transform, n):
    boxes = transform.sample(draws(n), (n, 1, 4, 4))
    return (boxes[:, :, 0] * 4 + boxes[:, :, 2]).unbind(1)


@pytest.mark.parametrize("p", [0.0, 0.25, 1.0])
def test_the_share_of_changed_images_is_p_and_independent_of_the_place(p):
    n = 20_000
    masks = erased_mask(Cutout(1, p=p), n, 4, 4)
    changed = masks.flatten(1).any(1)
    assert abs(int(changed.sum()) - n * p) <= 4 * (n * p * (1 - p)) ** 0.5
    if p:
        places = Counter(masks[changed].flatten(1).int().argmax(1).tolist())
        assert chi_square(places, {k: int(changed.sum()) / 16 for k in range(16)}) < 4


def test_a_rectangle_is_height_by_width():
    masks = erased_mask(Cutout((2, 5), inside=True), 50, 8, 8)
    assert masks.any(2).sum(1).unique().tolist() == [2]
    assert masks.any(1).sum(1).unique().tolist() == [5]


def test_a_size_above_the_image_erases_what_its_centre_reaches():
    masks = erased_mask(Cutout(100), 20, 6, 6)
    assert bool(masks.all())
    assert bool(erased_mask(Cutout(7, inside=True), 20, 6, 6).all())
    # 7 wide around columns 0 and 5: 3 to either side
    columns = erased_mask(Cutout(7), 500, 6, 6).any(1).sum(1)
    assert set(columns.tolist()) == {4, 5, 6}


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fill_may_differ_by_channel(dtype, channels_last):
    images = torch.ones(5, 3, 6, 6, dtype=dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    result = Cutout(3, fill=(2, 0, 5), inside=True)(images)
    for channel, value in enumerate((2, 0, 5)):
        assert (result[:, channel] == value).sum() == 5 * 9
        assert (result[:, channel] == 1).sum() == 5 * 27


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_fill_is_each_images_own_mean_of_each_channel(dtype, channels_last):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 100, (4, 3, 6, 6), generator=generator).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    result = Cutout(20, fill="mean", inside=True)(images)
    expected = images.double().mean((2, 3), keepdim=True)
    if not dtype.is_floating_point:
        expected = expected.round()
    # the mean of 36 whole numbers below 100 is within an ulp of float32, then rounded once
    torch.testing.assert_close(result, expected.to(dtype).expand(4, 3, 6, 6))


def test_a_mean_of_half_precision_does_not_overflow():
    images = torch.full((1, 1, 64, 64), 60000.0, dtype=torch.float16)
    assert Cutout(64, fill="mean", inside=True)(images).unique().tolist() == [60000.0]


def test_pixels_outside_of_the_square_keep_nan_and_infinity():
    images = torch.tensor([torch.nan, torch.inf, -torch.inf, -0.0]).repeat(1, 2, 4, 1)
    mask = erased_mask(Cutout(2), 1, 4, 4)
    result = Cutout(2).apply(images, Cutout(2).sample(draws(1), (1, 2, 4, 4)))
    torch.testing.assert_close(result[:, 0][~mask], images[:, 0][~mask], equal_nan=True)
    assert not result[:, 0][mask].any()


def test_the_function_is_the_class():
    images = torch.rand(4, 3, 8, 8)
    options = {"holes": 2, "fill": "mean", "p": 0.7, "inside": True}
    by_function = cutout(images, 3, generator=torch.Generator().manual_seed(1), **options)
    by_class = Cutout(3, **options)(images, generator=torch.Generator().manual_seed(1))
    assert torch.equal(by_function, by_class)
    assert not torch.equal(by_function, images)


@pytest.mark.parametrize("size", [np.uint8(6), (np.int8(6), np.uint8(3))])
def test_sizes_and_holes_may_be_of_numpy(size):
    plain = (6, 3) if isinstance(size, tuple) else 6
    transform = Cutout(size, holes=np.uint8(2))
    assert repr(transform) == repr(Cutout(plain, holes=2))
    images = torch.ones(4, 1, 8, 8)
    assert torch.equal(run(transform, images), run(Cutout(plain, holes=2), images))


def test_a_list_of_fills_is_kept_as_numbers_of_its_own():
    fill = [1.0, 2.0, 3.0]
    transform = Cutout(2, fill=fill)
    fill[0] = 9.0
    assert transform == Cutout(2, fill=(1.0, 2.0, 3.0))
    assert hash(Pipeline([transform])) == hash(Pipeline([Cutout(2, fill=(1.0, 2.0, 3.0))]))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"size": 0}, ValueError, "size must be at least 1, got size=0"),
        ({"size": -3}, ValueError, "size must be at least 1, got size=-3"),
        ({"size": 8.0}, TypeError, "size must be a whole number, got size=8.0"),
        ({"size": (4, 0)}, ValueError, "width of size must be at least 1, got width of size=0"),
        ({"size": (4, 4, 4)}, ValueError, r"or \(height, width\), got size=\(4, 4, 4\)"),
        ({"holes": 0}, ValueError, "holes must be at least 1, got holes=0"),
        ({"p": float("nan")}, ValueError, "p must be finite, got p=nan"),
        ({"p": -0.1}, ValueError, "p must be between 0 and 1, got p=-0.1"),
        ({"fill": "median"}, ValueError, "'mean' or 'random', got fill='median'"),
        ({"fill": float("inf")}, ValueError, "fill must be finite, got fill=inf"),
        ({"fill": ()}, ValueError, r"fill must have at least one number, got fill=\(\)"),
        ({"fill": None}, TypeError, "fill must be a number, got fill=None"),
        ({"inside": 1}, TypeError, "inside must be True or False, got inside=1"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {"size": 8} | arguments
    with pytest.raises(error, match=message):
        Cutout(arguments.pop("size"), **arguments)


def test_what_is_no_generator_is_named():
    with pytest.raises(TypeError, match="generator must be a torch.Generator or None, got .*=5"):
        cutout(torch.zeros(3, 8, 8), 2, generator=5)


@pytest.mark.parametrize("fill", [0.5, -1, 256, (0, 0, 300)])
def test_a_fill_that_uint8_cannot_hold_is_refused(fill):
    with pytest.raises(ValueError, match=r"whole number from 0 to 255 for torch.uint8 images, got"):
        Cutout(2, fill=fill)(torch.zeros(3, 8, 8, dtype=torch.uint8))


def test_a_fill_that_does_not_fit_the_channels_is_refused():
    with pytest.raises(ValueError, match=r"fill must .* got 2 numbers and images of 3 channels"):
        Cutout(2, fill=(0.0, 1.0))(torch.zeros(3, 8, 8))


def original_cutout(image, length, y, x):
    """The mask of the paper's own code: edges by clipping at the border, NumPy by hand."""
    height, width = image.shape[1:]
    mask = np.ones((height, width), np.float32)
    y1, y2 = np.clip(y - length // 2, 0, height), np.clip(y + length // 2, 0, height)
    x1, x2 = np.clip(x - length // 2, 0, width), np.clip(x + length // 2, 0, width)
    mask[y1:y2, x1:x2] = 0
    return image * mask


@pytest.mark.parametrize("length", [2, 8, 16])
def test_for_even_sizes_it_is_the_original_at_every_centre(length):
    # A centre c of the original is c here: boxes of all 12 x 10 centres, each met once.
    n, height, width = 4000, 12, 10
    boxes = Cutout(length).sample(Draws(torch.arange(n), seed=0), (n, 3, height, width))[:, 0]
    by_hand = set()
    for y in range(height):
        for x in range(width):
            image = original_cutout(np.ones((3, height, width), np.float32), length, y, x)
            by_hand.add(image.tobytes())
    ours = {
        erase(torch.ones(1, 3, height, width), box[None, None]).numpy().tobytes()
        for box in boxes.unique(dim=0)
    }
    assert ours == by_hand


def test_random_fill_is_noise_that_depends_on_the_image_alone():
    images = torch.full((400, 3, 16, 16), 7.0)
    transform = Cutout(8, fill="random", inside=True)
    erased = run(transform, images)
    noise = erased[erased != 7.0]
    assert noise.numel() == 400 * 3 * 64
    assert noise.mean().item() == pytest.approx(0, abs=0.02)
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    alone = transform.apply(
        images[:1], transform.sample(Draws(torch.tensor([3]), seed=0), (1, 3, 16, 16))
    )
    assert torch.equal(alone[0], erased[3])


class Largest(TorchDispatchMode):
    """Keeps the bytes of the largest tensor that is made."""

    size = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for each in tree_leaves(result):
            if isinstance(each, torch.Tensor):
                self.size = max(self.size, each.numel() * each.element_size())
        return result


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_is_made_for_few_images_at_once_and_for_those_with_a_hole(
    dtype, channels_last, monkeypatch
):
    images = torch.ones(40, 3, 16, 16).to(dtype)
    if channels_last:
        images = images.contiguous(memory_format=torch.channels_last)
    transform = Cutout(8, fill="random", p=0.5)
    boxes, keys = transform.sample(draws(40), tuple(images.shape))
    expected = transform.apply(images, (boxes, keys))
    monkeypatch.setattr(_cutout, "_NOISE_AT_ONCE", 2 * 3 * 16 * 16)
    made, noise = [], _cutout._noise
    monkeypatch.setattr(
        _cutout, "_noise", lambda keys, *rest: made.append(keys) or noise(keys, *rest)
    )
    with Largest() as largest:
        result = transform.apply(images, (boxes, keys))
    assert torch.equal(result, expected)
    assert result.stride() == images.stride()
    assert torch.equal(torch.cat(made), keys[boxes.flatten(1).any(1)])
    assert max(map(len, made)) == 2
    # noise of two images is of int64, the batch may be of less
    assert largest.size <= max(images.numel() * images.element_size(), 2 * 3 * 16 * 16 * 8)


def test_the_mask_of_many_holes_takes_no_more_than_that_of_one():
    boxes = Cutout(3, holes=20).sample(draws(10), (10, 3, 64, 64))
    with Largest() as largest:
        mask = _cutout.box_mask(boxes, 64, 64)
    assert largest.size <= mask.numel()
    by_hand = torch.zeros(10, 64, 64, dtype=torch.bool)
    for image, own in enumerate(boxes.tolist()):
        for top, bottom, left, right in own:
            by_hand[image, top:bottom, left:right] = True
    assert torch.equal(mask, by_hand)


def test_random_fill_of_bytes_is_uniform():
    images = torch.zeros(400, 3, 16, 16, dtype=torch.uint8)
    noise = run(Cutout(16, fill="random", inside=True), images)
    assert (noise.min(), noise.max()) == (0, 255)
    counts = torch.bincount(noise.flatten().long(), minlength=256)
    assert counts.min() > 0.85 * noise.numel() / 256


def test_random_fill_of_int64_is_uniform_over_its_range():
    images = torch.zeros(100, 3, 16, 16, dtype=torch.int64)
    noise = run(Cutout(16, fill="random", inside=True), images)
    counts = torch.bincount((noise.flatten() >> 60) + 8, minlength=16)
    assert counts.numel() == 16
    assert counts.min() > 0.9 * noise.numel() / 16


def test_random_noise_without_keys_is_refused():
    with pytest.raises(ValueError, match="noise_keys must be given"):
        erase(torch.ones(1, 1, 2, 4), torch.tensor([[[0, 1, 1, 3]]]), fill="random")


def run(transform, images):
    draws = Draws(torch.arange(len(images)), seed=0)
    return transform.apply(images, transform.sample(draws, tuple(images.shape)))
