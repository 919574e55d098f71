"""Mixup and CutMix: sums and areas by hand, lambda's distribution, soft labels that add up."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.distributions import Beta
from torch.nn.functional import one_hot

from fasttricks import CutMix, DeviceLoader, ImageSet, Mixup, Normalize, RandomTranslate
from fasttricks.transforms import Draws
from fasttricks.transforms._mix import beta


def batch(n=16, size=8, classes=3):
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(n, 3, size, size, generator=generator)
    return images, torch.randint(classes, (n,), generator=generator)


@pytest.mark.parametrize("alpha", [0.05, 0.2, 0.4, 1.0, 2.0, 8.0])
def test_lambda_is_of_the_beta_distribution(alpha):
    n = 200_000
    values = beta(Draws(torch.arange(n), seed=1), alpha).double()
    assert ((values >= 0) & (values <= 1)).all()
    exact = Beta(torch.tensor(alpha, dtype=torch.float64), alpha)
    assert values.mean().item() == pytest.approx(0.5, abs=0.004)
    assert values.var().item() == pytest.approx(exact.variance.item(), rel=0.01)
    # Kolmogorov and Smirnov: two samples of this size differ by more once in 10,000 times.
    torch.manual_seed(0)
    grid = torch.linspace(0, 1, 2001, dtype=torch.float64)[:-1]
    ours, theirs = (
        torch.searchsorted(sample.sort().values, grid, right=True) / n
        for sample in (values, exact.sample((n,)))
    )
    assert (ours - theirs).abs().max() < 2.23 * (2 / n) ** 0.5


def test_beta_of_one_is_uniform():
    values = beta(Draws(torch.arange(100_000), seed=2), 1.0)
    shares = torch.histc(values, 10, 0, 1) / len(values)
    assert shares.tolist() == pytest.approx([0.1] * 10, abs=0.004)


@settings(deadline=None, max_examples=20)
@given(
    alpha=st.sampled_from([0.2, 1.0]), p=st.sampled_from([0.0, 0.5, 1.0]), seed=st.integers(0, 9)
)
def test_mixup_is_the_weighted_sum_of_images_and_labels(alpha, p, seed):
    images, labels = batch()
    mix = Mixup(alpha, p=p)
    mixed, soft = mix(images, labels, num_classes=3, generator=torch.Generator().manual_seed(seed))
    draws = Draws.from_generator(16, generator=torch.Generator().manual_seed(seed))
    partner, weight = mix.partners(draws, 16), mix.weights(draws)
    for i, (j, w) in enumerate(zip(partner.tolist(), weight.tolist(), strict=True)):
        assert torch.allclose(mixed[i], w * images[i] + (1 - w) * images[j], atol=1e-6)
        by_hand = w * one_hot(labels[i], 3) + (1 - w) * one_hot(labels[j], 3)
        assert torch.allclose(soft[i], by_hand, atol=1e-6)


def test_with_p_0_nothing_changes_and_with_p_a_half_about_half_do():
    images, labels = batch(n=1000)
    same, soft = Mixup(1.0, p=0.0)(images, labels, num_classes=3)
    assert torch.equal(same, images)
    assert torch.equal(soft, one_hot(labels, 3).float())
    mixed = Mixup(1.0, p=0.5)(images, labels, num_classes=3)[0]
    assert (mixed != images).flatten(1).any(1).float().mean().item() == pytest.approx(0.5, abs=0.06)


@pytest.mark.parametrize("shape", [(8, 8), (7, 12)])
def test_cutmix_takes_one_rectangle_of_the_partner_and_counts_labels_by_area(shape):
    n = 60
    images = torch.arange(1, n + 1).float().view(n, 1, 1, 1).expand(n, 2, *shape)
    mix = CutMix(1.0)
    generator = torch.Generator().manual_seed(4)
    labels = torch.arange(n) % 5
    mixed, soft = mix(images, labels, num_classes=5, generator=generator)
    partner = mix.partners(
        Draws.from_generator(n, generator=torch.Generator().manual_seed(4)), n
    ).tolist()
    seen_some = 0
    for i in range(n):
        other = mixed[i, 0] == partner[i] + 1
        assert ((mixed[i, 0] == i + 1) | other).all()
        assert torch.equal(mixed[i, 0], mixed[i, 1])
        if partner[i] == i:
            continue
        rows, columns = other.any(1), other.any(0)
        assert torch.equal(other, rows[:, None] & columns[None])  # a rectangle ...
        for line in (rows, columns):  # ... in one piece
            assert line.int().diff(prepend=torch.zeros(1), append=torch.zeros(1)).abs().sum() <= 2
        share = other.float().mean()
        by_hand = (1 - share) * one_hot(labels[i], 5) + share * one_hot(labels[partner[i]], 5)
        assert torch.allclose(soft[i], by_hand, atol=1e-6)
        seen_some += bool(0 < share < 1)
    assert seen_some > n // 2


def test_cutmix_keeps_the_shape_and_the_mean_area_before_clipping():
    # of images of 64 x 32 the uncut rectangle is twice as high as wide
    boxes = CutMix(1.0)._boxes(Draws(torch.arange(4000), seed=0), 64, 32)
    top, bottom, left, right = boxes.unbind(1)
    inside = (top > 0) & (bottom < 64) & (left > 0) & (right < 32)
    height, width = (bottom - top)[inside], (right - left)[inside]
    assert ((height / 2 - width).abs() <= 1).all()


@pytest.mark.parametrize("mix", [Mixup(0.4), CutMix(1.0)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dtype_layout_and_input_are_kept(mix, memory_format):
    images, labels = batch()
    images = images.bfloat16().to(memory_format=memory_format)
    before = images.clone()
    mixed, soft = mix(images, labels, num_classes=4)
    assert (mixed.dtype, mixed.shape) == (torch.bfloat16, images.shape)
    assert mixed.is_contiguous(memory_format=memory_format)
    assert torch.equal(images, before)
    assert soft.dtype == torch.float32
    assert soft.sum(1).tolist() == pytest.approx([1.0] * 16)


def test_cutmix_works_on_uint8_and_mixup_says_what_to_do():
    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    labels = torch.arange(4)
    assert CutMix(1.0)(images, labels, num_classes=4)[0].dtype == torch.uint8
    with pytest.raises(TypeError, match="got dtype=torch.uint8; put Normalize"):
        Mixup(1.0)(images, labels, num_classes=4)


@pytest.mark.parametrize("mix", [Mixup(0.4), CutMix(1.0)])
def test_an_empty_batch_gives_an_empty_batch(mix):
    mixed, soft = mix(torch.zeros(0, 3, 8, 8), torch.zeros(0).long(), num_classes=4)
    assert (mixed.shape, soft.shape) == ((0, 3, 8, 8), (0, 4))


def make_set(n=40):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, 8, 8), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(n) % 4, classes=("a", "b", "c", "d"), name="noise")


@pytest.mark.parametrize("mix", [Mixup(0.4), CutMix(1.0, p=0.5)])
def test_in_the_loader_an_image_does_not_depend_on_its_batch(mix):
    transforms = [RandomTranslate(1), Normalize(0.5, 0.25)]
    options = {"transforms": transforms, "seed": 3, "mix": mix}
    whole = DeviceLoader(make_set(), batch_size=40, **options)
    parts = DeviceLoader(make_set(), batch_size=7, **options)
    for epoch in (0, 1):
        whole.set_epoch(epoch)
        parts.set_epoch(epoch)
        images, soft = next(iter(whole))
        batches = list(parts)
        assert torch.equal(images, torch.cat([part for part, _ in batches]))
        assert torch.equal(soft, torch.cat([labels for _, labels in batches]))
        assert soft.shape == (40, 4)


def test_in_the_loader_the_partners_are_augmented_as_they_are_themselves():
    transforms = [RandomTranslate(1), Normalize(0.5, 0.25)]
    plain = DeviceLoader(make_set(), batch_size=40, transforms=transforms, seed=3)
    mix = Mixup(0.4)
    mixed = DeviceLoader(make_set(), batch_size=40, transforms=transforms, seed=3, mix=mix)
    images, labels = next(iter(plain))
    draws = Draws(torch.arange(40), seed=3, epoch=0, stream=2**32 - 2)
    partner, weight = mix.partners(draws, 40), mix.weights(draws)[:, None, None, None]
    result, soft = next(iter(mixed))
    assert torch.allclose(result, images * weight + images[partner] * (1 - weight), atol=1e-6)
    own = soft[torch.arange(40), labels]
    assert (own >= weight.flatten() - 1e-6).all()


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Mixup(0), ValueError, "alpha must be greater than 0, got alpha=0"),
        (lambda: CutMix(float("nan")), ValueError, "alpha must be finite, got alpha=nan"),
        (lambda: Mixup(1, p=2), ValueError, "p must be between 0 and 1, got p=2"),
        (lambda: Mixup("1"), TypeError, "alpha must be a number"),
        (
            lambda: Mixup(1)(torch.zeros(3, 8, 8), torch.zeros(1), num_classes=2),
            ValueError,
            r"got \(3, 8, 8\) and \(1,\)",
        ),
        (
            lambda: CutMix(1)(torch.zeros(2, 3, 8, 8), [0, 1], num_classes=2),
            TypeError,
            "labels must be a torch.Tensor, got list",
        ),
        (
            lambda: CutMix(1)(torch.zeros(2, 3, 8, 8), np.array([0, 1]), num_classes=2),
            TypeError,
            "labels must be a torch.Tensor, got ndarray",
        ),
        (
            lambda: CutMix(1)(torch.zeros(2, 3, 8, 8), torch.tensor([0.0, 1.0]), num_classes=2),
            TypeError,
            "labels must have dtype torch.int64, got dtype=torch.float32",
        ),
        (
            lambda: CutMix(1)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]).int(), num_classes=2),
            TypeError,
            "labels must have dtype torch.int64, got dtype=torch.int32",
        ),
        (
            lambda: CutMix(1)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 2]), num_classes=2),
            ValueError,
            r"labels must be between 0 and 1 \(num_classes - 1\), got 2",
        ),
        (
            lambda: CutMix(1)(torch.zeros(2, 3, 8, 8), torch.tensor([0, -1]), num_classes=2),
            ValueError,
            r"labels must be between 0 and 1 \(num_classes - 1\), got -1",
        ),
        (
            lambda: Mixup(1)(
                torch.zeros(2, 3, 8, 8), torch.tensor([0, 1]), num_classes=2, generator=5
            ),
            TypeError,
            "generator must be a torch.Generator or None, got generator=5",
        ),
        (
            lambda: DeviceLoader(make_set(), batch_size=4, mix=0.2),
            TypeError,
            "mix must be a Mixup or a CutMix, got mix=0.2",
        ),
    ],
)
def test_bad_arguments_are_named(make, error, message):
    with pytest.raises(error, match=message):
        make()
