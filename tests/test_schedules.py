from __future__ import annotations

import math
import pickle
import re
import sys
from dataclasses import FrozenInstanceError, dataclass
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

import fasttricks.schedules as schedules_module
from fasttricks.schedules import (
    Schedule,
    constant,
    cosine,
    cycled_momentum,
    exp_range,
    linear,
    one_cycle,
    piecewise_linear,
    step_decay,
    triangular,
    triangular2,
    warmup,
)

PUBLIC = {name: getattr(schedules_module, name) for name in schedules_module.__all__}
few = settings(deadline=None, max_examples=30)
rate = st.floats(1e-6, 10.0)
steps = st.integers(1, 300)

EACH = [
    constant(0.1),
    linear(0.4, 0.0, total_steps=11),
    cosine(0.4, 0.01, total_steps=11),
    warmup(0.4, total_steps=5),
    warmup(0.4, total_steps=5, start=0.1),
    step_decay(0.4, every=3, factor=0.3),
    piecewise_linear([0, 5, 24], [0, 0.4, 0]),
    triangular(0.1, 0.4, step_size_up=4, step_size_down=7),
    triangular2(0.1, 0.4, step_size_up=2.5),
    exp_range(0.1, 0.4, step_size_up=4, gamma=0.97),
    one_cycle(max_lr=0.4, total_steps=20),
    one_cycle(0.4, 20, anneal="linear", three_phase=True),
    one_cycle(0.4, 24, pct_start=5 / 24, anneal="linear", div_factor=math.inf),
    cycled_momentum(one_cycle(0.4, 20), base_momentum=0.8, max_momentum=0.9),
    cycled_momentum(triangular2(0.1, 0.4, step_size_up=4)),
    warmup(0.4, total_steps=5).then(cosine(0.4, 0.0, total_steps=9), at=5),
    (one_cycle(0.4, 10) * 2).then(constant(0.1) * 3, at=4).shifted(-2) * 0.5,
    linear(0.4, 0.0, total_steps=11).shifted(3),
]
every_schedule = pytest.mark.parametrize("schedule", EACH, ids=repr)


def run(schedule, count):
    return [schedule(step) for step in range(count)]


# ---- what all schedules share


@every_schedule
def test_prints_as_a_call_that_makes_an_equal_one(schedule):
    again = eval(repr(schedule), dict(PUBLIC))
    assert again == schedule
    assert hash(again) == hash(schedule)
    assert repr(again) == repr(schedule)


def test_prints_the_arguments_that_were_given():
    assert repr(one_cycle(max_lr=0.4, total_steps=100)) == "one_cycle(max_lr=0.4, total_steps=100)"
    numpy = one_cycle(np.float64(0.4), np.int64(100), div_factor=math.inf)
    assert repr(numpy) == 'one_cycle(max_lr=0.4, total_steps=100, div_factor=float("inf"))'


@every_schedule
def test_pickles_to_an_equal_one(schedule):
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_all_kinds_differ_from_each_other_and_hold_no_state():
    assert len(set(EACH)) == len(EACH)
    assert linear(0.4, 0.1, total_steps=9) != cosine(0.4, 0.1, total_steps=9)
    with pytest.raises(FrozenInstanceError):
        EACH[0].value = 1.0


@every_schedule
@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float64])
def test_tensor_steps_give_the_float_values_in_float64(schedule, dtype):
    at = torch.arange(-3, 60).to(dtype)
    values = schedule(at)
    assert values.dtype == torch.float64
    assert values.shape == at.shape
    expected = torch.tensor([schedule(int(step)) for step in at], dtype=torch.float64)
    # cos and pow of torch and of the C library may differ in the last bit
    torch.testing.assert_close(values, expected, rtol=1e-14, atol=1e-16)


