"""What each trick is worth: the same training with it and without it, over several seeds.

The speedrun network, trained by Muon and SGD with everything on but Cutout; then each trick named
by `--tricks` is turned round alone. `--images`, `--epochs` and `--widths` make it longer or
shorter. Trains on training images and evaluates on training images held out, 5,000 of them, or a
fifth of a small set.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass, fields, replace
from datetime import datetime
from typing import Any

import torch
from _shared import (
    Parser,
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


@dataclass(frozen=True)
class Tricks:
    """Which tricks are on; the defaults are those that every other training is compared with."""

    translate: bool = True
    flip: bool = True
    alternating: bool = True
    cutout: bool = False
    intensity: bool = True
    whiten: bool = True
    label_smoothing: bool = True
    averaging: bool = True
    views: bool = True


NAMES = tuple(field.name for field in fields(Tricks))


def make_loader(
    tricks: Tricks, train: ft.ImageSet, args: argparse.Namespace, seed: int
) -> ft.DeviceLoader:
    """Return the loader of shuffled batches, augmented by the tricks that are on."""
    flip = ft.AlternatingFlip() if tricks.alternating else ft.RandomHorizontalFlip()
    pieces = {
        ft.RandomTranslate(2): tricks.translate,
        flip: tricks.flip and args.flips,
        ft.Normalize(*train.mean_std()): True,
        ft.RandomIntensity(shift=0.14, scale=0.13): tricks.intensity,
        ft.Cutout(args.cutout_size): tricks.cutout,
    }
    return ft.DeviceLoader(
        train,
        batch_size=args.batch_size,
        transforms=[piece for piece, on in pieces.items() if on],
        shuffle=True,
        drop_last=True,
        seed=seed,
        device=args.device,
    )


def train_once(
    tricks: Tricks, train: ft.ImageSet, held_out: ft.ImageSet, args: argparse.Namespace, seed: int
) -> dict[str, Any]:
    """Train once and return the final training loss, the held-out accuracies and the seconds."""
    torch.manual_seed(seed)
    loader = make_loader(tricks, train, args, seed)
    normalize = ft.Normalize(*train.mean_std())
    model = ft.speedrun_net(
        train.num_classes,
        in_channels=train.channels,
        widths=args.widths,
        act="silu",
        whiten_act="gelu",
        batch_norm_momentum=0.2,
    )
    if tricks.whiten:
        ft.whiten_(model.whiten, normalize(train.images[:: max(1, len(train) // 2000)]))
    else:  # as any other first layer: trained, from random weights
        model.whiten.weight.requires_grad_(True)
    model.to(args.device)
    convolutions, _ = ft.split_for_muon(model.groups)
    chosen = {id(p) for p in [*convolutions, model.head.weight]}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in chosen]
    batch, steps = loader.batch_size, max(1, round(args.epochs * len(loader)))
    rates = [0.0573 * batch, 0.5415 * batch]
    groups = [
        {"params": params, "lr": rate, "weight_decay": 1.04e-6 * batch / rate}
        for params, rate in zip([others, [model.head.weight]], rates, strict=True)
    ]
    sgd = torch.optim.SGD(groups, momentum=0.825, nesterov=True)
    muon_rate = 0.2255 * (batch / 1536) ** 0.5
    options = {"ns_steps": 3, "adjust_lr": "none", "normalize_weights": True}
    muon = ft.Muon(convolutions, lr=muon_rate, momentum=0.655, **options)
    falls = [ft.linear(rate, 0.0, total_steps=steps + 1) for rate in (muon_rate, *rates)]
    schedulers = [
        ft.ScheduledGroups(muon, {"lr": falls[0]}),
        ft.ScheduledGroups(sgd, {"lr": falls[1:]}),
    ]
    trainer = ft.Trainer(
        model,
        [muon, sgd],
        schedulers=schedulers,
        loss=torch.nn.CrossEntropyLoss(label_smoothing=0.09 if tricks.label_smoothing else 0.0),
        precision=args.precision,
        callbacks=[ft.WeightAverage(decay=0.95)] if tricks.averaging else [],
        progress=False,
    )
    history = trainer.fit(loader, args.epochs)
    tests = evaluation_loader(held_out, normalize, args.device)
    one_view = trainer.evaluate(tests)
    result = trainer.evaluate(tests, tta="mirror_translate" if args.flips else "translate")
    return {
        "seed": seed,
        "train_loss": history.rows[-1]["loss"],
        "train_accuracy": 100 * float(history.rows[-1]["accuracy"]),
        "accuracy": 100 * result.accuracy,
        "accuracy_one_view": 100 * one_view.accuracy,
        "seconds": trainer.train_seconds,
    }


def run(args: argparse.Namespace) -> None:
    """Train all on, then with each trick turned round, seed by seed, and say what it was worth."""
    args.device = choose_device(args)
    check("--images", args.images, above=1)
    for name in ("epochs", "seeds", "cutout_size"):
        check(f"--{name.replace('_', '-')}", getattr(args, name), most=1e6)
    train, _, is_digits = load(args.data, may_stand_in=True)
    args.flips = may_flip(args, is_digits=is_digits)
    rest, held_out = hold_out(train, 5000, args.images)
    args.batch_size = choose_batch_size(args.batch_size, 500, rest)
    folder = ft.make_run_folder(args.output or f"runs/tricks-{datetime.now():%Y%m%d-%H%M%S}")
    usual = Tricks()
    turned = {name: replace(usual, **{name: not getattr(usual, name)}) for name in args.tricks}
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ("usual", *turned)}
    print(f"{rest}, {len(held_out)} held out, {args.epochs:g} epochs on {args.device}", flush=True)
    for seed in range(args.seeds):
        for name, tricks in {"usual": usual, **turned}.items():
            if name == "views":  # nothing of the training: the other accuracy of the usual one
                row = rows["usual"][-1]
                row = row | {"accuracy": row["accuracy_one_view"]}
            else:
                row = train_once(tricks, rest, held_out, args, seed)
            rows[name].append(row)
            print(
                f"seed {seed} {name:<16} held-out accuracy {row['accuracy']:.2f} %, "
                f"training {row['train_accuracy']:.1f} %, {row['seconds']:.0f} s",
                flush=True,
            )
        settings = {k: v for k, v in vars(args).items() if k not in ("data", "output")}
        worth = {name: asdict(differences(rows, usual, name)) for name in turned}
        record = {"dataset": train.name, "images": len(rest), "held_out": len(held_out)}
        record |= {"settings": settings, "usual": asdict(usual), "rows": rows, "worth": worth}
        ft.write_json(folder / "record.json", record | ft.describe_environment(args.device))
    for name in turned:
        print(f"{name:<16} on minus off: {differences(rows, usual, name).text('points')}")


def differences(
    rows: dict[str, list[dict[str, Any]]], usual: Tricks, name: str
) -> ft.benchmark.Summary:
    """Return the accuracy with the trick minus that without it, over the seeds of both."""
    sign = 1 if getattr(usual, name) else -1
    pairs = zip(rows["usual"], rows[name], strict=True)
    return ft.summarize([sign * (a["accuracy"] - b["accuracy"]) for a, b in pairs])


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = Parser(__doc__, output="runs/tricks-<time>")
    add = parser.add_argument
    add("--tricks", nargs="+", choices=NAMES, default=list(NAMES), help="(default: all)")
    add("--seeds", type=int, default=3, help="trainings of each (default: 3)")
    add("--images", type=int, default=10_000, help="training images (default: 10000)")
    add("--epochs", type=float, default=10, help="of each training (default: 10)")
    add("--batch-size", type=int, help="(default: 500, less for a small data set)")
    add("--widths", type=int, nargs=3, default=[64, 256, 256], help="(default: 64 256 256)")
    add("--cutout-size", type=int, default=8, help="side in pixels (default: 8)")
    return parser.parse_args()


if __name__ == "__main__":
    with errors_in_one_line():
        run(parse_arguments())
