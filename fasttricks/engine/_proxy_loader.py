"""ProxyLoader: of each batch the images that a small network, learning beside, finds hardest."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from fasttricks._checks import check_integer, check_share, length_of
from fasttricks.engine._batch_loss import Batch, Loss, in_parts, share_of_batch
from fasttricks.engine._device import device_of
from fasttricks.engine._distributed import average_gradients, share_tensors
from fasttricks.engine._evaluate import start_training
from fasttricks.engine._inputs import (
    check_batch,
    check_loss,
    check_outputs,
    optimizers_of,
    schedulers_of,
)
from fasttricks.engine._lists import parameters_of
from fasttricks.engine._optimizer_state import load_optimizer, settings_of
from fasttricks.engine._precision import Precision, all_finite, as_precision
from fasttricks.engine._preserve import preserve_training_state
from fasttricks.engine._random import loader_place, restore_loader_place
from fasttricks.engine._speed import hardest, loss_per_image, number_chosen

if TYPE_CHECKING:
    from fasttricks.engine._trainer import Scheduler


class ProxyLoader:
    """A loader's batches, each cut down to the images that a proxy finds hardest.

    The proxy is a network much smaller than the one that is trained, so that looking at all images
    costs little. It learns beside: from every so many batches, of the images that it chose. Of one
    epoch of the loader ``share`` is trained on, which therefore wants more epochs; the history's
    loss and accuracy are those of hard images.

    Where gradients are off (``torch.no_grad()``), as in evaluation or for the statistics of an
    average, the proxy chooses and learns nothing but batch-norm statistics, which it never uses.
    Such statistics must be of chosen images, as the network has seen no others: give an average
    this loader as ``batches``, or one of fewer images with the same proxy and optimizer.

    Trials that leave no trace, such as ``lr_range_test``, put it back. Other attributes, such as
    ``epoch`` and ``batch_size``, are the loader's.

    Args:
        loader: Yields (images, targets) anew in each epoch, and has a length: a ``DeviceLoader``, a
            ``DataLoader``, a list.
        proxy: Maps the images to outputs as the trained network does, on its device.
        optimizer: One optimizer or several, of parameters of the proxy.
        share: Share of each batch, above 0 to 1, at least one image; a half by default.
        every: The proxy learns from the first of every so many batches, at least 1; 4 by default.
        schedulers: Objects whose ``step()`` is called after each batch, learned from or not, so
            that a schedule is as long as the run's own.
        loss: Maps (outputs, targets) to the mean loss, with ``reduction="mean"``; cross-entropy by
            default. An image is chosen by its own loss, smoothing included, and learned from is the
            mean of those that are chosen.
        precision: As for ``Trainer``.
        micro_batch_size: Largest number of images that the proxy computes at once, in parts as even
            as can be; the whole batch by default. When it learns it holds what all of them need.

    Attributes:
        batches_done: How many batches were cut down so far, while gradients were on.

    Raises:
        TypeError: If the loader has no length, or another argument is of the wrong kind.
        ValueError: If the loader is empty or a ``PrunedLoader``, a number is out of its range, an
            optimizer holds parameters of others than the proxy, or the loss has some. In an epoch,
            if a batch is empty.
        FloatingPointError: After an epoch, if the proxy's weights are NaN or infinite.

    Example:
        >>> batches = [(torch.randn(8, 3, 2, 2), torch.arange(8) % 2)]
        >>> proxy = nn.Sequential(nn.Flatten(), nn.Linear(12, 2))
        >>> loader = ProxyLoader(batches, proxy, torch.optim.SGD(proxy.parameters(), lr=0.1))
        >>> [len(targets) for _, targets in loader]
        [4]

    Reference:
        Jordan 2024, airbench96_faster.py of github.com/KellerJordan/cifar10-airbench; Coleman et
        al. 2020, "Selection via proxy" (arXiv 1906.11829).
    """

    def __init__(
        self,
        loader: Iterable[Batch],
        proxy: nn.Module,
        optimizer: Optimizer | Sequence[Optimizer],
        *,
        share: float = 0.5,
        every: int = 4,
        schedulers: Sequence[Scheduler] = (),
        loss: Loss | None = None,
        precision: Precision | str = "auto",
        micro_batch_size: int | None = None,
    ) -> None:
        length = length_of(loader)
        if length is None:
            raise TypeError(
                f"loader must have a length, got {type(loader).__name__} without one; pass a list "
                "or loader"
            )
        if not length:
            raise ValueError("loader must hold at least one batch, got an empty one")
        if hasattr(loader, "observe_losses"):
            raise ValueError(
                f"loader must serve whole batches, got a {type(loader).__name__}, which would be "
                "told losses of others than its images; pass a DeviceLoader"
            )
        if not isinstance(proxy, nn.Module):
            raise TypeError(f"proxy must be an nn.Module, got {type(proxy).__name__}")
        check_share("share", share)
        self.every = check_integer("every", every, minimum=1)
        if micro_batch_size is not None:
            micro_batch_size = check_integer("micro_batch_size", micro_batch_size, minimum=1)
        if loss is not None:
            check_loss(loss)
        if isinstance(loss, nn.Module) and any(True for _ in loss.parameters()):
            raise ValueError(f"loss must have no parameters of its own, got {loss!r}")
        several = schedulers_of(schedulers)
        for one in several:
            if not (hasattr(one, "state_dict") and hasattr(one, "load_state_dict")):
                raise TypeError(
                    "schedulers must have state_dict and load_state_dict, got "
                    f"{type(one).__name__} without"
                )
        optimizers, own = optimizers_of(optimizer), set(proxy.parameters())
        if not own.issuperset(parameters_of(optimizers)):
            raise ValueError(
                "optimizer must hold parameters of the proxy alone, got one of another"
            )
        self.loader: Any = loader
        self.proxy = proxy
        self.optimizers = optimizers
        self.share = share
        self.schedulers = several
        self.loss = nn.CrossEntropyLoss() if loss is None else loss
        self.precision = as_precision(precision, device_of(proxy))
        self.micro_batch_size = micro_batch_size
        self.batches_done = 0
        self._loss_per_image = loss_per_image(self.loss, "a ProxyLoader")
        self._settings = {"share": share, "every": self.every} | {
            f"optimizer {number}": settings_of(one) for number, one in enumerate(optimizers)
        }

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__") or "loader" not in self.__dict__:  # as while it is copied
            raise AttributeError(name)
        return getattr(self.loader, name)

    def __len__(self) -> int:
        return len(self.loader)

    @property
    def last_batch_size(self) -> int:
        """Images of an epoch's last batch, of a ``DeviceLoader``, once it is cut down."""
        return number_chosen(self.loader.last_batch_size, self.share)

    def __iter__(self) -> Iterator[Batch]:
        # Several processes train one proxy, each by its images.
        share_tensors([*self.proxy.parameters(), *self.proxy.buffers()])
        start_training(self.proxy)
        for batch in self.loader:
            images, targets = check_batch(batch)
            chosen = self.choose(images, targets).to(images.device)
            yield images[chosen], targets[chosen.to(targets.device)]
        if torch.is_grad_enabled() and not all_finite(self.proxy):
            raise FloatingPointError(
                "the proxy's weights are no longer finite; lower the learning rate of its optimizer"
            )

    def choose(self, images: Tensor, targets: Tensor) -> Tensor:
        """Return the indices, rising, of a batch's hardest images, and learn if it is time.

        Args:
            images: What the proxy takes, [N, ...].
            targets: What the loss takes, [N, ...].
        """
        if not len(images):
            raise ValueError("batches must hold at least one image, got an empty one")
        counts = torch.is_grad_enabled()
        learns = counts and self.batches_done % self.every == 0
        losses: list[Tensor] = []
        device = device_of(self.proxy)
        with torch.set_grad_enabled(learns):
            for part, part_targets in in_parts(images, targets, self.micro_batch_size):
                with self.precision.forward_context():
                    outputs = check_outputs(self.proxy(part.to(device)))
                losses.append(self._loss_per_image(outputs.float(), part_targets.to(device)))
        each = torch.cat(losses)
        chosen = hardest(each.detach(), self.share)
        if learns:
            self._learn(each[chosen])
        if counts:
            self.batches_done += 1
            for scheduler in self.schedulers:
                scheduler.step()
        return chosen

    def _learn(self, losses: Tensor) -> None:
        # Of several processes, whose shares of the last batch may differ by an image.
        share, _ = share_of_batch(_mean, losses, parts=1)
        self.proxy.zero_grad()
        self.precision.backward(share(losses, losses))
        average_gradients(self.optimizers, but=nn.Identity())
        self.precision.step(self.optimizers)
        self.proxy.zero_grad()

    def state_dict(self) -> dict[str, Any]:
        """Return the loader's place, and all that the proxy's learning needs to go on."""
        return {
            "settings": self._settings,
            "loader": loader_place(self.loader),
            "proxy": self.proxy.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "precision": self.precision.state_dict(),
            "batches_done": self.batches_done,
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from what ``state_dict`` returned.

        Raises:
            ValueError: If it is another loader's, or that of another proxy, optimizer or scheduler.
        """
        if not isinstance(state_dict, Mapping) or "proxy" not in state_dict:
            raise ValueError("state_dict must be that of a ProxyLoader, got one without a proxy")
        before, now = len(state_dict["schedulers"]), len(self.schedulers)
        if before != now:
            raise ValueError(f"the proxy's schedulers were {before}, and now are {now}")
        saved = state_dict["settings"]
        for name in sorted(saved.keys() | self._settings.keys()):
            if saved.get(name) != self._settings.get(name):
                raise ValueError(
                    f"the proxy's {name} was {saved.get(name)}, and now is "
                    f"{self._settings.get(name)}; give the same"
                )
        try:
            self.proxy.load_state_dict(state_dict["proxy"])
            for optimizer, state in zip(self.optimizers, state_dict["optimizers"], strict=True):
                load_optimizer(optimizer, state)
            for scheduler, state in zip(self.schedulers, state_dict["schedulers"], strict=True):
                scheduler.load_state_dict(state)
        except (RuntimeError, ValueError, KeyError) as error:
            raise ValueError(f"the proxy does not fit the saved one: {error}") from error
        restore_loader_place(self.loader, state_dict["loader"])
        self.precision.load_state_dict(state_dict["precision"])
        self.batches_done = state_dict["batches_done"]

    @contextmanager
    def preserved(self) -> Iterator[None]:
        """Put the loader, the proxy and all of its learning back when the block ends."""
        schedulers, done = self.schedulers, self.batches_done
        with preserve_training_state(
            self.proxy, self.optimizers, self.loader, precision=self.precision
        ):
            self.schedulers = []  # trials are none of the run's batches
            try:
                yield
            finally:
                self.schedulers, self.batches_done = schedulers, done


def _mean(losses: Tensor, _: Tensor) -> Tensor:
    return losses.mean()
