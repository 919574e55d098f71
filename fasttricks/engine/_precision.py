"""Mixed precision as an object with four hooks, so that the training step never names a scaler."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grad_norm_
from torch.optim import Optimizer

from fasttricks._checks import check_choice
from fasttricks._hardware import multiplies_bf16
from fasttricks.engine._inputs import check_mean
from fasttricks.engine._lists import parameters_of

PRECISIONS = ("auto", "fp32", "bf16", "fp16")


class Precision:
    """How a step computes: the forward pass's dtype, and the scaling of gradients that it needs.

    ``bf16`` and ``fp16`` run the forward pass under autocast, weights and optimizer state stay in
    fp32. ``fp16`` also scales the loss so that small gradients do not vanish, and skips an update
    whose gradients overflowed. ``auto`` takes bf16 where the device computes it natively (CPUs with
    AVX512-BF16, AMX or Arm's BF16; GPUs since Ampere), fp16 on older CUDA GPUs, and fp32 elsewhere.

    Args:
        name: "auto" (default), "fp32", "bf16" or "fp16".
        device: The device of the model, "cpu" by default.

    Attributes:
        device_type: The kind of that device, such as "cuda".
        skipped_steps: Updates left out so far, whose gradients overflowed.

    Raises:
        ValueError: If ``name`` is unknown, or fp16 is asked for on a device that is not CUDA.

    Example:
        >>> Precision("bf16").name
        'bf16'
    """

    def __init__(self, name: str = "auto", *, device: torch.device | str = "cpu") -> None:
        check_choice("precision", name, PRECISIONS)
        device = torch.device(device)
        self.name = _best_precision(device) if name == "auto" else name
        if self.name == "fp16" and device.type != "cuda":
            raise ValueError(
                f"precision must be 'bf16' or 'fp32' on device {device.type!r}, got "
                "precision='fp16'; fp16 with gradient scaling needs a CUDA device"
            )
        self.device_type = device.type
        self._scaler = torch.amp.GradScaler(device.type) if self.name == "fp16" else None
        self.skipped_steps = 0

    def forward_context(self) -> AbstractContextManager[Any]:
        """Return the context in which the forward pass runs."""
        if self.name == "fp32":
            return nullcontext()
        dtype = torch.bfloat16 if self.name == "bf16" else torch.float16
        return torch.autocast(self.device_type, dtype=dtype)

    def backward(self, loss: Tensor) -> None:
        """Accumulate the gradients of ``loss``, a single number (scaled, for fp16)."""
        check_mean(loss)
        (loss if self._scaler is None else self._scaler.scale(loss)).backward()

    def step(self, optimizers: Sequence[Optimizer], *, max_norm: float | None = None) -> bool:
        """Make one update of every optimizer; return whether it happened (fp16 skips overflows).

        With ``max_norm`` the gradients of all optimizers together are scaled down to that norm if
        theirs is larger.
        """
        if self._scaler is None:
            _clip(optimizers, max_norm)
            for optimizer in optimizers:
                optimizer.step()
            return True
        # The scaler would skip only the optimizer whose own gradients overflowed. Half an update is
        # no update, so all are unscaled first, and all step or none does.
        for optimizer in optimizers:
            self._scaler.unscale_(optimizer)
        try:
            stepped = gradients_are_finite(optimizers)
            if stepped:
                _clip(optimizers, max_norm)
                for optimizer in optimizers:
                    optimizer.step()
        finally:  # after an error too, or the next update would find it unscaled
            self._scaler.update()
        self.skipped_steps += not stepped
        return stepped

    def state_dict(self) -> dict[str, Any]:
        """Return what a checkpoint must keep: the scale, and how many updates were skipped."""
        scaler = {} if self._scaler is None else self._scaler.state_dict()
        return {"scaler": scaler, "skipped_steps": self.skipped_steps}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore what ``state_dict`` returned."""
        if self._scaler is not None and state["scaler"]:
            self._scaler.load_state_dict(state["scaler"])
        self.skipped_steps = state["skipped_steps"]


def as_precision(precision: object, device: torch.device) -> Precision:
    """Return a ``Precision`` as it is, or the one that a name stands for.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is one for another kind of device.
    """
    if isinstance(precision, str):
        return Precision(precision, device=device)
    if not isinstance(precision, Precision):
        names = ", ".join(repr(name) for name in PRECISIONS)
        raise TypeError(
            f"precision must be one of {names} or a Precision, got precision={precision!r}"
        )
    if precision.name != "fp32" and precision.device_type != device.type:
        raise ValueError(
            f"precision must be made for the model's device, {device.type!r}, got one for "
            f"{precision.device_type!r}; pass device= to Precision, or its name alone"
        )
    return precision


def _clip(optimizers: Sequence[Optimizer], max_norm: float | None) -> None:
    if max_norm is not None:
        clip_grad_norm_(parameters_of(optimizers), max_norm)


def gradients_are_finite(optimizers: Sequence[Optimizer]) -> bool:
    """Whether no gradient holds a NaN or an infinity."""
    gradients = [p.grad for p in parameters_of(optimizers) if p.grad is not None]
    return not gradients or bool(torch.stack([g.isfinite().all() for g in gradients]).all())


def all_finite(model: nn.Module) -> bool:
    """Whether every trained parameter is finite; others may hold infinities on purpose."""
    trained = [p for p in model.parameters() if p.requires_grad and p.is_floating_point()]
    values = [p.detach().isfinite().all() for p in trained]
    return not values or bool(torch.stack(values).all())


def _best_precision(device: torch.device) -> str:
    if multiplies_bf16(device):
        return "bf16"
    return "fp16" if device.type == "cuda" else "fp32"
