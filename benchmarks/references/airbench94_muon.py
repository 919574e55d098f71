"""A race's reference: the recipe of airbench94_muon (Jordan 2024) in plain torch, CPU included.

Nothing here is taken from fasttricks, so that it can stand against it. Every number is the
published one: 8 epochs of batches of 2000, rates 0.053 (biases), 0.67 (head) and 0.24 (Muon) that
fall to 0, label smoothing 0.2, translation by 2, alternating flips, and six views at the end. On a
CPU a batch is computed in parts of 500, which changes batch norm's statistics only, under bfloat16
autocast if the CPU multiplies that.

The recipe is untouched on other data: it takes any number of classes, any square images that
survive its pools, the mean and deviation of the training images, and no mirrors with `--no-flips`.
`--compile` computes as the original does on CUDA: a compiled network and Newton-Schulz, fused SGD.
"""

from __future__ import annotations

import argparse
import json
import platform
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise, product
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

EPOCHS, BATCH, PART = 8, 2000, 500
BIAS_RATE, HEAD_RATE, MUON_RATE = 0.053, 0.67, 0.24

Network = TypeVar("Network", bound=nn.Module)
Function = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Data:
    """Images [N, H, W, 3], uint8, and labels, on the device; and whether a mirror image is right.

    The mean and the deviation are those of each channel, from 0 to 1, of the training images, to
    four places: for CIFAR-10, the constants of the original.
    """

    x_train: torch.Tensor
    y_train: torch.Tensor
    x_test: torch.Tensor
    y_test: torch.Tensor
    mean: torch.Tensor
    std: torch.Tensor
    flips: bool

    @property
    def classes(self) -> int:
        return int(self.y_train.max()) + 1

    @property
    def side(self) -> int:
        return self.x_train.shape[1]

    def normalized(self, images: torch.Tensor) -> torch.Tensor:
        x = (images.float() / 255 - self.mean) / self.std
        return x.permute(0, 3, 1, 2).to(memory_format=torch.channels_last)


def load(path: str, device: str, *, flips: bool) -> Data:
    with np.load(path) as file:
        names = ("x_train", "y_train", "x_test", "y_test")
        x_train, y_train, x_test, y_test = (torch.from_numpy(file[n]).to(device) for n in names)
    y_train, y_test = y_train.flatten().long(), y_test.flatten().long()
    shape = tuple(x_train.shape)
    if len(shape) != 4 or shape[1] != shape[2] or shape[3] != 3:
        raise SystemExit(f"x_train must hold square images [N, H, W, 3], got shape {shape}")
    values = torch.arange(256, dtype=torch.float64, device=device) / 255
    counts = torch.stack([c.bincount(minlength=256) for c in x_train.flatten(0, 2).unbind(1)])
    shares = counts.double() / counts[0].sum()
    mean, square = shares @ values, shares @ values**2
    mean, std = mean.round(decimals=4), (square - mean**2).sqrt().round(decimals=4)
    std[std == 0] = 1
    return Data(x_train, y_train, x_test, y_test, mean.float(), std.float(), flips)


def batches_per_epoch(data: Data, batch: int) -> int:
    count = len(data.x_train) // batch
    if count == 0:
        raise SystemExit(f"expected a batch of {batch} training images, got {len(data.x_train)}")
    return count


@dataclass(frozen=True)
class Compiler:
    """Compiles what the warm-up and the run after it train, or without a mode nothing.

    The module must be the same in both: another one would be compiled again, within the clock.
    """

    mode: str | None = None  # of the networks
    fused: bool | None = None  # SGD; None leaves it to torch
    kept: dict[Any, Any] = field(default_factory=dict)

    def network(self, new: Network) -> Network:
        """Return the new network; compiled, the first one of its kind, reset to the new one."""
        if self.mode is None:
            return new
        kind = type(new)
        if kind not in self.kept:
            new.compile(mode=self.mode, dynamic=False)  # the few sizes are compiled one by one
            self.kept[kind] = new
        kept: Network = self.kept[kind]
        kept.load_state_dict(new.state_dict())
        for parameter, other in zip(kept.parameters(), new.parameters(), strict=True):
            parameter.requires_grad_(other.requires_grad)
        return kept

    def function(self, function: Function) -> Function:
        """Return the function, compiled in the default mode whatever the networks' is.

        In a CUDA graph it would invalidate the gradients that the networks' graphs hold.
        """
        if self.mode is None:
            return function
        if function not in self.kept:
            self.kept[function] = torch.compile(function, dynamic=False)
        compiled: Function = self.kept[function]
        return compiled


