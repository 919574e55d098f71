"""Cutout: squares of an image erased. Shapes: N images, C channels, H rows, W columns, K holes.

``sample`` gives boxes, ``erase`` fills them; a box is (top, bottom, left, right), half open and
within the image.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks._checks import check_flag, check_fraction, check_integer
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._channels import channel_numbers, check_fits_channels, constants_on
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import memory_format_of

Fill = float | Sequence[float] | str
# Boxes; with random colours the key of each image's noise as well, int64, shape [N].
Boxes = Tensor | tuple[Tensor, Tensor]

_NOISE_SEED = 0x6E6F_6973_65
# How many numbers of noise are made at once, about, each of some 50 bytes on the way: what a CPU's
# caches hold, and elsewhere enough to keep the device busy.
_NOISE_AT_ONCE = 2**18
_NOISE_AT_ONCE_ELSEWHERE = 2**22


@dataclass(frozen=True)
class Cutout(Transform[Boxes]):
    """Erase one or more squares of each image, every image at its own place.

    The centre c is uniform over the pixels of the image and the square takes rows c - size//2 to c
    - size//2 + size, end excluded, columns likewise, so it is exactly ``size`` pixels wide, odd or
    even; what lies beyond the border is clipped, so on average less than size² pixels are erased,
    as in the paper. ``inside=True`` instead takes the place uniform over those where the square
    lies wholly within the image.

    Args:
        size: side in pixels, or (height, width); at least 1. It may exceed the image: clipped at
            the border like any other, and with ``inside=True`` the whole side of the image is
            erased.
        holes: how many squares each image gets; they may overlap.
        fill: what the squares hold: a number, one number for each channel, "mean" for each image's
            own mean of each channel, or "random" for noise of each pixel and channel: normal, with
            mean 0 and deviation 1, for a floating dtype, uniform over the range of an integer one.
            Numbers are in the images' own units, whole and in range for an integer dtype: 0 is
            black before ``Normalize``, and the mean colour after it.
        p: the probability that an image is changed, 0 to 1.
        inside: keep the squares wholly inside of the image.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: size or holes is less than 1, p not between 0 and 1, or fill unknown or not fit
            for the images.

    Example:
        >>> images = torch.ones(4, 3, 32, 32)
        >>> erased = Cutout(8, inside=True)(images) == 0
        >>> erased.sum((1, 2, 3)).tolist()
        [192, 192, 192, 192]

    Reference:
        DeVries and Taylor, Improved Regularization of Convolutional Neural Networks with Cutout
        (arXiv 1708.04552), section 3.
    """

    size: int | tuple[int, int]
    holes: int = field(default=1, kw_only=True)
    fill: Fill = field(default=0.0, kw_only=True)
    p: float = field(default=1.0, kw_only=True)
    inside: bool = field(default=False, kw_only=True)

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", _checked_size(self.size))
        object.__setattr__(self, "holes", check_integer("holes", self.holes, minimum=1))
        object.__setattr__(self, "fill", checked_fill(self.fill))
        check_fraction("p", self.p)
        check_flag("inside", self.inside)

    @property
    @override
    def moves_pixels(self) -> bool:
        return False

    def sample(self, draws: Draws, shape: Shape) -> Boxes:
        """Each image's boxes: int64, shape [N, K, 4]; all 0 for an image left alone."""
        k = self.holes
        height, width = self.size if isinstance(self.size, tuple) else (self.size, self.size)
        # column 0 decides, the next K place the rows, then K the columns, then 2 key the noise
        top, bottom = self._interval(draws, height, shape[2], start=1)
        left, right = self._interval(draws, width, shape[3], start=1 + k)
        boxes = torch.stack([top, bottom, left, right], dim=2)
        boxes = boxes * (draws.uniform(1) < self.p)[:, :, None]
        return with_noise_keys(boxes, draws, self.fill, start=1 + 2 * k)

    def apply(self, images: Tensor, params: Boxes) -> Tensor:
        """The images, their boxes filled."""
        boxes, keys = params if isinstance(params, tuple) else (params, None)
        return erase(images, boxes, fill=self.fill, noise_keys=keys)

    def _interval(
        self, draws: Draws, size: int, length: int, *, start: int
    ) -> tuple[Tensor, Tensor]:
        """Each hole's first pixel and the one after its last on one axis: shape [N, K] each."""
        if self.inside:
            size = min(size, length)
            first = draws.integers(0, length - size + 1, self.holes, start=start)
        else:
            first = draws.integers(0, length, self.holes, start=start) - size // 2
        return first.clamp(min=0), (first + size).clamp(max=length)


