"""Augmentation side by side: images a second of one pipeline, made in several ways.

    python benchmarks/augment.py --output augment.json

Crop with a reflected border of 4, flip, Cutout 8, normalisation, to float32 batches in
channels_last. Images are random bytes of 32 x 32 unless `--data` is given: what they show does not
matter. Every way makes its batches in turn, `--repeats` times over; the fastest counts. kornia
takes part if it is installed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

import fasttricks as ft

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
# One square of 8 x 8 of 32 x 32 pixels, as torchvision and kornia say it.
AREA = (1 / 16, 1 / 16)


def ours(image_set: ft.ImageSet, batch_size: int, device: str, fused: bool | None) -> Any:
    """Return a loader of fasttricks."""
    transforms = [
        ft.RandomTranslate(4),
        ft.RandomHorizontalFlip(),
        ft.Normalize(MEAN, STD),
        ft.Cutout(8),
    ]
    options = {"shuffle": True, "drop_last": True, "device": device, "fused": fused}
    return ft.DeviceLoader(image_set, batch_size=batch_size, transforms=transforms, **options)


class Single(Dataset[Any]):
    """One image at a time through torchvision's transforms."""

    def __init__(self, image_set: ft.ImageSet) -> None:
        self.images, self.labels = image_set.images.contiguous(), image_set.labels
        self.transform = v2.Compose(
            [
                v2.RandomCrop(32, padding=4, padding_mode="reflect"),
                v2.RandomHorizontalFlip(),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
                v2.RandomErasing(p=1.0, scale=AREA, ratio=(1.0, 1.0)),
            ]
        )

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(self.images[index]), int(self.labels[index])


class Batched:
    """Whole batches through a transform, gathered as the device loader gathers them."""

    def __init__(
        self, image_set: ft.ImageSet, batch_size: int, device: str, transform: Callable[[Any], Any]
    ) -> None:
        self.images = image_set.images.contiguous().to(device)
        self.labels = image_set.labels.to(device)
        self.batch_size, self.transform = batch_size, transform

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self.images), device=self.images.device)
        for index in order.split(self.batch_size):
            if len(index) == self.batch_size:
                batch = self.transform(self.images[index])
                yield batch.contiguous(memory_format=torch.channels_last), self.labels[index]


def kornia_transform() -> Callable[[torch.Tensor], torch.Tensor] | None:
    """Return kornia's pipeline of a draw an image, or None if it is not installed."""
    try:
        import kornia.augmentation as augmentation
    except ImportError:
        return None
    pipeline = augmentation.AugmentationSequential(
        augmentation.RandomCrop((32, 32), padding=4, padding_mode="reflect"),
        augmentation.RandomHorizontalFlip(p=0.5),
        augmentation.Normalize(torch.tensor(MEAN), torch.tensor(STD)),
        augmentation.RandomErasing(scale=AREA, ratio=(1.0, 1.0), p=1.0),
        data_keys=["input"],
    )
    return lambda images: pipeline(images.float() / 255)


def contenders(image_set: ft.ImageSet, batch_size: int, device: str) -> dict[str, Any]:
    """Return every way by name; those that work an image at a time live on the CPU alone."""
    ways = {"fasttricks": ours(image_set, batch_size, device, None)}
    ways["fasttricks, piece by piece"] = ours(image_set, batch_size, device, False)
    whole = v2.Compose(
        [
            v2.Pad(4, padding_mode="reflect"),
            v2.RandomCrop(32),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(p=1.0, scale=AREA, ratio=(1.0, 1.0)),
        ]
    )
    ways["torchvision v2, one draw for the whole batch"] = Batched(
        image_set, batch_size, device, whole
    )
    if (transform := kornia_transform()) is not None:
        ways["kornia"] = Batched(image_set, batch_size, device, transform)
    if device == "cpu":
        for workers in (0, 2):
            ways[f"torchvision DataLoader, {workers} workers"] = DataLoader(
                Single(image_set), batch_size, shuffle=True, drop_last=True, num_workers=workers
            )
    return ways


def images_per_second(loader: Any, batches: int, device: str) -> float:
    """Time some batches of an epoch; starting the epoch, and its workers, is part of it."""
    if device == "cuda":
        torch.cuda.synchronize()
    start, images = time.perf_counter(), 0
    for count, (batch, _) in enumerate(loader, start=1):
        images += len(batch)
        if count == batches:
            break
    if device == "cuda":
        torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def copy_bandwidth(device: str) -> float:
    """Return the bytes a second, read and written, of a device's copy of 256 MiB."""
    source = torch.empty(2**28, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = []
    for _ in range(10):
        torch.cuda.synchronize()
        start = time.perf_counter()
        target.copy_(source)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
    return 2 * source.numel() / min(seconds)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--data", help="images, as for the examples (default: random ones)")
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    if args.data:
        image_set, _ = ft.load_data(args.data)
    else:
        pixels = torch.randint(0, 256, (10_240, 3, 32, 32), dtype=torch.uint8)
        labels = torch.arange(len(pixels)) % 10
        image_set = ft.ImageSet(pixels, labels, classes=tuple("0123456789"), name="random bytes")
    ways = contenders(image_set, args.batch_size, args.device)
    speeds: dict[str, float] = dict.fromkeys(ways, 0.0)
    for repeat in range(args.repeats + 1):
        for name, loader in ways.items():
            # Enough batches for some tenths of a second; single images are slow, and two workers
            # need some batches to come into step.
            batches = 8 if "DataLoader" in name else 20
            speed = images_per_second(loader, batches, args.device)
            if repeat:  # the first round warms up
                speeds[name] = max(speeds[name], speed)
    rows = [
        {"way": name, "images_per_second": speed, "times_as_fast": speeds["fasttricks"] / speed}
        for name, speed in speeds.items()
    ]
    for row in rows:
        print(f"{row['way']:<46} {row['images_per_second']:>12,.0f} images/s", end="")
        print(f"   fasttricks is {row['times_as_fast']:.1f} times as fast")
    report = {"images": repr(image_set), "batch_size": args.batch_size, "rows": rows}
    if args.device == "cuda":
        size = image_set.images[0].numel()
        # A byte read and four written of each number, the table and boxes left out.
        report["share_of_copy_bandwidth"] = (
            speeds["fasttricks"] * size * 5 / copy_bandwidth(args.device)
        )
        print(f"{report['share_of_copy_bandwidth']:.1%} of the bandwidth of a copy")
    if args.output:
        ft.write_json(args.output, report | ft.describe_environment(args.device))


if __name__ == "__main__":
    main()