@every_schedule
def test_a_0d_tensor_stays_0d_and_a_floating_step_keeps_its_dtype(schedule):
    assert schedule(torch.tensor(7)).shape == ()
    single = schedule(torch.tensor([7.0, 2.5]))
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx([schedule(7), schedule(2.5)], rel=1e-5, abs=1e-7)


@every_schedule
def test_int_and_float_steps_give_python_floats(schedule):
    assert type(schedule(3)) is float
    assert type(schedule(3.0)) is float
    assert schedule(3) == schedule(3.0) == schedule(np.int64(3))


@every_schedule
def test_no_branch_on_the_step_needs_its_value(schedule):
    # meta tensors have no value: bool() or item() on one raises
    assert schedule(torch.empty((), device="meta")).device.type == "meta"


def test_a_branch_on_the_step_would_be_caught_by_the_meta_tensor():
    with pytest.raises(RuntimeError):
        bool(torch.empty((), device="meta") < 3)


@every_schedule
def test_holds_before_the_first_step(schedule):
    if "shifted" not in repr(schedule):
        assert schedule(-1) == schedule(-50.5) == schedule(0)


@every_schedule
def test_length_is_where_the_value_stops_changing(schedule):
    length = schedule.length
    if length is None:
        assert len(set(run(schedule.shifted(-30), 30))) > 1
    else:
        assert schedule(length - 1) == schedule(length) == schedule(10 * length)
        if length > 1:
            assert schedule(length - 2) != schedule(length - 1)


@every_schedule
def test_plots_its_values_on_the_given_axes(schedule):
    from matplotlib.figure import Figure

    ax = Figure().add_subplot()
    assert schedule.plot(12, ax=ax) is ax
    drawn = ax.lines[0].get_ydata()
    assert list(drawn) == pytest.approx(run(schedule, 12), rel=1e-12)


def test_plots_its_whole_length_on_new_axes_by_default():
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    ax = one_cycle(0.4, 30).plot()
    assert len(ax.lines[0].get_xdata()) == 30
    assert len(triangular(0.1, 0.4, step_size_up=5).plot(ax=ax).lines[1].get_xdata()) == 41
    pyplot.close(ax.figure)


def test_plot_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ImportError, match="pip install"):
        constant(0.1).plot()


def test_works_in_torch_compile_as_one_graph():
    schedule = one_cycle(0.4, 20).then(triangular2(0.1, 0.4, step_size_up=3), at=20) * 2
    compiled = torch.compile(lambda step: schedule(step), backend="eager", fullgraph=True)
    for step in (0, 5, 19, 20, 23):
        assert compiled(torch.tensor(step)).item() == pytest.approx(schedule(step), rel=1e-12)


# ---- ramps


@few
@given(start=rate, end=rate, total=st.integers(2, 300), ramp=st.sampled_from([linear, cosine]))
def test_ramps_meet_both_ends_exactly_and_are_monotone_and_symmetric(start, end, total, ramp):
    values = run(ramp(start, end, total_steps=total), total)
    assert (values[0], values[-1]) == (start, end)
    sign = 1 if end > start else -1
    slack = 4e-16 * max(start, end)
    assert all(sign * (b - a) >= -slack for a, b in pairwise(values))
    for value, mirror in zip(values, reversed(values), strict=True):
        assert value + mirror == pytest.approx(start + end, rel=1e-12)


def test_linear_and_cosine_are_the_formulas():
    for step in range(9):
        assert linear(0.4, 0.1, total_steps=9)(step) == pytest.approx(0.4 - 0.3 * step / 8)
        expected = 0.1 + 0.3 * (1 + math.cos(math.pi * step / 8)) / 2
        assert cosine(0.4, 0.1, total_steps=9)(step) == pytest.approx(expected, rel=1e-14)


@few
@given(value=rate, total=steps)
def test_warmup_uses_k_plus_1_of_total(value, total):
    for step in range(total):
        assert warmup(value, total_steps=total)(step) == pytest.approx(value * (step + 1) / total)
    assert warmup(value, total_steps=total)(total - 1) == value


