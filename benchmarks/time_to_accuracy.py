"""Race recipes to an accuracy: one process a run, contenders in turn, the same data and machine.

    python benchmarks/time_to_accuracy.py --data cifar10.npz --output race \
        --runs speedrun=3 --runs airbench94_muon=1
    python benchmarks/time_to_accuracy.py --data cifar10.npz --output race95 --target 95 \
        --runs speedrun95=1 --runs airbench95=1
    python benchmarks/time_to_accuracy.py --data gtsrb.npz --output signs --no-flips \
        --runs speedrun=1 --runs airbench94_muon=1

Writes race/results.json and race/results.md after every run; the same command again goes on with a
race that was broken off, with the same hardware, versions, code, data and settings only. A run that
fails is left out: the others go on, and the exit status is 1. Seconds of training include
preparation (whitening) and leave evaluation and compilation out, as each contender counts them
itself; those with all views add the final evaluation, from as many views of an image as the
contender takes; wall seconds are those of the whole process, start to end. Operations are those of
direct convolutions, however they are computed.

`--images N` trains every contender on N of the training images only, with its usual batch: as much
less time, no accuracy to speak of, but the ratio of the seconds of training. On other data than
CIFAR-10, square colour images (see other_data.py), the references keep all their numbers, and the
example's batch, translation and average follow the number of images and their size, as for any
user.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

import fasttricks as ft

sys.path.insert(0, str(Path(__file__).parents[1] / "examples"))
sys.path.insert(0, str(Path(__file__).parent / "references"))
import airbench95
import airbench96_faster
import cifar10_94

ROOT = Path(__file__).parents[1]
PEAK = "peak_memory_bytes_of_the_largest"
COMPILED = ["--compile"]
AUTOTUNED = ["--compile", "max-autotune-no-cudagraphs"]  # which takes minutes more
SOURCES = (Path(ft.__file__).parent, ROOT / "examples", ROOT / "benchmarks/references")
CODE = (".py", ".cpp", ".h")
VIEWS = {"none": 1, "mirror": 2, "translate": 3, "mirror_translate": 6}


@dataclass(frozen=True)
class Contender:
    """A script with its arguments, and the network that it trains.

    Args:
        command: The script, from the root of the repository, and arguments.
        network: Makes the network, to count its operations.
        batch_size: Its usual batch, if the script takes a smaller one of less data.
    """

    command: list[str]
    network: Callable[[], nn.Module] = ft.speedrun_net
    batch_size: int | None = None


def ours(
    recipe: str, *options: str, network: Callable[[], nn.Module] = ft.speedrun_net
) -> Contender:
    command = ["examples/cifar10_94.py", "--recipe", recipe, *options]
    return Contender(command, network, cifar10_94.RECIPES[recipe].batch_size)


def reference(name: str, *options: str, **network: Any) -> Contender:
    command = [f"benchmarks/references/{name}.py", *options]
    return Contender(command, partial(ft.speedrun_net, **network))


NETWORK95 = partial(ft.speedrun_net, **cifar10_94.NETWORK95)
NETWORK96 = partial(ft.speedrun_net, **cifar10_94.NETWORK96)
AIRBENCH95: dict[str, Any] = {"widths": airbench95.WIDTHS}
AIRBENCH96: dict[str, Any] = {"widths": airbench96_faster.WIDTHS, "depths": (3, 3, 3)}
CONTENDERS = {
    "speedrun": ours("speedrun"),
    "speedrun_compiled": ours("speedrun", *COMPILED),
    "speedrun_autotuned": ours("speedrun", *AUTOTUNED),
    "speedrun95": ours("speedrun95", network=NETWORK95),
    "speedrun95_compiled": ours("speedrun95", *COMPILED, network=NETWORK95),
    "speedrun96": ours("speedrun96", network=NETWORK96),
    "speedrun96_compiled": ours("speedrun96", *COMPILED, network=NETWORK96),
    "article": ours("article", network=ft.resnet9),
    "airbench94_muon": reference("airbench94_muon"),
    "airbench94_muon_compiled": reference("airbench94_muon", *COMPILED),
    "airbench95": reference("airbench95", **AIRBENCH95),
    "airbench95_compiled": reference("airbench95", *COMPILED, **AIRBENCH95),
    "airbench96_faster": reference("airbench96_faster", **AIRBENCH96),
    "airbench96_faster_compiled": reference("airbench96_faster", *COMPILED, **AIRBENCH96),
    "fulcrum_e1": reference("fulcrum_e1"),
    "fulcrum_e1_compiled": reference("fulcrum_e1", *COMPILED),
}


class RunError(Exception):
    """A contender did not end well."""


def run_contender(
    name: str, *, data: Path, seed: int, folder: Path, usual_batch: bool, flips: bool
) -> dict[str, Any]:
    """Run one contender with one seed in a process of its own and return what it recorded.

    What it writes to its standard error is in stderr.log in the folder, and passed on at its end.

    Raises:
        RunError: If it fails, with the end of that.
    """
    contender = CONTENDERS[name]
    command = [sys.executable, *contender.command, "--data", str(data), "--seed", str(seed)]
    command += [] if flips else ["--no-flips"]
    if usual_batch and contender.batch_size is not None:
        command += ["--batch-size", str(contender.batch_size)]
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "stderr.log"
    start = time.perf_counter()
    with log.open("w") as errors:
        ended = subprocess.run([*command, "--output", str(folder)], cwd=ROOT, stderr=errors)
    wall = time.perf_counter() - start
    said = log.read_text(errors="replace")
    if ended.returncode:
        status = ended.returncode
        raise RunError(f"{name}, seed {seed}, failed with status {status}:\n{said[-1000:].strip()}")
    sys.stderr.write(said)
    record = json.loads((folder / "record.json").read_text())
    keep = ("seed", "test_accuracy", "test_accuracy_tta", "tta", "device", "images_by_size")
    # Whitening and the like count: the reference does it within its training seconds.
    seconds = record["train_seconds"] + record.get("prepare_seconds", 0.0)
    return {
        "contender": name,
        **{key: record[key] for key in keep},
        "train_seconds": seconds,
        "train_and_evaluation_seconds": seconds + record["tta_seconds"],
        "precompile_seconds": record.get("precompile_seconds", 0.0),
        "native": record.get("hardware", {}).get("native", []),  # what it compiled for the CPU
        "wall_seconds": wall,
        "images_per_second": sum(record["images_by_size"].values()) / seconds,
        "flops": sum(
            count * flops_per_image(name, int(size))
            for size, count in record["images_by_size"].items()
        ),
    }


@cache
def flops_per_image(name: str, size: int) -> float:
    """Operations, forward and backward, of the network on an image, by direct convolutions.

    The whitening is frozen, for most of a run with its bias. Counted for ten classes, and for the
    images that it is trained on: the proxy of airbench96_faster and of speedrun96, some 3 % more,
    is left out.
    """
    model = CONTENDERS[name].network()
    for part, parameter in model.named_parameters():
        parameter.requires_grad_(not part.startswith("whiten."))
    with FlopCounterMode(display=False) as counter:
        model(torch.zeros(2, 3, size, size)).sum().backward()
    return counter.get_total_flops() / 2


def smaller(data: Path, images: int, folder: Path) -> Path:
    """Write a data set of so many training images, drawn at random, and a tenth as many tests."""
    with np.load(data) as file:
        arrays = dict(file)
    if images > len(arrays["x_train"]):
        raise SystemExit(f"--images must be at most {len(arrays['x_train'])}, got {images}")
    for part, count in (("train", images), ("test", max(1, images // 10))):
        chosen = np.random.default_rng(0).permutation(len(arrays[f"x_{part}"]))[:count]
        for name in (f"x_{part}", f"y_{part}"):
            arrays[name] = arrays[name][chosen]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{images}-images.npz"
    np.savez(path, **arrays)
    return path


def checksum(folders: Sequence[Path] = SOURCES) -> str:
    """Return a checksum over the names and the text of the code in the folders."""
    total = 0
    for folder in folders:
        for path in sorted(p for p in folder.rglob("*") if p.suffix in CODE):
            name = path.relative_to(folder.parent).as_posix()
            total = zlib.crc32(name.encode() + b"\0" + path.read_bytes() + b"\0", total)
    return f"{total:08x}"


def environment(device: str) -> dict[str, Any]:
    """Describe the machine, less what this process has compiled, which trains nothing."""
    found = ft.describe_environment(device)
    del found["hardware"]["native"]
    return found


def previous_race(path: Path, settings: dict[str, Any]) -> tuple[list[dict[str, Any]], int]:
    """Return the rows and the peak memory of a race that was broken off."""
    if not path.exists():
        return [], 0
    report = json.loads(path.read_text())
    device = report["results"][0]["device"]
    if device.startswith("cuda") != torch.cuda.is_available():  # where it is, all run on it
        other = "CUDA, which is not here" if device.startswith("cuda") else "no CUDA, which is here"
        raise SystemExit(f"{path} was measured with {other}: move it away")
    # A file of before code was recorded is of other code, too.
    settings = settings | environment(device)
    different = [key for key, value in settings.items() if report.get(key) != value]
    if different:
        raise SystemExit(f"{path} was measured with other {' and '.join(different)}: move it away")
    return report["results"], report[PEAK]


def table(results: list[dict[str, Any]], target: float) -> str:
    """Return a Markdown table: one line a contender, in the order of first appearance."""
    lines = [
        "| contender | runs | views | accuracy, all views (%) | one view (%) | "
        f"runs at {target:g} % | training (s) | with all views (s) | wall (s) | images/s | PFLOP |",
        "| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in dict.fromkeys(row["contender"] for row in results):
        rows = [row for row in results if row["contender"] == name]
        views = ft.summarize([100 * row["test_accuracy_tta"] for row in rows], target=target)
        one = ft.summarize([100 * row["test_accuracy"] for row in rows])
        seconds = [
            ft.summarize([row[f"{what}_seconds"] for row in rows]).mean
            for what in ("train", "train_and_evaluation", "wall")
        ]
        speed = ft.summarize([row["images_per_second"] for row in rows]).mean
        interval = "" if views.interval is None else " ({:.2f} to {:.2f})".format(*views.interval)
        lines.append(
            f"| {name} | {views.runs} | {VIEWS[rows[0]['tta']]} ({rows[0]['tta']}) | "
            f"{views.mean:.2f}{interval} | {one.mean:.2f} | "
            f"{views.share_at_target:.0%} | {' | '.join(f'{s:.1f}' for s in seconds)} | "
            f"{speed:.0f} | {rows[0]['flops'] / 1e15:.3f} |"
        )
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--data", type=Path, required=True, help="CIFAR-10, or the like, as an .npz"
    )
    parser.add_argument("--output", type=Path, required=True, help="folder of the results")
    parser.add_argument(
        "--runs", action="append", metavar="NAME=N", help=f"one of {', '.join(CONTENDERS)}"
    )
    parser.add_argument("--images", type=int, help="training images (default: all)")
    parser.add_argument("--no-flips", action="store_true", help="mirror nothing: signs, letters")
    parser.add_argument("--first-seed", type=int, default=0, help="of each (default: 0)")
    parser.add_argument("--target", type=float, default=94.0, help="percent (default: 94)")
    args = parser.parse_args()
    wanted = [text.partition("=")[::2] for text in args.runs or ["speedrun=3", "airbench94_muon=1"]]
    for name, count in wanted:
        if name not in CONTENDERS or not count.isdecimal():
            parser.error(f"--runs must be NAME=N with one of {', '.join(CONTENDERS)}, got {name!r}")
    output, data = args.output.resolve(), args.data.resolve()
    if not data.is_file():
        parser.error(f"--data must be an .npz file, got {args.data}")
    settings = {"data": data.name, "images": args.images, "flips": not args.no_flips}
    settings |= {"data_bytes": data.stat().st_size, "code": checksum()}
    results, peak = previous_race(output / "results.json", settings)
    if args.images is not None:
        if args.images < 2000:  # a batch of the largest
            parser.error(f"--images must be at least 2000, got {args.images}")
        data = smaller(data, args.images, output)
    done = {(row["contender"], row["seed"]) for row in results}
    failed: list[str] = []
    for run in range(max(int(count) for _, count in wanted)):
        seed = args.first_seed + run
        for name, count in wanted:
            if run < int(count) and (name, seed) not in done:
                folder = output / name / f"seed-{seed}"
                try:
                    row = run_contender(
                        name,
                        data=data,
                        seed=seed,
                        folder=folder,
                        usual_batch=args.images is not None,
                        flips=not args.no_flips,
                    )
                except RunError as error:
                    print(error, file=sys.stderr, flush=True)
                    failed.append(f"{name}, seed {seed}")
                    continue
                results.append(row)
                usage = resource.getrusage(resource.RUSAGE_CHILDREN)
                peak = max(peak, 1024 * usage.ru_maxrss)
                report = {**settings, "results": results, PEAK: peak}
                ft.write_json(output / "results.json", report | environment(results[-1]["device"]))
                (output / "results.md").write_text(table(results, args.target))
    print(table(results, args.target))
    if failed:
        raise SystemExit(f"failed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
