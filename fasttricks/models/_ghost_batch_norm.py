"""Batch norm with the statistics of small groups of a large batch."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from typing_extensions import override

from fasttricks._checks import check_integer


class GhostBatchNorm2d(nn.BatchNorm2d):
    """Batch norm that normalises groups of ``ghost_batch_size`` images, each by its own statistics.

    The noise of small batches, which regularises, stays with a batch of any size. A batch is cut
    into as many groups as it holds whole, of equal size but for one image, in order; the running
    statistics follow each group in turn. In evaluation it is ``nn.BatchNorm2d``.

    Args:
        num_features: Channels.
        ghost_batch_size: Images of a group, at least 2; a smaller batch is one group.
        eps: Added to the variance. Default 1e-5.
        momentum: Weight of the newest group in the running statistics. Default 0.1.

    Raises:
        ValueError: If ``ghost_batch_size`` is under 2.
        TypeError: If it isn't a whole number.

    Example:
        >>> GhostBatchNorm2d(3, ghost_batch_size=16)(torch.randn(40, 3, 8, 8)).shape
        torch.Size([40, 3, 8, 8])

    Reference:
        Hoffer, Hubara and Soudry, "Train longer, generalize better", arXiv 1705.08741, algorithm 1.
    """

    def __init__(
        self, num_features: int, *, ghost_batch_size: int, eps: float = 1e-5, momentum: float = 0.1
    ) -> None:
        check_integer("ghost_batch_size", ghost_batch_size, minimum=2)
        super().__init__(num_features, eps=eps, momentum=momentum)
        self.ghost_batch_size = ghost_batch_size

    @override
    def forward(self, input: Tensor) -> Tensor:
        groups = len(input) // self.ghost_batch_size
        if not self.training or groups <= 1:
            return super().forward(input)
        normalised = [super(GhostBatchNorm2d, self).forward(g) for g in input.tensor_split(groups)]
        return torch.cat(normalised)

    @override
    def extra_repr(self) -> str:
        usual: str = super().extra_repr()  # type: ignore[no-untyped-call]
        return f"{usual}, ghost_batch_size={self.ghost_batch_size}"
