"""Images per second of the article's augmentation: DeviceLoader, torchvision and kornia.

    python benchmarks/augment.py --output augment.json

Every contestant moves each image by up to 4 reflected pixels, mirrors it half of the time, erases a
square of 8 pixels, normalises and hands out batches on the device, for CIFAR-10's sizes. They take
turns, and the fastest of several repeats counts. Nothing else should run beside them.

- DeviceLoader, with the fused pass and without;
- torchvision's pieces on one PIL image at a time in a DataLoader, with 0 and with 2 workers;
- torchvision's v2 on whole batches that are resident like ours. It draws once a batch: all images
  of a batch are moved, mirrored and erased alike, so this is less work and not the same thing;
- kornia's AugmentationSequential on whole resident batches, a draw an image, in both of its ways to
  crop; left out with a note if kornia is not installed.

RandomErasing puts its square wholly within the image, where Cutout clips it at the border. On CUDA
the bandwidth of the fused pass alone is set against that of a copy on the device, both counted in
bytes read and written.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from functools import partial
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torchvision import transforms as v1
from torchvision.transforms import v2

import fasttricks as ft
from fasttricks.transforms import _fused

MEAN, STD = (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)
ERASING = {"p": 1.0, "scale": (1 / 16, 1 / 16), "ratio": (1.0, 1.0)}
DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
Epoch = Callable[[], Iterator[torch.Tensor]]


def pieces(dtype: torch.dtype) -> list[ft.Transform[Any]]:
    """Return the pipeline of the article."""
    flip = ft.RandomHorizontalFlip()
    return [ft.RandomTranslate(4), flip, ft.Normalize(MEAN, STD, dtype), ft.Cutout(8)]


class Pictures(torch.utils.data.Dataset[Any]):
    """PIL images and labels, as torchvision's own CIFAR10 gives them."""

    def __init__(self, image_set: ft.ImageSet) -> None:
        self.pixels = image_set.images.permute(0, 2, 3, 1).numpy()
        self.labels = image_set.labels.tolist()
        self.transform = v1.Compose(
            [
                v1.RandomCrop(32, padding=4, padding_mode="reflect"),
                v1.RandomHorizontalFlip(),
                v1.ToTensor(),
                v1.Normalize(MEAN, STD),
                v1.RandomErasing(**ERASING),
            ]
        )

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return self.transform(Image.fromarray(self.pixels[index])), self.labels[index]


def ours(
    image_set: ft.ImageSet, batch_size: int, dtype: torch.dtype, device: torch.device, fused: bool
) -> Epoch:
    loader = ft.DeviceLoader(
        image_set,
        batch_size=batch_size,
        transforms=pieces(dtype),
        shuffle=True,
        drop_last=True,
        device=device,
        fused=None if fused else False,
    )
    return lambda: (images for images, _ in loader)


def image_by_image(
    image_set: ft.ImageSet, batch_size: int, device: torch.device, workers: int
) -> Epoch:
    loader = torch.utils.data.DataLoader(
        Pictures(image_set),
        batch_size=batch_size,
        shuffle=True,
        drop_last=True,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=device.type == "cuda",
    )
    return lambda: (images.to(device, non_blocking=True) for images, _ in loader)


def whole_batches(
    image_set: ft.ImageSet,
    batch_size: int,
    device: torch.device,
    augment: Callable[[torch.Tensor], torch.Tensor],
) -> Epoch:
    resident = image_set.images.contiguous().to(device)

    def epoch() -> Iterator[torch.Tensor]:
        order = torch.randperm(len(resident)).to(device)
        for index in order.split(batch_size):
            if len(index) == batch_size:
                yield augment(resident[index])

    return epoch


def torchvision_v2() -> Callable[[torch.Tensor], torch.Tensor]:
    augment: Callable[[torch.Tensor], torch.Tensor] = v2.Compose(
        [
            v2.RandomCrop(32, padding=4, padding_mode="reflect"),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(MEAN, STD),
            v2.RandomErasing(**ERASING),
        ]
    )
    return augment


def kornia(cropping_mode: str, device: torch.device) -> Callable[[torch.Tensor], torch.Tensor]:
    import kornia.augmentation as K

    augment = K.AugmentationSequential(
        K.RandomCrop(
            (32, 32), padding=4, padding_mode="reflect", cropping_mode=cropping_mode, p=1.0
        ),
        K.RandomHorizontalFlip(p=0.5),
        K.Normalize(mean=MEAN, std=STD),
        K.RandomErasing(**ERASING),
        data_keys=["input"],
    ).to(device)

    @torch.no_grad()
    def run(images: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = augment(images.to(torch.float32) / 255)
        return result

    return run


def seconds(epoch: Epoch, device: torch.device) -> tuple[float, int]:
    """Return the seconds of one epoch and how many images it served."""
    images = 0
    start = time.perf_counter()
    for batch in epoch():
        images += len(batch)
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter() - start, images


def contestants(
    image_set: ft.ImageSet, few: ft.ImageSet, args: argparse.Namespace, device: torch.device
) -> dict[str, Epoch]:
    size = args.batch_size
    named = {}
    for name, dtype in DTYPES.items():
        if name in args.dtypes:
            named[f"DeviceLoader {name}"] = ours(image_set, size, dtype, device, True)
            named[f"DeviceLoader {name}, fused=False"] = ours(image_set, size, dtype, device, False)
    for workers in args.workers:
        name = f"torchvision image by image, {workers} workers"
        named[name] = image_by_image(few, size, device, workers)
    named["torchvision v2, a batch alike"] = whole_batches(
        image_set, size, device, torchvision_v2()
    )
    if find_spec("kornia"):
        for mode in ("slice", "resample"):
            augment = kornia(mode, device)
            named[f"kornia, {mode}"] = whole_batches(few, size, device, augment)
    return named


def race(named: dict[str, Epoch], repeats: int, device: torch.device) -> list[dict[str, Any]]:
    """Return each contestant's images per second, the fastest of several epochs."""
    best = dict.fromkeys(named, 0.0)
    for repeat in range(repeats + 1):
        for name, epoch in named.items():
            elapsed, images = seconds(epoch, device)
            if repeat > 0:  # the first is a warm-up
                best[name] = max(best[name], images / elapsed)
    first = best[next(iter(named))]
    return [
        {"name": name, "images_per_second": rate, "times_slower_than_the_first": first / rate}
        for name, rate in best.items()
    ]


def milliseconds(work: Callable[[], object], repeats: int) -> float:
    """Return the device's time for ``work``, the least of several.

    It is done 20 times in a row from a CUDA graph, as the host launches it more slowly than the
    device is done with it.
    """
    at_once = 20
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(at_once):
            work()
    times = []
    for _ in range(repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        graph.replay()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end) / at_once)
    return min(times)


