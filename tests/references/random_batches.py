"""Batches of random small images, the same in every test that asks for them."""

from __future__ import annotations

import torch


def make_batches(count=4, size=12, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return [
        (
            torch.randn(size, 3, 8, 8, generator=generator),
            torch.randint(5, (size,), generator=generator),
        )
        for _ in range(count)
    ]
