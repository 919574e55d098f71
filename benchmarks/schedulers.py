"""The cost of a scheduler's step against torch's, and recompilations as the rate changes.

    python benchmarks/schedulers.py --output schedulers.json

Each pair is timed in turn, the faster of several repeats counts; microseconds a call of `step()`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import lr_scheduler as torch_schedulers

import fasttricks as ft

STEPS = 2000


def make_optimizer(groups: int) -> torch.optim.Optimizer:
    """Return an SGD with momentum and so many groups."""
    return torch.optim.SGD(
        [{"params": [torch.nn.Parameter(torch.zeros(1))]} for _ in range(groups)],
        lr=0.1,
        momentum=0.9,
    )


PAIRS: dict[str, tuple[Callable[[Any], Any], Callable[[Any], Any]]] = {
    "OneCycleLR": (
        lambda o: ft.OneCycleLR(o, 0.4, total_steps=2 * STEPS),
        lambda o: torch_schedulers.OneCycleLR(o, 0.4, total_steps=2 * STEPS),
    ),
    "CyclicLR": (
        lambda o: ft.CyclicLR(o, 0.01, 0.4, step_size_up=100),
        lambda o: torch_schedulers.CyclicLR(o, 0.01, 0.4, step_size_up=100),
    ),
    "one schedule for the rate": (
        lambda o: ft.ScheduledGroups(o, {"lr": ft.one_cycle(0.4, 2 * STEPS)}),
        lambda o: torch_schedulers.OneCycleLR(o, 0.4, total_steps=2 * STEPS, cycle_momentum=False),
    ),
}


def seconds_a_step(make: Callable[[Any], Any], groups: int) -> float:
    """Return the seconds of one call of ``step()``, after a hundred of warm-up."""
    optimizer = make_optimizer(groups)
    scheduler = make(optimizer)
    optimizer.step()  # torch's schedulers warn otherwise
    for _ in range(100):
        scheduler.step()
    start = time.perf_counter()
    for _ in range(STEPS):
        scheduler.step()
    return (time.perf_counter() - start) / STEPS


def recompilations() -> int:
    """Compile a function of a tensor rate, change the rate every step, count the compilations."""
    compiled = 0

    def count(graph: torch.fx.GraphModule, inputs: Any) -> Any:
        nonlocal compiled
        compiled += 1
        return graph.forward

    @torch.compile(backend=count, fullgraph=True, dynamic=False)
    def update(weight: torch.Tensor, rate: torch.Tensor) -> torch.Tensor:
        return weight - rate * weight

    rate = torch.tensor(0.1)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=rate)
    scheduler = ft.OneCycleLR(optimizer, 0.4, total_steps=50, cycle_momentum=False)
    for _ in range(50):
        update(torch.ones(3), optimizer.param_groups[0]["lr"])
        scheduler.step()
    return compiled - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    rows = []
    for name, (ours, theirs) in PAIRS.items():
        for groups in (1, 10, 100):
            times: dict[str, list[float]] = {"ours": [], "torch": []}
            for _ in range(args.repeats):
                times["ours"].append(seconds_a_step(ours, groups))
                times["torch"].append(seconds_a_step(theirs, groups))
            best = {who: 1e6 * min(values) for who, values in times.items()}
            row = {
                "scheduler": name,
                "groups": groups,
                **best,
                "ratio": best["ours"] / best["torch"],
            }
            rows.append(row)
            print(
                {k: round(v, 3) if isinstance(v, float) else v for k, v in row.items()}, flush=True
            )
    report = {"rows": rows, "recompilations": recompilations(), **ft.describe_environment()}
    print("recompilations:", report["recompilations"])
    if args.output:
        ft.write_json(args.output, report)


if __name__ == "__main__":
    main()
