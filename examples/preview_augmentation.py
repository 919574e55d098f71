"""Look at the augmentation: a grid of images before and after each piece.

Draws what the recipes `speedrun` and `article` of cifar10_94.py do to the first images of each
class, and Cutout, random erasing, Mixup and CutMix with it, as one picture each.
"""

from __future__ import annotations

import argparse
from datetime import datetime

from _shared import Parser, check, errors_in_one_line, load

import fasttricks as ft
from fasttricks.plots import preview_augmentation


def run(args: argparse.Namespace) -> None:
    """Draw each picture and say where it is."""
    check("--count", args.count, most=100)
    check("--epochs", args.epochs, most=20)
    check("--seed", args.seed, above=-1, most=2**32)
    train, _, is_digits = load(args.data, may_stand_in=True)
    side = min(train.image_size)
    normalize = ft.Normalize(*train.mean_std())
    random_flip = [] if is_digits else [ft.RandomHorizontalFlip()]
    alternating_flip = [] if is_digits else [ft.AlternatingFlip()]
    pictures: dict[str, tuple[list[ft.Transform], ft.transforms.Mix | None]] = {
        "speedrun": (
            [
                ft.RandomTranslate(2),
                *alternating_flip,
                normalize,
                ft.RandomIntensity(shift=0.14, scale=0.13),
            ],
            None,
        ),
        "article": ([ft.RandomTranslate(4), *random_flip, normalize, ft.Cutout(side // 4)], None),
        "erasing": (
            [
                ft.Cutout(side // 4, holes=2),
                ft.Cutout(side // 2, fill="mean"),
                ft.Cutout(side // 2, fill="random", inside=True),
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