def test_warmup_from_a_start_meets_both_ends():
    assert run(warmup(0.4, total_steps=3, start=0.0), 4) == [0.0, 0.2, 0.4, 0.4]


@pytest.mark.parametrize(
    "schedule",
    [linear(1.0, 0.5, total_steps=1), cosine(1.0, 0.5, total_steps=1), warmup(0.5, total_steps=1)],
)
def test_a_run_of_one_update_uses_the_last_value(schedule):
    assert schedule(0) == 0.5


@few
@given(start=rate, every=steps, factor=st.floats(0.01, 1.0), stair=st.integers(0, 5))
def test_step_decay_multiplies_by_factor_on_each_stair(start, every, factor, stair):
    schedule = step_decay(start, every=every, factor=factor)
    for step in (stair * every, (stair + 1) * every - 1):
        assert schedule(step) == pytest.approx(start * factor**stair, rel=1e-12)


def test_step_decay_halves_every_thirty():
    reference = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
    torch_schedule = torch.optim.lr_scheduler.StepLR(reference, 30, gamma=0.5)
    for step in range(100):
        got = step_decay(0.4, every=30)(step)
        assert got == pytest.approx(torch_schedule.get_last_lr()[0], rel=1e-14)
        reference.step()
        torch_schedule.step()


points = st.lists(
    st.tuples(st.integers(0, 200), st.floats(0, 2)),
    min_size=2,
    max_size=6,
    unique_by=lambda p: p[0],
)


@few
@given(points=points)
def test_piecewise_linear_is_numpys_interp(points):
    at, values = zip(*sorted(points), strict=True)
    schedule = piecewise_linear(at, values)
    for step in np.linspace(-5, 210, 87):
        assert schedule(step) == pytest.approx(np.interp(step, at, values), rel=1e-12, abs=1e-15)
    assert [schedule(step) for step in at] == list(values)


def test_piecewise_linear_stays_flat_between_equal_values():
    assert set(run(piecewise_linear([0, 9], [0.4, 0.4]), 10)) == {0.4}


# ---- cycles


@few
@given(low=st.floats(0, 1), height=rate, size=st.integers(1, 50), step=st.integers(0, 500))
def test_triangular_is_smiths_formula(low, height, size, step):
    cycle = math.floor(1 + step / (2 * size))
    x = abs(step / size - 2 * cycle + 1)
    expected = low + height * max(0, 1 - x)
    got = triangular(low, low + height, step_size_up=size)(step)
    assert got == pytest.approx(expected, rel=1e-9, abs=1e-12)
    got2 = triangular2(low, low + height, step_size_up=size)(step)
    assert got2 == pytest.approx(
        low + height * max(0, 1 - x) / 2 ** (cycle - 1), rel=1e-9, abs=1e-12
    )
    decayed = exp_range(low, low + height, step_size_up=size, gamma=0.99)(step)
    assert decayed == pytest.approx(low + height * max(0, 1 - x) * 0.99**step, rel=1e-9, abs=1e-12)


@few
@given(up=st.integers(1, 60), down=st.integers(1, 60), cycle=st.integers(0, 4))
def test_cycles_meet_base_at_their_boundaries_and_max_at_their_peaks(up, down, cycle):
    foot = cycle * (up + down)
    sizes = {"step_size_up": up, "step_size_down": down}
    assert triangular(0.1, 0.4, **sizes)(foot) == 0.1
    assert triangular(0.1, 0.4, **sizes)(foot + up) == 0.4
    assert triangular2(0.1, 0.4, **sizes)(foot) == 0.1
    peak = triangular2(0.1, 0.4, **sizes)(foot + up)
    assert peak == pytest.approx(0.1 + 0.3 / 2**cycle, rel=1e-14)
    assert exp_range(0.1, 0.4, gamma=0.99, **sizes)(foot) == 0.1


