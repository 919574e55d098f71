"""How a learning rate follows the batch size; what comes out is a schedule's ``max_lr``."""

from __future__ import annotations

import math

from fasttricks._checks import check_integer, check_positive


def linear_scaled_lr(base_lr: float, *, batch_size: int, base_batch_size: int) -> float:
    """The rate by the linear rule: ``base_lr * batch_size / base_batch_size``.

    k times the images in an update, so 1/k of the updates, each k times as long. It holds for SGD
    up to some batch size, with a warm-up at its upper end; keep ``weight_decay * lr`` an image
    constant along with it.

    Args:
        base_lr: The rate that is good at ``base_batch_size``, above 0.
        batch_size: Images in an update, accumulated parts and all devices together.
        base_batch_size: Batch size that ``base_lr`` was found for.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> linear_scaled_lr(0.1, batch_size=1024, base_batch_size=256)
        0.4

    Reference:
        Goyal et al. 2017, "Accurate, large minibatch SGD" (arXiv 1706.02677), section 2.1.
    """
    return base_lr * _ratio(base_lr, batch_size, base_batch_size)


def sqrt_scaled_lr(base_lr: float, *, batch_size: int, base_batch_size: int) -> float:
    """The rate by the square-root rule: ``base_lr * sqrt(batch_size / base_batch_size)``.

    It keeps the variance of an update's noise constant, and is the usual start for Adam and Muon,
    whose updates have a size of their own.

    Args:
        base_lr: The rate that is good at ``base_batch_size``, above 0.
        batch_size: Images in an update, accumulated parts and all devices together.
        base_batch_size: Batch size that ``base_lr`` was found for.

    Raises:
        ValueError: If a number is not positive.

    Example:
        >>> sqrt_scaled_lr(0.1, batch_size=1024, base_batch_size=256)
        0.2

    Reference:
        Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks"
        (arXiv 1404.5997), section 5.
    """
    return base_lr * math.sqrt(_ratio(base_lr, batch_size, base_batch_size))


def _ratio(base_lr: float, batch_size: int, base_batch_size: int) -> float:
    check_positive("base_lr", base_lr)
    check_integer("batch_size", batch_size, minimum=1)
    check_integer("base_batch_size", base_batch_size, minimum=1)
    return batch_size / base_batch_size