UNCOMPILED = Compiler()


class Group(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(before, after, 3, padding=1, bias=False)
        self.conv2 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        self.norm1, self.norm2 = (nn.BatchNorm2d(after, eps=1e-12, momentum=0.4) for _ in range(2))
        for norm in (self.norm1, self.norm2):
            norm.weight.requires_grad_(False)
        for conv in (self.conv1, self.conv2):
            nn.init.dirac_(conv.weight.data[: conv.in_channels])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class Net(nn.Module):
    group, widths, logit_divisor = Group, (64, 256, 256), 256

    def __init__(self, classes: int) -> None:
        super().__init__()
        self.whiten = nn.Conv2d(3, 24, 2)
        self.whiten.weight.requires_grad_(False)
        self.groups = nn.Sequential(*(self.group(*pair) for pair in pairwise((24, *self.widths))))
        self.head = nn.Linear(self.widths[-1], classes, bias=False)
        self.head.weight.data /= self.head.weight.data.std()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        x = F.max_pool2d(x, x.shape[2:])  # 3 x 3 where the images are of 32 x 32
        return self.head(x.flatten(1)) / self.logit_divisor


def whiten(conv: nn.Conv2d, images: torch.Tensor) -> None:
    patches = images.unfold(2, 2, 1).unfold(3, 2, 1).transpose(1, 3).reshape(-1, 12)
    values, vectors = torch.linalg.eigh(patches.T @ patches / len(patches))
    filters = vectors.T.reshape(-1, 3, 2, 2) / torch.sqrt(values.view(-1, 1, 1, 1) + 5e-4)
    conv.weight.data[:] = torch.cat([filters, -filters])


def matrix(gradient: torch.Tensor) -> torch.Tensor:
    """Return the gradient of a convolution as a matrix to be orthogonalised, in bf16 if it can."""
    dtype = torch.bfloat16 if gradient.is_cuda or has_bf16() else torch.float32
    return gradient.flatten(1).to(dtype)


def orthogonalized(gradient: torch.Tensor) -> torch.Tensor:
    x = gradient / (gradient.norm() + 1e-7)
    x = x.T if gradient.shape[0] > gradient.shape[1] else x
    for _ in range(3):
        a = x @ x.T
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * a @ a) @ x
    return (x.T if gradient.shape[0] > gradient.shape[1] else x).float()


def muon_step(
    convs: list[nn.Parameter], buffers: list[torch.Tensor], rate: float, orthogonalize: Function
) -> None:
    for weight, buffer in zip(convs, buffers, strict=True):
        buffer.mul_(0.6).add_(weight.grad)
        update = orthogonalize(matrix(weight.grad.add(buffer, alpha=0.6))).view_as(weight)
        weight.data.mul_(len(weight) ** 0.5 / weight.data.norm())
        weight.data.add_(update, alpha=-rate)


class Lookahead:
    """Slow weights and statistics, which the model takes over each time; not for airbench94."""

    def __init__(self, model: nn.Module) -> None:
        self.fast = [value for value in model.state_dict().values() if value.is_floating_point()]
        self.slow = [value.clone() for value in self.fast]

    def update(self, decay: float) -> None:
        for slow, fast in zip(self.slow, self.fast, strict=True):
            fast.copy_(slow.lerp_(fast, 1 - decay))


def cropped(padded: torch.Tensor, reach: int) -> torch.Tensor:
    """Cut a window out of each image, twice the reach smaller, at a place of its own at random."""
    places, side = 2 * reach + 1, padded.shape[-1] - 2 * reach
    shifts = torch.randint(places, (len(padded), 2), device=padded.device)
    out = torch.empty_like(padded[:, :, :side, :side])
    if reach > 2:  # rows, then columns, as the original does: it copies less
        rows = torch.empty_like(padded[:, :, :side])
        for y in range(places):
            here = shifts[:, 0] == y
            rows[here] = padded[here, :, y : y + side]
        for x in range(places):
            here = shifts[:, 1] == x
            out[here] = rows[here, :, :, x : x + side]
        return out
    for y, x in product(range(places), repeat=2):
        here = (shifts[:, 0] == y) & (shifts[:, 1] == x)
        out[here] = padded[here, :, y : y + side, x : x + side]
    return out