def test_triangular_is_symmetric_about_its_peak_and_covers_half_its_box():
    values = run(triangular(0.1, 0.4, step_size_up=10), 20)
    assert values[1:10] == pytest.approx(values[:10:-1], rel=1e-14)
    assert sum(values) == pytest.approx(20 * (0.1 + 0.4) / 2)


def test_cycles_go_on_for_ever():
    schedule = triangular(0.1, 0.4, step_size_up=4)
    assert run(schedule, 8) == pytest.approx(run(schedule.shifted(-8000), 8), rel=1e-12)


def torch_rates(make, count):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1, momentum=0.9)
    scheduler = make(optimizer)
    rates, momenta = [], []
    for _ in range(count):
        rates.append(optimizer.param_groups[0]["lr"])
        momenta.append(optimizer.param_groups[0]["momentum"])
        optimizer.step()
        scheduler.step()
    return rates, momenta


@settings(deadline=None, max_examples=15)
@given(
    up=st.integers(1, 30),
    down=st.integers(1, 30),
    gamma=st.floats(0.9, 1.0),
    mode=st.sampled_from(["triangular", "triangular2", "exp_range"]),
)
def test_cycles_equal_torchs_cyclic_lr(up, down, gamma, mode):
    extra = {"gamma": gamma} if mode == "exp_range" else {}
    sizes = {"step_size_up": up, "step_size_down": down}
    schedule = PUBLIC[mode](0.1, 0.4, **sizes, **extra)
    rates, momenta = torch_rates(
        lambda o: torch.optim.lr_scheduler.CyclicLR(o, 0.1, 0.4, mode=mode, **sizes, **extra), 150
    )
    assert run(schedule, 150) == pytest.approx(rates, rel=0, abs=1e-12)
    mirror = cycled_momentum(schedule, base_momentum=0.8, max_momentum=0.9)
    assert run(mirror, 150) == pytest.approx(momenta, rel=0, abs=1e-12)


# ---- one cycle

one_cycles = st.fixed_dictionaries(
    {
        "max_lr": rate,
        "total_steps": st.integers(1, 300),
        "pct_start": st.floats(0, 0.5),
        "anneal": st.sampled_from(["cosine", "linear"]),
        "div_factor": st.floats(1, 100),
        "final_div_factor": st.floats(0.1, 1e6),
        "three_phase": st.booleans(),
    }
)


@settings(deadline=None, max_examples=60)
@given(arguments=one_cycles)
def test_one_cycle_equals_torchs_over_the_whole_run(arguments):
    assume(
        arguments["pct_start"] * arguments["total_steps"] > 1
    )  # else torch's peak lies before the run, or it divides by zero
    schedule = one_cycle(**arguments)
    given = {**arguments, "anneal_strategy": arguments["anneal"][:3].replace("lin", "linear")}
    del given["anneal"]
    total = arguments["total_steps"]
    rates, momenta = torch_rates(lambda o: torch.optim.lr_scheduler.OneCycleLR(o, **given), total)
    assert run(schedule, total) == pytest.approx(rates, rel=1e-12, abs=1e-12)
    assert run(cycled_momentum(schedule), total) == pytest.approx(momenta, rel=0, abs=1e-12)


@settings(deadline=None, max_examples=60)
@given(arguments=one_cycles)
def test_one_cycle_ends_on_its_last_value_stays_in_bounds_and_rises_then_falls(arguments):
    schedule, total = one_cycle(**arguments), arguments["total_steps"]
    initial = arguments["max_lr"] / arguments["div_factor"]
    final = initial / arguments["final_div_factor"]
    values = run(schedule, total)
    assert values[-1] == final
    assert schedule(total + 7) == final
    assert min(values) >= min(initial, final)
    assert max(values) <= max(arguments["max_lr"], final)
    peak = arguments["pct_start"] * total - 1
    if peak > 0:
        assert values[0] == initial
    slack = 4e-16 * max(*values, 1e-30)
    for step, (a, b) in enumerate(pairwise(values)):
        if step + 1 <= peak:
            assert b >= a - slack
        if step >= peak and final <= initial:
            assert b <= a + slack


