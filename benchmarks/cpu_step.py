"""A training step on a CPU: as torch does it, and with what the library adds to it.

    python benchmarks/cpu_step.py --output cpu-step.json

Added one after the other: freed memory kept; Winograd's convolution, by torch's operations; and
the passes of our own that are compiled for it where GCC is found, without which the last two are
the same. The speedrun network as it trains (whitening frozen, SiLU, batches of 1536 in parts) at
each image size of its run, and ResNet9 with CELU at batch 512: images a second, forward and
backward, in bf16 where the CPU multiplies it and in fp32 elsewhere. Each way is a process of its
own, since what the C library keeps is kept for a process; the ways follow in turn, `--rounds`
times, and the fastest step of each counts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from trainer import peak_bytes

import fasttricks as ft

WAYS = ("usual", "kept", "winograd", "compiled")
SPEEDRUN, RESNET9 = "speedrun_net", "resnet9"
CASES = [(SPEEDRUN, 24), (SPEEDRUN, 28), (SPEEDRUN, 32), (RESNET9, 32)]
PEAK = "peak of the process, MiB"
BATCH = {SPEEDRUN: 1536, RESNET9: 512}


def build(network: str, way: str) -> torch.nn.Module:
    """Return the network as its recipe trains it."""
    if network == SPEEDRUN:
        model: torch.nn.Module = ft.speedrun_net(act="silu", whiten_act="gelu")
        model.get_parameter("whiten.bias").requires_grad_(False)
    else:
        model = ft.resnet9(act="celu")
    if way in ("winograd", "compiled"):
        ft.use_winograd_(model)
    return model.to(memory_format=torch.channels_last)


def images_per_second(network: str, size: int, way: str, part: int, repeats: int) -> float:
    """Forward and backward over a batch in parts, the fastest time of several."""
    torch.manual_seed(0)
    model = build(network, way)
    images = torch.randn(part, 3, size, size).to(memory_format=torch.channels_last)
    targets = torch.randint(10, (part,))

    precision = ft.Precision("auto")

    def step() -> float:
        start = time.perf_counter()
        for _ in range(BATCH[network] // part):
            with precision.forward_context():
                outputs = model(images)
            F.cross_entropy(outputs.float(), targets).backward()
        model.zero_grad()
        return time.perf_counter() - start

    step()
    return BATCH[network] / min(step() for _ in range(repeats))


def measure(way: str, part: int, repeats: int) -> dict[str, float]:
    """Measure each case in this process, and the most memory that it ever had."""
    if way != "usual":
        ft.keep_freed_memory()
    found = {
        f"{network}, {size} px": images_per_second(network, size, way, part, repeats)
        for network, size in CASES
    }
    return found | {PEAK: peak_bytes("cpu") / 2**20}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--part", type=int, default=512, help="images forward and back at a time")
    parser.add_argument("--way", choices=WAYS, help="measure this one, here")
    args = parser.parse_args()
    if any(args.part < 1 or batch % args.part for batch in BATCH.values()):
        parser.error(f"--part must divide {' and '.join(map(str, BATCH.values()))}")
    if args.way:
        found = measure(args.way, args.part, args.repeats)
        # The environment after the work, which compiles what it needs.
        print(json.dumps([found, ft.describe_environment("cpu")]))
        return
    environment: dict[str, Any] = {}
    best: dict[str, dict[str, float]] = {way: {} for way in WAYS}
    for _ in range(args.rounds):
        for way in WAYS:
            own = ["--way", way, "--part", str(args.part), "--repeats", str(args.repeats)]
            command = [sys.executable, __file__, *own]
            own_passes = {"FASTTRICKS_NATIVE": "1" if way == "compiled" else "0"}
            options: dict[str, Any] = {"env": os.environ | own_passes, "text": True}
            out = subprocess.run(command, check=True, stdout=subprocess.PIPE, **options).stdout
            found, environment = json.loads(out)
            for case, speed in found.items():
                best[way][case] = max(speed, best[way].get(case, 0.0))
            print(way, {case: round(speed) for case, speed in best[way].items()}, flush=True)
    print("| images/s | " + " | ".join(WAYS) + " |\n|" + " --- |" * (1 + len(WAYS)))
    for case, usual in best["usual"].items():
        cells = [f"{best[way][case]:,.0f} ({best[way][case] / usual:.2f})" for way in WAYS]
        print(f"| {case} | " + " | ".join(cells) + " |")
    if args.output:
        report: dict[str, Any] = {"images_per_second": best}  # and the peak
        report |= {"precision": ft.Precision("auto").name}
        report |= {name: getattr(args, name) for name in ("rounds", "repeats", "part")}
        ft.write_json(args.output, report | environment)  # that of the last way


if __name__ == "__main__":
    main()
