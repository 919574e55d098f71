from __future__ import annotations

import numpy as np
import pytest
import slow_transforms
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks.transforms import Draws

words = st.integers(0, 2**32 - 1)


def chi_square_is_ordinary(counts):
    """Within four standard deviations of its mean, on both sides: too even is not random either."""
    expected = counts.sum() / counts.numel()
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    freedom = counts.numel() - 1
    return abs(chi2 - freedom) < 4 * (2 * freedom) ** 0.5


def correlation(a, b):
    return float(torch.corrcoef(torch.stack([a, b]))[0, 1])


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**64 - 1),
    epoch=words,
    stream=words,
    indices=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=4),
    start=st.integers(0, 1000),
)
def test_draws_equal_the_slow_twin_in_plain_numbers(seed, epoch, stream, indices, start):
    draws = Draws(torch.tensor(indices, dtype=torch.int64), seed=seed, epoch=epoch, stream=stream)
    expected = [
        [
            slow_transforms.draw(seed=seed, epoch=epoch, stream=stream, index=i, column=start + k)
            for k in range(3)
        ]
        for i in indices
    ]
    assert draws.integers(0, 2**24, 3, start=start).tolist() == expected
    assert (draws.uniform(3, start=start).double() * 2**24).tolist() == expected


@given(low=st.integers(-1000, 1000), width=st.integers(1, 2**24))
@settings(max_examples=30)
def test_integers_are_the_exact_floor_of_the_scaled_uniform(low, width):
    draws = Draws(torch.arange(50), seed=3)
    exact = (draws.uniform(2).double() * width).floor().long() + low
    got = draws.integers(low, low + width, 2)
    assert torch.equal(got, exact)
    assert got.min() >= low
    assert got.max() < low + width


def test_an_image_has_the_same_draws_in_any_batch_and_any_order():
    order = torch.randperm(1000, generator=torch.Generator().manual_seed(0))
    whole = Draws(torch.arange(1000), seed=5, epoch=2, stream=1).uniform(4)
    for size in (1, 7, 1000):
        parts = [Draws(p, seed=5, epoch=2, stream=1).uniform(4) for p in order.split(size)]
        assert torch.equal(torch.cat(parts), whole[order])


def test_asking_twice_or_from_another_column_gives_the_same_numbers():
    draws = Draws(torch.arange(100), seed=5)
    assert torch.equal(draws.uniform(5), draws.uniform(5))
    assert torch.equal(draws.uniform(5)[:, 2:], draws.uniform(3, start=2))


@pytest.mark.parametrize("seed", [0, 1, 2**32, 2**63 + 11])
@pytest.mark.parametrize("cells", [2, 5, 32, 1000])
def test_draws_of_many_images_are_uniform(seed, cells):
    x = Draws(torch.arange(40_000), seed=seed).integers(0, cells, 1)
    assert chi_square_is_ordinary(torch.bincount(x[:, 0], minlength=cells))


def test_draws_of_one_image_are_uniform_over_columns_epochs_streams_and_seeds():
    cells = 32
    one = torch.tensor([7])
    columns = Draws(one, seed=1).integers(0, cells, 20_000)[0]
    epochs = [Draws(one, seed=1, epoch=e).integers(0, cells, 1) for e in range(2000)]
    streams = [Draws(one, seed=1, stream=s).integers(0, cells, 1) for s in range(2000)]
    seeds = [Draws(one, seed=s).integers(0, cells, 1) for s in range(2000)]
    for x in (columns, *(torch.cat(many)[:, 0] for many in (epochs, streams, seeds))):
        assert chi_square_is_ordinary(torch.bincount(x, minlength=cells))


def test_pairs_are_uniform_over_the_square():
    indices = torch.arange(50_000)
    here, there = Draws(indices, seed=4), Draws(indices, seed=4, epoch=1)
    pairs = {
        "columns": (here.integers(0, 16, 2)[:, 0], here.integers(0, 16, 2)[:, 1]),
        "epochs": (here.integers(0, 16, 1)[:, 0], there.integers(0, 16, 1)[:, 0]),
        "neighbours": (here.integers(0, 16, 1)[:-1, 0], here.integers(0, 16, 1)[1:, 0]),
        "streams": (here.integers(0, 16, 1)[:, 0], here.with_stream(1).integers(0, 16, 1)[:, 0]),
    }
    for name, (a, b) in pairs.items():
        assert chi_square_is_ordinary(torch.bincount(16 * a + b, minlength=256)), name


def test_columns_streams_epochs_and_seeds_are_uncorrelated():
    indices = torch.arange(20_000)
    families = {
        "columns": list(Draws(indices, seed=0).uniform(8).T),
        "streams": [Draws(indices, seed=0, stream=k).uniform(1)[:, 0] for k in range(8)],
        "epochs": [Draws(indices, seed=0, epoch=k).uniform(1)[:, 0] for k in range(8)],
        "seeds": [Draws(indices, seed=k).uniform(1)[:, 0] for k in range(8)],
        "images": [Draws(indices + k, seed=0).uniform(1)[:, 0] for k in range(8)],
        "xor": [Draws(indices ^ k, seed=0).uniform(1)[:, 0] for k in range(8)],
    }
    # a correlation of n independent pairs deviates by 1/sqrt(n); 28 pairs stay below 4.5 of these
    bound = 4.5 / 20_000**0.5
    for name, members in families.items():
        for i in range(8):
            for j in range(i):
                assert abs(correlation(members[i], members[j])) < bound, (name, i, j)


def test_the_uniformity_check_sees_a_bad_generator():
    skewed = torch.tensor([8400, 7900, 7900, 7900, 7900])
    too_even = torch.full((1000,), 40)
    assert not chi_square_is_ordinary(skewed)
    assert not chi_square_is_ordinary(too_even)


