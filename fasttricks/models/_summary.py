"""What a network is made of: shapes, parameters, operations and time of its parts."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from typing_extensions import override

from fasttricks._checks import check_integer


@dataclass(frozen=True)
class Stage:
    """A direct child of the network, or of a list of modules among its children.

    Attributes:
        name: Its name.
        kind: Its class.
        output_shape: Shape of what it gives.
        parameters: Number of its parameters.
        macs: Multiply-adds of its convolutions and matrix products for one image.
        macs_share: Its part of the network's multiply-adds, 0 to 1.
        time_share: Its part of the forward pass's time, 0 to 1.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    parameters: int
    macs: int
    macs_share: float
    time_share: float


@dataclass(frozen=True)
class ModelSummary:
    """What ``summary`` found; prints as a table.

    Attributes:
        stages: The network's children that were called, in the order of their first calls.
        parameters: Number of all parameters, each counted once.
        macs: Multiply-adds for one image.
    """

    stages: tuple[Stage, ...]
    parameters: int
    macs: int

    @override
    def __str__(self) -> str:
        header = (
            f"{'stage':<14} {'class':<14} {'output':<18} {'parameters':>12} {'MACs':>15} "
            f"{'share':>6} {'time':>6}"
        )
        lines = [header]
        for stage in self.stages:
            shape = " x ".join(map(str, stage.output_shape[1:]))
            lines.append(
                f"{stage.name:<14} {stage.kind:<14} {shape:<18} {stage.parameters:>12,} "
                f"{stage.macs:>15,} {stage.macs_share:>6.1%} {stage.time_share:>6.1%}"
            )
        lines.append(f"{'total':<48} {self.parameters:>12,} {self.macs:>15,}")
        return "\n".join(lines)


def summary(
    model: nn.Module, input_size: Sequence[int] = (3, 32, 32), *, batch_size: int = 8
) -> ModelSummary:
    """Count parameters and multiply-adds of a network's stages, and time its forward pass.

    Multiply-adds are half of what torch's own ``FlopCounterMode`` counts. Run in evaluation mode on
    zeros, on the network's device; the network stays as it is.

    Args:
        model: The network.
        input_size: (C, H, W) of an image. Default (3, 32, 32).
        batch_size: Images at once while it is timed, at least 1. Default 8.

    Returns:
        The ``ModelSummary``.

    Raises:
        ValueError: If a size is below 1.

    Example:
        >>> print(summary(nn.Sequential(nn.Conv2d(3, 8, 3, bias=False)), (3, 10, 10)).macs)
        13824
    """
    # It loads Triton, where that is installed.
    from torch.utils.flop_counter import FlopCounterMode

    for place, size in enumerate(input_size):
        check_integer(f"input_size[{place}]", size, minimum=1)
    check_integer("batch_size", batch_size, minimum=1)
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    dtype = next((p.dtype for p in model.parameters() if p.is_floating_point()), None)
    images = torch.zeros(batch_size, *input_size, device=device, dtype=dtype)
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        with torch.no_grad():
            with FlopCounterMode(display=False) as counter:
                model(images[:1])
            children = dict(_children(model))
            shapes, seconds = _time_children(model, children, images)
    finally:
        for module, mode in modes.items():
            module.training = mode
    flops = counter.get_flop_counts()
    root = type(model).__name__
    total = sum(seconds.values()) or 1.0
    macs = {name: sum(flops.get(f"{root}.{name}", {}).values()) // 2 for name in children}
    all_macs = counter.get_total_flops() // 2
    stages = tuple(
        Stage(
            name=name,
            kind=type(children[name]).__name__,
            output_shape=shape,
            parameters=sum(p.numel() for p in children[name].parameters()),
            macs=macs[name],
            macs_share=macs[name] / max(1, all_macs),
            time_share=seconds[name] / total,
        )
        for name, shape in shapes.items()
    )
    parameters = sum(p.numel() for p in model.parameters())
    return ModelSummary(stages, parameters, all_macs)


def _children(model: nn.Module, inside: str = "") -> Iterator[tuple[str, nn.Module]]:
    """The children by name; a list, which nobody calls, gives its own."""
    for name, child in model.named_children():
        if isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield from _children(child, f"{inside}{name}.")
        else:
            yield f"{inside}{name}", child


def _time_children(
    model: nn.Module, children: dict[str, nn.Module], images: Tensor, repeats: int = 3
) -> tuple[dict[str, tuple[int, ...]], dict[str, float]]:
    """The output's shape of each child, and the least of its seconds over some passes."""
    shapes: dict[str, tuple[int, ...]] = {}
    passes: list[dict[str, float]] = []
    starts: dict[str, float] = {}

    def now() -> float:
        if images.device.type != "cpu":
            torch.get_device_module(images.device).synchronize()
        return time.perf_counter()

    hooks = []
    for name, child in children.items():

        def before(module: nn.Module, inputs: Any, *, name: str = name) -> None:
            starts[name] = now()

        def after(module: nn.Module, inputs: Any, output: Any, *, name: str = name) -> None:
            passes[-1][name] = passes[-1].get(name, 0.0) + now() - starts[name]
            shapes[name] = tuple(output.shape) if isinstance(output, Tensor) else ()

        hooks += [child.register_forward_pre_hook(before), child.register_forward_hook(after)]
    try:
        for _ in range(repeats):
            passes.append({})
            model(images)
    finally:
        for hook in hooks:
            hook.remove()
    return shapes, {name: min(one.get(name, 0.0) for one in passes) for name in shapes}
