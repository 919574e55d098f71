"""A race's reference: Fulcrum's E1 (July 2026, 1.828 s on an A100) in plain torch, CPU included.

Nothing here is taken from fasttricks, so that it can stand against it; what it shares with
airbench94_muon comes from that reference. Every number is the published one, most of them
Hiverge's: batches of 1536; 3 epochs at 24 pixels, 3 at 28, the rest at 32; rates 0.0573 (biases)
and 0.5415 (head), for a loss that is a sum, and 0.2255 (Muon), which fall to 5 % within 8.5 epochs
and stay there up to 8.875; label smoothing 0.09; jittered intensity; SiLU; from 8 updates before
the end of the fall on, a lookahead of decay 0.7 every 4 updates. On a CPU a batch is computed in
parts of 512, under bfloat16 autocast if it multiplies that. The CUDA graph of the original's update
is left out; with `--compile`, the network and the orthogonalisation are compiled.
"""

from __future__ import annotations

import math
import time
from typing import Any

import airbench94_muon as base
import torch
import torch.nn.functional as F
from torch import nn

EPOCHS, DECAY_EPOCHS, FLOOR, BATCH, PART = 8.875, 8.5, 0.05, 1536, 512
BIAS_RATE, HEAD_RATE, MUON_RATE = 0.0573, 0.5415, 0.2255
SGD_MOMENTUM, MUON_MOMENTUM, WEIGHT_DECAY = 0.825, 0.655, 1.0418e-6 * BATCH
LABEL_SMOOTHING, SHIFT, SCALE, NORM_MOMENTUM = 0.09, 0.1399, 0.1308, 1 - 0.5566
WHITEN_EPOCHS, WHITEN_IMAGES = 0.2, 960
LOOKAHEAD_DECAY, LOOKAHEAD_EVERY, LOOKAHEAD_BEFORE = 0.7, 4, 8
SIZES = [0.75] * 3 + [0.875] * 3  # of the side, then all of it


class Group(base.Group):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        for norm in (self.norm1, self.norm2):
            norm.momentum = NORM_MOMENTUM

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.silu(self.norm2(self.conv2(x)))


class Net(base.Net):
    group = Group

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.groups(F.gelu(self.whiten(x)))
        return self.head(x.flatten(2).amax(2)) / self.logit_divisor


def orthogonalized(gradient: torch.Tensor) -> torch.Tensor:
    x = gradient / (gradient.norm() + 1e-7)
    x = x.T if gradient.shape[0] > gradient.shape[1] else x
    for _ in range(3):
        a = x @ x.T
        x = 3.4576 * x + (-4.7391 * a + 2.0843 * a @ a) @ x
    return (x.T if gradient.shape[0] > gradient.shape[1] else x).float()


class Muon:
    """Steps whose weights are brought back to norm sqrt(C_out) ever more seldom."""

    def __init__(self, convs: list[nn.Parameter], orthogonalize: base.Function) -> None:
        self.convs, self.orthogonalize = convs, orthogonalize
        self.buffers = [torch.zeros_like(conv) for conv in convs]
        self.since_renorm = 0

    def step(self, rate: float, progress: float) -> None:
        self.since_renorm += 1
        renorm = self.since_renorm >= 2 + int(15 * progress)
        self.since_renorm = 0 if renorm else self.since_renorm
        for weight, buffer in zip(self.convs, self.buffers, strict=True):
            buffer.mul_(MUON_MOMENTUM).add_(weight.grad)
            momentum = weight.grad.add(buffer, alpha=MUON_MOMENTUM)
            update = self.orthogonalize(base.matrix(momentum)).view_as(weight)
            weight.data.mul_(1 - WEIGHT_DECAY)
            if renorm:
                weight.data.mul_(len(weight) ** 0.5 / weight.data.norm())
            weight.data.add_(update, alpha=-rate)


