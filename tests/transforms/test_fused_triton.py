"""The fused kernel: the same bytes as the pieces one after the other.

Without CUDA the kernel runs in Triton's interpreter, which must be chosen before Triton is
imported: the first test runs this file again in a process where it is.
"""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
from fractions import Fraction
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from fused_cases import Case, batch_of, bytes_of, case, numbers
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttricks.data import DeviceLoader, ImageSet
from fasttricks.transforms import (
    Cutout,
    Draws,
    Normalize,
    Pipeline,
    RandomHorizontalFlip,
    RandomTranslate,
)
from fasttricks.transforms._fused import prepare, recognize

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
DEVICE = "cpu" if INTERPRETED else "cuda"
NORMALIZE = Normalize((0.49, 0.48, 0.45), (0.25, 0.24, 0.26))

needs_triton = pytest.mark.skipif(find_spec("triton") is None, reason="needs Triton")


def runs_the_kernel(test):
    """On CUDA, or in Triton's interpreter."""
    return needs_triton(test if INTERPRETED else pytest.mark.cuda(test))


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="this is the other process")
def test_the_kernel_passes_under_the_interpreter():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", __file__]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stdout[-4000:]
    assert " passed" in run.stdout


def check(case):
    from fasttricks.transforms._fused_triton import TritonPass

    recipe = recognize(case.pipeline)
    kernel = TritonPass(recipe, case.rows, case.shape)
    expected = batch_of(case)
    for memory_format in (torch.channels_last, torch.contiguous_format):
        result = kernel(case.index, numbers(case, recipe), memory_format)
        assert result.dtype == expected.dtype
        assert result.is_contiguous(memory_format=memory_format)
        assert torch.equal(bytes_of(result), bytes_of(expected))


def is_exact(difference, spread):
    """Whether the kernel's three steps give the quotient that is nearest, by fractions."""
    difference, spread = np.float32(difference), np.float32(spread)
    inverse, expected = np.float32(1) / spread, difference / spread
    product = difference * inverse
    rest = Fraction(float(difference)) - Fraction(float(product)) * Fraction(float(spread))
    assert Fraction(float(rest)) == rest  # float64 loses no bit, and float32 rounds it once
    rounded = Fraction(float(np.float32(float(rest))))
    found = Fraction(float(product)) + rounded * Fraction(float(inverse))
    borders = [
        (Fraction(float(expected)) + Fraction(float(np.nextafter(expected, np.float32(end))))) / 2
        for end in (-np.inf, np.inf)
    ]
    return borders[0] < found < borders[1]


@needs_triton
@settings(max_examples=60, deadline=None)
@given(centre=st.floats(0, 255, width=32), spread=st.floats(0.5, 128, width=32))
def test_three_products_are_a_division_where_that_is_said(centre, spread):
    from fasttricks.transforms._fused_triton import divides_by_product

    constants = torch.tensor([centre]), torch.tensor([spread])
    if divides_by_product(*constants):
        differences = np.arange(256, dtype=np.float32) - np.float32(centre)
        assert all(is_exact(difference, spread) for difference in differences)


@needs_triton
def test_three_products_are_a_division_for_cifar10():
    from fasttricks.transforms._fused_triton import divides_by_product

    mean, std = (torch.tensor(x) * 255 for x in (NORMALIZE.mean, NORMALIZE.std))
    assert divides_by_product(mean, std)


@runs_the_kernel
@settings(max_examples=80 if INTERPRETED else 15)  # each compiles a kernel or two on CUDA
@given(data=st.data())
def test_the_kernel_is_the_pieces_one_after_the_other_bit_by_bit(data):
    check(data.draw(case(device=DEVICE)))


@runs_the_kernel
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("side", [16, 33, 70])
def test_the_kernel_is_exact_for_every_byte_and_several_tiles(side, dtype):
    """Images of 16 by 16 hold every byte in every channel; 70 rows are several tiles."""
    size = side * side * 3
    rows = torch.arange(2 * size, device=DEVICE).to(torch.uint8).view(2, size)
    pieces = [RandomTranslate(4), RandomHorizontalFlip(), Cutout(5, p=0.5)]
    pipeline = Pipeline([*pieces, Normalize(NORMALIZE.mean, NORMALIZE.std, dtype)])
    index = torch.arange(2, device=DEVICE)
    check(Case(rows, (3, side, side), pipeline, index, Draws(index, seed=1)))


