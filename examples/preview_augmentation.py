"""Look at the augmentation: a grid of images before and after each piece.

Draws what each recipe of cifar10_94.py does to the first images of each class, and Cutout, random
erasing, Mixup and CutMix, as one picture each.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from _shared import (
    Parser,
    check,
    choose_batch_size,
    choose_device,
    errors_in_one_line,
    load,
    may_flip,
)
from cifar10_94 import RECIPES, Plan

import fasttricks as ft
from fasttricks.plots import preview_augmentation


def pieces_of(
    name: str, train: ft.ImageSet, normalize: ft.Normalize, flips: bool, device: str
) -> list[ft.Transform[Any]]:
    """Return what a recipe does to images of this size before it makes them small."""
    recipe = RECIPES[name]
    few = train.subset(range(min(100, len(train))))  # their size is what matters
    batch_size = choose_batch_size(None, recipe.batch_size, few)
    plan = Plan(
        few,
        whiten_images=few,
        flips=flips,
        epochs=recipe.epochs,
        batch_size=batch_size,
        device=device,
        seed=0,
        target=recipe.target,
        resume=False,
        switches={},
    )
    _, loader, _ = recipe.build(plan)
    pieces = [
        one for one in loader.pipeline.transforms if not isinstance(one, ft.ProgressiveResize)
    ]
    return [normalize if isinstance(piece, ft.Normalize) else piece for piece in pieces]


def run(args: argparse.Namespace) -> None:
    """Draw each picture and say where it is."""
    check("--count", args.count, most=100)
    check("--epochs", args.epochs, most=20)
    check("--seed", args.seed, above=-1, most=2**32)
    device = choose_device(args)
    train, _, is_digits = load(args.data, may_stand_in=True)
    flips = may_flip(args, is_digits=is_digits)
    side = min(train.image_size)
    normalize = ft.Normalize(*train.mean_std())
    pictures: dict[str, tuple[Sequence[ft.Transform], ft.transforms.Mix | None]] = {
        name: (pieces_of(name, train, normalize, flips, device), None) for name in RECIPES
    }
    pictures |= {
        "erasing": (
            [
                ft.Cutout(max(1, side // 4), holes=2),
                ft.Cutout(max(1, side // 2), fill="mean"),
                ft.Cutout(max(1, side // 2), fill="random", inside=True),
                ft.RandomErasing(p=1.0),
            ],
            None,
        ),
        "mixup": ([normalize], ft.Mixup(0.4)),
        "cutmix": ([normalize], ft.CutMix(1.0)),
    }
    folder = ft.make_run_folder(args.output or f"runs/preview-{datetime.now():%Y%m%d-%H%M%S}")
    for name, (transforms, mix) in pictures.items():
        figure = preview_augmentation(
            train, transforms, mix=mix, count=args.count, epochs=args.epochs, seed=args.seed
        )
        figure.savefig(folder / f"{name}.png", dpi=120)
        print(folder / f"{name}.png")


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, output="runs/preview-<time>")
    add = parser.add_argument
    add("--count", type=int, default=10, help="images in a row (default: 10)")
    add("--epochs", type=int, default=1, help="epochs drawn below each other (default: 1)")
    add("--seed", type=int, default=0, help="seed of the draws (default: 0)")
    return parser.parse_args()


if __name__ == "__main__":
    with errors_in_one_line():
        run(parse_arguments())
