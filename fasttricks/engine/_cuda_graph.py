"""A training step as a CUDA graph: recorded once for each shape, then replayed whole.

A replay launches all kernels at once, where a small network on a fast GPU otherwise waits for
Python. What a recording read as a Python number it repeats for ever; what it read from a tensor it
reads anew, so the optimizers' rates become tensors, which the schedules write between two replays.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks.engine._batch_loss import Counted
from fasttricks.engine._lists import parameters_of
from fasttricks.engine._optimizer_state import begin_momenta, match_layouts
from fasttricks.lr_scheduler import ScheduledGroups
from fasttricks.optim import Muon

Compute = Callable[[Tensor, Tensor], tuple[Tensor, Counted]]

# Updates of a kind before it is recorded: kernels are chosen, workspaces and states allocated.
WARMUP = 3
# Changes in a row, each of which makes what was recorded stale, after which there is a warning.
_CHANGES = 10


@dataclass
class _Recording:
    graph: Any
    images: Tensor
    targets: Tensor
    result: tuple[Tensor, Counted]
    gradients: list[tuple[nn.Parameter, Tensor | None]]


class Graphed:
    """A function of a batch, replayed from a CUDA graph.

    The first three batches of a kind are computed as usual, the next one is recorded. Another shape
    or setting, a change of what is trained or in training mode, and another number or tensor in an
    optimizer's groups or state are recorded anew.

    Args:
        model: Its parameters receive gradients.
        device: A CUDA device.
        optimizers: Theirs do too.
        updates: Whether the optimizers' update is part of the function, which else only fills
            gradients.

    Raises:
        ValueError: If the device is another, or the update of an optimizer cannot be recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        device: torch.device,
        optimizers: Sequence[Optimizer] = (),
        *,
        updates: bool = False,
    ) -> None:
        self._model = model
        self._device = device
        self._optimizers = optimizers if updates else ()
        check_recordable(device, self._optimizers)
        self._filled = optimizers
        self._rates: dict[tuple[int, int], Tensor] = {}
        self._make_capturable()
        self._stream: Any = None
        self._pool: Any = None
        self._seen: Counter[Hashable] = Counter()
        self._recordings: dict[Hashable, _Recording] = {}
        self._held = self._what_updates_hold()
        self._objects_held: list[int] = []
        self._changes = 0

    @property
    def updates(self) -> bool:
        """Whether the update is part of the graph."""
        return bool(self._optimizers)

    def __call__(
        self, compute: Compute, images: Tensor, targets: Tensor, *settings: Hashable
    ) -> tuple[Tensor, Counted]:
        """Compute from a batch; the gradients must be cleared before.

        Args:
            compute: Fills the gradients, and makes the update if it is part of the graph; returns
                the loss and what to count. It works on the device alone, and reads no value back.
            images: The batch's images.
            targets: Their targets.
            settings: What else ``compute`` goes by.

        Returns:
            What ``compute`` returns; all but the loss is written over by the next call.
        """
        self._forget_if_stale()
        key = (
            *settings,
            *(images.shape, images.dtype, images.stride(), targets.shape, targets.dtype),
            tuple(parameter.requires_grad for parameter in self._model.parameters()),
            tuple(module.training for module in self._model.modules()),
        )
        if key not in self._recordings:
            if not self._seen[key]:
                begin_momenta(self._optimizers)  # of what was frozen before
            self._seen[key] += 1
            if self._seen[key] <= WARMUP:
                return self._beside(compute, images, targets)
            self._recordings[key] = self._record(compute, images, targets)
        self._changes = 0
        recording = self._recordings[key]
        recording.images.copy_(images)
        recording.targets.copy_(targets)
        recording.graph.replay()
        # Clearing took the gradients from the parameters; their memory is the graph's.
        for parameter, gradient in recording.gradients:
            parameter.grad = gradient
        loss, counted = recording.result
        return loss.clone(), counted

    def _beside(self, compute: Compute, images: Tensor, targets: Tensor) -> tuple[Tensor, Counted]:
        """Compute on the stream that will record, so that it has its workspaces."""
        if self._stream is None:
            self._stream = torch.cuda.Stream(self._device)
        usual = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(usual)
        with torch.cuda.stream(self._stream):
            result = compute(images, targets)
        usual.wait_stream(self._stream)
        return result

    def _record(self, compute: Compute, images: Tensor, targets: Tensor) -> _Recording:
        images, targets = images.clone(), targets.clone()
        graph, usual = torch.cuda.CUDAGraph(), torch.cuda.current_stream(self._device)
        # One pool for all: no two graphs run at a time, and what a replay returns is kept alive.
        # What other threads do meanwhile, such as a loader that pins memory, is not to be refused.
        try:
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                result = compute(images, targets)
        except BaseException:
            torch.cuda.set_stream(usual)  # a recording that fails stays on its own
            raise
        self._pool = graph.pool()
        # After the update nobody needs them.
        filled = [*self._model.parameters(), *parameters_of(self._filled)]
        gradients = [] if self.updates else [(parameter, parameter.grad) for parameter in filled]
        return _Recording(graph, images, targets, result, gradients)

    def _forget_if_stale(self) -> None:
        """Forget what was recorded if a replay would not do what the optimizers would do now."""
        if not self.updates or self._objects() == self._objects_held:
            return
        self._make_capturable()
        held = self._what_updates_hold()
        self._objects_held = self._objects()
        changed = [
            name
            for name in held.keys() | self._held.keys()
            if not _same(held.get(name), self._held.get(name))
        ]
        self._held = held
        if not changed:
            return
        self._recordings.clear()
        self._seen.clear()
        self._pool = None  # it went with the last of its graphs
        self._changes += 1
        if self._changes == _CHANGES:
            names = ", ".join(sorted({name[-1] for name in changed}))
            warnings.warn(
                f"cuda_graph='step' has nothing to replay: {names} of an optimizer changed "
                f"{_CHANGES} times too soon; let schedules change lr alone, or use cuda_graph=True",
                RuntimeWarning,
                stacklevel=7,
            )

    def _what_updates_hold(self) -> dict[tuple[Any, ...], Any]:
        """All that a recording holds of the optimizers, by place and name."""
        held: dict[tuple[Any, ...], Any] = {}
        for number, optimizer in enumerate(self._optimizers):
            for index, group in enumerate(optimizer.param_groups):
                held |= {(number, index, n): v for n, v in group.items() if n != "params"}
                for parameter in group["params"]:
                    state = optimizer.state.get(parameter, {})
                    held |= {(number, id(parameter), n): v for n, v in state.items()}
        return held

    def _objects(self) -> list[int]:
        """Return which objects the optimizers hold: as long as they are the same, nothing changed.

        ``_held`` keeps those of before alive, so that none that came later has their place.
        """
        found: list[int] = []
        for optimizer in self._optimizers:
            for group in optimizer.param_groups:
                found += map(id, group.values())
                for parameter in group["params"]:
                    if parameter in optimizer.state:
                        found += map(id, optimizer.state[parameter].values())
        return found

    @torch.no_grad()
    def _make_capturable(self) -> None:
        """Bring to the device what the updates read, so that a replay reads it there.

        A rate that was set as a number is written into the tensor of before.
        """
        for number, optimizer in enumerate(self._optimizers):
            # It would warn of the updates before the recording.
            optimizer._warned_capturable_if_run_uncaptured = True
            for index, group in enumerate(optimizer.param_groups):
                _switch(group)
                rate, own = group["lr"], self._rates.get((number, index))
                if own is None:
                    own = torch.as_tensor(rate).to(self._device, torch.float32)
                    self._rates[number, index] = own
                elif isinstance(rate, Tensor):
                    if rate is not own:
                        own.copy_(rate.reshape(own.shape))
                else:  # not from memory of the host's, for which it would wait
                    own.fill_(rate)
                group["lr"] = own
                for parameter in group["params"]:
                    _bring_step(optimizer, parameter)
            match_layouts(optimizer)
        begin_momenta(self._optimizers)


