"""Random erasing: one rectangle of each image, of random area and shape.

Shapes: N images, C channels, H rows, W columns, T tries.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks._checks import check_fraction, check_positive
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._cutout import Boxes, Fill, checked_fill, erase, with_noise_keys
from fasttricks.transforms._draws import Draws

# As many as in torchvision; all of them fail only where scale and ratio hardly fit the image.
_TRIES = 10


@dataclass(frozen=True)
class RandomErasing(Transform[Boxes]):
    """Erase one rectangle of each image with probability ``p``, every image its own.

    Its share of the area is uniform in ``scale``, the logarithm of its height over its width
    uniform in that of ``ratio``, its place uniform over those inside of the image. A shape that is
    not smaller than the image is drawn anew; after ten such the image stays as it is. These are
    torchvision's rules, but with a draw for each image of a batch, where torchvision's erases the
    same rectangle of all.

    Args:
        p: the probability that an image is changed, 0 to 1.
        scale: smallest and largest share of the area, above 0 and at most 1.
        ratio: smallest and largest height over width, above 0.
        fill: as for ``Cutout``: a number, one for each channel, "mean" or "random".

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a number is out of its range, a pair is not rising, or fill is unknown or not
            fit for the images.

    Example:
        >>> images = torch.ones(100, 3, 32, 32)
        >>> share = (RandomErasing(p=1)(images) == 0).float().mean((1, 2, 3))
        >>> bool(share.min() > 0.01), bool(share.max() < 0.34)
        (True, True)

    Reference:
        Zhong et al., Random Erasing Data Augmentation (arXiv 1708.04896), algorithm 1.
    """

    p: float = 0.5
    scale: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: Fill = field(default=0.0, kw_only=True)

    def __post_init__(self) -> None:
        check_fraction("p", self.p)
        _check_pair("scale", self.scale)
        _check_pair("ratio", self.ratio)
        check_fraction("largest scale", self.scale[1])
        object.__setattr__(self, "fill", checked_fill(self.fill))

    @property
    @override
    def moves_pixels(self) -> bool:
        return False

    def sample(self, draws: Draws, shape: Shape) -> Boxes:
        """Each image's box: int64, shape [N, 1, 4]; all 0 for an image left alone."""
        rows, columns = shape[2:]
        # column 0 decides, the next T the areas, then T the shapes, 2 the place, 2 the noise
        areas = _between(self.scale, draws.uniform(_TRIES, start=1).double()) * rows * columns
        log_ratio = (math.log(self.ratio[0]), math.log(self.ratio[1]))
        ratios = _between(log_ratio, draws.uniform(_TRIES, start=1 + _TRIES).double()).exp()
        heights, widths = (areas * ratios).sqrt().round(), (areas / ratios).sqrt().round()
        fits = (heights < rows) & (widths < columns)
        first = fits.to(torch.uint8).argmax(1, keepdim=True)
        height, width = (sides.gather(1, first).long() for sides in (heights, widths))
        u = draws.uniform(2, start=1 + 2 * _TRIES).double()
        top = (u[:, :1] * (rows - height + 1)).long()
        left = (u[:, 1:] * (columns - width + 1)).long()
        boxes = torch.stack([top, top + height, left, left + width], dim=2)
        changed = (draws.uniform(1) < self.p) & fits.any(1, keepdim=True)
        return with_noise_keys(boxes * changed[:, :, None], draws, self.fill, start=3 + 2 * _TRIES)

    def apply(self, images: Tensor, params: Boxes) -> Tensor:
        """The images, their boxes filled."""
        boxes, keys = params if isinstance(params, tuple) else (params, None)
        return erase(images, boxes, fill=self.fill, noise_keys=keys)


def _between(ends: tuple[float, float], u: Tensor) -> Tensor:
    return ends[0] + (ends[1] - ends[0]) * u


def _check_pair(name: str, pair: object) -> None:
    if not isinstance(pair, Sequence) or len(pair) != 2:
        raise ValueError(f"{name} must be two numbers, got {name}={pair!r}")
    for end, value in zip(("smallest", "largest"), pair, strict=True):
        check_positive(f"{end} {name}", value)
    if pair[0] > pair[1]:
        raise ValueError(f"{name} must be (smallest, largest), got {name}={pair!r}")
