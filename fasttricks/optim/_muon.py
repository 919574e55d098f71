"""Muon for matrices and convolutions, with layers of one shape orthogonalised together.

Shapes: a parameter of shape [M, ...] is used as the matrix [M, K], K the product of the other sizes
(M = C_out and K = C_in * h * w for a convolution); B such matrices are stacked to [B, M, K].
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT
from typing_extensions import override

from fasttricks._checks import check_choice, check_integer, check_non_negative
from fasttricks._hardware import multiplies_bf16

_ADJUSTMENTS: dict[str, Callable[[int, int], float]] = {
    "original": lambda m, k: math.sqrt(max(1.0, m / k)),
    "match_rms_adamw": lambda m, k: 0.2 * math.sqrt(max(m, k)),
    "none": lambda m, k: 1.0,
}

# Of the quintic step: Jordan's, whose slope at 0 is steep.
_COEFFICIENTS = (3.4445, -4.7750, 2.0315)


def orthogonalize(
    matrices: Tensor,
    *,
    steps: int = 5,
    coefficients: tuple[float, float, float] = _COEFFICIENTS,
    eps: float = 1e-7,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the nearest (semi-)orthogonal matrices, approximately, by a Newton-Schulz iteration.

    With X scaled to norm 1, each step computes ``X <- a X + (b A + c A A) X``, where ``A = X X^T``.
    It drives every singular value towards 1; with the default coefficients, which have the largest
    slope at 0, they end between about 0.7 and 1.2, which is as good for training as exact ones.

    Args:
        matrices: Matrices [..., M, K], any float dtype.
        steps: Number of iterations, at least 1; 5 by default, 3 in the speed runs.
        coefficients: (a, b, c).
        eps: Added to the norm, so that a zero matrix stays zero.
        dtype: Working dtype. None (default) is bfloat16 where the device is known to multiply it
            natively, and float32 elsewhere: a CPU without it is hundreds of times slower.

    Returns:
        Matrices [..., M, K] in the working dtype.

    Raises:
        ValueError: If ``matrices`` has fewer than two dimensions, or ``steps`` is under 1.

    Example:
        >>> orthogonalize(torch.diag(torch.tensor([5.0, 1.0])), dtype=torch.float32).shape
        torch.Size([2, 2])

    Reference:
        Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks".
    """
    if matrices.ndim < 2:
        raise ValueError(
            f"matrices must have at least 2 dimensions, got shape {tuple(matrices.shape)}"
        )
    check_integer("steps", steps, minimum=1)
    if dtype is None:
        dtype = torch.bfloat16 if multiplies_bf16(matrices.device) else torch.float32
    a, b, c = coefficients
    x = matrices.to(dtype).reshape(-1, *matrices.shape[-2:])
    # The Gram matrix is taken on the shorter side: M x M for a wide matrix, K x K for a tall one.
    tall = x.size(-2) > x.size(-1)
    if tall:
        x = x.mT
    x = x / (torch.linalg.matrix_norm(x, keepdim=True) + eps)
    for _ in range(steps):
        gram = x @ x.mT
        polynomial = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        x = torch.baddbmm(x, polynomial, x, beta=a)
    return (x.mT if tall else x).reshape(matrices.shape)