def test_each_bit_of_the_index_moves_half_of_the_bits_of_a_draw():
    base = torch.arange(4096)
    for bit in (0, 1, 7, 15, 31, 40, 62):
        a = Draws(base, seed=9).integers(0, 2**24, 1)
        b = Draws(base ^ (1 << bit), seed=9).integers(0, 2**24, 1)
        changed = torch.stack([(a ^ b) >> k & 1 for k in range(24)]).double().mean(1)
        # 4096 coins: standard deviation 1/128
        assert (changed - 0.5).abs().max() < 5 / 128


def test_images_of_one_epoch_never_share_all_of_their_draws():
    draws = Draws(torch.arange(200_000), seed=0)
    pairs = draws.integers(0, 2**24, 2)
    assert len((pairs[:, 0] << 24 | pairs[:, 1]).unique()) == 200_000


def test_epochs_are_not_a_reshuffle_of_one_another():
    first = Draws(torch.arange(65536), seed=0).integers(0, 2**24, 2)
    first = first[:, 0] << 24 | first[:, 1]
    for epoch in (1, 2, 3, 50):
        other = Draws(torch.arange(65536), seed=0, epoch=epoch).integers(0, 2**24, 2)
        # 2**32 pairs of images, and one in 2**32 shares its 32-bit state by chance: about one
        assert torch.isin(first, other[:, 0] << 24 | other[:, 1]).sum() < 10


def test_from_generator_takes_one_number_and_is_reproducible():
    draws = [Draws.from_generator(4, generator=torch.Generator().manual_seed(s)) for s in (3, 3, 4)]
    assert draws[0].seed == draws[1].seed != draws[2].seed
    assert draws[0].indices.tolist() == [0, 1, 2, 3]
    state = torch.get_rng_state()
    Draws.from_generator(4, generator=torch.Generator())
    assert torch.equal(state, torch.get_rng_state())


def test_from_generator_without_one_follows_manual_seed():
    torch.manual_seed(1)
    first = Draws.from_generator(1)
    torch.manual_seed(1)
    assert Draws.from_generator(1).seed == first.seed
    assert Draws.from_generator(1).seed != first.seed


def test_at_epoch_and_with_stream_change_only_that():
    draws = Draws(torch.arange(3), seed=8, epoch=1, stream=2)
    assert torch.equal(
        draws.at_epoch(5).uniform(1), Draws(draws.indices, seed=8, epoch=5, stream=2).uniform(1)
    )
    assert torch.equal(
        draws.with_stream(6).uniform(1), Draws(draws.indices, seed=8, epoch=1, stream=6).uniform(1)
    )
    assert (draws.epoch, draws.stream) == (1, 2)


def test_no_images_and_no_columns_give_empty_draws():
    none = torch.empty(0, dtype=torch.int64)
    assert Draws(none, seed=0).uniform(3).shape == (0, 3)
    assert Draws(torch.arange(3), seed=0).uniform(0).shape == (3, 0)
    assert len(Draws(none, seed=0)) == 0


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"indices": [0, 1]}, TypeError, r"indices must be a torch.Tensor, got list"),
        ({"indices": torch.zeros(2)}, TypeError, r"int64, got dtype=torch.float32"),
        ({"indices": torch.zeros(2, 1).long()}, ValueError, r"shape \[N\], got \(2, 1\)"),
        ({"seed": -1}, ValueError, "seed must be at least 0, got seed=-1"),
        (
            {"seed": 2**64},
            ValueError,
            r"seed must be less than 2\*\*64, got seed=18446744073709551616",
        ),
        ({"seed": 0.5}, TypeError, "seed must be a whole number, got seed=0.5"),
        ({"epoch": -2}, ValueError, "epoch must be at least 0, got epoch=-2"),
        ({"stream": 2**32}, ValueError, r"stream must be less than 2\*\*32, got stream=4294967296"),
    ],
)
def test_bad_arguments_are_named(arguments, error, message):
    arguments = {"indices": torch.arange(2), "seed": 0} | arguments
    with pytest.raises(error, match=message):
        Draws(arguments.pop("indices"), **arguments)


def test_numbers_of_numpy_give_the_draws_of_their_values():
    indices = torch.arange(5)
    plain = Draws(indices, seed=2**32 - 1, epoch=200, stream=255).uniform(9, start=250)
    words = {"seed": np.uint32(2**32 - 1), "epoch": np.uint8(200), "stream": np.uint8(255)}
    draws = Draws(indices, **words)
    assert {type(getattr(draws, name)) for name in words} == {int}
    assert torch.equal(draws.uniform(np.uint8(9), start=np.uint8(250)), plain)


def test_an_empty_or_too_wide_range_is_refused():
    draws = Draws(torch.arange(2), seed=0)
    with pytest.raises(ValueError, match="got low=3 and high=3"):
        draws.integers(3, 3, 1)
    with pytest.raises(ValueError, match="got low=0 and high=16777217"):
        draws.integers(0, 2**24 + 1, 1)
    with pytest.raises(ValueError, match="count must be at least 0, got count=-1"):
        draws.uniform(-1)
    with pytest.raises(ValueError, match="n must be at least 0, got n=-1"):
        Draws.from_generator(-1)
    with pytest.raises(TypeError, match="generator must be a torch.Generator or None, got .*=5"):
        Draws.from_generator(1, generator=5)


@pytest.mark.cuda
def test_draws_are_the_same_on_cuda():
    indices = torch.arange(10_000)
    here = Draws(indices, seed=2**63 + 5, epoch=3, stream=1).uniform(3)
    there = Draws(indices.cuda(), seed=2**63 + 5, epoch=3, stream=1).uniform(3)
    assert torch.equal(here, there.cpu())
