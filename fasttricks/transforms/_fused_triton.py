"""The kernel of the fused pass, in Triton. Imported when the first fused batch is made.

Every number of the result is looked up in a table of what becomes of each byte, so that nothing is
rounded here: the kernel only moves bytes. Shapes: N images, C channels, H rows, W columns.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 1024


@triton.jit  # type: ignore[untyped-decorator]
def _kernel(  # type: ignore[no-untyped-def]
    rows,
    index,
    moves,
    before,
    after,
    table,
    fill_before,
    fill_after,
    out,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    HOLES_BEFORE: tl.constexpr,
    HOLES_AFTER: tl.constexpr,
    REFLECT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    image = tl.program_id(0)
    # Element e of an image lies at ((y * W) + x) * C + c, in the set and in the result.
    e = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    inside = e < H * W * C
    c = e % C
    x = (e // C) % W
    y = e // (C * W)
    dy = tl.load(moves + image * 3)
    dx = tl.load(moves + image * 3 + 1)
    flip = tl.load(moves + image * 3 + 2)
    # The flip comes after the crop: column x of the result is column W - 1 - x of the crop.
    from_y = y + dy
    from_x = tl.where(flip != 0, W - 1 - x, x) + dx
    if REFLECT:
        from_y = (H - 1) - tl.abs((H - 1) - tl.abs(from_y))
        from_x = (W - 1) - tl.abs((W - 1) - tl.abs(from_x))
        there = inside
    else:
        there = inside & (from_y >= 0) & (from_y < H) & (from_x >= 0) & (from_x < W)
    # 64 bits: a set may hold more than 2^31 bytes.
    start = tl.load(index + image) * (H * W * C)
    byte = tl.load(rows + start + (from_y * W + from_x) * C + c, mask=there, other=0)
    value = tl.load(table + c * 256 + byte.to(tl.int32), mask=inside)
    for hole in tl.static_range(HOLES_BEFORE):
        box = before + (image * HOLES_BEFORE + hole) * 4
        erased = (y >= tl.load(box)) & (y < tl.load(box + 1))
        erased = erased & (x >= tl.load(box + 2)) & (x < tl.load(box + 3))
        value = tl.where(erased, tl.load(fill_before + c, mask=inside), value)
    for hole in tl.static_range(HOLES_AFTER):
        box = after + (image * HOLES_AFTER + hole) * 4
        erased = (y >= tl.load(box)) & (y < tl.load(box + 1))
        erased = erased & (x >= tl.load(box + 2)) & (x < tl.load(box + 3))
        value = tl.where(erased, tl.load(fill_after + c, mask=inside), value)
    tl.store(out + image.to(tl.int64) * (H * W * C) + e, value, mask=inside)


def launch(
    rows: Tensor,
    index: Tensor,
    moves: Tensor,
    before: Tensor,
    after: Tensor,
    table: Tensor,
    fill_before: Tensor,
    fill_after: Tensor,
    *,
    shape: tuple[int, int, int],
    reflect: bool,
) -> Tensor:
    """Run the kernel.

    Args:
        rows: The set: uint8, shape [number of images, H * W * C].
        index: int64, shape [N].
        moves: (dy, dx, flip) of each image: int32, shape [N, 3].
        before: Boxes erased before normalising: int32, shape [N, K, 4], K from 0.
        after: Boxes erased after it.
        table: What becomes of each byte in each channel: shape [C, 256].
        fill_before: What the first boxes hold, in the table's dtype: shape [C].
        fill_after: What the second boxes hold.
        shape: (C, H, W).
        reflect: Whether the border is mirrored rather than 0.

    Returns:
        [N, C, H, W] in the table's dtype, channels_last.
    """
    channels, height, width = shape
    size = channels * height * width
    n = len(index)
    out = torch.empty(n, height, width, channels, dtype=table.dtype, device=rows.device)
    if n:
        kernel: Any = _kernel
        kernel[(n, triton.cdiv(size, _BLOCK))](
            rows,
            index,
            moves.contiguous(),
            before.contiguous(),
            after.contiguous(),
            table.contiguous(),
            fill_before,
            fill_after,
            out,
            H=height,
            W=width,
            C=channels,
            HOLES_BEFORE=before.shape[1],
            HOLES_AFTER=after.shape[1],
            REFLECT=reflect,
            BLOCK=_BLOCK,
        )
    return out.permute(0, 3, 1, 2)
