"""Cases for the fused pass: a set of images, a pipeline that can be fused, and a batch of it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from hypothesis import strategies as st

from fasttricks.transforms import (
    AlternatingFlip,
    Cutout,
    Draws,
    Normalize,
    Pipeline,
    RandomHorizontalFlip,
    RandomTranslate,
)


@dataclass(frozen=True)
class Case:
    rows: torch.Tensor
    shape: tuple[int, int, int]
    pipeline: Pipeline
    index: torch.Tensor
    draws: Draws


def move(height, width):
    most = min(height, width) - 1
    reflect = st.builds(RandomTranslate, st.integers(0, most), st.just("reflect"))
    return reflect | st.builds(RandomTranslate, st.integers(0, 45), st.just("zero"))


def cut(channels, numbers):
    sides = st.integers(1, 20)
    fill = numbers | st.lists(numbers, min_size=channels, max_size=channels)
    return st.builds(
        Cutout,
        sides | st.tuples(sides, sides),
        holes=st.integers(1, 3),
        fill=fill,
        p=st.sampled_from([0.5, 1.0]),
        inside=st.booleans(),
    )


def normalize(channels, dtypes):
    mean, std = st.floats(0, 1), st.floats(0.01, 1)
    return st.builds(
        Normalize,
        mean | st.lists(mean, min_size=channels, max_size=channels),
        std | st.lists(std, min_size=channels, max_size=channels),
        st.sampled_from(dtypes),
    )


@st.composite
def case(draw, dtypes=(torch.float32, torch.float16, torch.bfloat16), device="cpu"):
    channels = draw(st.sampled_from([1, 3, 2, 4]))
    # sizes that are powers of two and others; tall, wide and of a single pixel
    side = st.integers(1, 40) | st.sampled_from([8, 28, 32])
    height, width = draw(side), draw(side)
    pieces = [
        move(height, width),
        st.builds(RandomHorizontalFlip, st.sampled_from([0.5, 1])) | st.just(AlternatingFlip()),
        cut(channels, st.integers(0, 255)),
        normalize(channels, dtypes),
        cut(channels, st.floats(-2, 2, width=16)),
    ]
    chosen = [strategy for i, strategy in enumerate(pieces) if i == 3 or draw(st.booleans())]
    number, seed = draw(st.integers(1, 5)), draw(st.integers(0, 99))
    generator = torch.Generator().manual_seed(seed)
    size = (number, height * width * channels)
    rows = torch.randint(0, 256, size, dtype=torch.uint8, generator=generator).to(device)
    index = torch.tensor(draw(st.lists(st.integers(0, number - 1), max_size=4)), dtype=torch.int64)
    index = index.to(device)
    draws = Draws(index, seed=seed, epoch=draw(st.integers(0, 3)))
    pipeline = Pipeline([draw(strategy) for strategy in chosen])
    return Case(rows, (channels, height, width), pipeline, index, draws)


def batch_of(case):
    """The batch by the pieces one after the other."""
    c, h, w = case.shape
    images = case.rows[case.index].view(-1, h, w, c).permute(0, 3, 1, 2)
    params = case.pipeline.sample(case.draws, tuple(images.shape))
    return case.pipeline.apply(images, params)


def numbers(case, recipe):
    """The table of the pass."""
    return recipe.sample(case.draws, (len(case.index), *case.shape))


def bytes_of(images):
    """The bits of the numbers, which tell 0 from -0."""
    whole = torch.int32 if images.dtype == torch.float32 else torch.int16
    return images.contiguous().view(whole)