@runs_the_kernel
@pytest.mark.parametrize(("dtype", "first"), [(torch.bfloat16, 256), (torch.float16, 2048)])
def test_the_kernel_rounds_ties_to_even(dtype, first):
    """Byte x becomes first + x, of one bit more than the dtype holds: every second is a tie."""
    rows = torch.arange(256, device=DEVICE, dtype=torch.uint8).view(1, 256)
    pipeline = Pipeline([Normalize(-first / 255, 1 / 255, dtype)])
    index = torch.zeros(1, dtype=torch.int64, device=DEVICE)
    one = Case(rows, (1, 16, 16), pipeline, index, Draws(index, seed=0))
    assert batch_of(one).flatten()[:4].tolist() == [first, first, first + 2, first + 4]
    check(one)


@runs_the_kernel
def test_the_share_of_one_of_three_processes_is_that_of_the_batch():
    rows = torch.randint(0, 256, (10, 3 * 16 * 16), dtype=torch.uint8).to(DEVICE)
    pipeline = Pipeline([RandomTranslate(4), RandomHorizontalFlip(), NORMALIZE, Cutout(5)])
    index = torch.randperm(10, device=DEVICE)
    whole = Case(rows, (3, 16, 16), pipeline, index, Draws(index, seed=1))
    recipe = recognize(pipeline)
    from fasttricks.transforms._fused_triton import TritonPass

    kernel, table = TritonPass(recipe, rows, whole.shape), numbers(whole, recipe)
    share = kernel(index[1::3], table[1::3], torch.channels_last)
    assert torch.equal(bytes_of(share), bytes_of(batch_of(whole)[1::3]))


@needs_triton
@pytest.mark.cuda
@pytest.mark.skipif(INTERPRETED, reason="the interpreter has no GPU")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_loader_serves_the_same_on_cuda_with_and_without_the_kernel(dtype):
    pixels = torch.randint(0, 256, (300, 3, 32, 32), dtype=torch.uint8)
    image_set = ImageSet(pixels, torch.arange(300) % 2, classes=("a", "b"), name="noise")
    normalize = Normalize(NORMALIZE.mean, NORMALIZE.std, dtype)
    pieces = [RandomTranslate(4), RandomHorizontalFlip(), normalize, Cutout(8)]
    settings = {"batch_size": 64, "transforms": pieces, "shuffle": True, "device": "cuda"}
    fused = DeviceLoader(image_set, fused=True, **settings)
    plain = DeviceLoader(image_set, fused=False, **settings)
    for (images, labels), (expected, same) in zip(fused, plain, strict=True):
        assert torch.equal(bytes_of(images), bytes_of(expected))
        assert torch.equal(labels, same)


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="the interpreter compiles nothing")
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_the_kernel_compiles_for_a_gpu_without_one(dtype):
    """To PTX for Hopper: three products a number, and no division a number."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from fasttricks.transforms._fused_triton import _fused_pass

    sizes = {"H": 32, "W": 32, "C": 3, "ROWS": 32, "COLUMNS": 32, "HOLES": 1}
    flags = {"REFLECT": True, "BY_PRODUCT": True, "CHANNELS_LAST": True}
    pointers = {"out": f"*{dtype}", "rows": "*u8", "index": "*i64", "table": "*i32"}
    signature = {**pointers, "constants": "*fp32", "fills": f"*{dtype}"}
    signature |= dict.fromkeys([*sizes, *flags], "constexpr")
    if "constexprs" not in inspect.signature(ASTSource).parameters:
        pytest.skip("needs a newer Triton")
    source = ASTSource(fn=_fused_pass, signature=signature, constexprs={**sizes, **flags})
    made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 1})
    code = made.asm["ptx"]
    assert code.count("fma.rn.f32") >= 2 * 32  # a thread has 32 rows of a column
    assert code.count("div.") < 32


class Broken:
    """Stands for Triton where nothing can be compiled."""

    def __init__(self, recipe, rows, shape):
        raise RuntimeError("no C compiler")


@needs_triton
@pytest.mark.skipif(INTERPRETED, reason="nothing of the kernel")
def test_where_the_kernel_cannot_run_the_plain_path_takes_its_place(monkeypatch):
    from fasttricks.transforms import _fused, _fused_triton

    monkeypatch.setattr(_fused_triton, "TritonPass", Broken)
    monkeypatch.setattr(_fused, "_device_problem", lambda device: None)
    rows = torch.zeros(2, 192, dtype=torch.uint8, device="meta")
    with pytest.warns(RuntimeWarning, match="cannot run here, plain torch.*: no C compiler"):
        assert prepare(Pipeline([NORMALIZE]), rows, (3, 8, 8), fused=None) is None
    with pytest.raises(RuntimeError, match="no C compiler"):
        prepare(Pipeline([NORMALIZE]), rows, (3, 8, 8), fused=True)


def test_importing_the_transforms_does_not_import_triton():
    code = (
        "import sys, torch; before = 'triton' in sys.modules; import fasttricks; "
        "assert before or 'triton' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
