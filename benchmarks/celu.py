"""CELU on a CPU, ours against torch's: alone, and in a training step of ResNet9.

    python benchmarks/celu.py --output celu.json

Both in turn, the fastest of `--repeats` counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import fasttricks as ft
from fasttricks.models import make_activation

ALPHA = 0.075
WAYS: dict[str, Callable[[], nn.Module]] = {
    "fasttricks": partial(make_activation, "celu", celu_alpha=ALPHA),
    "torch": partial(nn.CELU, ALPHA),
}


def fastest(functions: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """Return the least seconds of each function, called in turn, the first round left out."""
    best = dict.fromkeys(functions, float("inf"))
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            start = time.perf_counter()
            function()
            if repeat:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def alone(dtype: torch.dtype, repeats: int) -> dict[str, float]:
    """Milliseconds of forward and backward on a layer of ResNet9, 512 x 64 x 32 x 32."""
    x = torch.randn(512, 64, 32, 32, dtype=dtype).to(memory_format=torch.channels_last)
    x.requires_grad_()
    gradient = torch.ones_like(x)

    def run(act: nn.Module) -> None:
        x.grad = None
        act(x).backward(gradient)

    seconds = fastest({name: partial(run, make()) for name, make in WAYS.items()}, repeats)
    return {name: 1000 * value for name, value in seconds.items()}


def in_resnet9(repeats: int) -> dict[str, float]:
    """Images a second of a training step of ResNet9 in bf16, batch 512."""
    images, targets = torch.randn(512, 3, 32, 32), torch.randint(10, (512,))
    steps = {}
    for name, make in WAYS.items():
        model = ft.resnet9(act=make)
        sgd = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
        trainer = ft.Trainer(model, sgd, precision="bf16", progress=False)
        steps[name] = partial(trainer.step, (images, targets))
    return {name: 512 / value for name, value in fastest(steps, repeats).items()}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    report: dict[str, Any] = {
        "milliseconds_bf16": alone(torch.bfloat16, args.repeats),
        "milliseconds_fp32": alone(torch.float32, args.repeats),
        "resnet9_images_per_second": in_resnet9(args.repeats),
    }
    for name, values in report.items():
        print(name, {way: round(value, 1) for way, value in values.items()})
    if args.output:
        ft.write_json(args.output, report | ft.describe_environment("cpu"))


if __name__ == "__main__":
    main()
