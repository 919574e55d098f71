"""Winograd's convolution against torch's: exactly in float64, within its rounding in bf16."""

from __future__ import annotations

import copy
import pickle
import warnings
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fasttricks.models import (
    WinogradConv2d,
    fuse,
    resnet9,
    speedrun_net,
    summary,
    use_winograd_,
)
from fasttricks.models._blocks import ConvNormAct
from fasttricks.models._by_pixel import is_by_pixel, try_halve
from fasttricks.models._kernels import kernels
from fasttricks.models._winograd import _Plan, _Winograd
from fasttricks.models._winograd_tiles import (
    _FEW_BITS,
    _FEW_BITS_OF_IMAGES,
    _MANY_BITS,
    best_tile,
    points_for,
    strips,
    winograd_matrices,
)
from fasttricks.models._winograd_transforms import Axis, Halving, Way, make_transform, way_for

sizes = st.integers(1, 17)
EXACT = Way(torch.float64)
NATIVE = {dtype: Way(dtype, native=True) for dtype in (torch.float32, torch.bfloat16)}


TABLES = (_FEW_BITS, _FEW_BITS_OF_IMAGES, _MANY_BITS)


def draw(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@given(
    rows=sizes,
    columns=sizes,
    m=st.sampled_from(list(_MANY_BITS)),
    n=st.integers(1, 3),
    less=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_outputs_and_gradients_equal_torchs_in_float64(rows, columns, m, n, less):
    h, w = max(1, rows - less[0]), max(1, columns - less[1])
    x, weight, grad = draw(n, 3, rows, columns), draw(5, 3, 3, 3, seed=1), draw(n, 5, h, w)
    results = []
    for function in (
        lambda x, k: F.conv2d(x, k, padding=1)[:, :, :h, :w],
        lambda x, k: _Winograd.apply(x, k, _Plan(EXACT, m, (h, w))),
    ):
        x_, weight_ = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        y = function(x_, weight_)
        y.backward(grad)
        results.append((y, x_.grad, weight_.grad))
    for expected, found in zip(*results, strict=True):
        exact = 1e-10 if m <= 4 else 1e-8
        torch.testing.assert_close(found, expected, rtol=exact, atol=exact)


@pytest.mark.parametrize(
    ("points", "outputs"),
    [(points, k) for many in TABLES for m, points in many.items() for k in (m - 1, m)],
)
def test_the_matrices_make_a_short_convolution(points, outputs):
    a, g, b = winograd_matrices(points, outputs)
    x, w = draw(outputs + 2), draw(3, seed=1)
    expected = torch.tensor([sum(x[i + j] * w[j] for j in range(3)) for i in range(outputs)])
    torch.testing.assert_close(a @ ((g @ w) * (b @ x)), expected.double())
    whole = winograd_matrices(points)
    torch.testing.assert_close(whole[2].norm(dim=1), torch.ones(len(points) + 1).double())
    assert torch.equal(g, whole[1][: outputs + 2])  # a lower strip shares the weights


@pytest.mark.parametrize("points", [p for many in TABLES for p in many.values()])
def test_points_are_pairs_and_then_zero(points):
    pairs = len(points) // 2 * 2
    if points not in _FEW_BITS.values():  # which torch's operations take in any order
        assert all(points[i] == -points[i + 1] for i in range(0, pairs, 2))
        assert points[pairs:] in ((), (0.0,))


@pytest.mark.parametrize(("m", "size"), [(4, (15, 15)), (3, (7, 6)), (4, (5, 9))])
def test_the_dense_matrix_is_the_product_of_rows_and_columns(m, size):
    dense = strips(m, size, size, Way(torch.bfloat16))
    rows = strips(m, size, size, EXACT)
    assert [s.read for s in rows] == [s.read for s in dense]
    x = draw(size[0] * size[1], 4)
    for strip, other in zip(rows, dense, strict=True):
        assert other.inputs.columns is other.outputs.columns is None
        found = strip.inputs.to_points(x[strip.read])
        assert found.shape == (strip.points * -(-size[1] // m), 4)
        whole = torch.kron(strip.inputs.matrix, strip.inputs.columns)
        torch.testing.assert_close(found, whole @ x[strip.read])
        for added in (0, 1):
            back = torch.ones_like(x[strip.read])
            strip.inputs.to_pixels(found, back, added=added)
            expected = whole.T @ found
            expected[: added * size[1]] += 1
            torch.testing.assert_close(back, expected)


def test_only_our_own_pass_halves():
    halving = Halving(torch.zeros(1, 1).byte(), torch.zeros(1, 1), odd=False)
    axis = Axis(torch.eye(4).double(), 2, 4)
    transform = make_transform(axis, axis, EXACT)
    with pytest.raises(NotImplementedError, match="only our own pass"):
        transform.to_points(torch.zeros(4, 1), halving=halving)
    with pytest.raises(NotImplementedError, match="only our own pass"):
        transform.to_pixels(torch.zeros(16, 1), torch.zeros(4, 1), halving=halving)


@pytest.mark.parametrize(
    ("shape", "bf16", "native", "fp32"),
    [
        ((7, 7), 4, 4, 7),
        ((6, 6), 3, 6, 6),
        ((15, 15), 4, 5, 8),
        ((14, 14), 4, 5, 7),
        ((3, 3), 3, 3, 3),
        ((5, 5), 3, 5, 5),
        ((1, 1), None, None, None),
        ((2, 2), None, 2, 2),
        ((32, 16), 4, 6, 8),
        ((16, 17), None, 6, 6),  # too wide for a dense matrix
        ((32, 32), None, 6, 8),
    ],
)
def test_the_tile_with_the_fewest_multiplications_is_taken(shape, bf16, native, fp32):
    for way, m in (
        (Way(torch.bfloat16), bf16),
        (NATIVE[torch.bfloat16], native),
        (Way(torch.float32), fp32),
        (NATIVE[torch.float32], fp32),
    ):
        assert best_tile(shape, shape, way) == m
        if m is not None:
            count = sum(s.points for s in strips(m, shape, shape, way)) * -(-shape[1] // m)
            assert count < 4.5 * shape[0] * shape[1]
            assert m in points_for(way)


def test_only_our_own_passes_take_maps_of_any_width():
    for dtype in (torch.float32, torch.bfloat16):
        for size in ((33, 33), (63, 64), (7, 224)):
            assert best_tile(size, size, Way(dtype)) is None
            assert best_tile(size, size, NATIVE[dtype]) in points_for(NATIVE[dtype])


def test_a_smaller_output_is_compared_with_the_whole_direct_one():
    assert best_tile((3, 3), (2, 2), Way(torch.bfloat16)) == 3
    assert best_tile((15, 15), (14, 14), Way(torch.float32)) == 7
    assert best_tile((33, 33), (32, 32), Way(torch.float32)) == 8
    assert best_tile((64, 64), (64, 64), Way(torch.float32)) is None


@pytest.mark.native
@given(
    rows=sizes,
    columns=sizes,
    m=st.sampled_from(list(_MANY_BITS)),
    channels=st.tuples(st.integers(1, 9), st.integers(1, 70)),
    images=st.integers(1, 5),
    less=st.tuples(st.integers(0, 1), st.integers(0, 1)),
)
def test_our_own_pass_equals_torchs_products(rows, columns, m, channels, images, less):
    size = max(1, rows - less[0]), max(1, columns - less[1])
    x = draw(images, channels[0], rows, columns).float()
    weight, grad = (
        draw(channels[1], channels[0], 3, 3, seed=1).float(),
        draw(images, channels[1], *size, seed=2).float(),
    )
    results = []
    for way in (Way(torch.float32), NATIVE[torch.float32]):
        x_, weight_ = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        y = _Winograd.apply(x_, weight_, _Plan(way, m, size))
        y.backward(grad)
        results.append((y, x_.grad, weight_.grad))
    for expected, found in zip(*results, strict=True):
        assert (found - expected).norm() <= 2e-4 * expected.norm()


def paired(points, pixels, singles, seed=0):
    """A matrix [points, pixels] as those that have pairs of points, and 0 and infinity."""
    found = draw(points, pixels, seed=seed)
    places = torch.arange(pixels)
    for p in range(0, points - singles, 2):
        found[p + 1] = found[p] * (-1.0) ** places
    for p in range(points - singles, points):
        odd = singles == 2 and p == points - 1 and pixels % 2 == 0
        found[p, places % 2 != odd] = 0
    return found


SHAPES = [
    (points, pixels, singles)
    for points in range(3, 11)
    for singles in ((1,) if points % 2 else (0, 2))
    for pixels in {points, points - 2, *([3] if points > 3 and singles else [])}
]


@pytest.mark.native
@pytest.mark.parametrize("dtypes", [(d, e) for d in NATIVE for e in NATIVE], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_our_own_pass_is_the_product_of_any_sizes_and_types(shape, dtypes):
    points, pixels, singles = shape
    rows = Axis(paired(points, pixels, singles), singles, pixels)
    columns = Axis(paired(5, 3, 1, seed=1), 1, 7, first=-1, tiles=4, step=2)
    transform = make_transform(rows, columns, NATIVE[dtypes[0]])
    whole = torch.kron(rows.whole(), columns.whole()).float().double()
    x = draw(pixels * 7, 40, seed=2).to(dtypes[0])
    # rounded to a half of the last place, of sums of 70 at most
    near = {"rtol": 2.0**-8 if torch.bfloat16 in dtypes else 0, "atol": 2e-4}
    y = transform.to_points(x, dtype=dtypes[1])
    torch.testing.assert_close(y.double(), whole @ x.double(), **near)
    back = torch.empty_like(x)
    transform.to_pixels(y, back)
    error = (back.double() - whole.T @ y.double()).norm()
    assert error < (2.0**-7 if torch.bfloat16 in dtypes else 1e-6) * back.double().norm()


@pytest.mark.native
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("lanes", [1, 7, 8, 16, 256, 258, 1000])
@pytest.mark.parametrize("added", [0, 2])
def test_our_own_pass_stays_in_bounds(dtype, lanes, added):
    rows = Axis(paired(5, 5, 1), 1, 4, first=-1)
    columns = Axis(paired(6, 4, 2, seed=1), 2, 7, tiles=2, step=4)
    transform = make_transform(rows, columns, NATIVE[dtype])
    points, before = draw(60, lanes, seed=3).to(dtype), draw(28, lanes, seed=4).to(dtype)
    # what is left of a vector must not be written past the end
    memory = torch.cat([before.flatten(), torch.full((64,), 7.0, dtype=dtype)])
    out = memory[:-64].view(28, lanes)
    transform.to_pixels(points, out, added=added)
    expected = torch.kron(rows.whole(), columns.whole()).T @ points.double()
    expected[: added * 7] += before[: added * 7].double()
    near = {"rtol": 2.0**-8, "atol": 1e-4} if dtype == torch.bfloat16 else {"rtol": 0, "atol": 1e-4}
    torch.testing.assert_close(out.double(), expected, **near)
    assert torch.equal(memory[-64:], torch.full((64,), 7.0, dtype=dtype))


@pytest.mark.native
def test_our_own_pass_rounds_to_even_and_keeps_what_is_no_number():
    one = torch.zeros(3, 3).double()
    one[2, 0] = 1  # infinity takes even places
    identity, scaled = (
        make_transform(Axis(one * f, 1, 3), Axis(one, 1, 3), NATIVE[torch.bfloat16])
        for f in (1, 1 + 2.0**-8)
    )

    def alone(transform, x):
        pixels = torch.zeros(9, x.shape[1]).bfloat16()
        pixels[0] = x
        return transform.to_points(pixels)[8:]

    x = torch.tensor([[1.0, 1 + 2.0**-7, -1.0, 0.0, 2e-38, 3.38e38]]).bfloat16()
    assert torch.equal(alone(identity, x), x)
    assert torch.equal(alone(scaled, x), (x.float() * (1 + 2.0**-8)).bfloat16())
    odd = torch.tensor([[float("nan"), float("inf"), -float("inf")]]).bfloat16()
    found = alone(identity, odd)
    assert found.isnan().tolist() == [[True, False, False]]
    assert torch.equal(found[:, 1:], odd[:, 1:])


@pytest.mark.native
def test_our_own_pass_refuses_what_it_would_not_notice():
    axis = Axis(paired(4, 4, 2), 2, 4)
    transform = make_transform(axis, axis, NATIVE[torch.float32])
    for x in (torch.zeros(15, 5), torch.zeros(16, 5).double()):
        with pytest.raises(RuntimeError, match="no transform of"):
            transform.to_points(x)
    for points, out in (
        (torch.zeros(16, 5), torch.zeros(16, 5).half()),
        (torch.zeros(16, 5), torch.zeros(5, 16).T),
        (torch.zeros(16, 5), torch.zeros(16, 6)),
        (torch.zeros(15, 5), torch.zeros(16, 5)),
    ):
        with pytest.raises(RuntimeError, match="no transform of"):
            transform.to_pixels(points, out)
    which, carry = torch.zeros(4, 5).byte(), torch.zeros(4, 5)
    for bad in ((which[:3], carry), (which.float(), carry), (which, carry[:3]), (which.T, carry)):
        with pytest.raises(RuntimeError, match="no transform of"):
            transform.to_pixels(
                torch.zeros(16, 5), torch.zeros(4, 5), halving=Halving(*bad, odd=False)
            )
    unknown = Axis(paired(6, 5, 2), 2, 5)
    with pytest.raises(RuntimeError, match=r"no transform of \[6, 5\] and \[4, 4\]"):
        make_transform(unknown, axis, NATIVE[torch.float32]).to_points(torch.zeros(20, 5))


@pytest.mark.native
@pytest.mark.parametrize("dtype", NATIVE)
@given(
    rows=st.integers(2, 17),
    columns=st.integers(2, 17),
    m=st.sampled_from(list(_MANY_BITS)),
    channels=st.tuples(st.integers(1, 5), st.sampled_from([1, 70, 86, 200])),
)
def test_halving_in_the_same_pass_equals_halving_after_it(rows, columns, m, channels, dtype):
    way, size = NATIVE[dtype], (rows - rows % 2, columns - columns % 2)
    m = m if m in points_for(way) else 6
    x = draw(3, channels[0], rows, columns).to(dtype)
    weight = draw(channels[1], channels[0], 3, 3, seed=1).float()
    grad = draw(3, channels[1], rows // 2, columns // 2, seed=2).to(dtype)
    results = []
    for halve in (False, True):
        x_, weight_ = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
        y = _Winograd.apply(x_, weight_, _Plan(way, m, size, halve))
        y = y if halve else F.max_pool2d(y, 2)
        y.backward(grad)
        results.append((y, x_.grad, weight_.grad))
    for expected, found in zip(*results, strict=True):
        assert torch.equal(found, expected)


@pytest.mark.native
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("halve", [False, True])
def test_any_number_of_threads_gives_the_same_bits(dtype, halve):
    x, weight = draw(5, 3, 15, 14).to(dtype), draw(70, 3, 3, 3, seed=1).float()
    results = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        try:
            x_, weight_ = x.clone().requires_grad_(True), weight.clone().requires_grad_(True)
            y = _Winograd.apply(x_, weight_, _Plan(NATIVE[dtype], 5, (14, 14), halve))
            y.square().sum().backward()
            results.append((y, x_.grad))  # torch adds up the weight's otherwise
        finally:
            torch.set_num_threads(1)
    assert all(map(torch.equal, *results))


@pytest.mark.native
@pytest.mark.parametrize("dtype", NATIVE)
@pytest.mark.parametrize("lanes", [5, 256, 300])
def test_halving_stays_in_bounds(dtype, lanes):
    rows, columns = Axis(paired(5, 5, 1), 1, 5), Axis(paired(6, 4, 2, seed=1), 2, 8, 0, 2, 4)
    transform = make_transform(rows, columns, NATIVE[dtype])

    def guarded(count, dtype):
        memory = torch.full((count * lanes + 64,), 7, dtype=dtype)
        return memory[:-64].view(count, lanes), memory[-64:]

    (out, end), (which, end_of_which), (carry, end_of_carry) = (
        guarded(n, t) for n, t in ((12, dtype), (12, torch.uint8), (8, dtype))
    )
    points = draw(60, lanes, seed=3).to(dtype)
    # six rows with the one before, or five of which the last is left for the next
    for odd in (True, False):
        transform.to_pixels(points, out, halving=Halving(which, carry, odd))
        for guard in (end, end_of_which, end_of_carry):
            assert torch.equal(guard, torch.full_like(guard, 7))
    assert which[:8].max() <= 3  # the last windows are not whole
    points = transform.to_points(out, halving=Halving(which, carry[:0], odd=False))
    assert points.shape == (60, lanes)


@pytest.mark.parametrize("train", [True, False])
def test_a_whole_network_is_compiled_as_if_it_had_not_been_made_for_a_cpu(train):
    torch.manual_seed(0)
    model = speedrun_net(widths=(64, 64, 64)).train(train)
    twin = copy.deepcopy(model)
    use_winograd_(model)
    x = torch.randn(4, 3, 24, 24)
    compiled = torch.compile(model, backend="eager", fullgraph=True)
    assert torch.equal(compiled(x), twin(x))


@pytest.mark.native
def test_images_are_halved_where_they_would_be_convolved_by_it():
    _, fast = both()
    x = torch.randn(2, 128, 7, 7)
    assert fast.halves(x)
    found = fast.halved(x)
    assert is_by_pixel(found)
    assert torch.equal(found, try_halve(fast(x, pooled=True, by_pixel=True)))
    for other in (x[..., :1], x.half()):
        assert not fast.halves(other)
        assert fast.halved(other) is None
    fast.eval()
    assert fast.halved(x) is None


@pytest.mark.native
@pytest.mark.parametrize("dtype", NATIVE)
def test_without_a_compiler_torchs_operations_do_the_same(dtype, monkeypatch):
    _, fast = both()
    x = torch.randn(2, 128, 7, 7)
    results = []
    for found in (kernels(), None):
        monkeypatch.setattr("fasttricks.models._winograd_transforms.kernels", lambda k=found: k)
        assert way_for(dtype).native == (found is not None)
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            results.append(fast(x).float())
    assert (results[0] - results[1]).norm() < 0.03 * results[1].norm()


def test_for_few_channels_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr("fasttricks.models._winograd.kernels", pytest.fail)
    monkeypatch.setattr("fasttricks.models._winograd_transforms.kernels", pytest.fail)
    few = nn.Conv2d(8, 8, 3, padding=1, bias=False)
    assert use_winograd_(few) == 0
    few.__class__ = WinogradConv2d
    few.min_channels = None
    few(torch.randn(1, 8, 7, 7, requires_grad=True))
    with pytest.raises(pytest.fail.Exception):
        use_winograd_(few)


def both(channels=128):
    torch.manual_seed(0)
    plain = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
    fast = WinogradConv2d(channels, channels)
    fast.load_state_dict(plain.state_dict())
    return plain, fast


@pytest.mark.parametrize(
    ("size", "native", "most"),
    [
        *[(size, False, 0.026) for size in (3, 6, 7, 12)],
        *[
            pytest.param(size, True, most, marks=pytest.mark.native)
            for size, most in (
                (2, 0.01),
                (3, 0.012),
                (5, 0.05),
                (6, 0.11),
                (7, 0.02),
                (12, 0.1),
                (47, 0.11),
            )
        ],
    ],
)
def test_in_bf16_it_is_near_torchs_and_another_way(size, native, most, monkeypatch):
    monkeypatch.setattr("fasttricks.models._winograd.way_for", lambda dtype: Way(dtype, native))
    plain, fast = both()
    x = F.silu(draw(4, 128, size, size)).float()
    grad = draw(4, 128, size, size, seed=2).float()
    results = []
    for conv in (plain, fast):
        x_ = x.clone().requires_grad_(True)
        with torch.autocast("cpu", torch.bfloat16):
            y = conv(x_)
        assert y.dtype == torch.bfloat16
        y.backward(grad.bfloat16())
        results.append([t.float() for t in (y, x_.grad, conv.weight.grad)])
    for expected, found in zip(*results, strict=True):
        assert not torch.equal(found, expected)
        assert (found - expected).norm() < most * expected.norm()


@pytest.mark.parametrize(
    "size", [2, 3, 5, 6, 7, 11, 14, 15, pytest.param(47, marks=pytest.mark.native)]
)
def test_in_fp32_it_is_torchs_to_four_digits_and_another_way(size):
    plain, fast = both()
    x, grad = draw(4, 128, size, size).float(), draw(4, 128, size, size, seed=2).float()
    results = []
    for conv in (plain, fast):
        x_ = x.clone().requires_grad_(True)
        y = conv(x_)
        y.backward(grad)
        results.append((y, x_.grad, conv.weight.grad))
    for expected, found in zip(*results, strict=True):
        assert found.dtype == torch.float32
        assert not torch.equal(found, expected)
        assert (found - expected).norm() < 2e-4 * expected.norm()


@pytest.mark.parametrize(
    "native", [False, pytest.param(True, marks=pytest.mark.native)], ids=["torch", "native"]
)
@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [resnet9, partial(speedrun_net, depths=(2, 3, 2))])
def test_evaluation_goes_the_same_way_if_it_is_asked_for(make, autocast, native, monkeypatch):
    if not native:
        for room in ("_winograd_transforms", "_norm_act", "_by_pixel"):
            monkeypatch.setattr(f"fasttricks.models.{room}.kernels", lambda: None)
    torch.manual_seed(0)
    model, x = make(act="silu"), draw(5, 3, 32, 32).float()
    model(x)  # for other statistics than those of the start
    before = copy.deepcopy(model.eval().state_dict())
    logits = []
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        for evaluation in (None, False, True, False):
            if evaluation is not None:
                use_winograd_(model, evaluation=evaluation)
            logits.append(model(x).float())
    plain, off, on, again = logits
    assert torch.equal(off, plain)
    assert torch.equal(again, plain)
    assert not torch.equal(on, plain)
    assert (on - plain).norm() < (0.1 if autocast else 1e-3) * plain.norm()
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_in_evaluation_blocks_keep_images_by_pixel_and_nothing_for_a_backward_pass(monkeypatch):
    block = ConvNormAct(128, 128, norm=nn.BatchNorm2d, act=nn.SiLU).eval()
    x = draw(4, 128, 7, 7).float()
    wanted = []
    apply = _Winograd.apply

    def spied(images, weight, plan):
        wanted.append(weight.requires_grad)
        return apply(images, weight, plan)

    monkeypatch.setattr(_Winograd, "apply", spied)
    with torch.no_grad():
        plain = block(x)
        for evaluation in (False, True):
            use_winograd_(block, evaluation=evaluation)
            found = block(x)
            assert is_by_pixel(found) == evaluation
            torch.testing.assert_close(found, plain, rtol=1e-3, atol=1e-3)
    assert wanted == [False]


def test_fused_it_is_torchs_also_where_evaluation_goes_the_same_way():
    torch.manual_seed(0)
    model, x = resnet9(), draw(4, 3, 32, 32).float()
    model(x)
    plain = fuse(model, x)
    use_winograd_(model, evaluation=True)
    fused = fuse(model, x)
    kinds = [[type(m) for m in net.modules()] for net in (plain, fused)]
    assert kinds[0].count(nn.BatchNorm2d) == kinds[1].count(nn.BatchNorm2d)
    with torch.no_grad():
        assert torch.equal(fused(x), plain(x))
    assert any(getattr(module, "in_evaluation", False) for module in model.modules())


@pytest.mark.parametrize("evaluation", [False, True])
def test_the_multiplications_of_a_summary_are_those_of_torchs_convolutions(evaluation):
    model = resnet9()
    before = summary(model, (3, 32, 32)).macs
    use_winograd_(model, evaluation=evaluation)
    assert summary(model, (3, 32, 32)).macs == before


def test_gradients_in_evaluation_are_torchs_if_it_goes_the_same_way():
    torch.manual_seed(0)
    model, x = speedrun_net(act="silu"), draw(4, 3, 32, 32).float()
    model(x)
    model.eval()
    found = []
    for evaluation in (False, True):
        use_winograd_(model, evaluation=evaluation)
        leaf = x.clone().requires_grad_(True)
        found.append(torch.autograd.grad(model(leaf).square().sum(), leaf)[0])
    assert not torch.equal(*found)
    assert (found[1] - found[0]).norm() < 1e-2 * found[0].norm()


def test_a_traced_network_is_torchs_also_where_evaluation_goes_the_same_way():
    torch.manual_seed(0)
    model, x = resnet9().eval(), draw(2, 3, 32, 32).float()
    with torch.no_grad():
        plain = model(x)
        use_winograd_(model, evaluation=True)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch.jit is on its way out
            traced = torch.jit.trace(model, x)
        torch.testing.assert_close(traced(x), plain)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("by_pixel", [False, True])
def test_outputs_are_channels_last_or_by_pixel(autocast, by_pixel, monkeypatch):
    monkeypatch.setattr("fasttricks.models._winograd.way_for", Way)
    _, fast = both()
    x = torch.randn(2, 128, 7, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y, part = fast(x, by_pixel=by_pixel), fast(x, by_pixel=by_pixel, pooled=True)
    format = {"memory_format": torch.channels_last}
    assert (y.permute(2, 3, 0, 1).is_contiguous(), y.is_contiguous(**format)) == (
        by_pixel,
        not by_pixel,
    )
    assert part.shape == (2, 128, 6, 6)
    whole = y[:, :, :6, :6].float()
    assert (part.float() - whole).norm() < (0.03 if autocast else 1e-4) * whole.norm()


@pytest.mark.parametrize("autocast", [False, True])
def test_an_output_of_one_image_can_be_changed_in_place(autocast):
    _, fast = both()
    x = torch.randn(1, 128, 7, 7)
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        y = fast(x)
        y += 1
        fast(x, by_pixel=True).relu_().sum().backward()


def test_any_strides_come_in():
    plain, fast = both()
    x = torch.randn(3, 256, 14, 14)[:, ::2, ::2, 1::2]
    torch.testing.assert_close(fast(x), plain(x), rtol=1e-3, atol=1e-4)


SIZES = {"one pixel": (1, 1), "2 x 2": (2, 2), "a row": (1, 7), "4 x 2": (4, 2), "wide": (3, 40)}


def elsewhere(why):
    """torch's convolution, its twin, and images, where the twin is to be the same."""
    plain, fast = both()
    x = torch.randn(2, 128, 7, 40)
    rows, columns = SIZES.get(why, (7, 7))
    x = x[:, :, :rows, :columns]
    if why in ("float64", "bf16"):
        dtype = torch.float64 if why == "float64" else torch.bfloat16
        plain, fast, x = plain.to(dtype), fast.to(dtype), x.to(dtype)
    if why == "evaluation":
        fast.eval()
    if why == "frozen":
        fast.weight.requires_grad_(False)
    if why == "empty":
        x = x[:0]
    return plain, fast, x


@pytest.mark.parametrize(
    "why",
    ["fp16", "float64", "evaluation", "no gradients", "frozen", "empty", *SIZES],
)
def test_elsewhere_it_is_torchs_convolution(why, monkeypatch):
    monkeypatch.setattr("fasttricks.models._winograd.way_for", Way)  # ours takes 2 x 2 as well
    plain, fast, x = elsewhere(why)
    with (
        torch.autocast("cpu", torch.float16 if why == "fp16" else torch.bfloat16),
        torch.set_grad_enabled(why != "no gradients"),
    ):
        assert torch.equal(fast(x), plain(x))


@pytest.mark.parametrize(
    "why", ["evaluation", "no gradients", "frozen", "empty", "one pixel", "bf16", "wide", "rounded"]
)
def test_elsewhere_it_is_torchs_convolution_without_autocast(why, monkeypatch):
    monkeypatch.setattr("fasttricks.models._winograd.way_for", Way)  # ours takes any width
    plain, fast, x = elsewhere(why)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium" if why == "rounded" else before)
        with torch.set_grad_enabled(why != "no gradients"):
            for pooled in (False, True):  # which leaves nothing out here
                assert torch.equal(fast(x, pooled=pooled), plain(x))
    finally:
        torch.set_float32_matmul_precision(before)


def test_with_a_fused_batch_norm_it_is_torchs_convolution():
    plain, fast = (nn.Sequential(conv, nn.BatchNorm2d(128)).eval() for conv in both())
    for net in (plain, fast):
        nn.init.constant_(net[1].bias, 0.5)
    x = torch.randn(2, 128, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(fuse(fast, x).train()(x), fuse(plain, x).train()(x))


def test_compiled_it_is_torchs_convolution():
    plain, fast = both()
    x = torch.randn(2, 128, 7, 7)
    with torch.autocast("cpu", torch.bfloat16):
        expected = plain(x)
        assert torch.equal(torch.compile(fast, backend="eager", fullgraph=True)(x), expected)


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("frozen", ["input", "weight", "neither"])
def test_gradients_come_to_what_needs_them_inside_autocast_or_out(frozen, autocast):
    _, fast = both()
    x = torch.randn(2, 128, 7, 7, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        fast(x).sum().backward()
    expected = {"input": x.grad, "weight": fast.weight.grad}
    x.grad = fast.weight.grad = None
    x.requires_grad_(frozen != "input")
    fast.weight.requires_grad_(frozen != "weight")
    with torch.autocast("cpu", torch.bfloat16):
        loss = fast(x).sum()
        if autocast:
            loss.backward()
    if not autocast:
        loss.backward()
    for name, found in (("input", x.grad), ("weight", fast.weight.grad)):
        if name == frozen:
            assert found is None
        else:
            assert torch.equal(found, expected[name])


def test_few_channels_pay_in_fp32_only_unless_it_is_asked_for(monkeypatch):
    monkeypatch.setattr("fasttricks.models._winograd.way_for", Way)  # 33 are enough for our own
    x = torch.randn(2, 64, 8, 8)
    plain = nn.Conv2d(64, 64, 3, padding=1, bias=False)
    fast = copy.deepcopy(plain)
    for made, min_channels, pays in ((1, None, False), (0, 64, True), (0, None, False)):
        assert use_winograd_(fast, min_channels=min_channels) == made
        assert not torch.equal(fast(x), plain(x))
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(fast(x), plain(x)) != pays


def test_networks_keep_their_modules_parameters_and_hooks():
    model = speedrun_net(widths=(16, 128, 128))
    twin = copy.deepcopy(model)
    seen = []
    model.groups[1][1].conv.register_forward_hook(lambda *_: seen.append("hook"))
    modules, parameters = list(model.named_modules()), dict(model.named_parameters())
    assert use_winograd_(model) == 3  # 128 channels to 128; not 16 to 128
    assert [name for name, _ in modules] == [name for name, _ in model.named_modules()]
    assert all(after is before for (_, before), after in zip(modules, model.modules(), strict=True))
    assert all(parameters[name] is found for name, found in model.named_parameters())
    x = torch.randn(4, 3, 32, 32)
    assert torch.equal(model.eval()(x), twin.eval()(x))
    assert seen == ["hook"]
    assert use_winograd_(model) == 0


def test_hooks_in_training_see_the_shapes_of_torchs():
    shapes = []
    for winograd in (False, True):
        model = speedrun_net(widths=(64, 64, 64))
        if winograd:
            assert use_winograd_(model) == 6
        seen = {}

        def note(module, arguments, output, seen=seen):
            seen[id(module)] = (arguments[0].shape, output.shape)

        for module in model.modules():
            module.register_forward_hook(note)
        model(torch.randn(2, 3, 32, 32))
        shapes.append(list(seen.values()))
    assert shapes[0] == shapes[1]


def test_shared_lone_and_copied_convolutions():
    conv = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    model = nn.Sequential(conv, nn.ReLU(), conv)
    assert use_winograd_(model) == 1
    assert model[0] is model[2] is conv
    assert type(conv) is WinogradConv2d
    again = pickle.loads(pickle.dumps(copy.deepcopy(conv)))
    assert type(again) is WinogradConv2d
    assert torch.equal(again.weight, conv.weight)
    alone = nn.Conv2d(128, 128, 3, padding=1, bias=False)
    assert use_winograd_(alone) == 1


@pytest.mark.parametrize(("autocast", "images"), [(False, 64), (True, 16)])
def test_training_learns_as_well(autocast, images):
    torch.manual_seed(0)
    x, y = torch.randn(images, 3, 16, 16), torch.arange(images) % 10
    first, last = [], []
    for winograd in (False, True):
        torch.manual_seed(1)
        model = resnet9(width=16).to(memory_format=torch.channels_last)
        if winograd:
            assert use_winograd_(model, min_channels=32) == 6
        optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
        losses = []
        for _ in range(8):
            with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
                loss = F.cross_entropy(model(x).float(), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        first.append(losses[0])
        last.append(losses[-1])
    assert first[1] == pytest.approx(first[0], rel=0.02 if autocast else 1e-4)
    assert last[1] == pytest.approx(last[0], rel=0.2)
    assert last[1] < 1.9  # ln 10 = 2.3 at the start


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv2d(128, 128, 3, bias=False),
        nn.Conv2d(128, 128, 3, padding=1),
        nn.Conv2d(128, 128, 3, padding=1, stride=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=1, groups=2, bias=False),
        nn.Conv2d(128, 128, 3, padding=1, padding_mode="reflect", bias=False),
        nn.Conv2d(128, 128, 1, padding=1, bias=False),
        nn.Conv2d(24, 32, 3, padding=1, bias=False),  # harmonic mean 27
    ],
)
def test_other_convolutions_stay(conv):
    model = nn.Sequential(conv)
    assert use_winograd_(model) == 0
    assert model[0] is conv


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match="min_channels must be at least 1, got min_channels=0"):
        use_winograd_(nn.Identity(), min_channels=0)
    with pytest.raises(ValueError, match="in_channels must be at least 1, got in_channels=0"):
        WinogradConv2d(0, 128)
    with pytest.raises(ValueError, match="out_channels must be at least 1, got out_channels=-1"):
        WinogradConv2d(128, -1)


@pytest.mark.parametrize("layout", ["channels_first", "channels_last"])
@pytest.mark.parametrize(
    "native", [False, pytest.param(True, marks=pytest.mark.native)], ids=["torch", "native"]
)
@pytest.mark.parametrize("images", [1, 2])
def test_gradients_behind_it_are_right_for_one_image_too(images, native, layout, monkeypatch):
    """torch's batch norm misreads one image of unusual strides."""
    monkeypatch.setattr("fasttricks.models._winograd.way_for", lambda dtype: Way(dtype, native))
    torch.manual_seed(0)
    nets = [
        nn.Sequential(
            nn.BatchNorm2d(64),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(),
            nn.Conv2d(64, 64, 3, padding=1, bias=False),
            nn.BatchNorm2d(64),
        )
        for _ in range(2)
    ]
    nets[1].load_state_dict(nets[0].state_dict())
    use_winograd_(nets[1])
    x, grad = (draw(images, 64, 8, 8, seed=seed).float() for seed in (1, 2))
    if layout == "channels_last":
        x = x.contiguous(memory_format=torch.channels_last)
    for net in nets:
        net(x).backward(grad)
    for one, other in zip(nets[0].parameters(), nets[1].parameters(), strict=True):
        assert (one.grad - other.grad).norm() < 1e-3 * one.grad.norm() + 1e-4