def cut_out_(images: torch.Tensor, size: int) -> None:
    """Set a square of each image to 0, in place, wholly inside, at a place of its own."""
    side = images.shape[-1]
    corners = torch.randint(side - size + 1, (len(images), 2, 1), device=images.device)
    past = torch.arange(side, device=images.device) - corners
    rows, columns = ((past >= 0) & (past < size)).unbind(1)
    images.masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0)


def augmented(
    data: Data, epochs: int, *, reach: int = 2, cutout: int = 0
) -> Iterator[torch.Tensor]:
    """Yield each epoch's images: moved at random, and all flipped every other epoch."""
    images = data.normalized(data.x_train)
    if data.flips:
        flip = torch.rand(len(images), device=images.device) < 0.5
        images = torch.where(flip.view(-1, 1, 1, 1), images.flip(-1), images)
    padded = F.pad(images, (reach, reach, reach, reach), "reflect")
    del images
    for epoch in range(epochs):
        moved = cropped(padded, reach)
        if data.flips and epoch % 2:
            moved = moved.flip(-1)
        if cutout:
            cut_out_(moved, cutout)
        yield moved


def six_views(model: Function, images: torch.Tensor, *, flips: bool) -> torch.Tensor:
    """Average the logits of an image and of two moved by a pixel, and of the mirrors of the three.

    Three views, where mirrors are wrong.
    """

    def both(x: torch.Tensor) -> torch.Tensor:
        if not flips:
            return model(x).float()
        return 0.5 * model(x).float() + 0.5 * model(x.flip(-1)).float()

    padded, side = F.pad(images, (1, 1, 1, 1), "reflect"), images.shape[-1]
    moved = both(padded[:, :, :side, :side]) + both(padded[:, :, 2:, 2:])
    return 0.5 * both(images) + 0.25 * moved


def has_bf16() -> bool:
    """Whether the CPU multiplies bf16; where it is emulated, nothing would ever end."""
    if platform.machine() == "aarch64":
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def mixed_precision(device: str) -> torch.autocast:
    if device == "cpu":
        return torch.autocast(device, dtype=torch.bfloat16, enabled=has_bf16())
    return torch.autocast(device, dtype=torch.float16)


def train(data: Data, device: str, compiler: Compiler = UNCOMPILED) -> dict[str, Any]:
    """Train once and return seconds and accuracies; the caller sets the seed."""
    on_cpu, autocast = device == "cpu", mixed_precision(device)
    x_train, y_train = data.x_train, data.y_train
    model = compiler.network(Net(data.classes).to(device, memory_format=torch.channels_last))
    orthogonalize = compiler.function(orthogonalized)
    convs = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
    buffers = [torch.zeros_like(conv) for conv in convs]
    norms = [p for name, p in model.named_parameters() if "norm" in name and p.requires_grad]
    rates = [BIAS_RATE, BIAS_RATE, HEAD_RATE]
    groups = zip([[model.whiten.bias], norms, [model.head.weight]], rates, strict=True)
    decay = 2e-6 * BATCH
    sgd = torch.optim.SGD(
        [{"params": params, "lr": rate, "weight_decay": decay / rate} for params, rate in groups],
        momentum=0.85,
        nesterov=True,
        fused=compiler.fused,
    )
    per_epoch = batches_per_epoch(data, BATCH)
    total, whiten_total = EPOCHS * per_epoch, 3 * per_epoch

    start = time.perf_counter()
    some = torch.randperm(len(x_train), device=device)[:5000]
    whiten(model.whiten, data.normalized(x_train[some]))
    step = 0
    model.train()
    for epoch, epoch_images in enumerate(augmented(data, EPOCHS)):
        order = torch.randperm(len(x_train), device=device)
        loss_sum = torch.zeros((), device=device)
        for index in order[: per_epoch * BATCH].split(BATCH):
            model.whiten.bias.requires_grad_(step < whiten_total)
            for part in index.split(PART if on_cpu else BATCH):
                x = epoch_images[part].to(memory_format=torch.channels_last)
                with autocast:
                    logits = model(x)
                loss = F.cross_entropy(
                    logits.float(), y_train[part], label_smoothing=0.2, reduction="sum"
                )
                loss.backward()
                loss_sum += loss.detach()
            left = 1 - step / total
            sgd.param_groups[0]["lr"] = BIAS_RATE * max(0, 1 - step / whiten_total)
            sgd.param_groups[1]["lr"], sgd.param_groups[2]["lr"] = (
                BIAS_RATE * left,
                HEAD_RATE * left,
            )
            sgd.step()
            muon_step(convs, buffers, MUON_RATE * left, orthogonalize)
            model.zero_grad(set_to_none=True)
            step += 1
        mean = loss_sum.item() / (per_epoch * BATCH)
        print(f"epoch {epoch + 1} loss {mean:.4f} {time.perf_counter() - start:.0f} s", flush=True)
    seconds = {"train_seconds": time.perf_counter() - start}
    images_by_size = {str(data.side): step * BATCH}
    return seconds | {"images_by_size": images_by_size} | accuracies(model, data, autocast)


