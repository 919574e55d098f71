from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import (
    dirac_,
    patch_covariance,
    scale_head_,
    whiten_,
    whitening_filters,
)


def smooth_images(n=300, channels=3, size=10, seed=0):
    """Neighbouring pixels correlated, channels correlated, mean not zero: as in photographs."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(n, channels, size + 2, size + 2, generator=generator)
    blurred = F.avg_pool2d(noise, 3, stride=1)
    return 3 * blurred + blurred.mean(1, keepdim=True) + 0.2


def slow_patches(images, h, w):
    rows = []
    for y in range(images.shape[2] - h + 1):
        for x in range(images.shape[3] - w + 1):
            rows.append(images[:, :, y : y + h, x : x + w].reshape(len(images), -1))
    return torch.cat(rows)


@settings(deadline=None, max_examples=15)
@given(
    n=st.integers(1, 6),
    channels=st.integers(1, 3),
    kernel=st.tuples(st.integers(1, 3), st.integers(1, 3)),
    seed=st.integers(0, 99),
)
def test_patch_covariance_is_numpys_covariance_of_all_patches(n, channels, kernel, seed):
    images = torch.randn(n, channels, 5, 4, generator=torch.Generator().manual_seed(seed)) + 2
    patches = slow_patches(images.double(), *kernel)
    expected = torch.cov(patches.T, correction=0).reshape(patches.shape[1], -1)
    torch.testing.assert_close(patch_covariance(images, kernel_size=kernel), expected)


def test_patch_covariance_does_not_depend_on_the_chunks():
    images = smooth_images(n=600, size=4)
    halves = [patch_covariance(images[:300]), patch_covariance(images[300:])]
    means = [slow_patches(part.double(), 2, 2).mean(0) for part in (images[:300], images[300:])]
    between = torch.outer(means[0] - means[1], means[0] - means[1]) / 4
    torch.testing.assert_close(patch_covariance(images), sum(halves) / 2 + between)


def test_whitened_patches_are_uncorrelated_with_variance_one():
    images = smooth_images()
    filters = whitening_filters(images, eps=1e-12)
    responses = F.conv2d(images.double(), filters).transpose(0, 1).reshape(12, -1)
    torch.testing.assert_close(
        torch.cov(responses, correction=0), torch.eye(12, dtype=torch.float64), atol=1e-6, rtol=0
    )


def test_eps_shrinks_each_variance_to_d_over_d_plus_eps():
    images = smooth_images()
    eps = 0.1
    variances = torch.linalg.eigvalsh(patch_covariance(images)).flip(0)
    responses = F.conv2d(images.double(), whitening_filters(images, eps=eps))
    covariance = torch.cov(responses.transpose(0, 1).reshape(12, -1), correction=0)
    torch.testing.assert_close(covariance, torch.diag(variances / (variances + eps)))


def test_filters_are_near_those_of_the_svd_of_the_patches():
    images = smooth_images(size=5)
    patches = slow_patches(images.double(), 2, 2)
    _, singular, directions = torch.linalg.svd(patches - patches.mean(0), full_matrices=False)
    expected = directions / (singular.square() / len(patches) + 5e-4).sqrt()[:, None]
    found = whitening_filters(images).reshape(12, 12)
    cosine = F.cosine_similarity(found, expected).abs()
    torch.testing.assert_close(cosine, torch.ones_like(cosine))
    torch.testing.assert_close(found.norm(dim=1), expected.norm(dim=1))


def test_a_flipped_sign_from_the_eigensolver_changes_nothing(monkeypatch):
    images = smooth_images(size=5)
    eigh = torch.linalg.eigh
    expected = whitening_filters(images)

    def flipped(matrix):
        values, vectors = eigh(matrix)
        return values, vectors * torch.tensor([1.0, -1.0] * 6, dtype=torch.float64)

    monkeypatch.setattr(torch.linalg, "eigh", flipped)
    assert torch.equal(whitening_filters(images), expected)


def test_sign_does_not_hang_on_a_tie_of_magnitudes():
    # Two pixels that are exchangeable: eigenvectors (1, 1) and (1, -1), rounding breaks the tie.
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0], [0.0, 0.0], [2.0, 2.0]])
    for jitter in (0.0, 1e-6, -1e-6):
        shifted = images + torch.tensor([jitter, -jitter])
        shifted[0, 0] += jitter
        signs = whitening_filters(shifted.view(5, 1, 1, 2), kernel_size=(1, 2)).sign().flatten()
        assert signs.tolist() == [1, 1, 1, -1]


def test_whiten_fills_pairs_of_opposite_filters_and_nothing_else():
    conv = nn.Conv2d(3, 24, 2).requires_grad_(False)
    bias = conv.bias.clone()
    images = smooth_images(size=6)
    assert whiten_(conv, images) is conv
    assert torch.equal(conv.weight[:12], -conv.weight[12:])
    torch.testing.assert_close(conv.weight[:12], whitening_filters(images).float())
    assert torch.equal(conv.bias, bias)
    assert not conv.weight.requires_grad
    assert torch.isfinite(whiten_(conv, torch.zeros(2, 3, 4, 4)).weight).all()


def test_whiten_gives_fewer_filters_the_directions_that_vary_most():
    images = torch.randn(32, 3, 8, 8) * torch.tensor([3.0, 1.0, 0.1]).view(3, 1, 1)
    few, every = nn.Conv2d(3, 8, 2), nn.Conv2d(3, 24, 2)
    whiten_(few, images)
    whiten_(every, images)
    assert torch.equal(few.weight[:4], every.weight[:4])
    assert torch.equal(few.weight[4:], -few.weight[:4])
    # The first channel's four pixels vary most.
    assert (
        few.weight[:4, 0].flatten(1).norm(dim=1) > few.weight[:4, 1:].flatten(1).norm(dim=1)
    ).all()


def test_whiten_leaves_global_generator_and_images_alone():
    images, conv = smooth_images(n=4, size=4), nn.Conv2d(3, 24, 2)
    before, state = images.clone(), torch.get_rng_state()
    dirac_(nn.utils.skip_init(nn.Conv2d, 3, 4, 3))
    whiten_(conv, images)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(images, before)


@pytest.mark.parametrize(
    ("conv", "images", "error", "message"),
    [
        (nn.Linear(2, 2), torch.zeros(1, 3, 4, 4), TypeError, "Conv2d, got Linear"),
        (
            nn.Conv2d(3, 64, 2),
            torch.zeros(1, 3, 4, 4),
            ValueError,
            r"2 \* 3 \* 2 \* 2 = 24, got out_channels=64",
        ),
        (nn.Conv2d(3, 7, 2), torch.zeros(1, 3, 4, 4), ValueError, "even number .* out_channels=7"),
        (nn.Conv2d(4, 32, 2, groups=2), torch.zeros(1, 4, 4, 4), ValueError, "groups=2"),
        (nn.Conv2d(3, 24, 2, dilation=2), torch.zeros(1, 3, 4, 4), ValueError, "dilation="),
        (nn.Conv2d(3, 24, 2), torch.zeros(1, 1, 4, 4), ValueError, "3 channels, got 1"),
        (nn.Conv2d(3, 24, 2), torch.zeros(3, 4, 4), ValueError, r"N, C, H, W.*\(3, 4, 4\)"),
        (nn.Conv2d(3, 24, 2), torch.zeros(0, 3, 4, 4), ValueError, "at least one patch of 2 x 2"),
        (nn.Conv2d(3, 24, 2), torch.zeros(1, 3, 4, 1), ValueError, r"\(1, 3, 4, 1\)"),
        (
            nn.Conv2d(3, 24, 2),
            torch.zeros(1, 3, 4, 4, dtype=torch.uint8),
            TypeError,
            "uint8: divide by 255",
        ),
    ],
)
def test_whiten_refuses_what_does_not_fit(conv, images, error, message):
    with pytest.raises(error, match=message):
        whiten_(conv, images)


def test_whiten_refuses_eps_of_zero():
    with pytest.raises(ValueError, match="eps must be greater than 0, got eps=0"):
        whiten_(nn.Conv2d(3, 24, 2), torch.zeros(1, 3, 4, 4), eps=0)


@pytest.mark.parametrize("kernel", [1, 3, 5, (3, 1)])
@pytest.mark.parametrize("filters", [2, 3, 7])
def test_dirac_passes_channels_through_exactly(kernel, filters):
    sides = (kernel, kernel) if isinstance(kernel, int) else kernel
    conv = nn.Conv2d(3, filters, kernel, padding=(sides[0] // 2, sides[1] // 2), bias=False)
    rest = conv.weight[3:].clone()
    assert dirac_(conv) is conv
    images = torch.randn(2, 3, 6, 6)
    passing = min(3, filters)
    assert torch.equal(conv(images)[:, :passing], images[:, :passing])
    assert torch.equal(conv.weight[3:], rest)
    assert conv.weight.requires_grad


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_dirac_equals_torchs_own_on_the_first_filters(memory_format):
    conv = nn.Conv2d(4, 9, 3).to(memory_format=memory_format)
    expected = conv.weight.detach().clone()
    nn.init.dirac_(expected[:4])
    assert torch.equal(dirac_(conv).weight, expected)


@pytest.mark.parametrize(
    ("conv", "error", "message"),
    [
        (nn.Conv2d(3, 3, 2), ValueError, r"kernel_size=\(2, 2\)"),
        (nn.Conv2d(4, 4, 3, groups=4), ValueError, "groups=4"),
        (nn.Conv1d(3, 3, 3), TypeError, "Conv1d"),
    ],
)
def test_dirac_refuses_what_has_no_centre(conv, error, message):
    with pytest.raises(error, match=message):
        dirac_(conv)


@pytest.mark.parametrize("std", [1.0, 0.25])
def test_scale_head_sets_the_standard_deviation_and_keeps_the_direction(std):
    head = nn.Linear(32, 10)
    before, bias = head.weight.detach().clone(), head.bias.detach().clone()
    assert scale_head_(head, std=std) is head
    torch.testing.assert_close(head.weight.std(), torch.tensor(std))
    torch.testing.assert_close(head.weight / head.weight.norm(), before / before.norm())
    assert torch.equal(head.bias, bias)


def test_scale_head_refuses_other_modules_and_numbers():
    with pytest.raises(TypeError, match="Linear, got Conv2d"):
        scale_head_(nn.Conv2d(1, 1, 1))
    with pytest.raises(ValueError, match="std=-1"):
        scale_head_(nn.Linear(2, 2), std=-1)


def test_scale_head_refuses_a_single_weight_and_leaves_it():
    head = nn.Linear(1, 1)
    before = head.weight.clone()
    with pytest.raises(ValueError, match="at least two weights, got Linear.in_features=1, out_fea"):
        scale_head_(head)
    assert torch.equal(head.weight, before)
