"""Try a recipe of cifar10_94.py with other numbers, judged on training images that it holds out.

    python benchmarks/held_out.py speedrun95 --data cifar10.npz --output trials.jsonl --epochs 16
    python benchmarks/held_out.py speedrun --data cifar10.npz --output trials.jsonl \
        --images 36000 --side 24 --epochs 6 --batch-size 768 --set widths=32,128,128 muon_lr=0.3

The second is a cheap proxy: few, small images and a narrow network. `--set` takes arguments of the
recipe's function, over its own. A trial adds a line of JSON to the output: the accuracy, and
the cross-entropy at the best temperature, which is less noisy, on the held-out images from as many
views as the recipe takes, one view's accuracy, and the training's. The test images are not looked
at: choose with this, then run the example or a race once.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torchvision.transforms.v2.functional import resize

import fasttricks as ft

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import _shared
import cifar10_94


def resized(images: ft.ImageSet, side: int) -> ft.ImageSet:
    """Return the images at so many pixels a side."""
    return replace(images, images=resize(images.images, [side, side], antialias=True))


def best_loss(logits: Tensor, labels: Tensor) -> float:
    """Return the least cross-entropy that a factor on the logits can give."""
    factors = torch.logspace(-1, 1, 81).tolist()
    return min(cross_entropy(logits * factor, labels).item() for factor in factors)


def try_out(
    args: argparse.Namespace, train: ft.ImageSet, held_out: ft.ImageSet, changes: dict[str, Any]
) -> dict[str, Any]:
    """Train on some images, and return what is found on the others."""
    recipe = cifar10_94.RECIPES[args.recipe]
    epochs = recipe.epochs if args.epochs is None else args.epochs
    batch_size = _shared.choose_batch_size(args.batch_size, recipe.batch_size, train)
    some = train if len(train) <= 5000 else train.split(5000, seed=args.seed)[1]
    switches = _shared.switches(args.precision, args.device, False)
    device, flips = args.device, not args.no_flips
    plan = cifar10_94.Plan(
        train, some, flips, epochs, batch_size, device, args.seed, 0, False, switches
    )
    torch.manual_seed(args.seed)
    trainer, loader, _ = partial(recipe.build, **changes)(plan)
    history = trainer.fit(loader, epochs)
    tests = _shared.evaluation_loader(held_out, ft.Normalize(*train.mean_std()), device)
    tta = recipe.tta if flips else "translate"
    logits, labels = trainer.predict(tests, tta=tta).float().cpu(), held_out.labels
    return {
        "recipe": args.recipe,
        "changes": changes,
        "seed": args.seed,
        "images": len(train),
        "image_size": train.image_size,
        "held_out": len(held_out),
        "epochs": epochs,
        "batch_size": batch_size,
        "updates": trainer.batches_done,
        "tta": tta,
        "accuracy": (logits.argmax(1) == labels).double().mean().item(),
        "loss": best_loss(logits, labels),
        "accuracy_one_view": trainer.evaluate(tests).accuracy,
        "train_accuracy": history.rows[-1].get("accuracy"),
        "train_seconds": trainer.train_seconds,
    }


def change(text: str) -> tuple[str, Any]:
    """Read `name=value`, where value is a number, or several with commas."""
    name, equals, value = text.partition("=")
    try:
        if not equals:
            raise ValueError
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        message = f"must be name=number or name=number,number, got {text!r}"
        raise argparse.ArgumentTypeError(message) from None


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", choices=cifar10_94.RECIPES)
    add("--data", required=True, help="CIFAR-10, or the like, as the examples take it")
    add("--output", type=Path, required=True, help="file of JSON lines, to which one is added")
    add("--set", nargs="+", type=change, default=[], metavar="NAME=VALUE", dest="changes",
        help="arguments of the recipe's function (default: none)")  # fmt: skip
    add("--epochs", type=float, help="(default: the recipe's)")
    add("--batch-size", type=int, help="(default: the recipe's, less for few images)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--images", type=int, default=10**9, help="training images (default: all but those held)")
    add("--held-out", type=int, default=10000, help="(default: 10000, at most a fifth)")
    add("--side", type=int, help="pixels to which all images are resized (default: as they are)")
    add("--no-flips", action="store_true", help="mirror nothing: signs, letters")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    args = parser.parse_args()
    with _shared.errors_in_one_line():
        args.device = _shared.choose_device(args)
        for name in ("images", "held_out"):
            _shared.check(f"--{name.replace('_', '-')}", getattr(args, name), above=1)
        train, _, _ = _shared.load(args.data, may_stand_in=False)
        if args.side is not None:
            _shared.check("--side", args.side, above=7, most=1024)
            train = resized(train, args.side)
        rest, held_out = _shared.hold_out(train, args.held_out, args.images)
        row = try_out(args, rest, held_out, dict(args.changes))
        row |= ft.describe_environment(args.device)
        args.output.parent.mkdir(parents=True, exist_ok=True)
        with args.output.open("a") as file:
            file.write(json.dumps(row) + "\n")
    print(f"{row['accuracy']:.2%} of {row['held_out']:,} held-out images, loss {row['loss']:.4f}")


if __name__ == "__main__":
    main()