def copy_bandwidth(device: torch.device) -> float:
    """Return GB/s of a copy on the device, bytes read and bytes written."""
    source = torch.empty(2**28, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / milliseconds(lambda: target.copy_(source), 20) / 1e6


def bandwidth(image_set: ft.ImageSet, dtypes: list[str], device: torch.device) -> dict[str, Any]:
    """Return GB/s of the pass alone and of a copy, by dtype and size of the batch."""
    c, (h, w) = image_set.channels, image_set.image_size
    rows = image_set.images.to(device).permute(0, 2, 3, 1).reshape(len(image_set), -1)
    copy = copy_bandwidth(device)
    result: dict[str, Any] = {"copy_gb_per_second": copy, "rows": []}
    for name in dtypes:
        made = _fused.prepare(ft.Pipeline(pieces(DTYPES[name])), rows, (c, h, w), fused=None)
        if made is None:  # without Triton
            break
        for number in (512, 4096, len(image_set)):
            index = torch.randperm(len(image_set))[:number].to(device)
            table = made.plan.sample(ft.Draws(index, seed=0), (len(index), c, h, w))
            # the numbers are made beforehand, as the loader does for many batches at once
            run = partial(made, index, table, torch.channels_last)
            moved = index.nbytes + table.nbytes + run().nbytes + len(index) * rows.shape[1]
            rate = moved / milliseconds(run, 50) / 1e6
            row = {"dtype": name, "batch": len(index), "gb_per_second": rate}
            result["rows"].append({**row, "share_of_copy": rate / copy})
    return result


def noise(images: int) -> ft.ImageSet:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (images, 3, 32, 32), dtype=torch.uint8, generator=generator)
    labels = torch.arange(images) % 10
    return ft.ImageSet(pixels, labels, classes=tuple("0123456789"), name="noise")


def measure(args: argparse.Namespace, device: torch.device) -> dict[str, Any]:
    image_set = noise(args.images)
    few = image_set.subset(torch.arange(min(args.few_images, args.images)))
    result: dict[str, Any] = dict(ft.describe_environment(device))
    result["rows"] = race(contestants(image_set, few, args, device), args.repeats, device)
    width = max(len(row["name"]) for row in result["rows"])
    print(f"\n{device}\n{'':{width}}  images/s  the first is faster")
    for row in result["rows"]:
        rate, times = row["images_per_second"], row["times_slower_than_the_first"]
        print(f"{row['name']:{width}}  {rate:8.0f}  {times:6.1f} times")
    if device.type == "cuda":
        result["bandwidth"] = bandwidth(image_set, args.dtypes, device)
        print(f"a copy on the device: {result['bandwidth']['copy_gb_per_second']:.0f} GB/s")
        for row in result["bandwidth"]["rows"]:
            share = row["share_of_copy"]
            print(f"{row['dtype']}, {row['batch']} images: {row['gb_per_second']:.0f} GB/s", end="")
            print(f", {share:.0%} of a copy")
    return result


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--output", type=Path, help="JSON file to write")
    parser.add_argument("--devices", nargs="+", help="default: cpu, and cuda where there is one")
    parser.add_argument("--images", type=int, default=50_000, help="in the set (default: 50000)")
    parser.add_argument(
        "--few-images", type=int, default=5120, help="for the slow ones (default: 5120)"
    )
    parser.add_argument("--batch-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=5, help="after a warm-up (default: 5)")
    parser.add_argument("--workers", nargs="*", type=int, default=[0, 2])
    parser.add_argument("--dtypes", nargs="+", choices=DTYPES, default=["float32", "bfloat16"])
    parser.add_argument("--threads", type=int, help="of torch on the CPU (default: torch's own)")
    args = parser.parse_args()
    if min(args.few_images, args.images) < args.batch_size:
        parser.error("--images and --few-images must be at least --batch-size")
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    devices = args.devices or ["cpu"] + ["cuda"] * torch.cuda.is_available()
    found = version("kornia") if find_spec("kornia") else None
    if found is None:
        print("kornia is not installed and left out; pip install kornia")
    settings = {name: getattr(args, name) for name in ("images", "few_images", "batch_size")}
    results = []
    for device in devices:
        results.append(measure(args, torch.device(device)))
        if args.output:
            ft.write_json(args.output, {"settings": settings, "kornia": found, "devices": results})


if __name__ == "__main__":
    main()
