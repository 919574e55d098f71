"""The fused pass as one Triton kernel. Imported only where it runs: Triton is large.

Shapes: N images of the batch, M of the set, C channels, H rows, W columns, K holes.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from fasttricks.transforms._fused import PassPlan
from fasttricks.transforms._normalize import channel_constants

# Numbers of a row that one program makes: of these, the one that leaves least of them idle.
_WIDTHS = (128, 64, 32)
# Numbers a program. With one warp a thread has several rows of the same columns, and what a column
# needs (its place, its constants) is worked out once for them.
_TILE = 1024
_WARPS = 1


class TritonPass:
    """The pass as one kernel: bytes are read once and numbers written once.

    Args:
        plan: the pieces.
        rows: the set on a CUDA device, uint8, shape [M, H·W·C].
        shape: (C, H, W).
    """

    def __init__(self, plan: PassPlan, rows: Tensor, shape: tuple[int, ...]) -> None:
        self.plan = plan
        self._rows, self._shape = rows, shape
        self._fills = plan.fills(shape[0]).to(rows.device)
        self._constants = channel_constants(
            plan.normalize.mean,
            plan.normalize.std,
            scale=255,
            channels=shape[0],
            device=rows.device,
            dtype=torch.float32,
        )
        centre, spread = self._constants.cpu().chunk(2)
        # Triton's interpreter rounds a product before it adds.
        compiled = isinstance(_fused_pass, triton.runtime.JITFunction)
        self._by_product = compiled and divides_by_product(centre, spread)

    def __call__(self, index: Tensor, table: Tensor, memory_format: torch.memory_format) -> Tensor:
        """The batch of the images ``index`` with the numbers in ``table``: [N, C, H, W]."""
        c, h, w = self._shape
        out = torch.empty(
            (len(index), c, h, w),
            dtype=self.plan.normalize.dtype,
            device=self._rows.device,
            memory_format=memory_format,
        )
        if len(index) == 0:
            return out
        # The share of one of several processes is every n-th of a longer tensor.
        index, table = index.contiguous(), table.contiguous()
        width = min(_WIDTHS, key=lambda width: -(-w * c // width) * width)
        height = min(_TILE // width, triton.next_power_of_2(h))
        grid = (len(index), -(-h // height), -(-w * c // width))
        with torch.cuda.device_of(out):
            _fused_pass[grid](
                out,
                self._rows,
                index,
                table,
                self._constants,
                self._fills,
                H=h,
                W=w,
                C=c,
                HOLES=sum(self.plan.holes),
                REFLECT=self.plan.reflects,
                BY_PRODUCT=self._by_product,
                CHANNELS_LAST=memory_format == torch.channels_last,
                ROWS=height,
                COLUMNS=width,
                num_warps=_WARPS,
            )
        return out


def divides_by_product(centre: Tensor, spread: Tensor) -> bool:
    """Whether every byte's (byte - centre) / spread comes out rightly by multiplications alone.

    With the inverse, rounded: a product, what it lacks, and the product mended by that; a third of
    the instructions of a division, and for nearly all constants the same number. In float64 the
    last sum may be off by a rounding, so a result close to where float32 rounds the other way does
    not count as right.

    Args:
        centre: float32, [C], in 0..255.
        spread: float32, [C], above 0.
    """
    difference = torch.arange(256.0)[:, None] - centre
    expected = difference / spread
    inverse = 1 / spread
    product = difference * inverse
    rest = (difference.double() - product.double() * spread.double()).float()
    found = product.double() + rest.double() * inverse.double()
    infinity = torch.tensor(torch.inf)
    below, above = (
        (expected.double() + torch.nextafter(expected, end).double()) / 2
        for end in (-infinity, infinity)
    )
    margin = expected.double().abs() * 2**-48
    return bool(((found - below > margin) & (above - found > margin)).all())


# The two are parts of longer tensors: one kernel for them, however they are aligned.
@triton.jit(do_not_specialize=("index", "table"))  # type: ignore
def _fused_pass(  # type: ignore[no-untyped-def]
    out,
    rows,
    index,
    table,
    constants,
    fills,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    HOLES: tl.constexpr,
    REFLECT: tl.constexpr,
    BY_PRODUCT: tl.constexpr,
    CHANNELS_LAST: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
):
    """One program makes a tile of one image: ROWS rows, COLUMNS numbers of each."""
    image = tl.program_id(0).to(tl.int64)
    entry = table + image * (3 + 4 * HOLES)
    dy, dx, flip = tl.load(entry), tl.load(entry + 1), tl.load(entry + 2)
    source = rows + tl.load(index + image) * (H * W * C)
    target = out + image * (H * W * C)

    y = tl.program_id(1) * ROWS + tl.arange(0, ROWS)
    y_seen = y + dy
    y_read = y < H
    if REFLECT:
        y_seen = (H - 1) - tl.abs((H - 1) - tl.abs(y_seen))
    else:
        y_read = y_read & (y_seen >= 0) & (y_seen < H)

    # neighbours in the result are neighbours in j, so that whole words are written
    j = tl.program_id(2) * COLUMNS + tl.arange(0, COLUMNS)
    if CHANNELS_LAST:
        x = j // C
        c = j % C
        place = y[:, None] * (W * C) + j[None, :]
    else:
        x = j % W
        c = j // W
        place = y[:, None] * W + (c * (H * W) + x)[None, :]
    x_seen = tl.where(flip != 0, (W - 1) - x, x) + dx
    in_row = j < W * C
    x_read = in_row
    if REFLECT:
        x_seen = (W - 1) - tl.abs((W - 1) - tl.abs(x_seen))
    else:
        x_read = x_read & (x_seen >= 0) & (x_seen < W)
    seen = y_seen[:, None] * (W * C) + (x_seen * C + c)[None, :]
    # tiles that cover the image exactly need no masks, which cost much beside so little work
    WHOLE: tl.constexpr = H % ROWS == 0 and (W * C) % COLUMNS == 0
    if WHOLE and REFLECT:
        byte = tl.load(source + seen)
    else:
        byte = tl.load(source + seen, mask=y_read[:, None] & x_read[None, :], other=0)

    centre = tl.load(constants + c, mask=in_row, other=0.0)
    spread = tl.load(constants + C + c, mask=in_row, other=1.0)
    # a correctly rounded division, and no product that a sum could be contracted with
    difference = byte.to(tl.float32) - centre[None, :]
    if BY_PRODUCT:
        inverse = tl.div_rn(1.0, spread)[None, :]
        quotient = difference * inverse
        rest = tl.fma(quotient, -spread[None, :], difference)
        value = tl.fma(rest, inverse, quotient)
    else:
        value = tl.div_rn(difference, spread[None, :])
    result = _rounded(value, out.dtype.element_ty)

    for hole in tl.static_range(HOLES):
        box = entry + 3 + 4 * hole
        in_rows = (y >= tl.load(box)) & (y < tl.load(box + 1))
        in_columns = (x >= tl.load(box + 2)) & (x < tl.load(box + 3))
        fill = tl.load(fills + hole * C + c, mask=in_row, other=0.0)
        result = tl.where(in_rows[:, None] & in_columns[None, :], fill[None, :], result)
    if WHOLE:
        tl.store(target + place, result)
    else:
        tl.store(target + place, result, mask=(y < H)[:, None] & in_row[None, :])


@triton.jit  # type: ignore
def _rounded(value, dtype: tl.constexpr):  # type: ignore[no-untyped-def]
    """Finite float32 to ``dtype``, to the nearest, ties to even."""
    if dtype == tl.bfloat16:
        # by hand: Triton's interpreter cuts the low bits off
        bits = value.to(tl.uint32, bitcast=True)
        bits = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
        return bits.to(tl.uint16).to(tl.bfloat16, bitcast=True)
    else:
        return value.to(dtype)
