"""Draws: random numbers by counter, so that an image's do not depend on its batch. N images."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TypeVar

import torch
from torch import Tensor

from fasttricks._checks import check_integer

_Word = TypeVar("_Word", int, Tensor)
_MASK = 0xFFFF_FFFF
# 2**32 / golden ratio, odd: the columns k become k * _GOLDEN, all different modulo 2**32.
_GOLDEN = 0x9E37_79B9
# The two keys start from different words (the first digits of pi), so a relation between two
# counters that holds in one key does not hold in the other.
_KEY_STARTS = (0x243F_6A88, 0x85A3_08D3)
# Multipliers of a bias-tested 32-bit mix. The second is written minus 2**32: the low 32 bits of the
# product are the same, and the product of two such words stays inside int64.
_MULTIPLY_1, _MULTIPLY_2 = 0x21F0_AAAD, 0xD35A_2D97 - 2**32

# Streams that no transform of a pipeline reaches: a loader's order, and what it mixes.
ORDER_STREAM, MIX_STREAM = 2**32 - 1, 2**32 - 2


@dataclass(frozen=True, eq=False)
class Draws:
    """Random numbers for each image, by counter.

    Every number is a pure function of (seed, epoch, stream, index, column): two rounds of a 32-bit
    integer mix over the image's index, keyed by (seed, epoch, stream), and a third over the column.
    Nothing is remembered, so the numbers are the same in any batch, in any order and on any device,
    and asking twice gives the same numbers.

    Args:
        indices: int64, shape [N]: which images of the data set.
        seed: which of the many sets of draws, from 0 to 2**64 - 1.
        epoch: from 0; each epoch has its own draws.
        stream: from 0; each purpose (each transform of a pipeline) has its own draws.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: indices are not one-dimensional, or a number is out of range.

    Example:
        >>> draws = Draws(torch.arange(4), seed=0)
        >>> draws.integers(-2, 3, 2).shape
        torch.Size([4, 2])
        >>> alone = Draws(torch.tensor([3]), seed=0)
        >>> bool((alone.uniform(1) == draws.uniform(1)[3]).all())
        True

    Reference:
        Salmon et al., Parallel Random Numbers: As Easy as 1, 2, 3 (SC 2011), for the idea of a
        counter; the mix is of the xor-shift-multiply kind of MurmurHash3's finaliser.
    """

    indices: Tensor
    seed: int = field(kw_only=True)
    epoch: int = field(default=0, kw_only=True)
    stream: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        if not isinstance(self.indices, Tensor):
            raise TypeError(f"indices must be a torch.Tensor, got {type(self.indices).__name__}")
        if self.indices.dtype != torch.int64:
            raise TypeError(f"indices must have dtype torch.int64, got dtype={self.indices.dtype}")
        if self.indices.dim() != 1:
            raise ValueError(f"indices must have the shape [N], got {tuple(self.indices.shape)}")
        _keep_word(self, "seed", bits=64)
        _keep_word(self, "epoch", bits=32)
        _keep_word(self, "stream", bits=32)

    def __len__(self) -> int:
        return self.indices.shape[0]

    @classmethod
    def from_generator(
        cls,
        n: int,
        *,
        generator: torch.Generator | None = None,
        device: torch.device | str = "cpu",
    ) -> Draws:
        """Draws for a batch outside of a counted run: indices 0..n-1, a seed from ``generator``.

        Args:
            n: how many images.
            generator: gives one 63-bit number; None takes torch's default generator, as torch's own
                functions do.
            device: where the numbers are computed.

        Raises:
            TypeError: n is not a whole number, or generator not a generator.
            ValueError: n is negative.

        Example:
            >>> generator = torch.Generator().manual_seed(0)
            >>> len(Draws.from_generator(5, generator=generator))
            5
        """
        check_integer("n", n)
        if generator is not None and not isinstance(generator, torch.Generator):
            raise TypeError(
                f"generator must be a torch.Generator or None, got generator={generator!r}"
            )
        home = "cpu" if generator is None else generator.device
        seed = torch.randint(2**63 - 1, (), generator=generator, device=home)
        return cls(torch.arange(n, device=device), seed=int(seed))

    def at_epoch(self, epoch: int) -> Draws:
        """The draws of the same images in another epoch."""
        return replace(self, epoch=epoch)

    def with_stream(self, stream: int) -> Draws:
        """The draws of the same images for another purpose."""
        return replace(self, stream=stream)

    def uniform(self, count: int, *, start: int = 0) -> Tensor:
        """Uniform numbers in [0, 1): multiples of 2**-24, each exact in float32.

        Args:
            count: how many numbers for each image.
            start: the first column: ``uniform(5)[:, 2:]`` equals ``uniform(3, start=2)``.

        Returns:
            float32, shape [N, count].

        Example:
            >>> u = Draws(torch.arange(1000), seed=0).uniform(1)
            >>> bool(((0 <= u) & (u < 1)).all())
            True
        """
        return self._bits24(count, start).to(torch.float32) * 2.0**-24

    def integers(self, low: int, high: int, count: int, *, start: int = 0) -> Tensor:
        """Whole numbers ``low <= x < high``, uniform.

        They are floor(u * (high - low)) + low, with u of ``uniform``, computed exactly. Columns are
        shared with ``uniform`` and other calls: a transform that needs independent numbers takes
        them from different columns, with ``start``.

        Args:
            low: the smallest number.
            high: one more than the largest; at most 2**24 above low.
            count: how many numbers for each image.
            start: the first column.

        Returns:
            int64, shape [N, count].

        Raises:
            ValueError: high is not above low, or more than 2**24 above it.

        Example:
            >>> x = Draws(torch.arange(1000), seed=0).integers(-2, 3, 1)
            >>> x.unique().tolist()
            [-2, -1, 0, 1, 2]
        """
        if not 0 < high - low <= 2**24:
            raise ValueError(
                f"high must be 1 to 2**24 greater than low, got low={low} and high={high}"
            )
        return (self._bits24(count, start) * (high - low) >> 24) + low

    def _bits24(self, count: int, start: int) -> Tensor:
        """The 24 high bits of each number's mix, as int64, shape [N, count]."""
        count, start = check_integer("count", count), check_integer("start", start)
        key_a, key_b = self._keys()
        low, high = self.indices & _MASK, self.indices >> 32 & _MASK
        image = _mix(_mix(low ^ key_a) + (high ^ key_b) & _MASK)
        columns = torch.arange(start, start + count, device=self.indices.device) * _GOLDEN
        return _mix(image[:, None] + columns & _MASK) >> 8

    def _keys(self) -> tuple[int, int]:
        """Two 32-bit keys of (seed, epoch, stream), by the same mix on Python numbers."""
        words = (self.seed & _MASK, self.seed >> 32, self.epoch, self.stream)
        key_a, key_b = _KEY_STARTS
        for word in words:
            key_a, key_b = _mix(key_a ^ word), _mix(key_b ^ word)
        return key_a, key_b


def _mix(h: _Word) -> _Word:
    """A 32-bit bijection; each bit of ``h`` moves every bit of the result half of the time."""
    h = (h ^ (h >> 16)) * _MULTIPLY_1 & _MASK
    h = (h ^ (h >> 15)) * _MULTIPLY_2 & _MASK
    return h ^ (h >> 15)


def _keep_word(draws: Draws, name: str, *, bits: int) -> None:
    """Check one of the words of ``draws`` and keep it as an int."""
    given = getattr(draws, name)
    value = check_integer(name, given)
    if value >= 2**bits:
        raise ValueError(f"{name} must be less than 2**{bits}, got {name}={value}")
    if value is not given:
        object.__setattr__(draws, name, value)
