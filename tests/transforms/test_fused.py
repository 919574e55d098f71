"""The fused pass in plain torch: the same bytes as the pieces one after the other."""

from __future__ import annotations

import pytest
import torch
from fused_cases import batch_of, bytes_of, case, numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks.transforms import (
    AlternatingFlip,
    Cutout,
    Draws,
    Normalize,
    Pipeline,
    ProgressiveResize,
    RandomHorizontalFlip,
    RandomIntensity,
    RandomTranslate,
    _fused,
)
from fasttricks.transforms._fused import TorchPass, prepare, recognize

NORMALIZE = Normalize(0.5, 0.25)
MOVE, FLIP, CUT = RandomTranslate(2), RandomHorizontalFlip(), Cutout(3)


@settings(max_examples=150)
@given(case=case(), copy_limit=st.sampled_from([0, 2**30]))
def test_the_pass_is_the_pieces_one_after_the_other_bit_by_bit(case, copy_limit):
    recipe = recognize(case.pipeline)
    assert recipe.pieces == case.pipeline.transforms
    fused = TorchPass(recipe, case.rows, case.shape, copy_limit=copy_limit)
    expected = batch_of(case)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        result = fused(case.index, numbers(case, recipe), memory_format)
        assert result.dtype == expected.dtype
        assert result.is_contiguous(memory_format=memory_format)
        assert torch.equal(bytes_of(result), bytes_of(expected))


@pytest.mark.parametrize("copy_limit", [0, 2**30])
def test_the_set_stays_as_it_is(copy_limit):
    rows = torch.randint(0, 256, (5, 8 * 8 * 3), dtype=torch.uint8)
    before = rows.clone()
    recipe = recognize(Pipeline([Cutout(3, fill=9), NORMALIZE, CUT]))
    index = torch.arange(5)
    table = recipe.sample(Draws(index, seed=0), (5, 3, 8, 8))
    fused = TorchPass(recipe, rows, (3, 8, 8), copy_limit=copy_limit)
    fused(index, table, torch.channels_last)
    assert torch.equal(rows, before)


@pytest.mark.parametrize(
    ("transforms", "done"),
    [
        ([NORMALIZE], 1),
        ([MOVE, NORMALIZE], 2),
        ([FLIP, CUT, NORMALIZE], 3),
        ([MOVE, AlternatingFlip(), CUT, NORMALIZE, CUT], 5),
        ([Pipeline([MOVE, FLIP]), NORMALIZE, CUT, CUT], 4),
        ([MOVE, NORMALIZE, RandomIntensity(), CUT], 2),
        ([MOVE, NORMALIZE, ProgressiveResize({0: 4})], 2),
        ([MOVE, NORMALIZE, Cutout(3, fill="mean")], 2),
        ([MOVE, Normalize(0.5, 0.25, torch.float16)], 2),
        ([MOVE, Normalize(0.5, 0.25, torch.float64)], None),
        ([MOVE, Cutout(3, fill="mean"), NORMALIZE], None),
        ([FLIP, MOVE, NORMALIZE], None),
        ([CUT, FLIP, NORMALIZE], None),
        ([FLIP, FLIP, NORMALIZE], None),
        ([MOVE, RandomIntensity(), NORMALIZE], None),
        ([MOVE, FLIP, CUT], None),
        ([], None),
    ],
)
def test_a_start_in_the_right_order_is_recognised(transforms, done):
    pipeline = Pipeline(transforms)
    recipe = recognize(pipeline)
    assert (recipe and recipe.pieces) == (done and pipeline.transforms[:done])


def test_a_subclass_is_no_piece_of_the_pass():
    class Still(RandomTranslate):
        def apply(self, images, params):
            return images

    assert recognize(Pipeline([Still(2), NORMALIZE])) is None


def test_the_table_holds_shift_flip_and_boxes():
    recipe = recognize(Pipeline([MOVE, FLIP, NORMALIZE, Cutout(3, holes=2)]))
    draws = Draws(torch.arange(9), seed=1)
    shape = (9, 3, 8, 8)
    table = recipe.sample(draws, shape)
    assert table.dtype == torch.int32
    assert table.shape == (9, 11)
    assert torch.equal(table[:, :2].long(), MOVE.sample(draws.with_stream(0), shape))
    assert torch.equal(table[:, 2].bool(), FLIP.sample(draws.with_stream(1), shape))
    boxes = Cutout(3, holes=2).sample(draws.with_stream(3), shape)
    assert torch.equal(table[:, 3:].long().view(9, 2, 4), boxes)


def test_the_switch_is_off_on_or_automatic():
    rows = torch.zeros(2, 8 * 8 * 3, dtype=torch.uint8)
    good, other = Pipeline([NORMALIZE]), Pipeline([CUT])
    for fused in (None, True):
        assert isinstance(prepare(good, rows, (3, 8, 8), fused=fused), TorchPass)
    assert prepare(good, rows, (3, 8, 8), fused=False) is None
    assert prepare(other, rows, (3, 8, 8), fused=None) is None
    with pytest.raises(ValueError, match="fused=True is not possible: the transforms do not"):
        prepare(other, rows, (3, 8, 8), fused=True)
    with pytest.raises(TypeError, match="fused must be True, False or None, got fused=1"):
        prepare(good, rows, (3, 8, 8), fused=1)


def test_a_device_without_a_pass_is_named():
    rows = torch.zeros(2, 192, dtype=torch.uint8, device="meta")
    assert prepare(Pipeline([NORMALIZE]), rows, (3, 8, 8), fused=None) is None
    with pytest.raises(ValueError, match="there is none for meta devices; use fused=None"):
        prepare(Pipeline([NORMALIZE]), rows, (3, 8, 8), fused=True)


def test_on_cuda_it_needs_triton(monkeypatch):
    monkeypatch.setattr(_fused, "find_spec", lambda name: None)
    assert "needs Triton, which is not installed" in _fused._device_problem(torch.device("cuda"))
    monkeypatch.setattr(_fused, "find_spec", lambda name: object())
    assert _fused._device_problem(torch.device("cuda")) is None


@pytest.mark.parametrize(
    ("piece", "message"),
    [
        (RandomTranslate(8), "padding=8 and images of 8x8"),
        (Cutout(2, fill=0.5), "for torch.uint8 images, got fill=0.5"),
        (Cutout(2, fill=(1, 2)), "2 numbers and images of 3 channels"),
    ],
)
def test_what_does_not_fit_the_images_is_refused_as_by_the_pieces(piece, message):
    rows = torch.zeros(2, 8 * 8 * 3, dtype=torch.uint8)
    with pytest.raises(ValueError, match=message):
        prepare(Pipeline([piece, NORMALIZE]), rows, (3, 8, 8), fused=None)
