"""The cost of the Trainer: its overhead a step, what precision saves, what each switch is worth.

    python benchmarks/trainer.py --output trainer.json

`overhead` times a step of the Trainer against two loops written by hand, one bare and one that also
keeps the epoch's loss and accuracy as the Trainer does, and against Lightning and Accelerate where
they are installed: on a tiny network, where overhead shows, and on ResNet9. `precision` trains
ResNet9 in fp32 and, where the device has it, in bf16 (on CUDA also fp16, on a CPU also with
Winograd's convolution), each in a process of its own: images a second and peak memory. `switches`
does so for each speed switch alone and all together, on CUDA only. Convolutions use TF32 in the
settings with `tf32` alone.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import logging
import resource
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

import fasttricks as ft

Batches = list[tuple[torch.Tensor, torch.Tensor]]
Run = Callable[[], float]  # trains for an epoch and returns the seconds of a step

SWITCHES: dict[str, dict[str, Any]] = {
    "fp32": {"precision": "fp32", "channels_last": False},
    "channels_last": {"precision": "fp32"},
    "tf32": {"precision": "fp32", "tf32": True},
    "fp16": {"precision": "fp16"},
    "bf16": {"precision": "bf16"},
    "fused": {"precision": "fp32", "fused": True},
    "compile": {"precision": "fp32", "compile": True},
    "cuda_graph": {"precision": "fp32", "cuda_graph": True},
    "cuda_graph, step": {"precision": "fp32", "cuda_graph": "step"},
    "select half": {"precision": "fp32", "select": 0.5},
    "bf16, graph of the step": {"precision": "bf16", "cuda_graph": "step"},
    "bf16, compile, graph of the step": {
        "precision": "bf16",
        "compile": True,
        "cuda_graph": "step",
        "tf32": True,
    },
}


def tiny() -> nn.Module:
    """Return a network whose own work is next to nothing."""
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 16), nn.ReLU(), nn.Linear(16, 10))


def make_batches(count: int, batch_size: int, side: int, device: str) -> Batches:
    """Return so many batches of random images, one and the same in memory."""
    images = torch.randn(batch_size, 3, side, side, device=device)
    images = images.contiguous(memory_format=torch.channels_last)
    return [(images, torch.randint(10, (batch_size,), device=device))] * count


def make_sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer of every contestant."""
    return torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def synchronize(device: str) -> None:
    """Wait for a GPU."""
    if device.startswith("cuda"):
        torch.cuda.synchronize()


# Overhead ---------------------------------------------------------------------------------------


def by_hand(model: nn.Module, batches: Batches, device: str, *, recorded: bool) -> Run:
    """Return a loop written by hand, which keeps the epoch's loss and accuracy or nothing."""
    optimizer = make_sgd(model)

    def run() -> float:
        model.train()
        losses = torch.zeros((), device=device)
        correct = torch.zeros((), device=device, dtype=torch.int64)
        synchronize(device)
        start = time.perf_counter()
        for images, targets in batches:
            outputs = model(images)
            loss = F.cross_entropy(outputs, targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            if recorded:
                losses += loss.detach() * len(images)
                correct += (outputs.detach().argmax(1) == targets).sum()
                if device == "cpu" and not losses.isfinite():
                    raise FloatingPointError
        synchronize(device)
        return (time.perf_counter() - start) / len(batches)

    return run


def by_trainer(model: nn.Module, batches: Batches, device: str) -> Run:
    """Return ``Trainer.fit`` with its defaults, but in fp32 and without a display."""
    trainer = ft.Trainer(model, make_sgd(model), precision="fp32", progress=False)

    def run() -> float:
        before = trainer.train_seconds
        trainer.fit(batches, 1)
        return (trainer.train_seconds - before) / len(batches)

    return run


def by_accelerate(model: nn.Module, batches: Batches, device: str) -> Run:
    """Return Accelerate's loop, as its guide writes it."""
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device == "cpu")
    prepared, optimizer = accelerator.prepare(model, make_sgd(model))

    def run() -> float:
        prepared.train()
        synchronize(device)
        start = time.perf_counter()
        for images, targets in batches:
            loss = F.cross_entropy(prepared(images), targets)
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        synchronize(device)
        return (time.perf_counter() - start) / len(batches)

    return run