def cutout(
    images: Tensor,
    size: int | tuple[int, int],
    *,
    generator: torch.Generator | None = None,
    holes: int = 1,
    fill: Fill = 0.0,
    p: float = 1.0,
    inside: bool = False,
) -> Tensor:
    """Erase squares of each image, every image at its own place: ``Cutout(size, ...)(images)``.

    Args:
        images: one image [C, H, W] or a batch [N, C, H, W], of dtype uint8, int8 to int64, float16,
            bfloat16, float32 or float64.
        size: side in pixels, or (height, width).
        generator: where the places come from; None takes torch's default generator.
        holes: how many squares each image gets.
        fill: a number, one for each channel, "mean" or "random".
        p: the probability that an image is changed.
        inside: keep the squares wholly inside of the image.

    Returns:
        New images; shape, dtype and memory format as they came.

    Raises:
        TypeError: as for ``Cutout``, or images are not a tensor of a fit dtype.
        ValueError: as for ``Cutout``, or images have the wrong rank.

    Example:
        >>> cutout(torch.ones(3, 32, 32), 8, inside=True).sum()
        tensor(2880.)
    """
    transform = Cutout(size, holes=holes, fill=fill, p=p, inside=inside)
    return transform(images, generator=generator)


def erase(
    images: Tensor, boxes: Tensor, *, fill: Fill = 0.0, noise_keys: Tensor | None = None
) -> Tensor:
    """Fill boxes of each image.

    Args:
        images: shape [N, C, H, W], an integer or floating dtype.
        boxes: int64, shape [N, K, 4]: (top, bottom, left, right), half open; an empty box erases
            nothing.
        fill: a number, one for each channel, "mean" or "random".
        noise_keys: int64, shape [N], of which each image's noise is a function; for "random".

    Returns:
        New images; shape, dtype and memory format as they came.

    Raises:
        ValueError: fill does not fit the images' channels or dtype, or "random" has no keys.

    Example:
        >>> erase(torch.ones(1, 1, 2, 4), torch.tensor([[[0, 1, 1, 3]]]))
        tensor([[[[1., 0., 0., 1.],
                  [1., 1., 1., 1.]]]])
    """
    n, c, h, w = images.shape
    mask = box_mask(boxes, h, w)
    memory_format = memory_format_of(images)
    if fill == "random":
        if noise_keys is None:
            raise ValueError('noise_keys must be given with fill="random", got None')
        erased = images.clone(memory_format=memory_format)
        for part in _with_holes(mask, c):
            noise = _noise(noise_keys[part], (c, h, w), images.dtype)
            erased[part] = torch.where(mask[part, None], noise, erased[part])
        return erased
    values = fill_values(images, fill)
    if memory_format != torch.channels_last:
        erased = torch.where(mask[:, None], values[:, :, None, None], images)
        return erased.contiguous()
    storage = images.permute(0, 2, 3, 1).reshape(n, h * w * c)
    mask = mask.reshape(n, h * w).repeat_interleave(c, dim=1)
    if values.shape[1] > 1:
        values = values.repeat(1, h * w)
    return torch.where(mask, values, storage).view(n, h, w, c).permute(0, 3, 1, 2)


def with_noise_keys(boxes: Tensor, draws: Draws, fill: Fill, *, start: int) -> Boxes:
    """The boxes, and for a random fill the keys of the noise from two columns of the draws."""
    if fill != "random":
        return boxes
    high, low = draws.integers(0, 2**24, 2, start=start).unbind(1)
    return boxes, high << 24 | low


