"""The fused pass: crop, flip, Cutout, normalise and cast of a batch as one, with the same results.

Shapes: N images of the batch, M of the set, C channels, H rows, W columns, K holes. The images of
the set lie in NHWC storage, one row each: uint8, shape [M, H·W·C].
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any, Protocol

import torch
from torch import Tensor

from fasttricks.transforms._base import Pipeline, Shape, Transform, sample_in_turn
from fasttricks.transforms._cutout import Cutout, erase
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._flip import AlternatingFlip, RandomHorizontalFlip, horizontal_flip
from fasttricks.transforms._normalize import Normalize
from fasttricks.transforms._translate import RandomTranslate, reflect_index

# Each may be missing but Normalize. The exact classes: a subclass may do something else.
_ORDER: tuple[tuple[type[Transform[Any]], ...], ...] = (
    (RandomTranslate,),
    (RandomHorizontalFlip, AlternatingFlip),
    (Cutout,),
    (Normalize,),
    (Cutout,),
)
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)
# Columns of the table before the boxes: dy, dx, flip.
_HEAD = 3
# The most that is spent on a padded and mirrored copy of the set on the CPU.
_COPY_LIMIT = 2**30
_CHUNK = 2**23


@dataclass(frozen=True)
class PassPlan:
    """The first pieces of a pipeline, those that make one pass.

    Args:
        pieces: any of a RandomTranslate, a flip, a Cutout, in this order, then a Normalize, then
            perhaps a Cutout.
    """

    pieces: tuple[Transform[Any], ...]

    @property
    def normalize(self) -> Normalize:
        """The piece that makes floating numbers of bytes."""
        return next(piece for piece in self.pieces if isinstance(piece, Normalize))

    @property
    def translate(self) -> RandomTranslate | None:
        """The piece that moves the images."""
        first = self.pieces[0]
        return first if isinstance(first, RandomTranslate) else None

    @property
    def reflects(self) -> bool:
        """Whether what lies outside of an image, if anything is seen of it, is its mirror image."""
        move = self.translate
        return move is None or move.mode == "reflect" or move.padding == 0

    @property
    def flips(self) -> bool:
        """Whether images may be mirrored."""
        return any(isinstance(piece, _ORDER[1]) for piece in self.pieces)

    @property
    def holes(self) -> tuple[int, ...]:
        """How many squares each Cutout erases."""
        return tuple(piece.holes for piece in self.pieces if isinstance(piece, Cutout))

    def sample(self, draws: Draws, shape: Shape) -> Tensor:
        """The numbers of the pieces, in one table, a row an image.

        Returns:
            int32, shape [N, 3 + 4·K]: dy, dx, flip, then (top, bottom, left, right) of each hole.
        """
        shifts = torch.zeros(len(draws), 2, dtype=torch.int64, device=draws.indices.device)
        flips, boxes = shifts[:, :1], []
        every = sample_in_turn(self.pieces, draws, shape)
        for piece, params in zip(self.pieces, every, strict=True):
            if isinstance(piece, RandomTranslate):
                shifts = params
            elif isinstance(piece, Cutout):
                boxes.append(params.flatten(1))
            elif params is not None:
                flips = params[:, None]
        return torch.cat([shifts, flips, *boxes], dim=1).to(torch.int32)

    def fills(self, channels: int) -> Tensor:
        """What each hole holds, as it leaves the pass: shape [K, C], on the CPU.

        A Cutout before Normalize fills with bytes, which are normalised like any other.
        """
        rows = [torch.zeros(0, channels, dtype=self.normalize.dtype, device="cpu")]
        whole = torch.tensor([[[0, 1, 0, 1]]], device="cpu")
        dtype = torch.uint8
        for piece in self.pieces:
            if isinstance(piece, Normalize):
                dtype = piece.dtype
            if not isinstance(piece, Cutout):
                continue
            pixel = torch.zeros(1, channels, 1, 1, dtype=dtype, device="cpu")
            value = erase(pixel, whole, fill=piece.fill)
            if dtype == torch.uint8:
                value = self.normalize.apply(value, None)
            rows.append(value.view(1, channels).expand(piece.holes, channels))
        return torch.cat(rows)


class Pass(Protocol):
    """A plan ready to run on one set of images."""

    plan: PassPlan

    def __call__(self, index: Tensor, table: Tensor, memory_format: torch.memory_format) -> Tensor:
        """The batch of the images ``index`` with the numbers in ``table``: [N, C, H, W]."""


def recognize(pipeline: Pipeline) -> PassPlan | None:
    """The longest start of ``pipeline`` that can be one pass; None if there is none."""
    pieces: list[Transform[Any]] = []
    rest = list(pipeline.transforms)
    for kinds in _ORDER:
        if rest and type(rest[0]) in kinds:
            if isinstance(rest[0], Cutout) and isinstance(rest[0].fill, str):
                break  # each image's own colours
            pieces.append(rest.pop(0))
        elif Normalize in kinds:
            return None
    plan = PassPlan(tuple(pieces))
    found = any(isinstance(piece, Normalize) for piece in pieces)
    return plan if found and plan.normalize.dtype in _DTYPES else None


def prepare(
    pipeline: Pipeline, rows: Tensor, shape: Sequence[int], *, fused: bool | None
) -> Pass | None:
    """The pass that runs the start of ``pipeline`` on the images of a set, or None for no such.

    Args:
        pipeline: what is done to the images.
        rows: the set, uint8, shape [M, H·W·C].
        shape: (C, H, W).
        fused: False for None always, None for what can be done, True to be told why it cannot.

    Raises:
        TypeError: fused is not True, False or None.
        ValueError: fused is True and the pipeline or the device does not allow it; or a piece does
            not fit the images.
    """
    if fused is not None and not isinstance(fused, bool):
        raise TypeError(f"fused must be True, False or None, got fused={fused!r}")
    if fused is False:
        return None
    plan, problem = recognize(pipeline), _device_problem(rows.device)
    if plan is None:
        problem = (
            "the transforms do not begin with any of RandomTranslate, a flip and Cutout, in this "
            "order, then Normalize to float32, float16 or bfloat16"
        )
    if plan is not None and problem is None:
        none = torch.empty(0, dtype=torch.int64, device="cpu")
        plan.sample(Draws(none, seed=0), (0, *shape))
        if rows.device.type == "cpu":
            return TorchPass(plan, rows, tuple(shape))
        return _kernel(plan, rows, tuple(shape), required=fused is True)
    if fused:
        raise ValueError(f"fused=True is not possible: {problem}; use fused=None")
    return None


class TorchPass:
    """The pass in plain torch, for the CPU.

    Crop and flip are one gather: every row of a cropped image is a run of W·C bytes of the image
    padded to the left and right, or of its mirror image, and ``index_select`` copies runs from a
    view in which each byte starts one. That takes a padded and mirrored copy of the set; where it
    would be too large, the pieces do their work on each batch.

    Args:
        plan: the pieces.
        rows: the set, uint8, shape [M, H·W·C].
        shape: (C, H, W).
        copy_limit: bytes that the copy may take.
    """

    def __init__(
        self, plan: PassPlan, rows: Tensor, shape: tuple[int, ...], *, copy_limit: int = _COPY_LIMIT
    ) -> None:
        self.plan = plan
        self._rows, self._shape = rows, shape
        self._fills = plan.fills(shape[0])
        # farther than W to either side there is nothing to see
        self._padding = 0 if plan.translate is None else min(plan.translate.padding, shape[2])
        self._reflect = plan.reflects
        growth = (1 + plan.flips) * (shape[2] + 2 * self._padding) / shape[2]
        self._alike = growth == 1
        small = self._alike or growth * rows.numel() <= copy_limit
        self._store = self._views(rows) if small else None

    def __call__(self, index: Tensor, table: Tensor, memory_format: torch.memory_format) -> Tensor:
        """The batch of the images ``index`` with the numbers in ``table``: [N, C, H, W]."""
        c, h, w = self._shape
        table = table.to(torch.int64)
        if len(index) == 0:
            empty = torch.empty(0, c, h, w, dtype=self.plan.normalize.dtype, device="cpu")
            return empty.contiguous(memory_format=memory_format)
        images = self.plan.normalize.apply(self._cropped(index, table), None)
        pixels, first = images.permute(0, 2, 3, 1).reshape(-1), 0
        for holes in self.plan.holes:
            boxes = table[:, _HEAD + 4 * first : _HEAD + 4 * (first + holes)]
            _erase_(pixels, boxes.reshape(-1, holes, 4), self._fills[first], self._shape)
            first += holes
        images = pixels.view(-1, h, w, c).permute(0, 3, 1, 2)
        return images.contiguous(memory_format=memory_format)

    def _views(self, rows: Tensor) -> Tensor:
        """The images as they are and mirrored, padded left and right, and a row of zeros: bytes."""
        c, h, w = self._shape
        p, count = self._padding, 1 + self.plan.flips
        if self._alike:
            return rows.reshape(-1)
        at_once = max(1, _CHUNK // rows.shape[1])
        row = (w + 2 * p) * c
        store = rows.new_empty((len(rows) * count * h + 1) * row)
        store[-row:] = 0
        views = store[:-row].view(len(rows), count, h, w + 2 * p, c)
        for part, images in zip(views.split(at_once), rows.split(at_once), strict=True):
            part[:, 0, :, p : p + w] = images.view(-1, h, w, c)
            if p and self._reflect:
                part[:, 0, :, :p] = part[:, 0, :, p + 1 : 2 * p + 1].flip(2)
                part[:, 0, :, p + w :] = part[:, 0, :, w - 1 : w - 1 + p].flip(2)
            elif p:
                part[:, 0, :, :p] = 0
                part[:, 0, :, p + w :] = 0
            if count == 2:
                part[:, 1] = part[:, 0].flip(2)
        return store

    def _cropped(self, index: Tensor, table: Tensor) -> Tensor:
        """The moved and mirrored images: uint8, shape [N, C, H, W], channels last."""
        c, h, w = self._shape
        if self._store is None:
            images = self._rows.index_select(0, index).view(-1, h, w, c).permute(0, 3, 1, 2)
            if self.plan.translate is not None:
                images = self.plan.translate.apply(images, table[:, :2])
            return horizontal_flip(images, table[:, 2]) if self.plan.flips else images
        p, count = self._padding, 1 + self.plan.flips
        dy, dx, flip = table[:, :1], table[:, 1].clamp(-p, p), table[:, 2]
        y = torch.arange(h, device="cpu") + dy
        y_seen = reflect_index(y, h) if self._reflect else y
        # in the mirror image, a step to the right is one to the left
        x = p + torch.where(flip == 1, -dx, dx)
        start = (((index * count + flip)[:, None] * h + y_seen) * (w + 2 * p) + x[:, None]) * c
        if not self._reflect:
            zeros = self._store.numel() - (w + 2 * p) * c
            start = torch.where((y >= 0) & (y < h), start, zeros)
        runs = self._store.as_strided((self._store.numel() - w * c + 1, w * c), (1, 1))
        return runs.index_select(0, start.view(-1)).view(-1, h, w, c).permute(0, 3, 1, 2)


def _erase_(pixels: Tensor, boxes: Tensor, fill: Tensor, shape: tuple[int, ...]) -> None:
    """Fill boxes [N, K, 4] of the images, NHWC numbers in one row: in place."""
    c, h, w = shape
    image = torch.arange(len(boxes), device="cpu").repeat_interleave(boxes.shape[1])
    boxes = boxes.reshape(-1, 4)
    filled = (boxes[:, 0] < boxes[:, 1]) & (boxes[:, 2] < boxes[:, 3])
    top, bottom, left, right = boxes[filled, :, None].unbind(1)
    if len(top) == 0:
        return
    # a box that is clipped repeats its last row and column
    height, width = int((bottom - top).max()), int((right - left).max())
    y = (top + torch.arange(height, device="cpu")).minimum(bottom - 1)
    x = (left + torch.arange(width, device="cpu")).minimum(right - 1)
    columns = (x[:, :, None] * c + torch.arange(c, device="cpu")).flatten(1)
    start = (image[filled, None] * h + y) * (w * c)
    place = (start[:, :, None] + columns[:, None]).view(-1)
    pixels.index_copy_(0, place, fill.repeat(len(place) // c))


def _device_problem(device: torch.device) -> str | None:
    """Why there is no pass on ``device``; None if there is one."""
    if device.type == "cuda" and find_spec("triton") is None:
        return "on CUDA it needs Triton, which is not installed"
    return None if device.type in ("cpu", "cuda") else f"there is none for {device.type} devices"


def _kernel(plan: PassPlan, rows: Tensor, shape: tuple[int, ...], *, required: bool) -> Pass | None:
    """The pass as a kernel, seen to run; None, with a warning, where it does not."""
    draws = Draws(torch.zeros(1, dtype=torch.int64, device=rows.device), seed=0)
    try:
        # Triton is large, and missing on many machines
        from fasttricks.transforms._fused_triton import TritonPass

        kernel = TritonPass(plan, rows, shape)
        if len(rows):
            kernel(draws.indices, plan.sample(draws, (1, *shape)), torch.channels_last)
    # it compiles here, which needs a C compiler and a GPU that Triton knows, and says so in many
    # ways
    except Exception as error:
        if required:
            raise
        warnings.warn(
            f"the fused kernel cannot run here, plain torch takes its place: {error}; "
            f"fused=False is without it and this warning",
            RuntimeWarning,
            stacklevel=4,
        )
        return None
    return kernel