@pytest.mark.parametrize("pct_start", [0.1, 0.29, 0.3, 0.5, 0.57, 1.0])
@pytest.mark.parametrize("anneal", ["cosine", "linear"])
def test_one_cycle_peaks_at_pct_start(pct_start, anneal):
    values = run(one_cycle(0.4, 100, pct_start=pct_start, anneal=anneal), 100)
    peak = round(pct_start * 100) - 1
    assert values[peak] == 0.4
    assert [step for step in range(100) if values[step] == 0.4] == [peak]


def test_one_cycle_without_a_rise_starts_at_the_peak():
    values = run(one_cycle(0.4, 10, pct_start=0.0), 10)
    assert values[0] == 0.4
    assert values[-1] == 0.4 / 25 / 1e4


def test_smiths_cycle_comes_down_as_it_went_up_and_then_annihilates():
    # 1803.09820: up from max/10 over 45 % of 101 steps, down the same way, then to a hundredth
    smith = one_cycle(
        1.0,
        100,
        pct_start=0.46,
        anneal="linear",
        div_factor=10,
        final_div_factor=100,
        three_phase=True,
    )
    values = run(smith, 100)
    assert values[45] == 1.0
    assert values[:46] == pytest.approx(values[90:44:-1], rel=1e-12)
    assert values[15] == pytest.approx(0.1 + 0.9 / 3)
    assert values[90] == 0.1
    assert values[99] == pytest.approx(0.001)
    tail = [a - b for a, b in pairwise(values[90:])]
    assert tail == pytest.approx([0.099 / 9] * 9)


def test_the_area_of_a_linear_cycle_is_that_of_its_two_trapezia():
    values = run(one_cycle(1.0, 100, pct_start=0.31, anneal="linear"), 100)
    initial, final = 1 / 25, 1 / 25e4
    area = 30 * (initial + 1) / 2 + 69 * (1 + final) / 2
    assert sum(values) - (values[0] + values[-1]) / 2 == pytest.approx(area, rel=1e-12)


def test_fastais_cycle_ends_at_max_over_its_div_final():
    # fastai: SchedCos(max/div, max) to pct_start, then SchedCos(max, max/div_final), div_final=1e5
    values = run(one_cycle(1.0, 101, pct_start=26 / 101, final_div_factor=1e5 / 25), 101)
    for step, value in enumerate(values):
        if step <= 25:
            expected = 0.04 + (1 + math.cos(math.pi * (1 - step / 25))) * 0.96 / 2
        else:
            expected = 1 + (1 + math.cos(math.pi * (1 - (step - 25) / 75))) * (1e-5 - 1) / 2
        assert value == pytest.approx(expected, rel=1e-9)


def test_dawnbench_cycle_rises_for_5_of_24_epochs_and_falls_to_0():
    dawn = piecewise_linear([0, 5 * 98, 24 * 98], [0, 0.4, 0])
    assert (dawn(0), dawn(245), dawn(490), dawn(24 * 98)) == (0.0, 0.2, 0.4, 0.0)
    assert dawn(24 * 98 - 1) == pytest.approx(0.4 / (19 * 98))
    # the entry counts its updates from 1: its 2352 updates use steps 1 to 2352
    entry = dawn.shifted(-1)
    assert entry.length == 2352
    assert (entry(0), entry(2351)) == (pytest.approx(0.4 / 490), 0.0)
    same = one_cycle(0.4, 2352, pct_start=5 / 24, anneal="linear", div_factor=math.inf)
    assert (same(0), same(489), same(2351)) == (0.0, 0.4, 0.0)