def _with_holes(mask: Tensor, channels: int) -> tuple[Tensor, ...]:
    """The images with a hole, int64, as many at once as noise is made for."""
    numbers = channels * mask.shape[1] * mask.shape[2]
    if mask.device.type != "cpu":
        # all of them: asking which have a hole would wait for the device's queue to drain
        images, at_once = torch.arange(len(mask), device=mask.device), _NOISE_AT_ONCE_ELSEWHERE
    else:
        images, at_once = mask.flatten(1).any(1).nonzero()[:, 0], _NOISE_AT_ONCE
    parts: tuple[Tensor, ...] = images.split(max(1, at_once // numbers))
    return parts


def _noise(keys: Tensor, shape: tuple[int, int, int], dtype: torch.dtype) -> Tensor:
    """Noise of each pixel, a function of the image's key alone: shape [N, C, H, W]."""
    draws = Draws(keys, seed=_NOISE_SEED)
    pixels = shape[0] * shape[1] * shape[2]
    if dtype.is_floating_point:
        # Box and Muller 1958; half a step up, as the logarithm must not meet 0
        radius = (-2 * (draws.uniform(pixels) + 2.0**-25).log()).sqrt()
        noise = radius * (2 * math.pi * draws.uniform(pixels, start=pixels)).cos()
        return noise.to(dtype).view(-1, *shape)
    limits = torch.iinfo(dtype)
    # a float, as the 2**64 levels of int64 are more than torch takes as a whole number
    levels = draws.uniform(pixels).double() * float(limits.max - limits.min + 1) + limits.min
    return levels.floor().to(dtype).view(-1, *shape)


def box_mask(boxes: Tensor, height: int, width: int) -> Tensor:
    """The pixels in any of an image's boxes: bool, shape [N, H, W]."""
    top, bottom, left, right = boxes[..., None].unbind(2)
    row = torch.arange(height, device=boxes.device)
    column = torch.arange(width, device=boxes.device)
    rows = (top <= row) & (row < bottom)
    columns = (left <= column) & (column < right)
    mask = torch.zeros(len(boxes), height, width, dtype=torch.bool, device=boxes.device)
    # one by one, as masks of all holes would take as many times the memory
    for in_rows, in_columns in zip(rows.unbind(1), columns.unbind(1), strict=True):
        mask |= in_rows[:, :, None] & in_columns[:, None, :]
    return mask


def fill_values(images: Tensor, fill: Fill) -> Tensor:
    """What the boxes hold, in the images' dtype: shape [1, 1], [1, C] or [N, C]."""
    if isinstance(fill, str):
        return _channel_means(images)
    numbers = channel_numbers("fill", fill)
    check_fits_channels("fill", numbers, images.shape[1])
    if not images.is_floating_point():
        _check_representable(numbers, images.dtype)
    return constants_on(images.device, numbers, dtype=images.dtype)[None]


def _channel_means(images: Tensor) -> Tensor:
    working = torch.float64 if images.dtype == torch.float64 else torch.float32
    means = images.to(working).mean((2, 3))
    return (means if images.is_floating_point() else means.round()).to(images.dtype)


def _checked_size(size: object) -> int | tuple[int, int]:
    if not isinstance(size, tuple):
        return check_integer("size", size, minimum=1)
    if len(size) != 2:
        raise ValueError(f"size must be a number or (height, width), got size={size}")
    return (
        check_integer("height of size", size[0], minimum=1),
        check_integer("width of size", size[1], minimum=1),
    )


def checked_fill(fill: Fill) -> Fill:
    if not isinstance(fill, str):
        numbers = channel_numbers("fill", fill)
        return fill if isinstance(fill, Real) else numbers
    if fill not in ("mean", "random"):
        raise ValueError(f"fill must be a number, numbers, 'mean' or 'random', got fill={fill!r}")
    return fill


def _check_representable(numbers: Sequence[float], dtype: torch.dtype) -> None:
    limits = torch.iinfo(dtype)
    for number in numbers:
        if number != int(number) or not limits.min <= number <= limits.max:
            raise ValueError(
                f"fill must be a whole number from {limits.min} to {limits.max} for "
                f"{dtype} images, got fill={number}"
            )
