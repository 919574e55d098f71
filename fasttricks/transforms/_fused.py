"""The fused pass: crop, flip, Cutout, normalisation and cast of a batch in one kernel.

A plan says which pieces of a pipeline the kernel takes over. The pieces draw their own numbers as
ever, so the kernel and the plain pieces make the same batch, bit for bit.

Shapes: N images, C channels, H rows, W columns, K boxes.
"""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttricks.transforms._base import Pipeline, Transform
from fasttricks.transforms._cutout import Cutout, fill_values
from fasttricks.transforms._draws import Draws
from fasttricks.transforms._flip import AlternatingFlip, RandomHorizontalFlip
from fasttricks.transforms._normalize import Normalize
from fasttricks.transforms._translate import RandomTranslate


@dataclass(frozen=True)
class FusedPlan:
    """What the kernel does of a pipeline, and the pieces that are left, each with its stream."""

    translate: tuple[int, RandomTranslate] | None
    flip: tuple[int, RandomHorizontalFlip | AlternatingFlip] | None
    before: tuple[int, Cutout] | None
    normalize: Normalize
    after: tuple[int, Cutout] | None
    rest: tuple[tuple[int, Transform[Any]], ...]


def plan_fusion(pipeline: Pipeline) -> FusedPlan | None:
    """Return the plan of a pipeline that the kernel can do, else None.

    It can if the pipeline begins with a translation, a flip and a Cutout, in this order and each of
    them optional, then a ``Normalize`` and, again optional, a Cutout. Anything may follow.
    """
    left = list(enumerate(pipeline.transforms))

    def take(*kinds: type) -> Any:
        if left and isinstance(left[0][1], kinds):
            return left.pop(0)
        return None

    translate, flip = take(RandomTranslate), take(RandomHorizontalFlip, AlternatingFlip)
    before, normalize, after = take(Cutout), take(Normalize), take(Cutout)
    holes = [hole[1] for hole in (before, after) if hole is not None]
    if normalize is None or any(isinstance(hole.fill, str) for hole in holes):
        return None
    if normalize[1].dtype == torch.float64:
        return None
    return FusedPlan(translate, flip, before, normalize[1], after, tuple(left))


def fusion_is_available(device: torch.device) -> bool:
    """Whether the kernel runs on a device: CUDA with Triton, or a CPU under its interpreter."""
    if importlib.util.find_spec("triton") is None:
        return False
    return device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"


def run_fused(
    plan: FusedPlan, rows: Tensor, index: Tensor, shape: tuple[int, int, int], *, draws: Draws
) -> Tensor:
    """Make a batch from the images of the whole set.

    Args:
        plan: Of ``plan_fusion``.
        rows: The set: uint8, shape [number of images, H * W * C].
        index: Which images: int64, shape [N].
        shape: (C, H, W).
        draws: Of these images.

    Returns:
        The batch in the dtype of the plan's ``Normalize``, [N, C, H, W], channels_last.
    """
    from fasttricks.transforms._fused_triton import launch

    batch_shape = (len(index), *shape)
    device = rows.device
    moves = torch.zeros(len(index), 3, dtype=torch.int32, device=device)
    if plan.translate is not None:
        stream, translate = plan.translate
        moves[:, :2] = translate.sample(draws.with_stream(stream), batch_shape)
    if plan.flip is not None:
        stream, flip = plan.flip
        moves[:, 2] = flip.sample(draws.with_stream(stream), batch_shape)
    plan.normalize.sample(draws, batch_shape)  # checks that the numbers fit the channels
    table = _lookup_table(plan.normalize, shape[0], device)
    images = launch(
        rows,
        index,
        moves,
        _boxes(plan.before, draws, batch_shape),
        _boxes(plan.after, draws, batch_shape),
        table,
        _fill_before(plan, table),
        _fill_after(plan, table),
        shape=shape,
        reflect=plan.translate is None or plan.translate[1].mode == "reflect",
    )
    for stream, piece in plan.rest:
        own = piece.sample(draws.with_stream(stream), tuple(images.shape))
        images = piece.apply(images, own)
    return images


def _lookup_table(normalize: Normalize, channels: int, device: torch.device) -> Tensor:
    """What becomes of each byte in each channel, by ``Normalize`` itself: shape [C, 256]."""
    levels = torch.arange(256, dtype=torch.uint8, device=device)
    every_byte = levels.expand(1, channels, 1, 256).contiguous()
    return normalize.apply(every_byte, None).view(channels, 256)


def _boxes(cutout: tuple[int, Cutout] | None, draws: Draws, shape: tuple[int, ...]) -> Tensor:
    if cutout is None:
        return torch.zeros(shape[0], 0, 4, dtype=torch.int32, device=draws.indices.device)
    stream, transform = cutout
    sampled = transform.sample(draws.with_stream(stream), shape)
    boxes = sampled[0] if isinstance(sampled, tuple) else sampled
    return boxes.to(torch.int32)


def _fill_before(plan: FusedPlan, table: Tensor) -> Tensor:
    """What a hole made in the bytes becomes: shape [C]."""
    if plan.before is None:
        return table[:, 0].contiguous()
    bytes_ = torch.empty(1, len(table), 1, 1, dtype=torch.uint8, device=table.device)
    filled = fill_values(bytes_, plan.before[1].fill).expand(1, len(table))
    return table.gather(1, filled.long().view(-1, 1))[:, 0].contiguous()


def _fill_after(plan: FusedPlan, table: Tensor) -> Tensor:
    """What a hole made in the normalised images holds: shape [C]."""
    if plan.after is None:
        return torch.zeros(len(table), dtype=table.dtype, device=table.device)
    images = table[None, :, :1, None]
    return fill_values(images, plan.after[1].fill).expand(1, len(table))[0].contiguous()
