"""Stochastic depth: whole residual branches left out, image by image."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fasttricks._checks import check_fraction


class DropPath(nn.Module):
    """While training, set each image's branch to 0 with probability ``p``, the rest times 1/(1-p).

    Numbers come from torch's generator of the device. The identity in evaluation and with ``p=0``.

    Args:
        p: the probability, 0 to 1.

    Raises:
        ValueError: If ``p`` is not between 0 and 1.

    Example:
        >>> DropPath(0.5).eval()(torch.ones(2, 1, 1, 1)).flatten()
        tensor([1., 1.])

    Reference:
        Huang et al., "Deep Networks with Stochastic Depth", arXiv 1603.09382, section 3; a draw an
        image as in timm.
    """

    def __init__(self, p: float = 0.0) -> None:
        super().__init__()
        check_fraction("p", p)
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        if self.p == 1:
            return torch.zeros_like(x)
        keep = 1 - self.p
        shape = (len(x), *(1,) * (x.dim() - 1))
        return x * (torch.empty(shape, dtype=x.dtype, device=x.device).bernoulli_(keep) / keep)

    def extra_repr(self) -> str:
        return f"p={self.p}"
