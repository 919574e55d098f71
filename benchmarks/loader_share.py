"""What share of a training step goes to making its batch, for each recipe of the example.

    python benchmarks/loader_share.py --data cifar10.npz --output loader_share.json

Times the making of a batch (loading, augmentation, and with a proxy its choice) and the whole step,
at every image size that the recipe trains on, after two steps of warm-up.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import fasttricks as ft

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import cifar10_94
from _shared import Loader


def measure(trainer: ft.Trainer, loader: Loader, epoch: int, steps: int) -> dict[str, Any]:
    """Return milliseconds a step, the share of it that makes the batch, and the image size."""
    synchronize = torch.cuda.synchronize if trainer.device.type == "cuda" else lambda: None
    batches = _again_and_again(loader, epoch)
    loading = whole = 0.0
    for step in range(steps + 2):
        start = time.perf_counter()
        batch = next(batches)
        synchronize()
        loaded = time.perf_counter()
        trainer.step(batch)
        synchronize()
        if step >= 2:
            loading += loaded - start
            whole += time.perf_counter() - start
    return {
        "epoch": epoch,
        "image_size": batch[0].shape[-1],
        "step_ms": 1000 * whole / steps,
        "images_per_second": len(batch[1]) * steps / whole,
        "loading_share": loading / whole,
    }


def _again_and_again(loader: Loader, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of one epoch without end; another may have images of another size."""
    while True:
        loader.set_epoch(epoch)
        yield from loader


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="CIFAR-10 as an .npz")
    parser.add_argument("--output", type=Path, help="JSON file to write")
    steps = "timed steps a size, a multiple of 4 as a proxy learns at every fourth (default: 12)"
    parser.add_argument("--steps", type=int, default=12, help=steps)
    parser.add_argument("--device", default="auto")
    args = parser.parse_args()
    device = ft.choose_device(args.device)
    train, _ = ft.load_data(args.data)
    rows = []
    for name, recipe in cifar10_94.RECIPES.items():
        torch.manual_seed(0)
        plan = cifar10_94.Plan(
            train,
            whiten_images=train.subset(range(min(1000, len(train)))),
            flips=True,
            epochs=recipe.epochs,
            batch_size=recipe.batch_size,
            device=device,
            seed=0,
            target=recipe.target,
            resume=False,
            switches={"precision": "auto"},
        )
        trainer, loader, _ = recipe.build(plan)
        trainer.model.train()
        last = int(recipe.epochs) - 1
        grows = any(isinstance(p, ft.ProgressiveResize) for p in loader.pipeline.transforms)
        epochs = [0, last // 2, last] if grows else [0]
        for epoch in epochs:
            rows.append({"recipe": name, **measure(trainer, loader, epoch, args.steps)})
            print(rows[-1], flush=True)
    if args.output:
        ft.write_json(args.output, {"rows": rows, **ft.describe_environment(device)})


if __name__ == "__main__":
    main()
