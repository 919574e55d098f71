"""Images a second of every network, forward and backward; ResNet-18 against torchvision's.

    python benchmarks/models.py --device cuda --output models.json

Each network in fp32 as NCHW, and in the device's best precision (bf16 where it has it) as
channels_last, both in turn; the fastest of `--repeats` counts. torchvision's ResNet-18 gets the
3 x 3 stem and our weights; its logits are compared first. fp32 means no TF32, in convolutions too.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import fasttricks as ft


def ways(device: torch.device) -> tuple[str, str]:
    return "fp32 NCHW", f"{ft.Precision(device=device).name} channels_last"


def fastest(
    functions: dict[str, Callable[[], Any]], repeats: int, device: torch.device
) -> dict[str, float]:
    """Return the least seconds of each function, called in turn, the first round left out."""
    best = dict.fromkeys(functions, float("inf"))
    for repeat in range(repeats + 1):
        for name, function in functions.items():
            synchronise(device)
            start = time.perf_counter()
            function()
            synchronise(device)
            if repeat:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def synchronise(device: torch.device) -> None:
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def passes(model: nn.Module, images: Tensor, targets: Tensor, *, precision: str) -> None:
    """Forward and backward, gradients dropped."""
    with ft.Precision(precision, device=images.device).forward_context():
        loss = nn.functional.cross_entropy(model(images), targets)
    loss.backward()
    model.zero_grad(set_to_none=True)


def both_ways(model: nn.Module, images: Tensor, targets: Tensor) -> dict[str, Callable[[], None]]:
    """Return the passes of the model and of a copy of it in channels_last, by their ways."""
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)
    images_last = images.to(memory_format=torch.channels_last)
    plain, fast = ways(images.device)
    return {
        plain: partial(passes, model, images, targets, precision="fp32"),
        fast: partial(passes, last, images_last, targets, precision="auto"),
    }


def torchvisions(ours: nn.Module, images: Tensor) -> nn.Module:
    """Return torchvision's ResNet-18 with the small stem and our weights; raise if it differs."""
    import torchvision

    theirs = torchvision.models.resnet18(num_classes=10)
    theirs.conv1 = nn.Conv2d(3, 64, 3, padding=1, bias=False)
    theirs.maxpool = nn.Identity()
    theirs.load_state_dict(ours.state_dict())
    theirs = theirs.to(images.device)
    with torch.no_grad():
        found, wanted = theirs.eval()(images[:2]), ours.eval()(images[:2])
    torch.testing.assert_close(found, wanted, rtol=1e-3, atol=1e-3)
    ours.train()
    return theirs.train()


def every_network(
    names: Sequence[str], images: Tensor, targets: Tensor, repeats: int
) -> list[dict[str, Any]]:
    """Images a second of the named networks, both ways."""
    rows = []
    for name in names:
        torch.manual_seed(0)
        model = ft.build(name).to(images.device)
        seconds = fastest(both_ways(model, images, targets), repeats, images.device)
        speeds = {way: len(images) / taken for way, taken in seconds.items()}
        size = ft.summary(model, tuple(images.shape[1:]))
        row = {"network": name, "parameters": size.parameters, "macs": size.macs, **speeds}
        plain, fast = speeds.values()
        rows.append(row | {"ratio": fast / plain})
        print(line(*rows[-1].values()), flush=True)
    return rows


def against_torchvision(images: Tensor, targets: Tensor, repeats: int) -> list[dict[str, Any]]:
    """Images a second of our ResNet-18 and of torchvision's, in turn."""
    torch.manual_seed(0)
    ours = ft.resnet18().to(images.device)
    both = {"fasttricks": ours, "torchvision": torchvisions(ours, images)}
    functions = {
        f"{who} {way}": function
        for who, model in both.items()
        for way, function in both_ways(model, images, targets).items()
    }
    seconds = fastest(functions, repeats, images.device)
    rows = []
    for way in ways(images.device):
        speeds = {who: len(images) / seconds[f"{who} {way}"] for who in both}
        rows.append({"way": way, **speeds, "ratio": speeds["fasttricks"] / speeds["torchvision"]})
        print(line(way, "", "", *list(rows[-1].values())[1:]), flush=True)
    return rows


def line(first: str, *cells: object) -> str:
    """Format one row of a table: numbers get commas, the ratio at the end two places."""
    *numbers, ratio = cells
    texts = [f"{n:,.0f}" if isinstance(n, int | float) else str(n) for n in numbers]
    texts.append(f"{ratio:.2f}" if isinstance(ratio, float) else str(ratio))
    widths = (12, 15, 12, 20, 7)
    return f"{first:<20}" + "".join(
        f" {text:>{width}}" for text, width in zip(texts, widths, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--names", nargs="+", default=ft.list_models(), choices=ft.list_models())
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--size", type=int, default=32, help="side of the images in pixels")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--output", type=Path, help="JSON file to write")
    args = parser.parse_args()
    ft.keep_freed_memory()  # as the examples do; page faults are most of a CPU's noise
    device = torch.device(args.device)
    torch.backends.cudnn.allow_tf32 = False  # torch's own default is True
    images = torch.randn(args.batch_size, 3, args.size, args.size, device=device)
    targets = torch.randint(10, (args.batch_size,), device=device)
    print("images a second, forward and backward")
    print(line("network", "parameters", "multiply-adds", *ways(device), "ratio"))
    networks = every_network(args.names, images, targets, args.repeats)
    print()
    print(line("resnet18", "", "", "fasttricks", "torchvision", "ratio"))
    pair = against_torchvision(images, targets, args.repeats)
    if args.output:
        options = {"batch_size": args.batch_size, "size": args.size, "repeats": args.repeats}
        report = {**options, "networks": networks, "resnet18_against_torchvision": pair}
        ft.write_json(args.output, report | ft.describe_environment(args.device))


if __name__ == "__main__":
    main()