def test_momentum_of_three_phases_stays_up_in_the_tail():
    values = run(cycled_momentum(one_cycle(0.4, 100, pct_start=0.4, three_phase=True)), 100)
    assert (values[0], values[39], values[78]) == (0.95, 0.85, 0.95)
    assert set(values[78:]) == {0.95}


@few
@given(arguments=one_cycles)
def test_momentum_mirrors_the_height_of_a_linear_cycle(arguments):
    arguments = {**arguments, "anneal": "linear", "final_div_factor": 1.0}
    assume(arguments["div_factor"] > 1.1)
    schedule = one_cycle(**arguments)
    mirror = cycled_momentum(schedule, base_momentum=0.8, max_momentum=0.9)
    foot, peak = arguments["max_lr"] / arguments["div_factor"], arguments["max_lr"]
    for step in range(arguments["total_steps"]):
        height = (schedule(step) - foot) / (peak - foot)
        assert mirror(step) == pytest.approx(0.9 - 0.1 * height, rel=1e-9)


# ---- combinators


def test_then_counts_the_second_anew_from_its_first_step():
    joined = warmup(0.4, total_steps=5).then(cosine(0.4, 0.0, total_steps=9), at=5)
    assert run(joined, 5) == run(warmup(0.4, total_steps=5), 5)
    assert run(joined.shifted(-5), 9) == run(cosine(0.4, 0.0, total_steps=9), 9)
    assert joined.length == 14


def test_scaling_multiplies_every_value_from_either_side():
    schedule = one_cycle(0.4, 20)
    assert run(schedule * 2, 20) == [2 * value for value in run(schedule, 20)]
    assert 2 * schedule == schedule * 2


def test_shifting_delays():
    schedule = linear(1.0, 0.0, total_steps=5)
    assert run(schedule.shifted(2), 7) == [1.0, 1.0, *run(schedule, 5)]
    assert schedule.shifted(2).length == 7


def test_a_schedule_of_ones_own_needs_only_a_value():
    @dataclass(frozen=True, repr=False)
    class Inverse(Schedule):
        start: float

        def _value(self, step):
            return self.start / (1 + step)

    assert (Inverse(0.4) * 2)(3) == pytest.approx(0.2)
    assert repr(Inverse(0.4)) == "Inverse(start=0.4)"


# ---- bad input

