"""The fused pass: the same bytes as the plain pieces, and only where it can be."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks import (
    AlternatingFlip,
    Cutout,
    DeviceLoader,
    ImageSet,
    Normalize,
    Pipeline,
    RandomHorizontalFlip,
    RandomIntensity,
    RandomTranslate,
)
from fasttricks.transforms._fused import TorchPass, recognize

NORMALIZE = Normalize(0.5, 0.25)
needs_triton = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton")
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def make_set(n=50, size=32):
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (n, 3, size, size), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.arange(n) % 2, classes=("a", "b"), name="noise")


@needs_triton
def test_under_tritons_interpreter_every_batch_is_that_of_the_plain_pieces():
    script = Path(__file__).with_name("fused_under_interpreter.py")
    run = subprocess.run(
        [sys.executable, str(script)],
        env={**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert run.stdout.strip() == "equal"


@needs_cuda
@needs_triton
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mode", ["reflect", "zero"])
def test_on_cuda_every_batch_is_that_of_the_plain_pieces(dtype, mode):
    transforms = [
        RandomTranslate(4, mode),
        AlternatingFlip(),
        Cutout(9, holes=2, fill=(1, 2, 3)),
        Normalize((0.5, 0.4, 0.3), (0.2, 0.3, 0.4), dtype),
        Cutout(8),
    ]
    options = {"batch_size": 16, "transforms": transforms, "shuffle": True, "device": "cuda"}
    plain = DeviceLoader(make_set(), fused=False, **options)
    fused = DeviceLoader(make_set(), **options)
    on_cpu = DeviceLoader(make_set(), **(options | {"device": "cpu"}))
    for _ in range(2):
        for (a, _), (b, _), (c, _) in zip(plain, fused, on_cpu, strict=True):
            assert torch.equal(a, b)
            assert torch.equal(b.cpu(), c)
            assert b.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    ("pieces", "taken"),
    [
        ([NORMALIZE], 1),
        ([RandomTranslate(2), NORMALIZE, RandomIntensity()], 2),
        ([RandomTranslate(2), RandomHorizontalFlip(), Cutout(4), NORMALIZE, Cutout(4)], 5),
        ([AlternatingFlip(), NORMALIZE, Cutout(4), Cutout(5)], 3),
        ([NORMALIZE, Cutout(4, fill="random")], 1),
    ],
)
def test_the_pass_takes_the_pieces_it_knows_and_leaves_the_rest(pieces, taken):
    assert recognize(Pipeline(pieces)).pieces == tuple(pieces[:taken])


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [RandomTranslate(2)],
        [AlternatingFlip(), RandomTranslate(2), NORMALIZE],
        [RandomTranslate(2), RandomTranslate(2), NORMALIZE],
        [Cutout(4, fill="mean"), NORMALIZE],
        [Normalize(0.5, 0.25, torch.float64)],
        [RandomIntensity(), NORMALIZE],
    ],
)
def test_what_cannot_be_one_pass_goes_the_plain_way_and_says_why_if_asked(pieces):
    assert recognize(Pipeline(pieces)) is None
    with pytest.raises(ValueError, match="fused=True is not possible: the transforms do not begin"):
        DeviceLoader(make_set(), batch_size=4, transforms=pieces, fused=True)


def test_a_flag_that_is_none_is_named():
    with pytest.raises(TypeError, match="fused must be True, False or None, got fused='yes'"):
        DeviceLoader(make_set(), batch_size=4, transforms=[NORMALIZE], fused="yes")


pieces_before = st.tuples(
    st.sampled_from([None, (0, "reflect"), (3, "reflect"), (3, "zero"), (40, "zero")]),
    st.sampled_from([None, RandomHorizontalFlip(), RandomHorizontalFlip(p=1.0), AlternatingFlip()]),
    st.sampled_from([None, Cutout(5, fill=7), Cutout((2, 30), holes=3, inside=True)]),
)


@settings(deadline=None, max_examples=60)
@given(
    before=pieces_before,
    after=st.sampled_from([None, Cutout(4, p=0.5), Cutout(1, fill=0.25, holes=2)]),
    shape=st.tuples(st.sampled_from([1, 3, 4]), st.integers(4, 11), st.integers(4, 11)),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    copied=st.booleans(),
    seed=st.integers(0, 3),
)
def test_on_the_cpu_every_batch_is_that_of_the_plain_pieces(
    before, after, shape, dtype, copied, seed
):
    move, flip, hole = before
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (9, *shape), dtype=torch.uint8, generator=generator)
    data = ImageSet(pixels, torch.arange(9) % 2, classes=("a", "b"), name="noise")
    first = None if move is None else RandomTranslate(move[0], move[1])
    pieces = [first, flip, hole, Normalize(0.4, 0.3, dtype), after, RandomIntensity()]
    transforms = [piece for piece in pieces if piece is not None]
    options = {"batch_size": 4, "transforms": transforms, "shuffle": True, "seed": seed}
    plain = DeviceLoader(data, fused=False, **options)
    fused = DeviceLoader(data, fused=True, **options)
    if not copied:
        fused._pass = TorchPass(fused._pass.recipe, fused._rows, fused._shape, copy_limit=0)
    for _ in range(2):
        for (a, b), (c, d) in zip(plain, fused, strict=True):
            assert (a.dtype, a.stride()) == (c.dtype, c.stride())
            assert torch.equal(a, c)
            assert torch.equal(b, d)


def test_on_a_cpu_triton_stays_unloaded():
    code = (
        "import sys, torch, fasttricks as ft;"
        "s = ft.ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2,"
        "classes=('a', 'b'), name='black');"
        "list(ft.DeviceLoader(s, batch_size=2, transforms=[ft.Normalize(0.5, 0.25)]));"
        "print('triton' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
