"""PrunedLoader: an epoch of the images that were hard when last seen, and of some others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from fasttricks._checks import check_fraction
from fasttricks.data._device_loader import DeviceLoader
from fasttricks.data._image_set import ImageSet
from fasttricks.transforms import Mix, Transform


class PrunedLoader(DeviceLoader):
    """A ``DeviceLoader`` whose epochs leave out images that were easy when they were last seen.

    An epoch takes the images whose loss was highest when they were last trained on (never trained
    on counts as highest), and fills up with a random choice of the others, so that every image
    comes back. Nothing is computed for it: ``Trainer.fit`` hands the loader the losses that it has
    anyway, those of a cross-entropy without its label smoothing. In a loop of your own call
    ``observe_losses`` after each batch. An epoch that was broken off begins anew with what is
    hardest by then. The losses outlast ``set_epoch``: a new run wants a new loader.

    Epochs are shorter: ``len`` counts their batches, all of them whole. To see as many images as
    before takes ``1 / share`` times the epochs, in schedules and ``ProgressiveResize`` as well.

    Args:
        image_set: As for ``DeviceLoader``.
        batch_size: As for ``DeviceLoader``.
        share: Share of the images that an epoch takes, above 0 to 1; two thirds by default.
        hardest: Share of the images, 0 to ``share``, that are those with the highest losses; the
            rest of an epoch is drawn from all others. Three quarters of ``share`` by default. With
            all of it an easy image comes again only once others have become easier than it was.
        transforms: As for ``DeviceLoader``.
        seed: As for ``DeviceLoader``, and of the choice.
        device: As for ``DeviceLoader``.
        rank: As for ``DeviceLoader``.
        world_size: As for ``DeviceLoader``. Every process must receive the losses of all, as
            ``Trainer.fit`` sees to at the end of each epoch, or they choose different images.
        mix: As for ``DeviceLoader``; a mixed image's loss counts for the one that it was.
        fused: As for ``DeviceLoader``.

    Raises:
        TypeError: As for ``DeviceLoader``.
        ValueError: As for ``DeviceLoader``, or a share is out of its range or leaves no batch.

    Example:
        >>> pixels = torch.zeros(12, 3, 8, 8, dtype=torch.uint8)
        >>> image_set = ImageSet(pixels, torch.arange(12) % 2, classes=("a", "b"), name="black")
        >>> loader = PrunedLoader(image_set, batch_size=2, share=0.5)
        >>> len(loader), [len(labels) for _, labels in loader]
        (3, [2, 2, 2])

    Reference:
        Thao Nguyen et al. 2023, "KAKURENBO: adaptively hiding samples in deep neural network
        training" (arXiv 2310.10102), and Qin et al. 2023, "InfoBatch" (arXiv 2303.04947), here
        without its weights: the losses of the others are not scaled up.
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        batch_size: int,
        share: float = 2 / 3,
        hardest: float | None = None,
        transforms: Sequence[Transform[Any]] = (),
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        mix: Mix | None = None,
        fused: bool | None = None,
    ) -> None:
        check_fraction("share", share)
        self.share = share
        self.hardest = 0.75 * share if hardest is None else hardest
        check_fraction("hardest", self.hardest)
        if self.hardest > share:
            raise ValueError(
                f"hardest must be at most share, got hardest={hardest} and share={share}"
            )
        super().__init__(
            image_set,
            batch_size=batch_size,
            transforms=transforms,
            shuffle=True,
            drop_last=True,
            seed=seed,
            device=device,
            rank=rank,
            world_size=world_size,
            mix=mix,
            fused=fused,
        )
        if not len(self):
            count = len(image_set)
            raise ValueError(
                f"share must leave a whole batch, got share={share} of {count} images for "
                f"batch_size={batch_size}"
            )
        self._losses = torch.full(
            (len(image_set),), math.inf, dtype=torch.float32, device=self.device
        )
        self._told: list[tuple[Tensor, Tensor]] = []
        self._last = torch.empty(0, dtype=torch.int64, device=self.device)

    @override
    def __len__(self) -> int:
        # A share such as 2/3 of 9 images is 6, whatever floats say.
        return math.floor(self.share * len(self._rows) + 1e-9) // self.batch_size

    @property
    def last_indices(self) -> Tensor:
        """Numbers, int64 [B], of the images of the batch that was served last."""
        return self._last

    def observe_losses(self, losses: Tensor, indices: Tensor | None = None) -> None:
        """Note the losses of a batch's images.

        Args:
            losses: Floats [B], in the order of the batch, on any device; NaN counts as the highest.
            indices: ``last_indices`` as they were when the batch came; by default those of now,
                which are other ones once somebody has taken another batch.

        Raises:
            ValueError: If there is not one loss for each image.
        """
        images = self._last if indices is None else indices
        if losses.shape != images.shape:
            raise ValueError(
                f"losses must be one number for each image of the batch, {list(images.shape)}, "
                f"got shape {list(losses.shape)}"
            )
        # Written down once an epoch, as the host would wait for losses of another device.
        self._told.append((images, losses.detach().clone()))  # which a CUDA graph may write over

    def _noted(self) -> Tensor:
        """Return the losses of all images, with those told since the last time."""
        for images, losses in self._told:
            self._losses[images.to(self.device)] = losses.to(self._losses)
        self._told.clear()
        return self._losses

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what that of a ``DeviceLoader`` holds, the shares, and the losses, float32 [N]."""
        return {**super().state_dict(), "losses": self._noted().clone()}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a loader's state; without losses in it as if no image had been seen.

        Raises:
            TypeError: As for ``DeviceLoader``.
            ValueError: As for ``DeviceLoader``, or if the losses are not one for each image.
        """
        rest = dict(state_dict) if isinstance(state_dict, Mapping) else state_dict
        losses = rest.pop("losses", None) if isinstance(rest, dict) else None
        if losses is not None and losses.shape != self._losses.shape:
            raise ValueError(
                f"losses must be one for each image, {list(self._losses.shape)}, "
                f"got shape {list(losses.shape)}"
            )
        super().load_state_dict(rest)
        self._told.clear()
        if losses is None:
            self._losses.fill_(math.inf)
        else:
            self._losses.copy_(losses)

    @override
    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "share": self.share, "hardest": self.hardest}

    @override
    def _order(self, epoch: int) -> Tensor:
        generator, number = self._generator(epoch), len(self._rows)
        count = len(self) * self.batch_size
        first = round(count * self.hardest / self.share)
        # Shuffled first, so that chance decides between equals, as all are that were never seen.
        shuffled = torch.randperm(number, generator=generator, device="cpu").to(self.device)
        ranked = shuffled[self._noted()[shuffled].argsort(descending=True, stable=True)]
        others = torch.randperm(number - first, generator=generator, device="cpu")
        others = others[: count - first].to(self.device)
        chosen = torch.cat([ranked[:first], ranked[first:][others]])
        return chosen[torch.randperm(count, generator=generator, device="cpu").to(self.device)]

    @override
    def _batch(self, index: Tensor, epoch: int, params: Any) -> tuple[Tensor, Tensor]:
        self._last = index
        return super()._batch(index, epoch, params)
