"""Evaluation on a CPU by torch's convolution and by Winograd's, of a run of cifar10_94.py.

    python benchmarks/evaluation.py runs/speedrun --data cifar10.npz --output evaluation.json

For each precision and number of views: the fastest seconds of `--repeats` over all test images, the
two ways in turn, the accuracy, and how many images are put into another class.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import fasttricks as ft

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
import _shared
import cifar10_94


def compare(
    model: torch.nn.Module, tests: ft.DeviceLoader, labels: torch.Tensor, repeats: int
) -> list[dict[str, Any]]:
    """Return a row for each precision and number of views."""
    rows = []
    for precision in dict.fromkeys(["fp32", ft.Precision("auto").name]):
        for tta in ("none", "mirror_translate"):
            best = {False: float("inf"), True: float("inf")}
            classes = {}
            for _ in range(repeats):
                for evaluation in best:
                    ft.use_winograd_(model, evaluation=evaluation)
                    start = time.perf_counter()
                    logits = ft.predict(model, tests, tta=tta, precision=precision)
                    best[evaluation] = min(best[evaluation], time.perf_counter() - start)
                    classes[evaluation] = logits.argmax(1)
            hits = {way: (found == labels).double().mean().item() for way, found in classes.items()}
            row = {
                "precision": precision,
                "tta": tta,
                "seconds": best[False],
                "winograd_seconds": best[True],
                "ratio": best[False] / best[True],
                "accuracy": hits[False],
                "winograd_accuracy": hits[True],
                "other_classes": int((classes[False] != classes[True]).sum()),
            }
            rows.append(row)
            print(
                f"{precision} {tta:<16} {best[False]:6.2f} s {hits[False]:.2%}, by Winograd "
                f"{best[True]:6.2f} s {hits[True]:.2%}, {row['other_classes']} in another class",
                flush=True,
            )
    return rows


def run(args: argparse.Namespace) -> None:
    """Load the run's network and the data, compare, write the figures."""
    _shared.check("--repeats", args.repeats)
    record = json.loads((args.run / "record.json").read_text(encoding="utf-8"))
    recipe = record["recipe"]
    train, test, _ = _shared.load(args.data, may_stand_in=False)
    plan = cifar10_94.Plan(
        train,
        whiten_images=train.subset(range(min(100, len(train)))),
        flips=True,
        epochs=1,
        batch_size=min(len(train), record["batch_size"]),
        device="cpu",
        seed=0,
        target=0,
        resume=False,
        switches={"progress": False},
    )
    model = cifar10_94.RECIPES[recipe].build(plan)[0].model
    model.load_state_dict(load_file(args.run / "model.safetensors"))
    model.eval()
    tests = _shared.evaluation_loader(test, ft.Normalize(*train.mean_std()), "cpu")
    rows = compare(model, tests, test.labels, args.repeats)
    found = {"recipe": recipe, "images": len(test), "image_size": test.image_size, "rows": rows}
    found |= {"repeats": args.repeats, **ft.describe_environment("cpu")}
    ft.write_json(args.output, found)


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path, help="folder that cifar10_94.py has written")
    parser.add_argument("--data", type=Path, required=True, help="the data that it trained on")
    parser.add_argument("--output", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=3, help="times, of which the best counts")
    return parser.parse_args()


if __name__ == "__main__":
    with _shared.errors_in_one_line():
        run(parse_arguments())
