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

    An epoch takes the images whose loss was highest when they were last trained on, of those that
    never were before any other, and fills itself up with others at random; so every image comes
    again. Nothing is computed for it: ``Trainer.fit`` tells the loader the losses that it has seen
    anyway. In a loop of your own call ``observe_losses`` after each batch.

    An epoch is that much shorter: ``len`` counts its batches, all of them whole, and to see as
    many images as before takes ``1 / share`` times the epochs, of schedules and sizes as well.

    Args:
        image_set: As for ``DeviceLoader``.
        batch_size: As for ``DeviceLoader``.
        share: Share of the images that an epoch takes, above 0 to 1; two thirds by default.
        hardest: Share of the images, 0 to ``share``, that are those with the highest losses; the
            rest of an epoch is drawn from all others. Three quarters of ``share`` by default.
        transforms: As for ``DeviceLoader``.
        seed: As for ``DeviceLoader``, and of the choice.
        device: As for ``DeviceLoader``.
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
            mix=mix,
            fused=fused,
        )
        if not len(self):
            count = len(image_set)
            raise ValueError(
                f"share must leave a whole batch, got share={share} of {count} images for "
                f"batch_size={batch_size}"
            )
        self._losses = torch.full((len(image_set),), math.inf, device=self.device)
        self._served: Tensor | None = None

    @override
    def __len__(self) -> int:
        # A share such as 2/3 of 9 images is 6, whatever floats say.
        return math.floor(self.share * len(self._rows) + 1e-9) // self.batch_size

    def observe_losses(self, losses: Tensor) -> None:
        """Note the losses of the images of the batch that was served last.

        Args:
            losses: Floats [B], in the order of the batch, on any device; NaN counts as the highest.
                Take no other batch before, as they would go to the images of that one.

        Raises:
            ValueError: If no batch was served, or it had another number of images.
        """
        served = 0 if self._served is None else len(self._served)
        if self._served is None or losses.shape != self._served.shape:
            raise ValueError(
                f"losses must be one number for each image of the last batch, [{served}], "
                f"got shape {list(losses.shape)}"
            )
        self._losses[self._served] = losses.detach().to(self._losses)

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return what that of a ``DeviceLoader`` holds, the shares, and the losses, float32 [N]."""
        return {**super().state_dict(), "losses": self._losses.clone()}

    @override
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a loader's state; see ``DeviceLoader.load_state_dict``."""
        super().load_state_dict(state_dict)
        if "losses" in state_dict:
            self._losses.copy_(state_dict["losses"])

    @override
    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), "share": self.share, "hardest": self.hardest}

    @override
    def _order(self, epoch: int) -> Tensor:
        generator, number = self._generator(epoch), len(self._rows)
        count = len(self) * self.batch_size
        first = min(count, round(self.hardest * number))
        # Shuffled first, so that chance decides between equals, as all are that were never seen.
        shuffled = torch.randperm(number, generator=generator, device="cpu").to(self.device)
        ranked = shuffled[self._losses[shuffled].argsort(descending=True, stable=True)]
        others = torch.randperm(number - first, generator=generator, device="cpu")
        others = others[: count - first].to(self.device)
        chosen = torch.cat([ranked[:first], ranked[first:][others]])
        return chosen[torch.randperm(count, generator=generator, device="cpu").to(self.device)]

    @override
    def _batch(self, index: Tensor, epoch: int, params: Any) -> tuple[Tensor, Tensor]:
        self._served = index
        return super()._batch(index, epoch, params)