def check_recordable(device: torch.device, optimizers: Sequence[Optimizer]) -> None:
    """Raise a ValueError if the device records no graphs, or not an optimizer's update."""
    _check_device(device)
    for optimizer in optimizers:
        names, kind = optimizer.defaults.keys(), type(optimizer).__name__
        able = isinstance(optimizer, Muon) or bool(names & {"capturable", "fused"})
        if isinstance(optimizer, torch.optim.Adagrad):
            able = _has_fused_adagrad(device)
        if not able:
            raise ValueError(
                "cuda_graph='step' needs optimizers whose update can be recorded, such as "
                f"Muon, SGD or AdamW, got {kind}; use cuda_graph=True"
            )
        one_by_one = any(group.get("foreach") is False for group in optimizer.param_groups)
        if one_by_one and isinstance(optimizer, torch.optim.RMSprop | torch.optim.Adadelta):
            raise ValueError(
                f"cuda_graph='step' needs a {kind} that may use foreach, without which it "
                "reads its rate back, got foreach=False; leave it out, or use cuda_graph=True"
            )


def _has_fused_adagrad(device: torch.device) -> bool:
    """Whether this torch has Adagrad's fused update for a device, its only one to be recorded."""
    try:
        torch.optim.Adagrad([torch.zeros(1, device=device)], fused=True)
    except RuntimeError:
        return False
    return True


def _switch(group: dict[str, Any]) -> None:
    """Turn on the implementation that can be recorded."""
    if "capturable" in group:
        group["capturable"] = True
        # Fused kernels take floats alone; what somebody chose stays.
        floats = all(parameter.is_floating_point() for parameter in group["params"])
        chosen = group.get("fused") is not None or group.get("foreach") is not None
        if chosen or group.get("differentiable") or not floats:
            return
    if "fused" in group:
        group["fused"], group["foreach"] = True, False


def _bring_step(optimizer: Optimizer, parameter: nn.Parameter) -> None:
    state = optimizer.state.get(parameter, {})
    if "step" in state:  # made on the CPU where the update was not to be recorded
        state["step"] = torch.as_tensor(state["step"]).to(parameter.device, torch.float32)


def check_settings(schedulers: Sequence[object], *, precision: str, nonfinite: str) -> None:
    """Raise a ValueError if a whole step could not be recorded with these settings."""
    rule = "cuda_graph='step' must come with"
    if precision == "fp16":
        raise ValueError(
            f"{rule} precision='bf16' or 'fp32', got 'fp16', whose overflows Python looks at in "
            "every update; use cuda_graph=True"
        )
    if nonfinite == "skip":
        raise ValueError(
            f"{rule} nonfinite='raise', got 'skip', for which Python looks at the loss in every "
            "update; use cuda_graph=True"
        )
    for scheduler in schedulers:
        if isinstance(scheduler, ScheduledGroups) and scheduler.schedules.keys() != {"lr"}:
            names = ", ".join(scheduler.schedules)
            raise ValueError(
                f"{rule} schedules of lr alone, got those of {names}; use cuda_graph=True"
            )


def _check_device(device: torch.device) -> None:
    if device.type != "cuda":
        raise ValueError(f"cuda_graph needs a model on a CUDA device, got {device.type!r}")


def _same(one: object, other: object) -> bool:
    """Whether two numbers are equal, or two tensors one and the same."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        return one is other
    return bool(one == other)
