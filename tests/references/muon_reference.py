"""Muon written plainly, one matrix at a time in float64, shaped like the published script."""

from __future__ import annotations

import numpy as np


def newton_schulz(gradient, steps, coefficients=(3.4445, -4.7750, 2.0315)):
    a, b, c = coefficients
    x = gradient / (np.sqrt((gradient**2).sum()) + 1e-7)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + b * gram @ x + c * gram @ gram @ x
    return x


class ReferenceMuon:
    """Nesterov momentum, orthogonalised, on one matrix whose norm is reset before each update."""

    def __init__(self, weight, *, momentum, steps):
        self.weight = np.asarray(weight, dtype=np.float64)
        self.buffer = np.zeros_like(self.weight)
        self.momentum, self.steps = momentum, steps

    def step(self, gradient, lr):
        self.buffer = self.momentum * self.buffer + gradient
        direction = gradient + self.momentum * self.buffer
        norm = np.sqrt((self.weight**2).sum())
        self.weight = self.weight * np.sqrt(len(self.weight)) / norm
        self.weight = self.weight - lr * newton_schulz(direction, self.steps)
