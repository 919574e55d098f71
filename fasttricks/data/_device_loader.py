"""DeviceLoader: the images stay on the device, batches are made there.

Shapes: B images a batch, C channels, H rows, W columns.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import cached_property
from numbers import Real
from typing import Any
from zlib import crc32

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from fasttricks._checks import check_flag, check_integer, is_library_class
from fasttricks.data._image_set import ImageSet
from fasttricks.transforms import Draws, Mix, Pipeline, ProgressiveResize, Transform
from fasttricks.transforms._base import apply_in_turn, numbers_of, sample_in_turn
from fasttricks.transforms._draws import MIX_STREAM, ORDER_STREAM
from fasttricks.transforms._fused import prepare

# For how many images the transforms' numbers are drawn at once, about: many small operations that
# cost as much for one batch.
_DRAWN_AT_ONCE = 2**14
# How many bytes of images are brought from a GPU at once for their checksum.
_SUMMED_AT_ONCE = 2**26
# The numbers of the fused pass, and of each transform after it.
_Params = tuple[Tensor | None, tuple[Any, ...] | None]


class DeviceLoader:
    """Batches of an ``ImageSet`` that lives on the device, augmented a batch at a time.

    Nothing is decoded, copied from the host or spread over workers while training: a batch is one
    gather by index, then the transforms. Those that begin the list are one pass where they can be,
    with the same results (see ``fused``). What image i looks like in epoch e is a pure function of
    (seed, e, i), and the order of epoch e is one of (seed, e); neither depends on the device, nor
    does an image on batch_size, shuffle or drop_last.

    An iteration that comes to the last batch moves ``epoch`` on by one; one that is broken off
    before does not, and the next one serves the same epoch again. (One of a single batch moves on
    with ``next(iter(loader))``.)

    Args:
        image_set: the images and labels; its tensors are moved to ``device`` once.
        batch_size: images a batch, at least 1; the last batch of an epoch is shorter if they do not
            divide.
        transforms: applied in order. Without a ``Normalize`` among them, images leave as uint8 in
            0..255.
        shuffle: a new order each epoch, or the images' own.
        drop_last: leave out the last batch if it is short.
        seed: of the order and the transforms' draws, from 0 to 2**64 - 1.
        device: such as "cpu" or "cuda".
        rank: which of ``world_size`` processes this is, from 0.
        world_size: processes that share each batch: this one gets every ``world_size``-th of its
            images, as augmented as in one process. ``batch_size`` counts those of all.
        mix: a ``Mixup`` or a ``CutMix``, applied last; an image's partner may be any of the set.
        fused: whether a RandomTranslate, a flip, a Cutout, a Normalize and a second Cutout, in this
            order, run as one pass; all but the Normalize may be missing. On CUDA it is a kernel,
            which needs Triton, on the CPU a gather from a padded and mirrored copy of the set of up
            to 1 GiB. None (the default): where possible; True: an error where not; False: never.
            The batches are the same bit for bit.

    Yields:
        ``(images, labels)`` on ``device``: [B, C, H, W] in ``torch.channels_last``, and int64 [B],
        with ``mix`` float32 [B, num_classes].

    Raises:
        TypeError: image_set is not an ImageSet, a transform not a Transform, or an argument of the
            wrong type.
        ValueError: batch_size is below 1 or leaves no batch, the device cannot be used, a transform
            does not fit the images at any of their sizes, or ``fused=True`` is not possible.

    Example:
        >>> from fasttricks.data import ImageSet
        >>> from fasttricks.transforms import Normalize, RandomTranslate
        >>> pixels = torch.zeros(10, 3, 32, 32, dtype=torch.uint8)
        >>> image_set = ImageSet(pixels, torch.arange(10) % 2, classes=("a", "b"), name="black")
        >>> transforms = [RandomTranslate(2), Normalize(0.5, 0.25)]
        >>> loader = DeviceLoader(image_set, batch_size=4, transforms=transforms, shuffle=True)
        >>> [images.shape[0] for images, labels in loader], loader.epoch
        ([4, 4, 2], 1)

    Reference:
        Jordan, 94% on CIFAR-10 in 3.29 Seconds on a Single GPU (arXiv 2404.00498), for a set held
        on the device.
    """

    def __init__(
        self,
        image_set: ImageSet,
        *,
        batch_size: int,
        transforms: Sequence[Transform[Any]] = (),
        shuffle: bool = False,
        drop_last: bool = False,
        seed: int = 0,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        mix: Mix | None = None,
        fused: bool | None = None,
    ) -> None:
        if not isinstance(image_set, ImageSet):
            raise TypeError(f"image_set must be an ImageSet, got {type(image_set).__name__}")
        check_flag("shuffle", shuffle)
        check_flag("drop_last", drop_last)
        if mix is not None and not isinstance(mix, Mix):
            raise TypeError(f"mix must be a Mixup or a CutMix, got mix={mix!r}")
        self.batch_size = check_integer("batch_size", batch_size, minimum=1)
        self.world_size = check_integer("world_size", world_size, minimum=1)
        self.rank = check_integer("rank", rank)
        self.shuffle = shuffle
        self.drop_last = drop_last
        self.seed = check_integer("seed", seed)
        self._check_share(len(image_set))
        self.device = _usable_device(device)
        self.pipeline = Pipeline(transforms)
        self.mix = mix
        self._num_classes = image_set.num_classes
        self._epoch = 0
        self._shape: tuple[int, ...] = tuple(image_set.images.shape[1:])
        # one row an image: `index_select` then copies whole rows and keeps the NHWC storage
        storage = image_set.images.to(self.device).permute(0, 2, 3, 1)
        self._rows = storage.reshape(len(image_set), -1)
        self._labels = image_set.labels.to(self.device)
        self._pass = prepare(self.pipeline, self._rows, self._shape, fused=fused)
        self._fused_count = 0 if self._pass is None else len(self._pass.plan.pieces)
        self._rest = self.pipeline.transforms[self._fused_count :]
        # What these sample is an image's own, and little.
        self._rest_is_library = all(map(is_library_class, self._rest))
        # an empty batch of each size goes through everything that could refuse the images, or the
        # seed, before the first epoch
        none = torch.empty(0, dtype=torch.int64, device=self.device)
        for epoch in sorted({0, *self.size_starts}):
            self._batch(none, epoch, self._sample(none, epoch))

    @cached_property
    def _images_id(self) -> str:
        return _fingerprint(self._rows, self._labels, self._shape)

    def _check_share(self, number: int) -> None:
        """Raise unless each batch of ``number`` images has one for each process."""
        if self.drop_last and self.batch_size > number:
            raise ValueError(
                f"batch_size must be at most the number of images with drop_last=True, "
                f"got batch_size={self.batch_size} and {number} images; use drop_last=False"
            )
        if self.rank >= self.world_size:
            raise ValueError(
                f"rank must be under world_size, got rank={self.rank} of {self.world_size}"
            )
        rest = 0 if self.drop_last else number % self.batch_size
        smallest = min(self.batch_size, rest or self.batch_size)
        if smallest < self.world_size:
            raise ValueError(
                f"each batch must hold an image for each process, got {smallest} images for "
                f"world_size={self.world_size}; use drop_last=True or another batch_size"
            )

    def __len__(self) -> int:
        full, rest = divmod(len(self._rows), self.batch_size)
        return full + (rest > 0 and not self.drop_last)

    @property
    def last_batch_size(self) -> int:
        """Images of an epoch's last batch, of this process's share."""
        size = len(self._rows) - (len(self) - 1) * self.batch_size
        return len(range(self.rank, min(size, self.batch_size), self.world_size))

    @property
    def size_starts(self) -> tuple[int, ...]:
        """The epochs at which a size of a ``ProgressiveResize`` begins, in rising order."""
        resizes = (t for t in self.pipeline.transforms if isinstance(t, ProgressiveResize))
        return tuple(sorted({epoch for resize in resizes for epoch in resize.sizes}))

    @property
    def epoch(self) -> int:
        """The epoch that the next iteration serves."""
        return self._epoch

    def set_epoch(self, epoch: int) -> None:
        """Let the next iteration serve ``epoch``, from 0."""
        self._epoch = check_integer("epoch", epoch)

    def state_dict(self) -> dict[str, Any]:
        """Return the epoch, and what tells the loader from one that would serve other batches.

        That is its seed, its images (number, shape, checksum with their labels), how they are
        parted into batches, and its transforms; one of your own counts by its class alone.
        """
        return {"epoch": self._epoch, **self._identity()}

    def _identity(self) -> dict[str, Any]:
        """What tells the loader from another one, apart from its place."""
        pieces = [*self.pipeline.transforms, *([self.mix] if self.mix else [])]
        return {
            "seed": self.seed,
            "images": self._images_id,
            "batch_size": self.batch_size,
            "shuffle": self.shuffle,
            "drop_last": self.drop_last,
            "transforms": [_name(piece) for piece in pieces],
        }

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Go on from a loader's state, of which an older one may hold the seed and epoch alone.

        Raises:
            TypeError: It is no dict, or its epoch no whole number.
            ValueError: It is no such state, or that of a loader with another seed, other images,
                labels or transforms, or that parts them into batches in another way.
        """
        if not isinstance(state_dict, Mapping):
            raise TypeError(f"state_dict must be a dict, got {type(state_dict).__name__}")
        if not {"seed", "epoch"} <= state_dict.keys():
            raise ValueError(
                "state_dict must hold seed and epoch, as that of a DeviceLoader does, "
                f"got state_dict={dict(state_dict)}"
            )
        identity = self._identity()
        others = state_dict.keys() - identity.keys() - {"epoch"}
        if others:
            raise ValueError(
                f"state_dict must be that of a {type(self).__name__}, got one that also holds "
                f"{', '.join(sorted(others))}"
            )
        for name, own in identity.items():
            saved = state_dict.get(name, own)
            if saved != own:
                raise ValueError(
                    f"{name} must be that of the loader whose state is loaded, {saved}, "
                    f"got {name}={own}"
                )
        self.set_epoch(state_dict["epoch"])

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        return self._serve(self._epoch)

    def _serve(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        order = self._order(epoch)
        block = self.batch_size * max(1, _DRAWN_AT_ONCE // self.batch_size)
        left = len(self)
        for start in range(0, left * self.batch_size, block):
            for batch in self._batches(order[start : start + block], epoch):
                left -= 1
                # With the last batch, after which zip and islice ask no more; an epoch that was set
                # from within the loop stands.
                if not left and self._epoch == epoch:
                    self._epoch = epoch + 1
                yield batch

    def _order(self, epoch: int) -> Tensor:
        number = len(self._rows)
        if not self.shuffle:
            return torch.arange(number, device=self.device)
        generator = self._generator(epoch)
        return torch.randperm(number, generator=generator, device="cpu").to(self.device)

    def _generator(self, epoch: int) -> torch.Generator:
        """What an epoch's order is drawn from: on the CPU, for the same one on every device."""
        draws = Draws(torch.zeros(1, dtype=torch.int64, device="cpu"), seed=self.seed, epoch=epoch)
        high, low = draws.with_stream(ORDER_STREAM).integers(0, 2**24, 2)[0].tolist()
        return torch.Generator(device="cpu").manual_seed(high << 24 | low)

    def _batches(self, indices: Tensor, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The batches of the images ``indices``, in their order."""
        whole = len(indices) - len(indices) % self.batch_size if self.drop_last else len(indices)
        params = self._sample(indices[:whole], epoch)
        for start in range(0, whole, self.batch_size):
            end = min(start + self.batch_size, whole)
            part = slice(start + self.rank, end, self.world_size)
            yield self._batch(indices[part], epoch, numbers_of(params, part))

    def _batch(self, index: Tensor, epoch: int, params: _Params) -> tuple[Tensor, Tensor]:
        """One batch, with the numbers that ``_sample`` gave for it."""
        images = self._augmented(index, epoch, params)
        labels = self._labels.index_select(0, index)
        if self.mix is not None:
            draws = Draws(index, seed=self.seed, epoch=epoch, stream=MIX_STREAM)
            partners = self.mix.partners(draws, len(self._rows))
            others = self._augmented(partners, epoch, self._sample(partners, epoch))
            other_labels = self._labels.index_select(0, partners)
            soft, other_soft = (
                one_hot(of, self._num_classes).float() for of in (labels, other_labels)
            )
            images, labels = self.mix.mix(images, soft, others, other_soft, draws=draws)
        return images.contiguous(memory_format=torch.channels_last), labels

    def _sample(self, index: Tensor, epoch: int) -> _Params:
        """The numbers of the fused pass, and of what comes after it if all of it is ours."""
        shape = len(index), *self._shape
        draws = Draws(index, seed=self.seed, epoch=epoch)
        table = None if self._pass is None else self._pass.plan.sample(draws, shape)
        if not self._rest_is_library:
            return table, None
        return table, sample_in_turn(self._rest, draws, shape, first=self._fused_count)

    def _augmented(self, index: Tensor, epoch: int, params: _Params) -> Tensor:
        """The images after all transforms."""
        table, rest = params
        if self._pass is None or table is None:
            c, h, w = self._shape
            images = self._rows.index_select(0, index).view(-1, h, w, c).permute(0, 3, 1, 2)
        else:
            images = self._pass(index, table, torch.channels_last)
        if rest is not None:
            return apply_in_turn(self._rest, images, rest)
        # What a transform of one's own samples may be of this batch, of its images' true size.
        draws = Draws(index, seed=self.seed, epoch=epoch)
        for stream, transform in enumerate(self._rest, self._fused_count):
            own = transform.sample(draws.with_stream(stream), tuple(images.shape))
            images = transform.apply(images, own)
        return images


def _name(piece: object) -> str:
    """A piece of the library with the arguments that are no defaults, another by its class alone.

    Its repr might hold where it lies in memory.
    """
    kind = type(piece)
    if not is_dataclass(piece) or isinstance(piece, type) or not is_library_class(piece):
        return f"{kind.__module__}.{kind.__qualname__}"
    given = []
    for field in fields(piece):
        value = _plain(getattr(piece, field.name))
        if value != _plain(field.default):
            given.append(f"{field.name}={value!r}")
    return f"{kind.__name__}({', '.join(given)})"


def _plain(value: Any) -> Any:
    """Numbers as floats, whoever made them, so that equal ones are written alike."""
    if isinstance(value, Mapping):
        return {_plain(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(inner) for inner in value]
    return float(value) if isinstance(value, Real) else value


def _fingerprint(rows: Tensor, labels: Tensor, shape: tuple[int, ...]) -> str:
    """The images' number and shape, and a checksum of them and their labels."""
    checksum = 0
    at_once = max(1, _SUMMED_AT_ONCE // rows.shape[1])
    for part in (*rows.split(at_once), labels):
        checksum = crc32(part.cpu().numpy(), checksum)
    size = "x".join(map(str, shape))
    return f"{len(rows)} of {size} (CxHxW) with checksum {checksum:08x}"


def _usable_device(device: torch.device | str) -> torch.device:
    """``device`` as a torch.device that this process can allocate on."""
    try:
        usable = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise ValueError(
            f"device must be a torch device such as 'cpu' or 'cuda', got device={device!r}"
        ) from error
    rule = "device must be one that this machine has"
    if usable.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"{rule}, got device={str(device)!r} but CUDA is not available")
    if usable.type == "cuda" and (usable.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ValueError(f"{rule}, got device={str(device)!r} but there are {count} CUDA devices")
    if usable.type == "mps" and not torch.backends.mps.is_available():
        raise ValueError(f"{rule}, got device={str(device)!r} but MPS is not available")
    if usable.type not in ("cpu", "cuda", "mps"):
        _try_allocating(usable, rule)
    return usable


def _try_allocating(device: torch.device, rule: str) -> None:
    """Raise a ValueError unless torch was built for ``device`` and finds one."""
    try:
        torch.empty(0, device=device)
    # each backend that is missing says so in its own way
    except (AssertionError, ImportError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise ValueError(f"{rule}, got device={str(device)!r} ({reason})") from error