class Muon(Optimizer):
    """Momentum, orthogonalised: each update is ``lr`` times its nearest orthogonal matrix.

    For matrices and convolutions (a weight [C_out, C_in, h, w] is the matrix [C_out, C_in h w]);
    give biases, norms and usually the last layer to another optimizer. Update k uses
    ``B = momentum * B + grad``, then ``U = orthogonalize(grad + momentum * B)`` (Nesterov) or
    ``orthogonalize(B)``, then ``weight <- (1 - lr * weight_decay) * weight - lr * adjust * U``.
    Parameters of one shape are stacked and orthogonalised in one batched call, in bfloat16 where
    the device is known to multiply it natively, in float32 elsewhere.

    Args:
        params: Parameters with at least two dimensions, or groups of them.
        lr: Learning rate, a float or a 0-D tensor; 0.02 by default.
        momentum: Momentum, at least 0 and under 1; 0.95 by default.
        nesterov: Look ahead along the momentum; on by default.
        weight_decay: Decoupled weight decay, a factor of ``lr``; 0 by default.
        ns_steps: Newton-Schulz iterations, at least 1; 5 by default.
        ns_coefficients: The iteration's (a, b, c).
        adjust_lr: Factor from the matrix's shape: "original" (default) ``sqrt(max(1, M / K))``,
            "match_rms_adamw" ``0.2 sqrt(max(M, K))``, or "none".
        normalize_weights: Before each update, scale every weight to the norm ``sqrt(M)``, which
            fixes the ratio of update to weight; for layers that a norm layer follows. Off by
            default.

    Raises:
        ValueError: If a number is out of its range, or a parameter has fewer than two dimensions.

    Example:
        >>> layer = torch.nn.Conv2d(3, 8, 3)
        >>> optimizer = Muon([layer.weight], lr=0.1)
        >>> layer(torch.ones(1, 3, 8, 8)).sum().backward()
        >>> optimizer.step()

    Reference:
        Jordan et al. 2024, "Muon"; weight normalisation as in airbench94_muon (Jordan 2024).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 0.02,
        *,
        momentum: float = 0.95,
        nesterov: bool = True,
        weight_decay: float = 0.0,
        ns_steps: int = 5,
        ns_coefficients: tuple[float, float, float] = _COEFFICIENTS,
        adjust_lr: str = "original",
        normalize_weights: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "nesterov": nesterov,
            "weight_decay": weight_decay,
            "ns_steps": ns_steps,
            "ns_coefficients": ns_coefficients,
            "adjust_lr": adjust_lr,
            "normalize_weights": normalize_weights,
        }
        super().__init__(params, defaults)

    @override
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group; its numbers and the shapes of its parameters are checked."""
        super().add_param_group(param_group)
        try:
            _check_group(self.param_groups[-1])
        except (TypeError, ValueError):
            self.param_groups.pop()
            raise

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    @override
    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Make one update of every parameter that has a gradient."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            same_shape: dict[tuple[Any, ...], list[tuple[Tensor, Tensor]]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    rows, columns = len(parameter), parameter[0].numel()
                    key = (rows, columns, parameter.dtype, parameter.device)
                    same_shape[key].append((parameter, parameter.grad))
            for pairs in same_shape.values():
                self._update(pairs, group)
        return loss

    def _update(self, pairs: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
        """Update parameters, with their gradients, whose matrices have one shape [M, K]."""
        stack = torch.stack([self._direction(*pair, group).flatten(1) for pair in pairs])
        updates = orthogonalize(
            stack, steps=group["ns_steps"], coefficients=group["ns_coefficients"]
        )
        _, m, k = stack.shape
        rate = group["lr"] * _ADJUSTMENTS[group["adjust_lr"]](m, k)
        for (parameter, _), update in zip(pairs, updates, strict=True):
            if group["normalize_weights"]:
                # A weight of zeros, as of a zero-initialised residual, stays as it is.
                norm = torch.linalg.vector_norm(parameter).clamp_min(1e-12)
                parameter.mul_(math.sqrt(m) / norm)
            if group["weight_decay"]:
                parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.sub_(rate * update.view(parameter.shape).to(parameter.dtype))

    def _direction(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Move the momentum on by the gradient and return what is to be orthogonalised."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum: Tensor = state["momentum_buffer"]
        momentum.mul_(group["momentum"]).add_(gradient)
        if group["nesterov"]:
            return gradient.add(momentum, alpha=group["momentum"])
        return momentum


def _check_group(group: dict[str, Any]) -> None:
    if not isinstance(group["lr"], Tensor):
        check_non_negative("lr", group["lr"])
    check_non_negative("momentum", group["momentum"])
    if group["momentum"] >= 1:
        raise ValueError(f"momentum must be under 1, got momentum={group['momentum']}")
    check_non_negative("weight_decay", group["weight_decay"])
    check_integer("ns_steps", group["ns_steps"], minimum=1)
    check_choice("adjust_lr", group["adjust_lr"], _ADJUSTMENTS)
    for parameter in group["params"]:
        if parameter.ndim < 2:
            raise ValueError(
                "params must have at least 2 dimensions, got a parameter of shape "
                f"{tuple(parameter.shape)}; give biases and norms to SGD or AdamW"
            )
