"""The gradients of a batch: whole or in parts, of all images or the hardest, as memory allows.

Shapes: images [N, C, H, W], targets [N] or [N, num_classes].
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks.engine._batch_loss import (
    Counted,
    Loss,
    in_parts,
    mean_over_processes,
    share_of_batch,
    with_loss,
)
from fasttricks.engine._compiled import Compiled
from fasttricks.engine._cuda_graph import Graphed
from fasttricks.engine._device import device_of
from fasttricks.engine._distributed import Replica, average_gradients, world_size
from fasttricks.engine._inputs import check_outputs
from fasttricks.engine._lists import parameters_of
from fasttricks.engine._memory import Undo, is_out_of_memory
from fasttricks.engine._speed import compiler, hardest, records_graphs, selecting

if TYPE_CHECKING:
    from fasttricks.engine._trainer import Trainer


class Gradients:
    """Fills the gradients of a trainer's model, and takes back what a failed attempt left.

    Args:
        model: What is trained.
        loss: Maps (outputs, targets) to the mean loss.
        compile: Whether, by which mode or by which backend the model is compiled.
        select: Share of a batch that is trained on.
        cuda_graph: Whether forward and backward pass are replayed from a CUDA graph, or with
            "step" these and the update.
        optimizers: Those that make the update.
    """

    def __init__(
        self,
        model: nn.Module,
        loss: Loss,
        *,
        compile: bool | str,
        select: float,
        cuda_graph: bool | str,
        optimizers: Sequence[Optimizer],
    ) -> None:
        device = device_of(model)
        self.select = select
        self._all = with_loss(model, loss)
        updates = cuda_graph == "step"
        self.graph = Graphed(self._all, device, optimizers, updates=updates) if cuda_graph else None
        self._compile_records = records_graphs(compile, device)
        self._loss_per_image = selecting(loss, select)
        wrap = compiler(compile)
        self._compiled = None if wrap is None else Compiled(model, wrap)
        self._replica = Replica(model, wrap)
        self._undo = Undo(self._all, device)

    @property
    def updates(self) -> bool:
        """Whether ``fill`` makes the update too, as part of its graph."""
        return self.graph is not None and self.graph.updates

    def without_graph(self) -> Gradients:
        """Return the same without its graph."""
        plain = copy.copy(self)
        plain.graph = None
        return plain

    def fill(self, trainer: Trainer, images: Tensor, targets: Tensor) -> tuple[Tensor, Counted]:
        """Fill the gradients from a batch; return its mean loss and what there is to count.

        Where memory runs out, everything is put back and half as much computed at once.
        """
        asked = trainer.micro_batch_size
        # What an interrupted step left behind must not enter this one.
        clear_gradients(trainer.optimizers)
        self._all.zero_grad(set_to_none=True)
        # Of several processes, the others would wait for this one's gradients.
        may_halve = trainer.oom == "halve" and world_size() == 1 and not self._records
        if self._may_take_back(trainer) or may_halve:
            self._undo.keep()
        while True:
            try:
                result = self._of_batch(trainer, images, targets)
                break
            except RuntimeError as error:
                size = min(trainer.micro_batch_size or len(images), len(images))
                if not (may_halve and size > 1 and is_out_of_memory(error)):
                    trainer.micro_batch_size = asked  # smaller parts were no help
                    raise
            # Out of the handler, so that the error's frames hold no tensor any more.
            clear_gradients(trainer.optimizers)
            self._undo.restore()
            if trainer.device.type == "cuda":
                torch.cuda.empty_cache()
            trainer.micro_batch_size = (size + 1) // 2
        if trainer.micro_batch_size != asked:
            text = f"memory ran out; micro_batch_size is now {trainer.micro_batch_size}"
            warnings.warn(text, RuntimeWarning, stacklevel=3)
        return result

    @property
    def _records(self) -> bool:
        """Whether a graph holds its memory, here or by ``torch.compile``: no part could follow."""
        return self.graph is not None or self._compile_records

    def _may_take_back(self, trainer: Trainer) -> bool:
        """Whether the state from before may be wanted even though memory suffices."""
        looks = trainer.nonfinite == "skip" or trainer.device.type == "cpu"
        return looks or self._loss_per_image is not None

    def take_back(self, optimizers: Sequence[Optimizer]) -> None:
        """Drop the gradients, and put back the batch-norm statistics from before ``fill``."""
        clear_gradients(optimizers)
        self._undo.restore(random=False)

    def _of_batch(
        self, trainer: Trainer, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Counted]:
        if self._loss_per_image is None:
            return self._maybe_graphed(trainer, images, targets)
        chosen, loss, counted = self._hardest(trainer, images, targets)
        self._maybe_graphed(trainer, images[chosen], targets[chosen])
        return loss, counted

    def _maybe_graphed(
        self, trainer: Trainer, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Counted]:
        if self.graph is None:
            return self._compute(trainer, images, targets)
        compute = self._compute_and_update if self.updates else self._compute
        clip = trainer.grad_clip if self.updates else None
        return self.graph(
            partial(compute, trainer), images, targets, trainer.micro_batch_size, clip
        )

    def _hardest(
        self, trainer: Trainer, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Tensor, Counted]:
        """Return the indices of the images to train on, the whole batch's mean loss and counts."""
        losses: list[Tensor] = []
        counted: Counted = []
        with torch.no_grad():
            for part, part_targets in in_parts(images, targets, trainer.micro_batch_size):
                with trainer.precision.forward_context():
                    outputs = check_outputs(trainer.model(part))
                losses.append(self._loss_per_image(outputs.float(), part_targets))
                counted.append((losses[-1].mean(), outputs, part_targets))
        # Batch norm counts an image once, when it is trained on.
        self._undo.restore(random=False)
        each = torch.cat(losses)
        return hardest(each, self.select), mean_over_processes(each.mean(), len(each)), counted

    def _compute(self, trainer: Trainer, images: Tensor, targets: Tensor) -> tuple[Tensor, Counted]:
        network = self.network(trainer)
        parts = in_parts(images, targets, trainer.micro_batch_size)
        share, number = share_of_batch(trainer.loss, targets, parts=len(parts))
        losses: list[Tensor] = []
        counted: Counted = []
        for part, part_targets in parts:
            with self._replica.without_sum(when=len(losses) + 1 < len(parts)):
                with trainer.precision.forward_context():
                    outputs = check_outputs(network(part))
                loss = share(outputs.float(), part_targets)
                trainer.precision.backward(loss)
            losses.append(loss.detach().reshape(()) if loss.ndim else loss.detach())
            factor = number / len(part)
            mean = losses[-1] if isinstance(factor, float) and factor == 1 else losses[-1] * factor
            counted.append((mean, outputs.detach(), part_targets))
        average_gradients(trainer.optimizers, but=trainer.model)
        total = losses[0] if len(losses) == 1 else torch.stack(losses).sum()
        return mean_over_processes(total), counted

    def _compute_and_update(
        self, trainer: Trainer, images: Tensor, targets: Tensor
    ) -> tuple[Tensor, Counted]:
        result = self._compute(trainer, images, targets)
        trainer.precision.step(trainer.optimizers, max_norm=trainer.grad_clip)
        return result

    def network(self, trainer: Trainer) -> nn.Module:
        """Return what is called for a forward pass: the model, compiled or shared if it is."""
        if world_size() > 1:
            return self._replica.module()
        return trainer.model if self._compiled is None else self._compiled.module()


def clear_gradients(optimizers: Sequence[Optimizer]) -> None:
    """Free the gradients of all parameters."""
    for parameter in parameters_of(optimizers):
        parameter.grad = None