nan = math.nan
BAD = [
    (lambda: triangular(0.4, 0.1, step_size_up=5),
     "max_lr must be greater than base_lr, got max_lr=0.1 and base_lr=0.4"),
    (lambda: triangular2(0.4, 0.4, step_size_up=5), "got max_lr=0.4 and base_lr=0.4"),
    (lambda: exp_range(-0.1, 0.4, step_size_up=5), "base_lr must be at least 0, got base_lr=-0.1"),
    (lambda: triangular(0.1, nan, step_size_up=5), "max_lr must be finite, got max_lr=nan"),
    (lambda: triangular(0.1, 0.4, step_size_up=0),
     "step_size_up must be greater than 0, got step_size_up=0"),
    (lambda: triangular(0.1, 0.4, step_size_up=1, step_size_down=-1), "got step_size_down=-1"),
    (lambda: exp_range(0.1, 0.4, step_size_up=5, gamma=1.5),
     "gamma must be between 0 and 1, got gamma=1.5"),
    (lambda: exp_range(0.1, 0.4, step_size_up=5, gamma=0),
     "gamma must be greater than 0, got gamma=0"),
    (lambda: one_cycle(-0.4, 100), "max_lr must be greater than 0, got max_lr=-0.4"),
    (lambda: one_cycle(nan, 100), "max_lr must be finite, got max_lr=nan"),
    (lambda: one_cycle(0.4, 0), "total_steps must be at least 1, got total_steps=0"),
    (lambda: one_cycle(0.4, 100, pct_start=1.2),
     "pct_start must be between 0 and 1, got pct_start=1.2"),
    (lambda: one_cycle(0.4, 100, pct_start=0.6, three_phase=True),
     "pct_start must be at most 0.5 with three_phase=True, got pct_start=0.6"),
    (lambda: one_cycle(0.4, 100, anneal="cos"),
     "anneal must be one of 'cosine', 'linear', got anneal='cos'"),
    (lambda: one_cycle(0.4, 100, div_factor=0.5),
     "div_factor must be at least 1, got div_factor=0.5"),
    (lambda: one_cycle(0.4, 100, div_factor=nan), "div_factor must be finite, got div_factor=nan"),
    (lambda: one_cycle(0.4, 100, final_div_factor=0),
     "final_div_factor must be greater than 0, got final_div_factor=0"),
    (lambda: constant(-1), "value must be at least 0, got value=-1"),
    (lambda: linear(-1, 0, total_steps=5), "start must be at least 0, got start=-1"),
    (lambda: cosine(1, nan, total_steps=5), "end must be finite, got end=nan"),
    (lambda: linear(1, 0, total_steps=0), "total_steps must be at least 1, got total_steps=0"),
    (lambda: warmup(0.4, total_steps=0), "total_steps must be at least 1, got total_steps=0"),
    (lambda: warmup(0.4, total_steps=5, start=0.5),
     "start must be at most value, got start=0.5 and value=0.4"),
    (lambda: step_decay(0.4, every=0), "every must be at least 1, got every=0"),
    (lambda: step_decay(0.4, every=5, factor=2), "factor must be between 0 and 1, got factor=2"),
    (lambda: piecewise_linear([0, 5], [0.4]),
     "steps and values must have the same length, got 2 steps and 1 values"),
    (lambda: piecewise_linear([0], [0.4]), "steps must hold at least 2 points, got steps=[0]"),
    (lambda: piecewise_linear([0, 5, 5], [0, 1, 0]),
     "steps must increase from point to point, got steps=[0, 5, 5]"),
    (lambda: piecewise_linear([0, 5], [0, -1]), "values[1] must be at least 0, got values[1]=-1"),
    (lambda: cycled_momentum(one_cycle(0.4, 9), base_momentum=1.5),
     "base_momentum must be between 0 and 1, got base_momentum=1.5"),
    (lambda: cycled_momentum(one_cycle(0.4, 9), base_momentum=0.99),
     "got max_momentum=0.95 and base_momentum=0.99"),
    (lambda: constant(1) * -2, "factor must be at least 0, got factor=-2"),
    (lambda: constant(1).shifted(nan), "by must be finite, got by=nan"),
    (lambda: constant(1).then(constant(2), at=0), "at must be at least 1, got at=0"),
    (lambda: constant(1).plot(0), "steps must be at least 1, got steps=0"),
    (lambda: constant(1)(nan), "step must be finite, got step=nan"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), BAD, ids=[message for _, message in BAD])
def test_bad_values_are_refused_by_name_and_number(call, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        call()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: one_cycle("0.4", 100), "max_lr must be a number, got max_lr='0.4'"),
        (lambda: one_cycle(0.4, 100.5), "total_steps must be a whole number"),
        (lambda: cycled_momentum(constant(1)), "one_cycle, triangular, .* got schedule=constant"),
        (lambda: constant(1).then(0.1, at=5), "other must be a Schedule, got other=0.1"),
        (lambda: constant(1)("3"), "step must be a number, got step='3'"),
        (lambda: constant(1)(torch.tensor(1j)), "step must be real, got a tensor with dtype"),
    ],
)
def test_wrong_types_are_refused_by_name(call, message):
    with pytest.raises(TypeError, match=message):
        call()


def test_numpys_numbers_are_written_as_pythons():
    numpy = pytest.importorskip("numpy")
    for kind in (numpy.float32, numpy.float64, float):
        assert repr(constant(kind(0.5))) == "constant(value=0.5)"
