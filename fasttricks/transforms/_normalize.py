"""Normalisation of each channel. Shapes: N images, C channels, H rows, W columns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks._checks import check_positive
from fasttricks.transforms._base import Shape, Transform
from fasttricks.transforms._channels import channel_numbers, check_fits_channels, constants_on
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._layout import memory_format_of


@dataclass(frozen=True)
class Normalize(Transform[None]):
    """Subtract each channel's mean and divide by its standard deviation: (x/255 - mean) / std.

    uint8 images are divided by 255 first; floating images are taken to lie in 0..1 already. The sum
    is done in float32 (float64 for float64) and rounded once to ``dtype``.

    Args:
        mean: one number for each channel, or one for all, in units of 0..1; a tensor will do.
        std: likewise, each greater than 0.
        dtype: floating dtype of the result.

    Raises:
        TypeError: a number is not one, dtype is not floating, or images are neither uint8 nor
            floating.
        ValueError: a std is not greater than 0, or the numbers are not as many as the channels.

    Example:
        >>> image = torch.tensor([0, 255], dtype=torch.uint8).view(1, 1, 2)
        >>> Normalize(0.5, 0.25)(image)
        tensor([[[-2.,  2.]]])
    """

    mean: float | Sequence[float] | Tensor
    std: float | Sequence[float] | Tensor
    dtype: torch.dtype = torch.float32

    def __post_init__(self) -> None:
        mean, std = channel_numbers("mean", self.mean), channel_numbers("std", self.std)
        for value in std:
            check_positive("std", value)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)
        if not isinstance(self.dtype, torch.dtype) or not self.dtype.is_floating_point:
            raise TypeError(f"dtype must be a floating torch.dtype, got dtype={self.dtype}")

    @property
    @override
    def moves_pixels(self) -> bool:
        return False

    def sample(self, draws: Draws, shape: Shape) -> None:
        """Draw nothing, but check that the numbers fit the channels."""
        check_fits_channels("mean", channel_numbers("mean", self.mean), shape[1])
        check_fits_channels("std", channel_numbers("std", self.std), shape[1])

    def apply(self, images: Tensor, params: None) -> Tensor:
        """The normalised images, in ``dtype``."""
        return normalize(images, mean=self.mean, std=self.std, dtype=self.dtype)


def normalize(
    images: Tensor,
    *,
    mean: float | Sequence[float] | Tensor,
    std: float | Sequence[float] | Tensor,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Normalise each channel: (x/255 - mean) / std for uint8, (x - mean) / std for floating images.

    Args:
        images: uint8 in 0..255 or floating in 0..1, shape [N, C, H, W].
        mean: one number for each channel, or one for all.
        std: likewise.
        dtype: of the result.

    Returns:
        Shape and memory format of ``images``.

    Raises:
        TypeError: images are neither uint8 nor floating.
    """
    if images.dtype != torch.uint8 and not images.is_floating_point():
        raise TypeError(
            f"images must be torch.uint8 (0..255) or floating (0..1), got dtype={images.dtype}"
        )
    working = torch.float64 if torch.float64 in (images.dtype, dtype) else torch.float32
    scale = 255 if images.dtype == torch.uint8 else 1
    constants = channel_constants(
        mean, std, scale=scale, channels=images.shape[1], device=images.device, dtype=working
    )
    return _standardize(images, constants, working).to(dtype)


def channel_constants(
    mean: float | Sequence[float] | Tensor,
    std: float | Sequence[float] | Tensor,
    *,
    scale: float,
    channels: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """What is subtracted and what divides, each times ``scale``: shape [2, C]."""
    table = [
        [value * scale for value in (numbers if len(numbers) > 1 else numbers * channels)]
        for numbers in (channel_numbers("mean", mean), channel_numbers("std", std))
    ]
    return torch.stack([constants_on(device, row, dtype=dtype) for row in table])


def _standardize(images: Tensor, constants: Tensor, working: torch.dtype) -> Tensor:
    n, c, h, w = images.shape
    channels_last = memory_format_of(images) == torch.channels_last
    storage = images.permute(0, 2, 3, 1).reshape(n, h, w * c) if channels_last else images
    if channels_last:
        centre, spread = constants.repeat(1, w)
    else:
        centre, spread = constants[:, :, None, None]
    # `to` makes the one new tensor, which the two steps then change in place
    result = storage.to(working, copy=True, memory_format=torch.contiguous_format)
    result.sub_(centre).div_(spread)
    return result.view(n, h, w, c).permute(0, 3, 1, 2) if channels_last else result