def by_lightning(model: nn.Module, batches: Batches, device: str) -> Run:
    """Return Lightning's loop with everything off that can be: logs, bars, checkpoints."""
    import lightning.pytorch as lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Module(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = model
            self.began = self.ended = 0.0

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return make_sgd(self.model)

        def on_train_epoch_start(self) -> None:
            synchronize(device)
            self.began = time.perf_counter()

        def on_train_epoch_end(self) -> None:
            synchronize(device)
            self.ended = time.perf_counter()

        def training_step(self, batch: Any, index: int) -> torch.Tensor:
            images, targets = batch
            return F.cross_entropy(self.model(images), targets)

    class Loader:  # a list would be taken for several loaders
        def __len__(self) -> int:
            return len(batches)

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
            return iter(batches)

    module = Module()

    def run() -> float:
        trainer = lightning.Trainer(
            max_epochs=1,
            accelerator="cpu" if device == "cpu" else "gpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, Loader())
        return (module.ended - module.began) / len(batches)

    return run


def overhead(args: argparse.Namespace, device: str) -> Iterator[dict[str, Any]]:
    """Time every contestant in turn, several rounds, and yield each one's median."""
    networks: dict[str, tuple[Callable[[], nn.Module], int, int, int]] = {
        "tiny": (tiny, 8, 32, args.tiny_steps),
        "ResNet9": (lambda: ft.resnet9(10, width=args.width), 32, args.small_batch, args.steps),
    }
    for network, (make, side, batch_size, steps) in networks.items():
        batches = make_batches(steps, batch_size, side, device)
        runs: dict[str, Run] = {}

        def model(make: Callable[[], nn.Module] = make) -> nn.Module:
            torch.manual_seed(0)
            return make().to(device).to(memory_format=torch.channels_last)

        runs["by hand"] = by_hand(model(), batches, device, recorded=False)
        runs["by hand, recorded"] = by_hand(model(), batches, device, recorded=True)
        runs["fasttricks"] = by_trainer(model(), batches, device)
        for name, contestant in (("accelerate", by_accelerate), ("lightning", by_lightning)):
            if importlib.util.find_spec(name) is None:
                print(f"{name} is not installed and left out", flush=True)
                continue
            runs[name] = contestant(model(), batches, device)
        times: dict[str, list[float]] = {name: [] for name in runs}
        for round_number in range(args.repeats + 1):
            for name, run in runs.items():
                seconds = run()
                if round_number:  # the first one warms up
                    times[name].append(seconds)
        bare = statistics.median(times["by hand"])
        for name, values in times.items():
            seconds = statistics.median(values)
            row = {
                "network": network,
                "batch_size": batch_size,
                "loop": name,
                "step_us": 1e6 * seconds,
                "overhead_us": 1e6 * (seconds - bare),
                "overhead_share": seconds / bare - 1,
                "rounds_us": [1e6 * value for value in values],
            }
            print(
                f"{network:<8} {name:<18} {row['step_us']:>12,.1f} us a step  "
                f"{row['overhead_us']:>+10.1f} us  {row['overhead_share']:>+7.1%}",
                flush=True,
            )
            yield row


# Speed and memory -------------------------------------------------------------------------------


def peak_bytes(device: str) -> int:
    """Return the most memory that was in use: the process's on a CPU, torch's on a GPU."""
    if device.startswith("cuda"):
        return torch.cuda.max_memory_allocated()
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says starts at the parent's peak
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def measure(args: argparse.Namespace, device: str, options: dict[str, Any]) -> dict[str, Any]:
    """Train ResNet9 for a few steps in this process; return its speed and peak memory."""
    torch.manual_seed(0)
    model = ft.resnet9(10, width=args.width).to(device)
    if options.pop("winograd", False):
        ft.use_winograd_(model)
    trainer = ft.Trainer(model, make_sgd(model), progress=False, **options)
    (batch,) = make_batches(1, args.batch_size, 32, device)
    before = peak_bytes(device)
    model.train()
    for _ in range(2 if device == "cpu" else 10):
        trainer.step(batch)
    synchronize(device)
    start = time.perf_counter()
    for _ in range(args.steps):
        trainer.step(batch)
    synchronize(device)
    seconds = time.perf_counter() - start
    return {
        "images_per_second": args.steps * args.batch_size / seconds,
        "peak_bytes": peak_bytes(device),
        "peak_bytes_before": before,
    }


def in_own_process(args: argparse.Namespace, device: str, options: dict[str, Any]) -> Any:
    """Return what ``measure`` measures in a fresh process, or its error in a line."""
    command = [sys.executable, __file__, "--measure", json.dumps(options), "--device", device]
    for name in ("steps", "batch_size", "width"):
        command += [f"--{name.replace('_', '-')}", str(getattr(args, name))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"error": (done.stderr.strip().splitlines() or ["no message"])[-1]}
    return json.loads(done.stdout.splitlines()[-1])


def compare(
    args: argparse.Namespace, device: str, settings: dict[str, dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Measure each setting, print it against the first one, and yield its row."""
    base: dict[str, Any] = {}
    for name, options in settings.items():
        runs = [in_own_process(args, device, options) for _ in range(args.repeats)]
        failed = [run for run in runs if "error" in run]
        if failed:
            print(f"{name:<28} {failed[0]['error']}", flush=True)
            yield {"setting": name, "options": options, **failed[0]}
            continue
        row = {
            "setting": name,
            "options": options,
            "images_per_second": statistics.median(run["images_per_second"] for run in runs),
            "peak_bytes": statistics.median(run["peak_bytes"] for run in runs),
            "runs": runs,
        }
        base = base or row
        print(
            f"{name:<28} {row['images_per_second']:>10,.1f} images/s "
            f"({row['images_per_second'] / base['images_per_second']:.2f} times)  "
            f"{row['peak_bytes'] / 2**20:>8,.0f} MiB "
            f"({row['peak_bytes'] / base['peak_bytes']:.2f} times)",
            flush=True,
        )
        yield row


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    sections = ("overhead", "precision", "switches")
    parser.add_argument("--sections", nargs="+", choices=sections, default=list(sections))
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--repeats", type=int, default=5, help="rounds (default: 5)")
    parser.add_argument("--steps", type=int, default=5, help="of ResNet9, a round (default: 5)")
    parser.add_argument("--tiny-steps", type=int, default=2000, help="(default: 2000)")
    parser.add_argument("--batch-size", type=int, default=512, help="(default: 512)")
    parser.add_argument(
        "--small-batch", type=int, default=64, help="of ResNet9 in overhead (default: 64)"
    )
    parser.add_argument("--width", type=int, default=64, help="of ResNet9 (default: 64)")
    parser.add_argument("--measure", type=json.loads, help=argparse.SUPPRESS)
    args = parser.parse_args()
    ft.keep_freed_memory()  # as the examples do; page faults are most of a CPU's noise
    device = ft.choose_device(args.device)
    warnings.filterwarnings("ignore", module="lightning")
    # torch's own default is True, and fp32 would not be that.
    torch.backends.cudnn.allow_tf32 = (args.measure or {}).get("tf32", False)
    if args.measure is not None:
        print(json.dumps(measure(args, device, args.measure)))
        return
    peers = [name for name in ("accelerate", "lightning") if importlib.util.find_spec(name)]
    report: dict[str, Any] = {"command": sys.argv[1:]}
    report["peers"] = {name: importlib.metadata.version(name) for name in peers}
    report |= ft.describe_environment(device)

    def record(section: str, rows: Iterator[dict[str, Any]]) -> None:
        """Keep each row as soon as it is there."""
        report[section] = []
        for row in rows:
            report[section].append(row)
            if args.output:
                ft.write_json(args.output, report)

    if "overhead" in args.sections:
        record("overhead", overhead(args, device))
    if "precision" in args.sections:
        # Where a CPU's bf16 is emulated, a step takes minutes.
        best = ft.Precision("auto", device=device).name
        names = ("fp32", "bf16", "fp16") if device == "cuda" else dict.fromkeys(("fp32", best))
        precisions: dict[str, dict[str, Any]] = {name: {"precision": name} for name in names}
        if device == "cpu":
            precisions[f"{best}, Winograd"] = {"precision": best, "winograd": True}
        record("precision", compare(args, device, precisions))
    if "switches" in args.sections:
        if device == "cuda":
            record("switches", compare(args, device, SWITCHES))
        else:
            print("switches are measured on CUDA only, which is not here", flush=True)
    if args.output:
        ft.write_json(args.output, report)


if __name__ == "__main__":
    main()
