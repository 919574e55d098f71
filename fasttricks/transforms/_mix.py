"""Mixup and CutMix: two images become one, and so do their labels.

Shapes: N images, C channels, H rows, W columns, K classes.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fasttricks._checks import check_fraction, check_integer, check_positive
from fasttricks.transforms._base import check_images
from fasttricks.transforms._cutout import box_mask
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import memory_format_of

# A try is accepted with probability 0.95 or more: all of 8 fail once in 10^10 draws, and then the
# last one stands.
_TRIES = 8
# Columns of the draws: decide, partner, then lambda, then CutMix's place.
_PARTNER, _LAMBDA = 1, 2
_PLACE = _LAMBDA + 2 * (3 * _TRIES + 1)


class Mix(ABC):
    """The base of mixes: each image is joined with a partner, in the ratio lambda to 1 - lambda.

    Lambda is of Beta(alpha, alpha), a draw for each image. Labels become soft: float32 [N, K], rows
    of sum 1, which cross-entropy takes as they are. In a ``DeviceLoader`` (``mix=``) the partner
    is any image of the set, augmented like all, by a draw that depends on (seed, epoch, index)
    alone; on a batch alone it is an image of the batch.
    """

    alpha: float
    p: float

    def __post_init__(self) -> None:
        check_positive("alpha", self.alpha)
        check_fraction("p", self.p)

    def __call__(
        self,
        images: Tensor,
        labels: Tensor,
        *,
        num_classes: int,
        generator: torch.Generator | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch with itself.

        Args:
            images: shape [N, C, H, W].
            labels: int64, shape [N], 0 to K - 1, which is checked on the CPU alone: asking a GPU
                would wait for it.
            num_classes: K.
            generator: gives one number, from which all follow; None takes torch's default one.

        Returns:
            New images, and labels of dtype float32 and shape [N, K].

        Raises:
            TypeError: images or labels are not a tensor of a fit dtype, or another argument is of
                the wrong type.
            ValueError: a shape is wrong, or a label out of range.
        """
        check_images(images)
        check_integer("num_classes", num_classes, minimum=1)
        _check_labels(labels, images, num_classes)
        draws = Draws.from_generator(len(images), generator=generator, device=images.device)
        partner = self.partners(draws, len(images))
        soft = F.one_hot(labels, num_classes).float()
        return self.mix(images, soft, images[partner], soft[partner], draws=draws)

    def partners(self, draws: Draws, count: int) -> Tensor:
        """Each image's partner, uniform over ``count`` images: int64, shape [N]."""
        return draws.integers(0, max(count, 1), 1, start=_PARTNER)[:, 0]

    def weights(self, draws: Draws) -> Tensor:
        """Each image's lambda, 1 for an image left alone: float32, shape [N]."""
        mixed = draws.uniform(1)[:, 0] < self.p
        return torch.where(mixed, beta(draws, self.alpha, start=_LAMBDA), 1.0)

    @abstractmethod
    def mix(
        self, images: Tensor, soft: Tensor, others: Tensor, other_soft: Tensor, *, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """Join images [N, C, H, W] and soft labels [N, K] with those of their partners."""


@dataclass(frozen=True)
class Mixup(Mix):
    """``lambda * image + (1 - lambda) * partner``, and the labels likewise.

    Args:
        alpha: of Beta(alpha, alpha), above 0; the paper's for CIFAR-10 is 1, for short runs 0.1 to
            0.4 is usual.
        p: the probability that an image is mixed.

    Raises:
        TypeError: a number is none, or images are not floating (put ``Normalize`` before).
        ValueError: a number is out of its range.

    Example:
        >>> images, labels = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
        >>> mixed, soft = Mixup(0.2)(images, labels, num_classes=3)
        >>> mixed.shape, bool((soft.sum(1) - 1).abs().max() < 1e-6)
        (torch.Size([4, 3, 8, 8]), True)

    Reference:
        Zhang et al., mixup: Beyond Empirical Risk Minimization (arXiv 1710.09412), section 2.
    """

    alpha: float
    p: float = 1.0

    def mix(
        self, images: Tensor, soft: Tensor, others: Tensor, other_soft: Tensor, *, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """The weighted sums."""
        if not images.is_floating_point():
            raise TypeError(
                f"images must be floating for Mixup, got dtype={images.dtype}; put Normalize among "
                "the transforms"
            )
        weight = self.weights(draws)
        own = weight.to(images.dtype)[:, None, None, None]
        return images * own + others * (1 - own), _soften(soft, other_soft, weight)


@dataclass(frozen=True)
class CutMix(Mix):
    """A rectangle of the partner on the image; the labels count by area.

    The rectangle has the image's shape and 1 - lambda of its area, its centre is uniform over the
    image, and what lies beyond the border is cut off; lambda is then the share that is left.

    Args:
        alpha: of Beta(alpha, alpha), above 0; the paper's is 1.
        p: the probability that an image is mixed; the paper's for CIFAR is 0.5.

    Raises:
        TypeError: a number is none.
        ValueError: a number is out of its range.

    Example:
        >>> images, labels = torch.zeros(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
        >>> CutMix(1.0)(images, labels, num_classes=3)[1].shape
        torch.Size([4, 3])

    Reference:
        Yun et al., CutMix (arXiv 1905.04899), section 3.1 and algorithm A1.
    """

    alpha: float
    p: float = 1.0

    def mix(
        self, images: Tensor, soft: Tensor, others: Tensor, other_soft: Tensor, *, draws: Draws
    ) -> tuple[Tensor, Tensor]:
        """The images with their partners' rectangles, and labels by what is left to see."""
        rows, columns = images.shape[2:]
        box = self._boxes(draws, rows, columns)
        mask = box_mask(box[:, None], rows, columns)
        mixed = torch.where(mask[:, None], others, images)
        weight = 1 - mask.float().mean((1, 2))
        mixed = mixed.contiguous(memory_format=memory_format_of(images))
        return mixed, _soften(soft, other_soft, weight)

    def _boxes(self, draws: Draws, rows: int, columns: int) -> Tensor:
        """(top, bottom, left, right) of each image: int64, shape [N, 4]."""
        side = (1 - self.weights(draws).double()).clamp(min=0).sqrt()
        sides = []
        for place, length in enumerate((rows, columns)):
            size = (side * length).long()
            centre = draws.integers(0, length, 1, start=_PLACE + place)[:, 0]
            first = centre - size // 2
            sides += [first.clamp(min=0), (first + size).clamp(max=length)]
        return torch.stack(sides, dim=1)


def beta(draws: Draws, alpha: float, *, start: int = 0) -> Tensor:
    """Numbers of Beta(alpha, alpha), a function of the draws: float32, shape [N].

    The ratio of two gamma variates to their sum, in logarithms, so that a small alpha does not
    underflow.

    Args:
        draws: the random numbers.
        alpha: above 0.
        start: the first column; 2 * (3 * 8 + 1) are used.
    """
    first = _log_gamma_variate(draws, alpha, start)
    second = _log_gamma_variate(draws, alpha, start + 3 * _TRIES + 1)
    return torch.sigmoid(first - second).float()


def _log_gamma_variate(draws: Draws, alpha: float, start: int) -> Tensor:
    """Logarithms of numbers of Gamma(alpha, 1): float64, shape [N].

    Marsaglia and Tsang, A Simple Method for Generating Gamma Variables (2000), section 4; for
    Gamma(alpha) that of alpha + 1 times u^(1/alpha), section 6.
    """
    u = draws.uniform(3 * _TRIES + 1, start=start).double() + 2.0**-25
    radius, angle, decide, boost = u.split([_TRIES, _TRIES, _TRIES, 1], dim=1)
    normal = (-2 * radius.log()).sqrt() * (2 * math.pi * angle).cos()
    d = alpha + 1 - 1 / 3
    v = (1 + normal / math.sqrt(9 * d)) ** 3
    log_v = v.clamp(min=1e-300).log()
    accepted = (v > 0) & (decide.log() < 0.5 * normal**2 + d - d * v + d * log_v)
    accepted[:, -1] = True
    chosen = log_v.gather(1, accepted.to(torch.uint8).argmax(1, keepdim=True))
    logarithm: Tensor = (math.log(d) + chosen + boost.log() / alpha)[:, 0]
    return logarithm


def _check_labels(labels: object, images: Tensor, num_classes: int) -> None:
    if not isinstance(labels, Tensor):
        raise TypeError(f"labels must be a torch.Tensor, got {type(labels).__name__}")
    if images.dim() != 4 or labels.shape != images.shape[:1]:
        raise ValueError(
            f"images must have the shape [N, C, H, W] and labels [N], got {tuple(images.shape)}"
            f" and {tuple(labels.shape)}"
        )
    if labels.dtype != torch.int64:
        raise TypeError(f"labels must have dtype torch.int64, got dtype={labels.dtype}")
    if labels.device.type != "cpu" or labels.numel() == 0:
        return
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= num_classes:
        wrong = low if low < 0 else high
        raise ValueError(
            f"labels must be between 0 and {num_classes - 1} (num_classes - 1), got {wrong}"
        )


def _soften(soft: Tensor, other: Tensor, weight: Tensor) -> Tensor:
    return soft * weight[:, None] + other * (1 - weight)[:, None]