def accuracies(model: nn.Module, data: Data, autocast: torch.autocast) -> dict[str, float]:
    """Return the test accuracy of one view and of six, and the seconds of the six."""
    model.eval()

    def logits(images: torch.Tensor) -> torch.Tensor:
        # In one layout, or every kind of view would be compiled for.
        return model(images.contiguous(memory_format=torch.channels_last)).float()

    def share_right(scores: list[torch.Tensor]) -> float:
        return (torch.cat(scores).argmax(1) == data.y_test).double().mean().item()

    with torch.no_grad(), autocast:
        tests = [data.normalized(part) for part in data.x_test.split(1000)]
        one = share_right([logits(x) for x in tests])  # read, so that the clock starts after it
        start = time.perf_counter()
        right = share_right([six_views(logits, x, flips=data.flips) for x in tests])
        seconds = time.perf_counter() - start
    return {"tta_seconds": seconds, "test_accuracy": one, "test_accuracy_tta": right}


def warm_up_data(data: Data) -> Data:
    """Return two thousand of the images, with as many classes, and the sizes of test batches."""
    some, tests = slice(2048), slice(1000 + len(data.x_test) % 1000)
    labels = data.y_train[some].clone()
    labels[-1] = data.y_train.max()
    few = {"x_train": data.x_train[some], "y_train": labels}
    return replace(data, **few, x_test=data.x_test[tests], y_test=data.y_test[tests])


def main(recipe: str, train: Callable[[Data, str, Compiler], dict[str, Any]]) -> None:
    """Run a reference with the arguments of the command line."""
    parser = argparse.ArgumentParser(description=f"Train by the recipe of {recipe}.")
    parser.add_argument("--data", required=True, help="CIFAR-10, or the like, as an .npz")
    parser.add_argument("--output", type=Path, required=True, help="folder for record.json")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-flips", action="store_true", help="mirror nothing")
    parser.add_argument("--compile", action="store_true", help="compile, before the clock runs")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    data = load(args.data, args.device, flips=not args.no_flips)
    torch.backends.cudnn.benchmark = True  # as the originals have it
    on_cuda = torch.device(args.device).type == "cuda"
    compiler = UNCOMPILED
    if args.compile:
        compiler = Compiler("max-autotune" if on_cuda else "default", fused=on_cuda or None)
    precompile_seconds = 0.0
    if args.device != "cpu" or args.compile:  # the originals warm up before their clock, too
        few, start = warm_up_data(data), time.perf_counter()
        for _ in range(3 if args.compile else 1):  # a CUDA graph is recorded at its second call
            train(few, args.device, compiler)
        precompile_seconds = time.perf_counter() - start
    torch.manual_seed(args.seed)
    record = {"recipe": recipe, "seed": args.seed, "device": args.device}
    record |= {"compile": args.compile, "precompile_seconds": precompile_seconds}
    record |= {"flips": data.flips, "tta": "mirror_translate" if data.flips else "translate"}
    record |= train(data, args.device, compiler)
    args.output.mkdir(parents=True, exist_ok=True)
    (args.output / "record.json").write_text(json.dumps(record, indent=1) + "\n")
    print(json.dumps(record))


if __name__ == "__main__":
    main("airbench94_muon", train)
