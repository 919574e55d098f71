"""Train on CIFAR-10 towards 94, 95 or 96 % and report the accuracy on its test images.

`speedrun` is the short way to 94 %: a small network, whitening first and initialised as the
identity, Muon on its convolutions, images that grow from 24 to 32 pixels, alternating flips, and
six views of each test image. `speedrun95` takes longer, with a larger network and Cutout.
`speedrun96` (_speedrun96.py) trains a still larger one, by SGD, on the images that a small network
finds hardest. `article` is the DAWNBench recipe: ResNet9 with CELU, one cycle, Cutout, mixed
precision.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import _shared
import torch
from _shared import DIGITS, Plan, Training, article_loader, check, choose_device, load
from _speedrun96 import NETWORK96, speedrun96

import fasttricks as ft


def speedrun(
    plan: Plan,
    *,
    cutout: float = 0.0,
    muon_lr: float = 0.2255,
    grow: tuple[float, float] = (0.36, 0.64),
    **network: tuple[int, ...],
) -> Training:
    """Muon, whitening, growing images; after airbench94_muon (Jordan 2024), Fulcrum E1 (2026)."""
    train, some, epochs, batch = plan.train, plan.whiten_images, plan.epochs, plan.batch_size
    normalize = ft.Normalize(*train.mean_std())
    parts = {0: 0.75, round(grow[0] * epochs): 0.875, round(grow[1] * epochs): 1.0}
    side = min(train.image_size)
    sizes = {epoch: max(min(side, 24), round(part * side)) for epoch, part in parts.items()}
    augmentation: list[ft.Transform[Any]] = [
        ft.RandomTranslate(max(1, round(side / 16)), mode="reflect"),
        *([ft.AlternatingFlip()] if plan.flips else []),
        normalize,
        ft.RandomIntensity(shift=0.14, scale=0.13),
        *([ft.Cutout(max(1, round(cutout * side)))] if cutout else []),
    ]
    grows = epochs >= 3 and max(train.image_size) == side
    resize = [ft.ProgressiveResize(sizes)] if grows else []
    loader = plan.loader(*augmentation, *resize)
    steps = max(1, round(epochs * len(loader)))
    options: dict[str, Any] = {"act": "silu", "whiten_act": "gelu", "batch_norm_momentum": 0.2}
    model = ft.speedrun_net(train.num_classes, in_channels=train.channels, **options, **network)
    ft.use_winograd_(model.to(plan.device))
    pixels = some.images.to(plan.device)
    seconds = _shared.timed(lambda: ft.whiten_(model.whiten, normalize(pixels)), plan.device)
    # Statistics as in training, where Cutout changes them; else of plain images.
    again = plan.some_batches(*(augmentation if cutout else [normalize]))

    # SGD's rates grow with the batch, Muon's (of 1,536) with its root: an update has one size.
    # Rate times weight decay is 1e-6 an image. The numbers are those of Hiverge (2025).
    bias = [model.whiten.bias]
    convolutions, others = ft.split_for_muon(model)
    norms = [p for p in others if p.ndim == 1 and p is not bias[0]]
    rates = [0.0573 * batch, 0.0573 * batch, 0.5415 * batch]
    rated = zip([bias, norms, [model.head.weight]], rates, strict=True)
    groups = [{"params": p, "lr": r, "weight_decay": 1.04e-6 * batch / r} for p, r in rated]
    sgd = torch.optim.SGD(groups, momentum=0.825, nesterov=True)
    muon_rate = muon_lr * (batch / 1536) ** 0.5
    orthogonal: dict[str, Any] = {"ns_steps": 3, "adjust_lr": "none", "normalize_weights": True}
    muon = ft.Muon(convolutions, lr=muon_rate, momentum=0.655, **orthogonal)
    # Rates fall in a straight line to 0, just after the end; whitening's in a fifth of an epoch.
    whiten_steps = max(1, len(loader) // 5)
    ends = [whiten_steps + 1, steps + 1, steps + 1]
    falls = [ft.linear(r, 0.0, total_steps=n) for r, n in zip(rates, ends, strict=True)]
    trainer = ft.Trainer(
        model,
        [muon, sgd],
        schedulers=[
            ft.ScheduledGroups(muon, {"lr": ft.linear(muon_rate, 0.0, total_steps=steps + 1)}),
            ft.ScheduledGroups(sgd, {"lr": falls}),
        ],
        loss=torch.nn.CrossEntropyLoss(label_smoothing=0.09),
        **plan.switches,
        micro_batch_size=plan.part(768),
        callbacks=[ft.FreezeAfter(bias, steps=whiten_steps), _shared.average(steps, again)],
    )
    return trainer, loader, seconds


def article(plan: Plan) -> Training:
    """ResNet9 with CELU, one cycle to 0.4, Cutout 8, padding by 4 and flips; after Page (2018)."""
    own = {"flips": plan.flips, "device": plan.device, "seed": plan.seed}
    loader = article_loader(plan.train, plan.batch_size, **own)
    model = ft.resnet9(plan.train.num_classes, in_channels=plan.train.channels, act="celu")
    ft.use_winograd_(model.to(plan.device))
    max_lr = 0.4 * plan.batch_size / 512
    sgd = torch.optim.SGD(
        model.parameters(), lr=max_lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    steps = max(2, round(plan.epochs * len(loader)))
    schedule = ft.one_cycle(max_lr, steps, pct_start=0.2, anneal="linear")
    options = {"micro_batch_size": plan.part(512), **plan.switches}
    return ft.Trainer(model, sgd, lr=schedule, **options), loader, 0.0


@dataclass(frozen=True)
class Recipe:
    """A recipe's function, its defaults, and the views that its test-time augmentation averages."""

    build: Callable[[Plan], Training]
    target: float
    epochs: float
    batch_size: int = 1536
    tta: str = "mirror_translate"


