"""The article's comparisons: the same training with another schedule, activation or network.

Four contests by name. `schedules`: constant, halved after each third of the run, triangular, one
cycle, all on ResNet9. `activations`: ReLU, GELU, SiLU, and CELU with the alphas of the DAWNBench
entries. `networks`: ResNet9 against He's ResNet-20 and ResNet-56. `depths`: VGG-11 to 19.
Every contender is trained with every seed in turn, augmented as in the article, and judged on
training images held out. `--images`, `--epochs` and `--narrow` make it longer or shorter.
"""

from __future__ import annotations

import argparse
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import torch
from _shared import (
    Parser,
    article_loader,
    check,
    choose_batch_size,
    choose_device,
    errors_in_one_line,
    evaluation_loader,
    hold_out,
    load,
    may_flip,
)

import fasttricks as ft


def one_cycle(max_lr: float, steps: int) -> ft.Schedule:
    """Rise over a fifth of the run, then fall in a straight line to nearly 0."""
    return ft.one_cycle(max_lr, max(2, steps), pct_start=0.2, anneal="linear")


def halved(max_lr: float, steps: int) -> ft.Schedule:
    """Halve after each third of the run, as the article did after every 30 epochs of 100."""
    return ft.step_decay(max_lr, every=math.ceil(steps / 3))


def triangular(max_lr: float, steps: int) -> ft.Schedule:
    """Three triangles between a tenth of the peak and the peak."""
    return ft.triangular(max_lr / 10, max_lr, step_size_up=max(1, steps / 6))


def constant(max_lr: float, steps: int) -> ft.Schedule:
    """The same rate throughout."""
    return ft.constant(max_lr)