def jittered(x: torch.Tensor) -> torch.Tensor:
    shift, scale = (
        torch.rand(len(x), 1, 1, 1, device=x.device).mul_(2).sub_(1).mul_(reach)
        for reach in (SHIFT, SCALE)
    )
    return (x + shift) * (1 + scale)


def train(
    data: base.Data, device: str, compiler: base.Compiler = base.UNCOMPILED
) -> dict[str, Any]:
    """Train once and return seconds and accuracies; the caller sets the seed."""
    on_cpu, autocast = device == "cpu", base.mixed_precision(device)
    x_train, y_train = data.x_train, data.y_train
    model = compiler.network(Net(data.classes).to(device, memory_format=torch.channels_last))
    convs = [p for p in model.parameters() if p.ndim == 4 and p.requires_grad]
    muon = Muon(convs, compiler.function(orthogonalized))
    norms = [p for name, p in model.named_parameters() if "norm" in name and p.requires_grad]
    rates = [BIAS_RATE, BIAS_RATE, HEAD_RATE]
    groups = zip([[model.whiten.bias], norms, [model.head.weight]], rates, strict=True)
    sgd = torch.optim.SGD(
        [{"params": p, "lr": rate, "weight_decay": WEIGHT_DECAY / rate} for p, rate in groups],
        momentum=SGD_MOMENTUM,
        nesterov=True,
        fused=compiler.fused,
    )
    per_epoch = base.batches_per_epoch(data, BATCH)
    total, decay_end = round(EPOCHS * per_epoch), round(DECAY_EPOCHS * per_epoch)
    whiten_total = max(1, round(WHITEN_EPOCHS * per_epoch))
    lookahead_start = decay_end - LOOKAHEAD_BEFORE

    start = time.perf_counter()
    some = torch.randperm(len(x_train), device=device)[:WHITEN_IMAGES]
    base.whiten(model.whiten, data.normalized(x_train[some]))
    lookahead: base.Lookahead | None = None
    sizes = [round(share * data.side) for share in SIZES]
    step, images_by_size = 0, {str(size): 0 for size in [*sizes, data.side]}
    model.train()
    for epoch, epoch_images in enumerate(base.augmented(data, math.ceil(EPOCHS))):
        size = sizes[epoch] if epoch < len(sizes) else data.side
        order = torch.randperm(len(x_train), device=device)
        for index in order[: per_epoch * BATCH].split(BATCH)[: total - step]:
            model.whiten.bias.requires_grad_(step < whiten_total)
            for part in index.split(PART if on_cpu else BATCH):
                x = jittered(epoch_images[part])
                if size < data.side:
                    x = F.interpolate(x, size=(size, size), mode="bilinear")
                x = x.to(memory_format=torch.channels_last)
                with autocast:
                    logits = model(x)
                loss = F.cross_entropy(
                    logits.float(), y_train[part], label_smoothing=LABEL_SMOOTHING, reduction="sum"
                )
                loss.backward()
            left = max(FLOOR, 1 - (1 - FLOOR) * step / decay_end)
            for group, rate in zip(sgd.param_groups, rates, strict=True):
                group["lr"] = rate * left
            sgd.param_groups[0]["lr"] = BIAS_RATE * max(0.0, 1 - step / whiten_total)
            sgd.step()
            muon.step(MUON_RATE * left, step / total)
            model.zero_grad(set_to_none=True)
            step += 1
            images_by_size[str(size)] += BATCH
            if step == lookahead_start:
                lookahead = base.Lookahead(model)
            elif lookahead and (step - lookahead_start) % LOOKAHEAD_EVERY == 0:
                lookahead.update(LOOKAHEAD_DECAY)
        print(f"epoch {epoch + 1} size {size} {time.perf_counter() - start:.0f} s", flush=True)
    if not on_cpu:
        torch.cuda.synchronize()
    seconds = {"train_seconds": time.perf_counter() - start}
    found = base.accuracies(model, data, autocast)
    return seconds | {"images_by_size": images_by_size} | found


if __name__ == "__main__":
    base.main("fulcrum_e1", train)