NETWORK95 = {"widths": (64, 384, 384), "depths": (2, 2, 3)}  # wider where the map is small
RECIPES = {
    "speedrun": Recipe(speedrun, 94.0, epochs=10.5),
    "speedrun95": Recipe(partial(speedrun, cutout=0.25, **NETWORK95), 95.0, epochs=24),
    "speedrun96": Recipe(partial(speedrun96, **NETWORK96), 96.0, epochs=60, batch_size=512),
    "article": Recipe(article, 94.0, epochs=24, batch_size=512, tta="mirror"),
}


def run_once(recipe: str, plan: Plan, test: ft.ImageSet, folder: Path) -> dict[str, Any]:
    """Train with one seed, evaluate, write the run's folder, and return its record."""
    torch.manual_seed(plan.seed)
    trainer, loader, prepare_seconds = RECIPES[recipe].build(plan)
    _shared.check_image_size(plan.train, trainer.model.min_size, recipe)
    ft.make_run_folder(folder)
    normalize = ft.Normalize(*plan.train.mean_std())
    tests = _shared.evaluation_loader(test, normalize, plan.device)
    saved = folder / "checkpoints" if plan.resume else None
    precompile_seconds = _shared.precompile(trainer, loader, plan.device)
    history = trainer.fit(loader, plan.epochs, val=tests, checkpoints=saved, resume=plan.resume)
    # A mirrored digit is no digit: where the recipe does not flip, the views are only moved.
    tta = RECIPES[recipe].tta if plan.flips else "translate"
    one, views = trainer.evaluate(tests), trainer.evaluate(tests, tta=tta)
    record = {
        "recipe": recipe,
        **{key: getattr(plan, key) for key in ("device", "seed", "epochs", "batch_size")},
        "tta": tta,
        **_shared.describe_run(trainer, loader, plan.train, test),
        **ft.describe_environment(plan.device),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "history": history.rows,
        "prepare_seconds": prepare_seconds,
        "precompile_seconds": precompile_seconds,
        "train_seconds": trainer.train_seconds,
        "tta_seconds": views.seconds,
        "target": plan.target / 100,
        "test_accuracy": one.accuracy,
        "test_accuracy_tta": views.accuracy,
    }
    ft.write_run(folder, record=record, history=history, model=trainer.model)
    print(f"seed {plan.seed}: {views.accuracy:.2%} ({one.accuracy:.2%} from one view), {folder}")
    return record


