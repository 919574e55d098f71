"""The fused pass: the same bytes as the plain pieces, and only where it can be."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

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
from fasttricks.transforms._fused import plan_fusion

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
    ("pieces", "taken", "left"),
    [
        ([NORMALIZE], 1, []),
        ([RandomTranslate(2), NORMALIZE, RandomIntensity()], 2, [2]),
        ([RandomTranslate(2), RandomHorizontalFlip(), Cutout(4), NORMALIZE, Cutout(4)], 5, []),
        ([AlternatingFlip(), NORMALIZE, Cutout(4), Cutout(5)], 3, [3]),
    ],
)
def test_the_plan_takes_the_pieces_it_knows_and_leaves_the_rest(pieces, taken, left):
    plan = plan_fusion(Pipeline(pieces))
    assert [stream for stream, _ in plan.rest] == left
    assert [piece for _, piece in plan.rest] == pieces[taken:]


@pytest.mark.parametrize(
    "pieces",
    [
        [],
        [RandomTranslate(2)],
        [AlternatingFlip(), RandomTranslate(2), NORMALIZE],
        [RandomTranslate(2), RandomTranslate(2), NORMALIZE],
        [Cutout(4, fill="mean"), NORMALIZE],
        [NORMALIZE, Cutout(4, fill="random")],
        [Normalize(0.5, 0.25, torch.float64)],
        [RandomIntensity(), NORMALIZE],
    ],
)
def test_what_the_kernel_cannot_do_has_no_plan(pieces):
    assert plan_fusion(Pipeline(pieces)) is None


def test_asking_for_it_where_it_cannot_be_says_why():
    with pytest.raises(ValueError, match="needs a CUDA device and triton, got device='cpu'"):
        DeviceLoader(make_set(), batch_size=4, transforms=[NORMALIZE], fused=True)
    with pytest.raises(TypeError, match="fused must be True or False, got fused='yes'"):
        DeviceLoader(make_set(), batch_size=4, transforms=[NORMALIZE], fused="yes")


def test_on_a_cpu_the_loader_takes_the_plain_pieces_by_itself():
    code = (
        "import sys, torch, fasttricks as ft;"
        "s = ft.ImageSet(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2,"
        "classes=('a', 'b'), name='black');"
        "list(ft.DeviceLoader(s, batch_size=2, transforms=[ft.Normalize(0.5, 0.25)]));"
        "print('triton' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "False"
