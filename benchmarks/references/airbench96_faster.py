"""A race's reference: the recipe of airbench96_faster (Jordan 2024, 27.3 s on an A100), CPU too.

Nothing here is taken from fasttricks, so that it can stand against it; what it shares with
airbench94_muon and airbench95 comes from those references. Every number is the published one:
groups of three convolutions of 128, 384 and 512 channels, the last two in a residual; 45 epochs of
batches of 1024, of which only the 512 images are trained on whose loss is highest by a proxy;
translation by 4, a Cutout of 12 pixels inside the image; SGD as in airbench95, with a rate of 9, a
decay of 0.012, a warm-up of a tenth of the run and a fall to 0. The proxy, groups of two
convolutions of 32, 64 and 64 channels, sees the same images, and every fourth time learns from the
half that it chose. The original trains it before, with the same augmentation once more; here the
two go side by side, which is the same. `--compile` compiles both networks, as the original does.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import airbench94_muon as base
import airbench95 as previous
import torch
import torch.nn.functional as F
from torch import nn

EPOCHS, BATCH, CHOSEN, WIDTHS = 45, 1024, 512, (128, 384, 512)
RATE, DECAY, WARMUP, REACH, CUTOUT, PROXY_EVERY = 9, 0.012, 0.1, 4, 12, 4


class Group(base.Group):
    def __init__(self, before: int, after: int) -> None:
        super().__init__(before, after)
        self.conv3 = nn.Conv2d(after, after, 3, padding=1, bias=False)
        nn.init.dirac_(self.conv3.weight)
        self.norm3 = nn.BatchNorm2d(after, eps=1e-12)
        self.norm3.weight.requires_grad_(False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        y = F.gelu(self.norm2(self.conv2(x)))
        return F.gelu(x + self.norm3(self.conv3(y)))


class Net(previous.Net):
    group, widths = Group, WIDTHS


class Proxy(previous.Net):
    widths = (32, 64, 64)


def update(model: nn.Module, sgd: torch.optim.SGD, loss: torch.Tensor) -> None:
    loss.backward()
    sgd.step()
    model.zero_grad(set_to_none=True)


def train(
    data: base.Data, device: str, compiler: base.Compiler = base.UNCOMPILED
) -> dict[str, Any]:
    """Train once and return seconds and accuracies; the caller sets the seed."""
    autocast = base.mixed_precision(device)
    x_train, y_train = data.x_train, data.y_train
    models = [kind(data.classes) for kind in (Net, Proxy)]
    for model in models:
        for norm in model.modules():
            if isinstance(norm, nn.BatchNorm2d):
                norm.momentum = 0.1
        model.to(device, memory_format=torch.channels_last)
    network, proxy = models = [compiler.network(model) for model in models]
    proxy.whiten.bias.requires_grad_(False)
    network_sgd, proxy_sgd = optimizers = [
        previous.sgd_for(model, RATE, DECAY, fused=compiler.fused) for model in models
    ]
    per_epoch = base.batches_per_epoch(data, BATCH)
    total, step = EPOCHS * per_epoch, 0
    factor = partial(previous.rate_factor, total=total, warmup_share=WARMUP, last=0.0)
    schedules = [torch.optim.lr_scheduler.LambdaLR(sgd, factor) for sgd in optimizers]
    lookahead = base.Lookahead(network)

    def losses(model: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        with autocast:
            logits = model(images.to(memory_format=torch.channels_last)).float()
        smoothing = previous.LABEL_SMOOTHING
        return F.cross_entropy(logits, labels, label_smoothing=smoothing, reduction="none")

    start = time.perf_counter()
    some = torch.randperm(len(x_train), device=device)[:5000]
    for model in models:
        base.whiten(model.whiten, data.normalized(x_train[some]))
        model.train()
    epochs = base.augmented(data, EPOCHS, reach=REACH, cutout=CUTOUT)
    for epoch, images in enumerate(epochs):
        network.whiten.bias.requires_grad_(epoch < previous.WHITEN_EPOCHS)
        order = torch.randperm(len(x_train), device=device)
        loss_sum = torch.zeros((), device=device)
        for index in order[: per_epoch * BATCH].split(BATCH):
            learns = step % PROXY_EVERY == 0
            with torch.set_grad_enabled(learns):
                each = losses(proxy, images[index], y_train[index])
            chosen = each.detach().topk(CHOSEN).indices
            if learns:
                update(proxy, proxy_sgd, each[chosen].sum())
            each = losses(network, images[index[chosen]], y_train[index[chosen]])
            update(network, network_sgd, each.sum())
            loss_sum += each.detach().sum()
            for schedule in schedules:
                schedule.step()
            step += 1
            if step % previous.LOOKAHEAD_EVERY == 0:
                lookahead.update(previous.lookahead_decay(step, total))
        mean = loss_sum.item() / (per_epoch * CHOSEN)
        print(f"epoch {epoch + 1} loss {mean:.4f} {time.perf_counter() - start:.0f} s", flush=True)
    lookahead.update(1.0)
    seconds = {"train_seconds": time.perf_counter() - start}
    images_by_size = {str(data.side): step * CHOSEN}
    return seconds | {"images_by_size": images_by_size} | base.accuracies(network, data, autocast)


if __name__ == "__main__":
    base.main("airbench96_faster", train)
