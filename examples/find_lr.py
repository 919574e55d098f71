"""Find a learning rate by the range test, and train with what it suggests.

The article's ResNet9 with CELU, at two batch sizes: a hundred updates at rising rates give the
curve and max_lr; then one cycle with that peak. `--images`, `--epochs` and `--width` make it longer
or shorter. `--grid` also trains at nine fixed peaks, to see how good the suggestion was, each with
`--seeds` seeds.
"""

from __future__ import annotations

import argparse
import time
from datetime import datetime
from typing import Any

import torch
from _shared import (
    Parser,
    article_loader,
    check,
    choose_device,
    errors_in_one_line,
    evaluation_loader,
    hold_out,
    load,
    may_flip,
)

import fasttricks as ft
from fasttricks.lr_range_test import RULES

GRID = (0.025, 0.05, 0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.4)


def make_trainer(
    args: argparse.Namespace, train: ft.ImageSet, seed: int, **options: Any
) -> ft.Trainer:
    """Return a trainer of a fresh ResNet9, the same one for the same seed."""
    torch.manual_seed(seed)
    model = ft.resnet9(train.num_classes, in_channels=train.channels, width=args.width).to(
        args.device
    )
    sgd = torch.optim.SGD(
        model.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    return ft.Trainer(model, sgd, precision=args.precision, progress=False, **options)


def train_at(
    max_lr: float,
    args: argparse.Namespace,
    train: ft.ImageSet,
    loaders: list[ft.DeviceLoader],
    val: ft.DeviceLoader,
) -> list[float]:
    """Train by one cycle to ``max_lr`` with every seed; return the held-out accuracies in percent.

    A training that diverges counts as 0.
    """
    accuracies = []
    start = time.perf_counter()
    for loader in loaders:
        loader.set_epoch(0)
        steps = max(2, round(args.epochs * len(loader)))
        schedule = ft.one_cycle(max_lr, steps, anneal="linear")
        trainer = make_trainer(args, train, loader.seed, lr=schedule)
        try:
            trainer.fit(loader, args.epochs)
            accuracies.append(100 * trainer.evaluate(val).accuracy)
        except FloatingPointError as error:
            print(f"  max_lr {max_lr:<8.4g} diverged: {error}", flush=True)
            accuracies.append(0.0)
    accuracy = ft.summarize(accuracies).text("%")
    seconds = time.perf_counter() - start
    print(f"  max_lr {max_lr:<8.4g} held-out accuracy {accuracy}, {seconds:.0f} s", flush=True)
    return accuracies


def run(args: argparse.Namespace) -> None:
    """For each batch size: range test, picture, training."""
    args.device = choose_device(args)
    check("--epochs", args.epochs, most=1e6)
    check("--images", args.images, above=1)
    check("--width", args.width)
    check("--seeds", args.seeds)
    check("--held-out", args.held_out)
    peaks = sorted({*(GRID if args.grid else ()), *(args.peaks or ())})
    for peak in peaks:
        check("--peaks", peak)
    for batch_size in args.batch_size:
        check("--batch-size", batch_size, above=1)
    train, _, is_digits = load(args.data, may_stand_in=True)
    # The test set is left alone: what is chosen here is judged on training images held out.
    rest, held_out = hold_out(train, args.held_out, args.images)
    folder = ft.make_run_folder(args.output or f"runs/find_lr-{datetime.now():%Y%m%d-%H%M%S}")
    normalize = ft.Normalize(*rest.mean_std())
    val = evaluation_loader(held_out, normalize, args.device)
    rows = []
    # An epoch has four updates at least; sizes that are the same then are tried once.
    for size in dict.fromkeys(min(size, max(2, len(rest) // 4)) for size in args.batch_size):
        options = {"flips": may_flip(args, is_digits=is_digits), "device": args.device}
        seeds = range(args.seed, args.seed + args.seeds)
        loaders = [article_loader(rest, size, seed=seed, **options) for seed in seeds]
        print(f"batch size {size}: {rest}, {args.epochs:g} epochs", flush=True)
        test = ft.lr_range_test(make_trainer(args, rest, args.seed), loader=loaders[0])
        picture = folder / f"range-test-{size}.png"
        test.plot().figure.savefig(picture, dpi=120)
        print(
            f"  base_lr {test.base_lr:.4g}, max_lr {test.max_lr:.4g}, "
            f"step_size {test.step_size} updates ({test.step_size_epochs} epochs), {picture}",
            flush=True,
        )
        suggested = train_at(test.max_lr, args, rest, loaders, val)
        grid = {lr: train_at(lr, args, rest, loaders, val) for lr in peaks}
        rows.append(
            {
                "batch_size": size,
                "max_lr": test.max_lr,
                "base_lr": test.base_lr,
                "step_size": test.step_size,
                "rules": {rule: test.suggest(rule) for rule in RULES},
                "accuracies": suggested,
                "grid": grid,
                "rates": test.rates,
                "losses": test.losses,
            }
        )
        record = {"dataset": train.name, "images": len(rest), "held_out": len(held_out)}
        record |= {"epochs": args.epochs, "width": args.width, "rows": rows}
        record |= {"seeds": list(seeds)}
        ft.write_json(folder / "record.json", record | ft.describe_environment(args.device))


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, output="runs/find_lr-<time>")
    add = parser.add_argument
    add("--batch-size", type=int, nargs="+", default=[512, 768], help="images an update, at most a "
        "quarter of the images (default: 512 768)")  # fmt: skip
    add("--images", type=int, default=10_000, help="training images (default: 10000)")
    add("--epochs", type=float, default=5, help="of each training (default: 5)")
    add("--width", type=int, default=64, help="channels of ResNet9's first layer (default: 64)")
    add("--seed", type=int, default=0, help="seed of the first training (default: 0)")
    add("--seeds", type=int, default=1, help="trainings at each peak (default: 1)")
    add("--held-out", type=int, default=5000, help="images to judge by, at most a fifth "
        "(default: 5000)")  # fmt: skip
    add("--grid", action="store_true", help="also train at nine fixed peaks (default: off)")
    add("--peaks", type=float, nargs="+", help="also train at these peaks (default: none)")
    return parser.parse_args()


if __name__ == "__main__":
    with errors_in_one_line():
        run(parse_arguments())
