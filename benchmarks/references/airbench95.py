"""A race's reference: the recipe of airbench95 (Jordan 2024, 10.4 s on an A100), CPU included.

Nothing here is taken from fasttricks, so that it can stand against it; what it shares with
airbench94_muon comes from that reference. Every number is the published one: groups of 128, 384 and
384 channels; 15 epochs of batches of 1024; SGD with a rate of 10 and a decay of 0.0153 for 1024
images, both for steps that momentum has not enlarged, and 64 times that rate for the biases of the
norms; a warm-up from a fifth of it within 23 % of the run, then down to 7 %; a lookahead every 5
updates, ever slower. The original keeps weights and images in float16; here the weights are float32
under autocast. On a CPU a batch is computed in parts of 512, which changes batch norm's statistics
only, under bfloat16 autocast if the CPU multiplies that. `--compile` compiles the network; the
original is not compiled.
"""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import airbench94_muon as base
import torch
import torch.nn.functional as F
from torch import nn

EPOCHS, BATCH, PART, WIDTHS = 15, 1024, 512, (128, 384, 384)
MOMENTUM, LABEL_SMOOTHING, WHITEN_EPOCHS, LOOKAHEAD_EVERY = 0.85, 0.2, 3, 5
RATE, DECAY = 10, 0.0153  # for 1024 images and steps without momentum


class Net(base.Net):
    widths, logit_divisor = WIDTHS, 9

    def __init__(self, classes: int) -> None:
        super().__init__(classes)
        nn.init.zeros_(self.whiten.bias)
        self.head.reset_parameters()


def sgd_for(model: Net, rate: float, decay: float, *, fused: bool | None = None) -> torch.optim.SGD:
    """Return SGD for sums over a batch, at a rate and a decay given for 1024 images."""
    kilostep = 1024 * (1 + 1 / (1 - MOMENTUM))
    trainable = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [[p for name, p in trainable if ("norm" in name) == norm] for norm in (True, False)]
    rates = [64 * rate / kilostep, rate / kilostep]
    return torch.optim.SGD(
        [
            {"params": params, "lr": lr, "weight_decay": decay * BATCH / kilostep / lr}
            for params, lr in zip(groups, rates, strict=True)
        ],
        momentum=MOMENTUM,
        nesterov=True,
        fused=fused,
    )


def rate_factor(step: int, total: int, *, warmup_share: float, last: float) -> float:
    warmup = int(total * warmup_share)
    if step < warmup:
        return 0.2 + 0.8 * step / warmup
    return 1 - (1 - last) * (step - warmup) / (total - warmup)


def lookahead_decay(step: int, total: int) -> float:
    return 0.95**LOOKAHEAD_EVERY * (step / total) ** 3


def train(
    data: base.Data, device: str, compiler: base.Compiler = base.UNCOMPILED
) -> dict[str, Any]:
    """Train once and return seconds and accuracies; the caller sets the seed."""
    on_cpu, autocast = device == "cpu", base.mixed_precision(device)
    x_train, y_train = data.x_train, data.y_train
    model = compiler.network(Net(data.classes).to(device, memory_format=torch.channels_last))
    sgd = sgd_for(model, RATE, DECAY, fused=compiler.fused)
    lookahead = base.Lookahead(model)
    per_epoch = base.batches_per_epoch(data, BATCH)
    total, step = EPOCHS * per_epoch, 0
    factor = partial(rate_factor, total=total, warmup_share=0.23, last=0.07)
    schedule = torch.optim.lr_scheduler.LambdaLR(sgd, factor)

    start = time.perf_counter()
    some = torch.randperm(len(x_train), device=device)[:5000]
    base.whiten(model.whiten, data.normalized(x_train[some]))
    model.train()
    for epoch, images in enumerate(base.augmented(data, EPOCHS)):
        model.whiten.bias.requires_grad_(epoch < WHITEN_EPOCHS)
        order = torch.randperm(len(x_train), device=device)
        loss_sum = torch.zeros((), device=device)
        for index in order[: per_epoch * BATCH].split(BATCH):
            for part in index.split(PART if on_cpu else BATCH):
                x = images[part].to(memory_format=torch.channels_last)
                with autocast:
                    logits = model(x)
                loss = F.cross_entropy(
                    logits.float(), y_train[part], label_smoothing=LABEL_SMOOTHING, reduction="sum"
                )
                loss.backward()
                loss_sum += loss.detach()
            sgd.step()
            schedule.step()
            model.zero_grad(set_to_none=True)
            step += 1
            if step % LOOKAHEAD_EVERY == 0:
                lookahead.update(lookahead_decay(step, total))
        mean = loss_sum.item() / (per_epoch * BATCH)
        print(f"epoch {epoch + 1} loss {mean:.4f} {time.perf_counter() - start:.0f} s", flush=True)
    lookahead.update(1.0)
    seconds = {"train_seconds": time.perf_counter() - start}
    images_by_size = {str(data.side): step * BATCH}
    return seconds | {"images_by_size": images_by_size} | base.accuracies(model, data, autocast)


if __name__ == "__main__":
    base.main("airbench95", train)
