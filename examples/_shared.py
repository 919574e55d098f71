"""What the examples share: the command line, the data with its stand-in, a recipe's plan."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn

import torch

import fasttricks as ft

Loader = ft.DeviceLoader | ft.ProxyLoader
Training = tuple[ft.Trainer, Loader, float]  # and the seconds of whitening
DIGITS = "handwritten digits of scikit-learn (not CIFAR-10)"


class Parser(argparse.ArgumentParser):
    """A parser with the options of every example, whose errors are one line."""

    def __init__(self, description: str | None, *, output: str) -> None:
        super().__init__(
            description=description, formatter_class=argparse.RawDescriptionHelpFormatter
        )
        self.add_argument(
            "--data",
            metavar="PATH",
            help="torchvision's CIFAR-10 folder, a folder of train/<class>/* and test/<class>/* "
            "images, or an .npz with x_train, y_train, x_test, y_test "
            "(default: the cache, else a download, else scikit-learn's digits)",
        )
        self.add_argument("--output", type=Path, metavar="DIR", help=f"(default: {output})")
        self.add_argument("--device", default="auto", help="auto, cuda, mps or cpu (default: auto)")
        self.add_argument(
            "--precision",
            choices=["auto", "fp32", "bf16", "fp16"],
            default="auto",
            help="of the forward pass (default: auto, the fastest that the device has)",
        )
        self.add_argument(
            "--no-flips",
            action="store_true",
            help="never mirror an image, for digits, letters and the like "
            "(default: off, but on for scikit-learn's digits)",
        )

    def error(self, message: str) -> NoReturn:
        """End with the message alone, without the usage."""
        fail(message)


def fail(message: object) -> NoReturn:
    """End with one line that says what was wrong."""
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)


@contextmanager
def errors_in_one_line() -> Iterator[None]:
    """End a program with one line and exit code 2 on an error that its user can mend."""
    try:
        yield
    except (ValueError, TypeError, OSError, ImportError, ArithmeticError, MemoryError) as error:
        fail(error)
    except torch.OutOfMemoryError as error:
        fail(f"out of memory, use a smaller batch ({str(error).splitlines()[0]})")
    except KeyboardInterrupt:
        sys.exit(130)


def check(name: str, value: float, *, above: float = 0, most: float = 1e9) -> None:
    """Raise unless above < value <= most."""
    if not above < value <= most:
        raise ValueError(f"{name} must be greater than {above} and at most {most:g}, got {value:g}")


def choose_device(args: argparse.Namespace) -> str:
    """Return the device that is asked for, ready for training in the precision asked for."""
    device = ft.choose_device(args.device)
    ft.Precision(args.precision, device=device)  # raises if it is not to be had there
    ft.keep_freed_memory()
    if device == "cuda":
        torch.backends.cudnn.benchmark = True  # images are of few sizes: the fastest kernels
    return device


def load(path: str | None, *, may_stand_in: bool) -> tuple[ft.ImageSet, ft.ImageSet, bool]:
    """Return the training set, the test set, and whether they are digits in CIFAR-10's place."""
    try:
        train, test = ft.load_data(path, progress=show_loading)
        if train.num_classes < 2:
            raise ValueError(f"data must have at least two classes, got {train}")
        return train, test, False
    except ft.DataUnavailableError as error:
        if path is not None or not may_stand_in:
            raise
        print(error)
        print(f"Training on the {DIGITS} instead. For CIFAR-10 pass --data PATH.", flush=True)
        return *ft.read_digits(), True


def may_flip(args: argparse.Namespace, *, is_digits: bool) -> bool:
    """Return whether images may be mirrored: a mirrored digit is no digit."""
    return not (is_digits or args.no_flips)


