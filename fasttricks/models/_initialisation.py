"""Initialisers for any module: patch whitening, identity convolutions, a head of unit variance.

Shapes: N images, C channels, H rows, W columns; a patch of h x w pixels has K = C * h * w numbers,
in the order of a convolution's weight (channel, row, column).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fasttricks._checks import check_integer, check_positive

# Images at a time: 256 of 3 x 32 x 32 pixels with 2 x 2 patches are 24 MB of float64.
_CHUNK = 256


def patch_covariance(images: Tensor, *, kernel_size: tuple[int, int] = (2, 2)) -> Tensor:
    """Covariance of all h x w patches of a batch of images.

    ``mean((p - mean(p)) (p - mean(p))^T)`` over every patch p inside every image, at stride 1.

    Args:
        images: Float tensor [N, C, H, W], any unit.
        kernel_size: (h, w) of a patch.

    Returns:
        float64 tensor [K, K], on the images' device (on the CPU where that has no float64).

    Raises:
        TypeError: If the images aren't floating point or a size isn't a whole number.
        ValueError: If the images aren't [N, C, H, W], are none, or are smaller than a patch.

    Example:
        >>> patch_covariance(torch.tensor([[[[-1.0, 1.0]]]]), kernel_size=(1, 1))
        tensor([[1.]], dtype=torch.float64)
    """
    h, w = _checked_kernel(images, kernel_size)
    device = torch.device("cpu") if images.device.type == "mps" else images.device
    features = images.shape[1] * h * w
    total = torch.zeros(features, dtype=torch.float64, device=device)
    second = torch.zeros(features, features, dtype=torch.float64, device=device)
    count = 0
    for chunk in torch.split(images.detach(), _CHUNK):
        patches = F.unfold(chunk.to(device=device, dtype=torch.float64), (h, w))  # [n, K, places]
        flat = patches.transpose(0, 1).reshape(features, -1)
        total += flat.sum(1)
        second += flat @ flat.T
        count += flat.shape[1]
    mean = total / count
    return second / count - torch.outer(mean, mean)


def whitening_filters(
    images: Tensor, *, kernel_size: tuple[int, int] = (2, 2), eps: float = 5e-4
) -> Tensor:
    """Filters that turn image patches into uncorrelated numbers of variance one.

    With the patch covariance ``S = V diag(d) V^T``, filter i is ``v_i / sqrt(d_i + eps)``; the
    responses have covariance ``diag(d / (d + eps))``. Largest variance first. An eigenvector's sign
    is free: here the first entry of at least half the largest magnitude is positive, so the result
    doesn't depend on the eigensolver (as long as no two eigenvalues are equal).

    Args:
        images: Float tensor [N, C, H, W], normalised.
        kernel_size: (h, w) of a patch.
        eps: Added to each eigenvalue, above 0, in the squared unit of the images; it keeps the
            directions that hardly vary from being blown up.

    Returns:
        float64 tensor [K, C, h, w].

    Raises:
        TypeError: If the images aren't floating point, or a number isn't one.
        ValueError: If the images or ``eps`` don't fit.

    Example:
        >>> whitening_filters(torch.tensor([[[[-2.0, 2.0]]]]), kernel_size=(1, 1), eps=1e-9)
        tensor([[[[0.5000]]]], dtype=torch.float64)

    Reference:
        Page, "How to Train Your ResNet 8: Bag of Tricks" (input patch whitening); Jordan, "94% on
        CIFAR-10 in 3.29 Seconds on a Single GPU", arXiv 2404.00498, section 3.2.
    """
    check_positive("eps", eps)
    covariance = patch_covariance(images, kernel_size=kernel_size)
    # On the CPU always: it is tiny, and every device then gets the same eigenvectors.
    eigenvalues, eigenvectors = torch.linalg.eigh(covariance.cpu())
    rows = eigenvectors.T.flip(0)
    scale = (eigenvalues.flip(0).clamp_min(0) + eps).sqrt()
    filters: Tensor = rows * _signs(rows) / scale[:, None]
    return filters.reshape(-1, images.shape[1], *kernel_size).to(covariance.device)


@torch.no_grad()
def whiten_(conv: nn.Conv2d, images: Tensor, *, eps: float = 5e-4) -> nn.Conv2d:
    """Set a first convolution to whiten the patches of these images, in place.

    The first K filters are ``whitening_filters`` and the next K their negatives: after an
    activation that drops negative numbers both halves of each direction survive. A convolution of
    fewer filters takes the directions that vary most. Only the weight changes; the bias and what is
    trainable stay as they are. A few thousand images are enough, but let them be of all classes:
    the first ones of a file sorted by class are not.

    Args:
        conv: Convolution with an even number of filters, ``2 * in_channels * h * w`` at most, no
            groups, no dilation.
        images: Float tensor [N, C, H, W], normalised as the network will see them.
        eps: Added to each eigenvalue, above 0.

    Returns:
        ``conv``.

    Raises:
        TypeError: If ``conv`` isn't an ``nn.Conv2d`` or the images aren't floating point.
        ValueError: If channels, groups, dilation, images or ``eps`` don't fit.

    Example:
        >>> images = torch.randn(64, 3, 8, 8, generator=torch.Generator().manual_seed(0))
        >>> conv = whiten_(nn.Conv2d(3, 24, 2), images)
        >>> conv(images).shape
        torch.Size([64, 24, 7, 7])

    Reference:
        Jordan, arXiv 2404.00498, section 3.2.
    """
    _check_conv(conv)
    if conv.dilation != (1, 1):
        raise ValueError(f"conv must have dilation 1, got dilation={conv.dilation}")
    h, w = conv.kernel_size
    most = 2 * conv.in_channels * h * w
    if conv.out_channels % 2 or conv.out_channels > most:
        raise ValueError(
            f"conv must have an even number of output channels, at most 2 * in_channels * h * w = "
            f"2 * {conv.in_channels} * {h} * {w} = {most}, got out_channels={conv.out_channels}"
        )
    if images.ndim == 4 and images.shape[1] != conv.in_channels:
        raise ValueError(
            f"images must have the conv's {conv.in_channels} channels, got {images.shape[1]}"
        )
    filters = whitening_filters(images, kernel_size=(h, w), eps=eps)[: conv.out_channels // 2]
    conv.weight.copy_(torch.cat((filters, -filters)))
    return conv


@torch.no_grad()
def dirac_(conv: nn.Conv2d) -> nn.Conv2d:
    """Make the first ``in_channels`` filters pass their channel through, in place.

    Filter i becomes 1 at the centre of channel i and 0 elsewhere; the remaining filters keep their
    random weights. A deep stack then starts close to the identity and signals reach every layer.
    With fewer filters than channels, as many channels as there are filters pass.

    Args:
        conv: Convolution with odd sides and no groups. Pixels stay in place if its stride is 1 and
            its padding half the kernel.

    Returns:
        ``conv``.

    Raises:
        TypeError: If ``conv`` isn't an ``nn.Conv2d``.
        ValueError: If it has groups or an even side.

    Example:
        >>> conv = dirac_(nn.Conv2d(2, 5, 3, padding=1, bias=False))
        >>> images = torch.ones(1, 2, 4, 4)
        >>> torch.equal(conv(images)[:, :2], images)
        True

    Reference:
        Zagoruyko and Komodakis, "DiracNets", arXiv 1706.00388; Jordan, arXiv 2404.00498,
        section 3.3.
    """
    _check_conv(conv)
    h, w = conv.kernel_size
    if h % 2 == 0 or w % 2 == 0:
        raise ValueError(f"conv must have odd sides (a centre), got kernel_size={conv.kernel_size}")
    passing = conv.weight[: conv.in_channels]
    passing.zero_()
    passing[:, :, h // 2, w // 2].fill_diagonal_(1)
    return conv


@torch.no_grad()
def scale_head_(linear: nn.Linear, *, std: float = 1.0) -> nn.Linear:
    """Scale the weight of a linear layer to a standard deviation, in place.

    ``weight *= std / weight.std()``; the bias stays.

    Args:
        linear: The layer, with at least two weights that aren't all equal.
        std: The new standard deviation, above 0.

    Returns:
        ``linear``.

    Raises:
        TypeError: If ``linear`` isn't an ``nn.Linear``.
        ValueError: If ``std`` isn't above 0, or there is a single weight, which has no deviation.

    Example:
        >>> bool(scale_head_(nn.Linear(64, 10)).weight.std().sub(1).abs() < 1e-5)
        True
    """
    if not isinstance(linear, nn.Linear):
        raise TypeError(f"linear must be an nn.Linear, got {type(linear).__name__}")
    check_positive("std", std)
    if linear.weight.numel() == 1:
        raise ValueError(f"linear must have at least two weights, got {linear}")
    linear.weight.mul_(std / linear.weight.std())
    return linear


def _signs(rows: Tensor) -> Tensor:
    """+1 or -1 for each row [rows, 1]: the sign of its first large entry."""
    # Not the sign of the largest entry: patches often have several of the same magnitude, and
    # rounding would choose among them.
    magnitude = rows.abs()
    large = magnitude >= 0.5 * magnitude.amax(1, keepdim=True)
    first = large.to(torch.int8).argmax(1, keepdim=True)
    return rows.gather(1, first).sign()


def _check_conv(conv: object) -> None:
    if not isinstance(conv, nn.Conv2d):
        raise TypeError(f"conv must be an nn.Conv2d, got {type(conv).__name__}")
    if conv.groups != 1:
        raise ValueError(f"conv must have groups=1, got groups={conv.groups}")


def _checked_kernel(images: Tensor, kernel_size: tuple[int, int]) -> tuple[int, int]:
    if not images.is_floating_point():
        raise TypeError(
            f"images must be floating point, got {images.dtype}: "
            "divide by 255 and normalise them first"
        )
    if images.ndim != 4:
        raise ValueError(f"images must be [N, C, H, W], got shape {tuple(images.shape)}")
    h, w = kernel_size
    check_integer("kernel_size[0]", h, minimum=1)
    check_integer("kernel_size[1]", w, minimum=1)
    if len(images) == 0 or images.shape[2] < h or images.shape[3] < w:
        raise ValueError(
            f"images must hold at least one patch of {h} x {w} pixels, "
            f"got shape {tuple(images.shape)}"
        )
    return h, w
