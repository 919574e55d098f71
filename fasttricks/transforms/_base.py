"""Transform: sample, then apply; and Pipeline, several in a row.

Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar, overload

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks.transforms._draws import Draws
from fasttricks.transforms._samples import change_sample, is_plain_tensor

# Covariant, so that a list of different transforms is a list of transforms to a type checker. That
# is sound as far as each is handed what it sampled itself.
Params = TypeVar("Params", covariant=True)
Shape = tuple[int, ...]

# torch does not compute with the others, or only here and there
_DTYPES = (
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.float16,
    torch.bfloat16,
    torch.float32,
    torch.float64,
)


class Transform(ABC, Generic[Params]):
    """A change of a batch of images, in two steps: ``sample`` its numbers, then ``apply`` them.

    ``sample`` alone is random, and only through its ``draws``; ``apply`` is a pure function of the
    images and the numbers. ``Params``, what passes between them, is a tensor with leading dimension
    N (one entry an image), one whole number for the whole batch, None, or a tuple of these.

    A subclass keeps dtype, device, memory format and size of the images unless that is its purpose,
    never changes its input, and works on an empty batch. It may return its input itself where there
    is nothing to do.

    Example:
        >>> class Brighten(Transform[torch.Tensor]):
        ...     def sample(self, draws, shape):
        ...         return draws.uniform(1)
        ...     def apply(self, images, params):
        ...         return images + params[:, :, None, None]
        >>> Brighten()(torch.zeros(8, 3, 32, 32)).shape
        torch.Size([8, 3, 32, 32])
    """

    @property
    def moves_pixels(self) -> bool:
        """Whether masks and boxes that belong to an image no longer fit it afterwards.

        True by default, and then a sample with masks or boxes is refused. A subclass that changes
        colours alone says False, and lets them pass.
        """
        return True

    @abstractmethod
    def sample(self, draws: Draws, shape: Shape) -> Params:
        """The numbers for the images of ``draws``.

        Args:
            draws: the random numbers, for N images.
            shape: the images' shape, (N, C, H, W).
        """

    @abstractmethod
    def apply(self, images: Tensor, params: Params) -> Tensor:  # type: ignore[misc]
        """The changed images; ``images`` [N, C, H, W] stay as they are.

        Args:
            images: shape [N, C, H, W], any layout in memory.
            params: what ``sample`` returned for them.
        """

    def output_shape(self, shape: Shape, params: Params) -> Shape:  # type: ignore[misc]
        """The shape of what ``apply`` returns for images of ``shape``: the same by default."""
        return shape

    @overload
    def __call__(self, images: Tensor, *, generator: torch.Generator | None = None) -> Tensor: ...
    @overload
    def __call__(
        self, images: Any, *others: Any, generator: torch.Generator | None = None
    ) -> Any: ...
    def __call__(self, images: Any, *others: Any, generator: torch.Generator | None = None) -> Any:
        """Sample and apply; epoch 0 where the epoch matters.

        Besides tensors it takes what torchvision's v2 transforms take, so that it stands among them
        in a ``v2.Compose``: a PIL image, a ``tv_tensors.Image``, a sample with images and other
        things in tuples, lists or dicts, or several arguments. Images keep their type, all images
        of a sample get the same numbers, and all else passes as it came.

        Args:
            images: one image [C, H, W] or a batch [N, C, H, W], of dtype uint8, int8 to int64,
                float16, bfloat16, float32 or float64; a PIL image; or a sample.
            others: the rest of a sample that comes as several arguments; a tuple is returned then.
            generator: gives one number, from which each image's own follow; None takes torch's
                default generator.

        Returns:
            Images with as many dimensions as came.

        Raises:
            TypeError: there is no image, its dtype is none of those, masks or boxes come with a
                transform that moves pixels, there is a video, or generator is not a generator.
            ValueError: images have the wrong rank or no pixels.
        """
        if not others and is_plain_tensor(images):
            check_images(images)
            return self._change(images, Draws.from_generator(0, generator=generator).seed)
        sample = (images, *others) if others else images
        seed = Draws.from_generator(0, generator=generator).seed
        change = partial(self._change, seed=seed)
        return change_sample(sample, change, moves_pixels=self.moves_pixels)

    def _change(self, images: Tensor, seed: int) -> Tensor:
        check_images(images)
        batch = images if images.dim() == 4 else images[None]
        draws = Draws(torch.arange(len(batch), device=batch.device), seed=seed)
        result = self.apply(batch, self.sample(draws, tuple(batch.shape)))
        return result if images.dim() == 4 else result[0]


@dataclass(frozen=True)
class Pipeline(Transform[tuple[Any, ...]]):
    """Transforms one after the other, each with its own stream of draws.

    Piece i samples from ``draws.with_stream(i)``. A pipeline inside a pipeline is the same as its
    pieces written out, so no two pieces share a stream.

    Args:
        transforms: the pieces, first to last; none gives the identity.

    Raises:
        TypeError: a piece is not a Transform.

    Example:
        >>> from fasttricks.transforms import Cutout, Pipeline, RandomTranslate
        >>> Pipeline([RandomTranslate(2), Cutout(8)])(torch.zeros(4, 3, 32, 32)).shape
        torch.Size([4, 3, 32, 32])
    """

    transforms: Sequence[Transform[Any]]

    def __post_init__(self) -> None:
        object.__setattr__(self, "transforms", _flat(self.transforms))

    @property
    @override
    def moves_pixels(self) -> bool:
        return any(transform.moves_pixels for transform in self.transforms)

    def sample(self, draws: Draws, shape: Shape) -> tuple[Any, ...]:
        """The numbers of each piece, in order."""
        return sample_in_turn(self.transforms, draws, shape)

    def apply(self, images: Tensor, params: tuple[Any, ...]) -> Tensor:
        """The images after the last piece."""
        return apply_in_turn(self.transforms, images, params)

    def output_shape(self, shape: Shape, params: tuple[Any, ...]) -> Shape:
        """The shape after the last piece."""
        for transform, own in zip(self.transforms, params, strict=True):
            shape = transform.output_shape(shape, own)
        return shape


def sample_in_turn(
    transforms: Sequence[Transform[Any]], draws: Draws, shape: Shape, *, first: int = 0
) -> tuple[Any, ...]:
    """The numbers of each transform; the i-th has the stream ``first + i``."""
    params = []
    for stream, transform in enumerate(transforms, first):
        params.append(transform.sample(draws.with_stream(stream), shape))
        shape = transform.output_shape(shape, params[-1])
    return tuple(params)


def apply_in_turn(
    transforms: Sequence[Transform[Any]], images: Tensor, params: Sequence[Any]
) -> Tensor:
    """The images after the last transform, each with its own numbers."""
    for transform, own in zip(transforms, params, strict=True):
        images = transform.apply(images, own)
    return images


def numbers_of(params: Any, images: slice) -> Any:
    """The numbers of some of the images that ``params`` were sampled for."""
    if isinstance(params, Tensor):
        return params[images]
    if isinstance(params, tuple):
        return tuple(numbers_of(one, images) for one in params)
    return params


def check_images(images: object) -> None:
    """Raise unless ``images`` is a CHW or NCHW tensor with pixels and a fit dtype."""
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a torch.Tensor, got {type(images).__name__}")
    if images.dtype not in _DTYPES:
        known = ", ".join(str(dtype).removeprefix("torch.") for dtype in _DTYPES)
        raise TypeError(f"images must have a dtype of {known}, got dtype={images.dtype}")
    if images.dim() not in (3, 4):
        raise ValueError(
            f"images must have the shape [C, H, W] or [N, C, H, W], got shape={tuple(images.shape)}"
        )
    if 0 in images.shape[-3:]:
        raise ValueError(
            f"images must have at least one channel, row and column, "
            f"got shape={tuple(images.shape)}"
        )


def _flat(transforms: object) -> tuple[Transform[Any], ...]:
    if isinstance(transforms, Transform) or not isinstance(transforms, Sequence):
        raise TypeError(
            f"transforms must be a list of Transform objects, got transforms={transforms!r}"
        )
    pieces: list[Transform[Any]] = []
    for position, transform in enumerate(transforms):
        if not isinstance(transform, Transform):
            raise TypeError(
                f"transforms must hold only Transform objects, "
                f"got transforms[{position}]={transform!r}"
            )
        pieces.extend(transform.transforms if isinstance(transform, Pipeline) else [transform])
    return tuple(pieces)
