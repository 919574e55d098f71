"""A compiled model whose parameters may be frozen and thawed."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn


class Compiled:
    """A model as it is compiled, again once other parameters of it are to be trained.

    Args:
        model: Called through what ``wrap`` made of it.
        wrap: ``torch.compile`` with its options.
    """

    def __init__(self, model: nn.Module, wrap: Callable[[nn.Module], nn.Module]) -> None:
        self._model = model
        self._module = wrap(model)
        self._trained: list[bool] = []

    def module(self) -> nn.Module:
        """Return what to call in place of the model."""
        trained = [parameter.requires_grad for parameter in self._model.parameters()]
        if trained != self._trained:
            if self._trained:
                touch_parameters(self._model)
            self._trained = trained
        return self._module


def touch_parameters(model: nn.Module) -> None:
    """Have torch.compile look at a model's parameters anew: torch 2.6 overlooks that one thawed.

    The gradient that nothing had asked for when it compiled would never come.
    """
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            continue
        parameters = dict(module._parameters)
        module._parameters.clear()
        module._parameters.update(parameters)