def hold_out(train: ft.ImageSet, count: int, images: int) -> tuple[ft.ImageSet, ft.ImageSet]:
    """Return so many images to train on, and so many others to judge by, at most a fifth."""
    if len(train) < 10:
        raise ValueError(f"data must have at least ten images to train on, got {train}")
    rest, held_out = train.split(min(count, len(train) // 5), seed=0)
    return (rest.split(images, seed=1)[1] if images < len(rest) else rest), held_out


def to_whiten_by(train: ft.ImageSet, seed: int) -> ft.ImageSet:
    """Return 5,000 of the images at most, drawn by the seed."""
    return train if len(train) <= 5000 else train.split(5000, seed=seed)[1]


def choose_batch_size(asked: int | None, usual: int, train: ft.ImageSet) -> int:
    """Return the batch size that is asked for, or the usual one.

    That is less for a small set, so that an epoch has some twenty updates.
    """
    if asked is None:
        return min(usual, len(train), max(16, len(train) // 20))
    check("--batch-size", asked, above=1, most=len(train))  # a batch norm needs two
    return asked


def show_loading(done: int, total: int, what: str) -> None:
    """Show on a terminal how far reading has come."""
    if sys.stdout.isatty():
        print(f"\r{what} {done:,}/{total:,}", end="\n" if done == total else "", flush=True)


@dataclass(frozen=True)
class Plan:
    """What a recipe needs to know: the data, and the settings of this run."""

    train: ft.ImageSet
    whiten_images: ft.ImageSet  # of them, 5,000 at most, to whiten by
    flips: bool
    epochs: float
    batch_size: int
    device: str
    seed: int
    target: float
    resume: bool
    switches: dict[str, Any]  # what the Trainer is told of how to compute

    def loader(self, *transforms: ft.Transform[Any]) -> ft.DeviceLoader:
        """Return the loader of shuffled, augmented, whole batches."""
        return ft.DeviceLoader(
            self.train,
            batch_size=self.batch_size,
            transforms=transforms,
            shuffle=True,
            drop_last=True,
            seed=self.seed,
            device=self.device,
        )

    def some_batches(self, *transforms: ft.Transform[Any]) -> ft.DeviceLoader:
        """Return the loader of the images to whiten by, for batch norm's last statistics."""
        some = self.whiten_images
        size = min(len(some), at_once(1000, some))
        return replace(self, train=some, batch_size=size).loader(*transforms)

    def part(self, count: int) -> int | None:
        """Return how many images to compute at once, so many of 32 x 32 pixels, or None: all."""
        return at_once(count, self.train) if self.device == "cpu" else None


def average(steps: int, batches: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> ft.WeightAverage:
    """Return the average of the weights, over a sixth of so many updates at most."""
    return ft.WeightAverage(decay=min(0.95, max(0.0, 1 - 6 / steps)), batches=batches)


def article_loader(
    train: ft.ImageSet, batch_size: int, *, flips: bool, device: str, seed: int
) -> ft.DeviceLoader:
    """Return the article's loader: padding by 4, flips, Cutout 8, where there are 32 pixels."""
    side = min(train.image_size)
    transforms = [
        ft.RandomTranslate(max(1, round(side / 8))),
        *([ft.RandomHorizontalFlip()] if flips else []),
        ft.Normalize(*train.mean_std()),
        ft.Cutout(max(1, round(side / 4))),
    ]
    options = {"shuffle": True, "drop_last": True, "device": device, "seed": seed}
    return ft.DeviceLoader(train, batch_size=batch_size, transforms=transforms, **options)


def check_image_size(train: ft.ImageSet, least: int, network: str) -> None:
    """Raise a ValueError if the images are too small for the network."""
    if min(train.image_size) < least:
        raise ValueError(
            f"images must be at least {least} pixels a side for {network}, got {train}"
        )


def switches(precision: str, device: str, compile: bool | str) -> dict[str, Any]:
    """Return how to compute: with ``compile`` on a GPU also from a CUDA graph."""
    graph: bool | str = False
    if compile and device == "cuda":
        graph = "step" if ft.Precision(precision, device=device).name != "fp16" else True
    return {"precision": precision, "compile": compile, "cuda_graph": graph}


def at_once(count: int, images: ft.ImageSet) -> int:
    """Return how many such images take the memory of so many of 32 x 32 pixels, 16 at least.

    Of smaller ones it is no more.
    """
    height, width = images.image_size
    return max(16, count * 32**2 // max(32**2, height * width))


def evaluation_loader(images: ft.ImageSet, normalize: ft.Normalize, device: str) -> ft.DeviceLoader:
    """Return the loader of images to evaluate on, as they are."""
    size = at_once(1000, images)
    return ft.DeviceLoader(images, batch_size=size, transforms=[normalize], device=device)


def timed(work: Callable[[], object], device: str) -> float:
    """Return the seconds of ``work``, on a GPU those of its second time, when it is warm."""
    if device == "cuda":
        work()
        torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def precompile(trainer: ft.Trainer, loader: Loader, device: str) -> float:
    """Compile, or warm a GPU up, before the clock runs, and say so; return the seconds."""
    if not (trainer.compile or device == "cuda"):
        return 0.0
    what = "compiling" if trainer.compile else "warming up"
    print(f"{what} ...", flush=True)
    seconds = ft.precompile(trainer, loader)
    print(f"{what} took {seconds:.1f} s, which are not counted as training", flush=True)
    return seconds


def describe_run(
    trainer: ft.Trainer, loader: Loader, train: ft.ImageSet, test: ft.ImageSet
) -> dict[str, Any]:
    """Return the data, and what the updates were made of and on, for a run's record."""
    modules = trainer.model.modules()
    return {
        "dataset": test.name,
        "dataset_size": {"train": len(train), "test": len(test)},
        "classes": list(test.classes),
        "transforms": repr(loader.pipeline),
        "images_by_size": images_by_size(loader, trainer.step_count, train),
        "winograd_convolutions": sum(isinstance(m, ft.models.WinogradConv2d) for m in modules),
        **trainer.describe(),
    }


def images_by_size(loader: Loader, updates: int, train: ft.ImageSet) -> dict[str, int]:
    """Return how many images of each side in pixels so many updates train on."""
    pieces = loader.pipeline.transforms
    growing = [piece for piece in pieces if isinstance(piece, ft.ProgressiveResize)]
    found: dict[str, int] = {}
    for update in range(updates):
        now = growing[-1].size_at(update // len(loader)) if growing else None
        size = str(max(train.image_size) if now is None else now)
        found[size] = found.get(size, 0) + loader.last_batch_size  # all are whole
    return found
