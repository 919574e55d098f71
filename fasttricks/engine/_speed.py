"""The Trainer's speed switches: compilation, fused optimizers, TF32, the hardest images first."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks._checks import check_choice, check_share
from fasttricks.engine._batch_loss import Loss, with_reduction

RECORDING = ("reduce-overhead", "max-autotune", "cudagraphs")
_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")


def records_graphs(compile: bool | str, device: torch.device) -> bool:
    """Whether ``torch.compile`` records CUDA graphs itself in this mode or by this backend."""
    return device.type == "cuda" and compile in RECORDING


def compiler(choice: bool | str) -> Callable[[nn.Module], nn.Module] | None:
    """Return ``torch.compile``, with a mode or backend if ``choice`` names one, or None."""
    if not isinstance(choice, bool | str):
        raise TypeError(f"compile must be True, False, a mode or a backend, got compile={choice!r}")
    if choice is False:
        return None
    backend = "inductor" if choice is True or choice in _MODES else choice
    check_choice("compile", backend, [*torch.compiler.list_backends(()), "eager", "aot_eager"])
    options: dict[str, Any] = {"backend": backend, "dynamic": False}
    if choice in _MODES:
        options["mode"] = choice

    def wrap(module: nn.Module) -> nn.Module:
        return torch.compile(module, **options)  # type: ignore[return-value]

    return wrap


def use_fused(optimizers: Sequence[Optimizer]) -> None:
    """Let the optimizers that have a fused implementation use it, before their first update.

    Raises:
        ValueError: If none has one, or one has made updates already or was given ``foreach=True``.
    """
    able = [optimizer for optimizer in optimizers if "fused" in optimizer.defaults]
    if not able:
        names = ", ".join(type(optimizer).__name__ for optimizer in optimizers)
        raise ValueError(
            "fused=True needs an optimizer with a fused implementation, such as SGD or AdamW, got "
            f"{names}; leave fused out"
        )
    changed = [
        optimizer
        for optimizer in able
        if not all(group.get("fused") for group in optimizer.param_groups)
    ]
    for optimizer in changed:
        name = type(optimizer).__name__
        if optimizer.state:
            raise ValueError(
                f"fused=True must come before the first update, got a used {name}; "
                f"pass fused=True to {name} itself"
            )
        for group in optimizer.param_groups:
            if group.get("foreach") or group.get("differentiable"):
                raise ValueError(
                    f"fused=True goes neither with foreach nor with differentiable, got one in "
                    f"{name}; leave those out there"
                )
    for optimizer in changed:
        for group in optimizer.param_groups:
            group["fused"], group["foreach"] = True, False
        optimizer.defaults |= {"fused": True, "foreach": False}


def use_channels_last(model: nn.Module) -> None:
    """Lay a model's convolution weights out in channels_last; raise a ValueError if it has none."""
    try:
        model.to(memory_format=torch.channels_last)
    except RuntimeError as error:
        raise ValueError(
            f"channels_last must be False for {type(model).__name__}, whose weights have no such "
            f"layout ({error})"
        ) from error


def check_tf32(device: torch.device) -> None:
    """Raise unless the device multiplies in TF32."""
    if device.type != "cuda":
        raise ValueError(f"tf32=True needs a model on a CUDA device, got {device.type!r}")


@contextmanager
def tf32_matmul() -> Iterator[None]:
    """Multiply fp32 matrices in TF32 inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def selecting(loss: Callable[[Tensor, Tensor], Tensor], select: float) -> Any:
    """Return ``loss`` as one number an image, by which to select a share; None if that is all.

    Raises:
        ValueError: If ``select`` is not above 0 and at most 1, or as for ``loss_per_image``.
    """
    check_share("select", select)
    return None if select == 1 else loss_per_image(loss, f"select={select}")


def loss_per_image(loss: Callable[[Tensor, Tensor], Tensor], what: str) -> Any:
    """Return ``loss`` as a function that gives one number for each image, [N].

    Of a loss with several numbers an image, such as one a pixel, it is their mean. ``what`` names
    the feature that needs it, for error messages.

    Raises:
        ValueError: If the loss has no ``reduction``; when it is called, if the loss has not as many
            rows as there are outputs.
    """
    if getattr(loss, "reduction", None) != "mean":
        raise ValueError(
            f"{what} must come with a loss of reduction='mean', such as nn.CrossEntropyLoss, got "
            f"{loss!r}"
        )
    return partial(_of_images, with_reduction(loss, "none"), what)


def _of_images(each: Loss, what: str, outputs: Tensor, targets: Tensor) -> Tensor:
    losses = each(outputs, targets)
    if losses.shape[:1] != outputs.shape[:1]:
        raise ValueError(
            f"{what} needs a loss that gives a value for each image with reduction='none', got "
            f"shape {list(losses.shape)} for outputs {list(outputs.shape)}"
        )
    return losses.flatten(1).mean(1) if losses.ndim > 1 else losses


def number_chosen(count: int, share: float) -> int:
    """Return how many of so many images a share is, one at least."""
    return max(1, round(share * count))


def hardest(losses: Tensor, share: float) -> Tensor:
    """Return the indices, rising, of the share of images with the highest losses, one at least.

    Example:
        >>> hardest(torch.tensor([0.1, 3.0, 0.2, 2.0]), 0.5)
        tensor([1, 3])
    """
    return losses.topk(number_chosen(len(losses), share), sorted=False).indices.sort().values