def run(args: argparse.Namespace) -> None:
    """Check the arguments, load the data, train every seed, report."""
    recipe = RECIPES[args.recipe]
    if args.resume and args.output is None:
        raise ValueError("--resume must come with --output, the folder of the run, got none")
    device = choose_device(args)
    target = recipe.target if args.target is None else args.target
    epochs = recipe.epochs if args.epochs is None else args.epochs
    check("--epochs", epochs, above=0, most=1e6)
    check("--runs", args.runs)
    check("--target", target, above=0, most=100)
    check("--seed", args.seed, above=-1, most=2**32)
    train, test, is_digits = load(args.data, may_stand_in=args.target is None)
    batch_size = _shared.choose_batch_size(args.batch_size, recipe.batch_size, train)
    flips = _shared.may_flip(args, is_digits=is_digits)
    print(f"{args.recipe} on {device}: {train}, {epochs:g} epochs, {batch_size=}, {flips=}")
    switches = _shared.switches(args.precision, device, args.compile)
    folder = args.output or Path(f"runs/{args.recipe}-{datetime.now():%Y%m%d-%H%M%S}")
    records = []
    for seed in range(args.seed, args.seed + args.runs):
        plan = Plan(
            train,
            whiten_images=_shared.to_whiten_by(train, seed),
            flips=flips,
            epochs=epochs,
            batch_size=batch_size,
            device=device,
            seed=seed,
            target=target,
            resume=args.resume,
            switches=switches,
        )
        own = folder / f"seed-{seed}" if args.runs > 1 else folder
        records.append(run_once(args.recipe, plan, test, own))
    accuracy = ft.summarize([100 * r["test_accuracy_tta"] for r in records], target=target)
    seconds = ft.summarize([r["train_seconds"] for r in records])
    if args.runs > 1:
        summary = {"test_accuracy_tta": asdict(accuracy), "train_seconds": asdict(seconds)}
        ft.write_json(folder / "summary.json", summary)
    name = DIGITS if is_digits else test.name
    print(f"{name}: accuracy {accuracy.text('%')}, {seconds.mean:.1f} s of training on {device}")


def defaults(setting: str) -> str:
    """Return what each recipe takes where an argument is left out, for the help."""
    return ", ".join(f"{getattr(recipe, setting):g} for {n}" for n, recipe in RECIPES.items())


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = _shared.Parser(__doc__, output="runs/<recipe>-<time>")
    add = parser.add_argument
    add("--recipe", choices=RECIPES, default="speedrun", help="what to train (default: speedrun)")
    add("--epochs", type=float, help="passes over the training images, may be a fraction "
        f"(default: {defaults('epochs')})")  # fmt: skip
    add("--batch-size", type=int, help="images an update; the rates follow it "
        f"(default: {defaults('batch_size')}, less for a small data set)")  # fmt: skip
    add("--seed", type=int, default=0, help="seed of the run, or of the first one (default: 0)")
    add("--runs", type=int, default=1, help="train with this many seeds (default: 1)")
    add("--resume", action="store_true", help="write a checkpoint after each epoch, and go on from "
        "the last one in --output if there is any (default: off)")  # fmt: skip
    add("--compile", nargs="?", const=True, default=False, metavar="MODE",
        help="train through torch.compile, by a mode or backend if you name one, and on a GPU "
        "by a CUDA graph of the update; made before the clock runs (default: off)")  # fmt: skip
    add("--target", type=float, metavar="PERCENT",
        help="accuracy that a run should reach; with it no digits stand in for CIFAR-10 "
        f"(default: {defaults('target')})")  # fmt: skip
    return parser.parse_args()


if __name__ == "__main__":
    with _shared.errors_in_one_line():
        run(parse_arguments())
