"""Try a recipe of cifar10_94.py with other numbers, judged on training images that it holds out.

    python benchmarks/held_out.py speedrun95 --data cifar10.npz --output trials.jsonl --epochs 16
    python benchmarks/held_out.py speedrun --data cifar10.npz --output trials.jsonl \
        --images 36000 --side 24 --epochs 6 --batch-size 768 --set widths=32,128,128 muon_lr=0.3

The second is a cheap proxy: few, small images and a narrow network. `--set` takes arguments of the
recipe's function, over its own; `muon_lr` is that for a batch of 1,536, and goes with the square
root of the batch. A trial adds a line of JSON to the output: the accuracy, and the cross-entropy at
the best temperature, which is less noisy, on the held-out images from as many views as the recipe
takes, one view's accuracy, and the training's. The test images are not looked at: choose with this,
then run the example or a race once.
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


def resized(images: ft.ImageSet, side: int | None) -> ft.ImageSet:
    """Return the images as squares of so many pixels a side, or as they are."""
    if side is None:
        return images
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
    batch_size = _shared.choose_batch_size(args.batch_size, recipe.batch_size, train)
    device, flips = args.device, not args.no_flips
    plan = cifar10_94.Plan(
        train,
        whiten_images=_shared.to_whiten_by(train, args.seed),
        flips=flips,
        epochs=args.epochs,
        batch_size=batch_size,
        device=device,
        seed=args.seed,
        target=recipe.target,
        resume=False,
        switches=_shared.switches(args.precision, device, False),
    )
    torch.manual_seed(args.seed)
    try:
        trainer, loader, prepare_seconds = partial(recipe.build, **changes)(plan)
    except TypeError as error:
        if not changes:
            raise
        said = f"--set must name arguments of {args.recipe}, with values of theirs: {error}"
        raise TypeError(said) from None
    _shared.check_image_size(train, trainer.model.min_size, args.recipe)
    _shared.precompile(trainer, loader, device)
    history = trainer.fit(loader, args.epochs)
    tests = _shared.evaluation_loader(held_out, ft.Normalize(*train.mean_std()), device)
    tta = recipe.tta if flips else "translate"
    logits, labels = trainer.predict(tests, tta=tta).float().cpu(), held_out.labels
    return {
        **trainer.describe(),
        "recipe": args.recipe,
        "changes": changes,
        "seed": args.seed,
        "dataset": train.name,
        "images": len(train),
        "image_size": train.image_size,
        "held_out": len(held_out),
        "flips": flips,
        "epochs": args.epochs,
        "batch_size": batch_size,
        "updates": trainer.batches_done,
        "tta": tta,
        "accuracy": (logits.argmax(1) == labels).double().mean().item(),
        "cross_entropy": best_loss(logits, labels),
        "accuracy_one_view": trainer.evaluate(tests).accuracy,
        "train_accuracy": history.rows[-1].get("accuracy"),
        "train_seconds": prepare_seconds + trainer.train_seconds,
    }


def change(text: str) -> tuple[str, Any]:
    """Read `name=value`, where value is a number, or several with commas, or pairs of them."""
    name, _, value = text.partition("=")
    try:
        found = ast.literal_eval(value)
    except (ValueError, SyntaxError):
        found = None
    if not _are_numbers(found):
        message = f"must be name=number or name=number,number, got {text!r}"
        raise argparse.ArgumentTypeError(message)
    return name, found


def _are_numbers(value: Any) -> bool:
    if isinstance(value, tuple):
        return bool(value) and all(map(_are_numbers, value))
    return isinstance(value, int | float)


def run(args: argparse.Namespace) -> None:
    """Check the arguments, try the recipe, say what was found, and add it to the file."""
    changes = dict(args.changes)
    if len(changes) < len(args.changes):
        names = ", ".join(name for name, _ in args.changes)
        raise ValueError(f"--set must name an argument once, got {names}")
    if args.epochs is None:
        args.epochs = cifar10_94.RECIPES[args.recipe].epochs
    _shared.check("--epochs", args.epochs, above=0, most=1e6)
    _shared.check("--seed", args.seed, above=-1, most=2**32)
    _shared.check("--images", args.images, above=1)
    _shared.check("--held-out", args.held_out)
    if args.side is not None:
        _shared.check("--side", args.side, above=7, most=1024)
    args.device = _shared.choose_device(args)
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.open("a").close()  # before hours of training
    train, _, _ = _shared.load(args.data, may_stand_in=False)
    parts = _shared.hold_out(train, args.held_out, args.images)
    row = try_out(args, *(resized(part, args.side) for part in parts), changes)
    accuracy, loss = row["accuracy"], row["cross_entropy"]
    print(f"{accuracy:.2%} of {row['held_out']:,} held-out images, cross-entropy {loss:.4f}")
    line = json.dumps(row | ft.describe_environment(args.device), allow_nan=False)
    with args.output.open("a") as file:
        file.write(line + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("recipe", choices=cifar10_94.RECIPES)
    add("--data", required=True, help="CIFAR-10, or the like, as the examples take it")
    add("--output", type=Path, required=True, help="file of JSON lines, to which one is added")
    add("--set", nargs="+", action="extend", type=change, default=[], metavar="NAME=VALUE",
        dest="changes", help="arguments of the recipe's function (default: none)")  # fmt: skip
    add("--epochs", type=float, help="(default: the recipe's)")
    add("--batch-size", type=int, help="(default: the recipe's, less for few images)")
    add("--seed", type=int, default=0, help="(default: 0)")
    add("--images", type=int, default=10**9, help="training images (default: all but those held)")
    add("--held-out", type=int, default=10000, help="(default: 10000, at most a fifth)")
    add("--side", type=int, help="make squares of so many pixels a side (default: as they are)")
    add("--no-flips", action="store_true", help="mirror nothing: signs, letters")
    add("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
    add("--precision", choices=["auto", "fp32", "bf16", "fp16"], default="auto")
    args = parser.parse_args()
    with _shared.errors_in_one_line():
        run(args)


if __name__ == "__main__":
    main()
