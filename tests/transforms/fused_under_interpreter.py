"""Run by test_fused.py in a process of its own, as Triton's interpreter must be chosen before.

Makes random pipelines, image sets and loaders, and compares every batch of the kernel with that of
the plain pieces, byte for byte.
"""

from __future__ import annotations

import random
import sys
from typing import Any

import torch

from fasttricks import (
    AlternatingFlip,
    Cutout,
    DeviceLoader,
    ImageSet,
    Mixup,
    Normalize,
    ProgressiveResize,
    RandomHorizontalFlip,
    RandomIntensity,
    RandomTranslate,
)
from fasttricks.transforms._fused import recognize
from fasttricks.transforms._fused_triton import TritonPass


def random_pipeline(rng: random.Random, channels: int, side: int) -> list:
    padding = rng.randrange(side)
    # 1-channel sets get one number for all, as sets of 3 channels sometimes do
    many = channels > 1 and rng.random() < 0.7
    mean = tuple(rng.random() for _ in range(channels)) if many else 0.47
    std = tuple(0.1 + rng.random() for _ in range(channels)) if many else 0.25
    dtype = rng.choice([torch.float32, torch.float16, torch.bfloat16])
    bytes_fill = tuple(rng.randrange(256) for _ in range(channels)) if many else rng.randrange(256)
    floats_fill = tuple(rng.random() for _ in range(channels)) if many else rng.random()
    size = (rng.randrange(1, side + 3), rng.randrange(1, side + 3))
    optional = [
        RandomTranslate(padding, mode=rng.choice(["reflect", "zero"])),
        rng.choice([RandomHorizontalFlip(), RandomHorizontalFlip(p=1.0), AlternatingFlip()]),
        Cutout(size, holes=rng.randrange(1, 3), fill=bytes_fill, inside=rng.random() < 0.5),
    ]
    pieces = [piece for piece in optional if rng.random() < 0.7]
    pieces.append(Normalize(mean, std, dtype))
    if rng.random() < 0.5:
        pieces.append(Cutout(size[0], fill=floats_fill, p=0.7))
    if rng.random() < 0.3:
        pieces.append(RandomIntensity())
    if rng.random() < 0.3:
        pieces.append(ProgressiveResize({0: max(1, side // 2), 1: None}))
    return pieces


def as_contiguous(kernel: TritonPass) -> Any:
    """The kernel writing NCHW; the loader makes the result channels_last."""

    class Contiguous:
        recipe = kernel.recipe

        def __call__(self, index, table, memory_format):
            images = kernel(index, table, torch.contiguous_format)
            assert images.is_contiguous()
            return images

    return Contiguous()


def main() -> None:
    rng = random.Random(0)
    for trial in range(40):
        channels, height, width = rng.choice([1, 3, 4]), rng.randrange(1, 20), rng.randrange(1, 20)
        if trial == 0:
            channels, height, width = 3, 32, 32
        n = rng.randrange(1, 12)
        pixels = torch.randint(0, 256, (n, channels, height, width), dtype=torch.uint8)
        labels = torch.arange(n) % 2
        image_set = ImageSet(pixels, labels, classes=("a", "b"), name="noise")
        transforms = random_pipeline(rng, channels, min(height, width))
        mix = Mixup(0.3) if rng.random() < 0.2 else None
        options = {"batch_size": 5, "transforms": transforms, "shuffle": True, "seed": trial}
        plain = DeviceLoader(image_set, fused=False, mix=mix, **options)
        fused = DeviceLoader(image_set, fused=True, mix=mix, **options)
        recipe = recognize(fused.pipeline)
        memory_format = rng.choice([torch.channels_last, torch.contiguous_format])
        kernel = TritonPass(recipe, fused._rows, fused._shape)
        # the kernel in place of what the CPU takes by itself
        fused._pass = kernel if memory_format == torch.channels_last else as_contiguous(kernel)
        for epoch in range(2):
            for (a, b), (c, d) in zip(plain, fused, strict=True):
                what = f"trial {trial}, epoch {epoch}, {pixels.shape}, {transforms}"
                assert (a.dtype, a.shape) == (c.dtype, c.shape), what
                assert c.is_contiguous(memory_format=torch.channels_last), what
                assert torch.equal(a, c), what
                assert torch.equal(b, d), what
    sys.stdout.write("equal\n")


if __name__ == "__main__":
    main()
