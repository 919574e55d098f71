"""The recipe for 96 % of cifar10_94.py: airbench96_faster's (Jordan 2024), of the library's pieces.

A wide network of nine convolutions trains on the half of each batch that a small one, the proxy,
finds hardest: SGD, strongly smoothed labels, a large Cutout, Lookahead. Other than there: more
epochs; on a CPU the proxy looks at a batch in parts; and at the end, batch norm's statistics are
estimated anew, for an average of the last weights. `--compile` compiles the wide network alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import _shared
import torch
from _shared import Plan

import fasttricks as ft

NETWORK96 = {"widths": (128, 384, 512), "depths": (3, 3, 3)}
PROXY = {"widths": (32, 64, 64)}


def speedrun96(
    plan: Plan, *, share: float = 0.5, every: int = 4, **network: Sequence[int]
) -> tuple[ft.Trainer, ft.ProxyLoader, float]:
    """SGD on what a proxy finds hardest; after airbench96_faster (Jordan 2024)."""
    _shared.check("share", share, most=1)
    train = plan.train
    normalize = ft.Normalize(*train.mean_std())
    side = min(train.image_size)
    augmentation: list[ft.Transform[Any]] = [
        ft.RandomTranslate(max(1, round(side / 8)), mode="reflect"),
        *([ft.AlternatingFlip()] if plan.flips else []),
        normalize,
        ft.Cutout(max(1, round(0.375 * side)), inside=True),
    ]
    # The batch size is that of the images that are trained on, a share of those looked at.
    whole = min(len(train), round(plan.batch_size / share))
    batch = max(1, round(share * whole))
    whole_batches = replace(plan, batch_size=whole).loader(*augmentation)
    some_batches = plan.some_batches(*augmentation)
    steps = max(1, round(plan.epochs * len(whole_batches)))
    loss = torch.nn.CrossEntropyLoss(label_smoothing=0.2)
    pixels = normalize(plan.whiten_images.images.to(plan.device))

    proxy, proxy_seconds = _whitened(plan, pixels, **PROXY)
    proxy.whiten.bias.requires_grad_(False)
    proxy_sgd, proxy_rates = _sgd(proxy, batch, steps)
    choosing = partial(
        ft.ProxyLoader,
        proxy=proxy,
        optimizer=proxy_sgd,
        share=share,
        every=every,
        loss=loss,
        precision=plan.switches.get("precision", "auto"),
        micro_batch_size=plan.part(768),
    )
    loader = choosing(whole_batches, schedulers=[proxy_rates])
    # Batch norm's last statistics are of what is trained on: hard images, with their Cutout.
    again = choosing(some_batches)

    model, seconds = _whitened(plan, pixels, **network)
    sgd, rates = _sgd(model, batch, steps)
    trainer = ft.Trainer(
        model,
        sgd,
        schedulers=[rates],
        loss=loss,
        micro_batch_size=plan.part(768),
        callbacks=[
            ft.FreezeAfter([model.whiten.bias], steps=max(1, steps // 15)),
            ft.Lookahead(every=5, decay=0.95**5, rise=3),
            _shared.average(steps, again),
        ],
        **plan.switches,
    )
    return trainer, loader, proxy_seconds + seconds


def _whitened(
    plan: Plan, pixels: torch.Tensor, **network: Any
) -> tuple[ft.models.SpeedrunNet, float]:
    """Return a network that starts whitened and as the identity, and the seconds of whitening."""
    options = {"act": "gelu", "logit_scale": 1 / 9, "batch_norm_momentum": 0.1, **network}
    train = plan.train
    model = ft.speedrun_net(train.num_classes, in_channels=train.channels, **options)
    model.head.reset_parameters()
    torch.nn.init.zeros_(model.whiten.bias)
    # In evaluation too, as a proxy does little else than look, without gradients.
    ft.use_winograd_(model.to(plan.device), evaluation=True)
    return model, _shared.timed(lambda: ft.whiten_(model.whiten, pixels), plan.device)


def _sgd(
    model: ft.models.SpeedrunNet, batch: int, steps: int
) -> tuple[torch.optim.SGD, ft.ScheduledGroups]:
    """Return SGD, 64 times as fast for the norms, and its rates: a warm-up, then down to 0.

    Rates grow with the batch; rate times weight decay is 3e-6 an image.
    """
    trained = [p for p in model.parameters() if p.requires_grad]
    norms = [p for p in trained if p.ndim == 1 and p is not model.whiten.bias]
    others = [p for p in trained if p.ndim > 1 or p is model.whiten.bias]
    ramp = partial(
        ft.one_cycle, pct_start=0.1, anneal="linear", div_factor=5, final_div_factor=math.inf
    )
    groups, falls = [], []
    for parameters, factor in ((norms, 64), (others, 1)):
        rate = factor * 1.146e-3 * batch
        groups.append({"params": parameters, "lr": rate, "weight_decay": 3.06e-6 * batch / rate})
        falls.append(ramp(rate, steps + 1))  # one step more, so that the last update's is not 0
    sgd = torch.optim.SGD(groups, momentum=0.85, nesterov=True)
    return sgd, ft.ScheduledGroups(sgd, {"lr": falls})