@dataclass(frozen=True)
class Contender:
    """A network by its builder's name and options, and the schedule of its training."""

    network: str = "resnet9"
    options: Mapping[str, Any] = field(default_factory=dict)
    schedule: Callable[[float, int], ft.Schedule] = one_cycle

    def build(self, train: ft.ImageSet, narrow: int) -> torch.nn.Module:
        """Return the network, with its usual width divided by ``narrow``."""
        usual = inspect.signature(getattr(ft, self.network)).parameters["width"].default
        sizes = {"in_channels": train.channels, "width": max(1, usual // narrow)}
        return ft.build(self.network, num_classes=train.num_classes, **sizes, **self.options)


def celu(alpha: float, **options: Any) -> Contender:
    """Return ResNet9 with CELU."""
    return Contender(options={"act": "celu", "celu_alpha": alpha, **options})


CONTESTS = {
    "schedules": {
        "constant": Contender(schedule=constant),
        "halved": Contender(schedule=halved),
        "triangular": Contender(schedule=triangular),
        "one cycle": Contender(),
    },
    "activations": {
        "relu": Contender(options={"act": "relu"}),
        "gelu": Contender(options={"act": "gelu"}),
        "silu": Contender(options={"act": "silu"}),
        "celu 0.075": celu(0.075),
        "celu 0.3": celu(0.3),
        "celu 0.3, frozen": celu(0.3, frozen_scale=True, logit_scale=1 / 16),
    },
    "networks": {name: Contender(name) for name in ("resnet9", "resnet20", "resnet56")},
    "depths": {name: Contender(name) for name in ("vgg11", "vgg13", "vgg16", "vgg19")},
}


def train_once(
    contender: Contender,
    train: ft.ImageSet,
    held_out: ft.DeviceLoader,
    args: argparse.Namespace,
    seed: int,
) -> dict[str, Any]:
    """Train with one seed and return the history and what it comes to."""
    torch.manual_seed(seed)
    options = {"flips": args.flips, "device": args.device, "seed": seed}
    loader = article_loader(train, args.batch_size, **options)
    model = contender.build(train, args.narrow).to(args.device)
    ft.use_winograd_(model)
    sgd = torch.optim.SGD(
        model.parameters(), lr=args.max_lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    schedule = contender.schedule(args.max_lr, max(1, round(args.epochs * len(loader))))
    options = {"precision": args.precision, "progress": False}
    trainer = ft.Trainer(model, sgd, lr=schedule, **options)
    # 0 is the accuracy of a run that diverged.
    result: dict[str, Any] = {"seed": seed, "precision": trainer.precision.name, "accuracy": 0.0}
    try:
        trainer.fit(loader, args.epochs, val=held_out)
        result["accuracy"] = 100 * float(trainer.history.rows[-1]["val_accuracy"])
    except FloatingPointError as error:
        result["error"] = str(error)
    rows = [row for row in trainer.history.rows if math.isfinite(row["val_loss"])]
    if trainer.history.rows[-1:] != rows[-1:]:  # which the training itself did not see
        result["accuracy"] = 0.0
        result.setdefault("error", "the last val_loss was not finite")
    return result | {
        "seconds": trainer.train_seconds,
        "images_per_second": rows[-1]["images_per_second"] if rows else 0.0,
        "history": rows,
    }


def draw(runs: dict[str, list[dict[str, Any]]], path: Path) -> None:
    """Draw each contender's mean accuracy against the seconds of training."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    panel = figure.subplots()
    for name, several in runs.items():
        histories = [run["history"] for run in several if "error" not in run]
        if histories:
            epochs = list(zip(*histories, strict=True))
            seconds = [sum(row["train_seconds"] for row in rows) / len(rows) for rows in epochs]
            means = [100 * sum(row["val_accuracy"] for row in rows) / len(rows) for rows in epochs]
            some = "" if len(histories) == len(several) else f", {len(histories)} of {len(several)}"
            panel.plot(seconds, means, marker="o", markersize=3, label=name + some)
    panel.set(xlabel="seconds of training", ylabel="held-out accuracy (%)")
    panel.grid(alpha=0.3)
    if panel.lines:  # not every training diverged
        panel.legend(frameon=False)
    figure.savefig(path, dpi=120)


def run(args: argparse.Namespace) -> None:
    """Train every contender with every seed; write the record, the picture, the table."""
    args.device = choose_device(args)
    check("--images", args.images, above=1)
    for name in ("held_out", "epochs", "narrow", "seeds"):
        check(f"--{name.replace('_', '-')}", getattr(args, name), most=1e6)
    train, _, is_digits = load(args.data, may_stand_in=True)
    args.flips = may_flip(args, is_digits=is_digits)
    rest, held_out = hold_out(train, args.held_out, args.images)
    args.batch_size = choose_batch_size(args.batch_size, 512, rest)
    args.max_lr = 0.4 * args.batch_size / 512 if args.max_lr is None else args.max_lr
    check("--max-lr", args.max_lr)
    normalize = ft.Normalize(*rest.mean_std())
    val = evaluation_loader(held_out, normalize, args.device)
    folder = ft.make_run_folder(args.output or f"runs/compare-{datetime.now():%Y%m%d-%H%M%S}")
    contenders = CONTESTS[args.contest]
    runs: dict[str, list[dict[str, Any]]] = {name: [] for name in contenders}
    print(f"{rest}, {len(held_out)} held out, {args.epochs:g} epochs on {args.device}", flush=True)
    for seed in range(args.seeds):
        for name, contender in contenders.items():
            row = train_once(contender, rest, val, args, seed)
            runs[name].append(row)
            print(
                f"seed {seed} {name:<18} held-out accuracy {row['accuracy']:.2f} %, "
                f"{row['seconds']:.0f} s, {row['images_per_second']:,.0f} images/s",
                flush=True,
            )
        settings = {k: v for k, v in vars(args).items() if k not in ("data", "output")}
        record = {"dataset": train.name, "images": len(rest), "held_out": len(held_out)}
        record |= {"settings": settings, "runs": runs, "summary": summarise(runs)}
        ft.write_json(folder / "record.json", record | ft.describe_environment(args.device))
        draw(runs, folder / "curves.png")
    for name, several in runs.items():
        summary = ft.summarize([one["accuracy"] for one in several])
        print(f"{name:<18} held-out accuracy {summary.text('%')}")
    print(folder / "curves.png")


def summarise(runs: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Return each contender's accuracy over the seeds."""
    return {name: asdict(ft.summarize([r["accuracy"] for r in rs])) for name, rs in runs.items()}


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, output="runs/compare-<time>")
    add = parser.add_argument
    add("contest", choices=CONTESTS, help="what to compare")
    add("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    add("--images", type=int, default=10_240, help="training images (default: 10240)")
    add("--held-out", type=int, default=5000, help="images to judge by, at most a fifth "
        "(default: 5000)")  # fmt: skip
    add("--epochs", type=float, default=10, help="of each training (default: 10)")
    add("--batch-size", type=int, help="(default: 512, less for a small data set)")
    add("--max-lr", type=float, help="the highest rate (default: 0.4 for 512 images an update)")
    add("--narrow", type=int, default=1, help="divide the widths by this (default: 1)")
    return parser.parse_args()


if __name__ == "__main__":
    with errors_in_one_line():
        run(parse_arguments())
