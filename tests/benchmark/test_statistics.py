"""Summaries of runs, against Python's statistics module and SciPy's t distribution."""

from __future__ import annotations

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fasttricks.benchmark import summarize

figures = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=60)


@given(figures)
def test_mean_deviation_and_interval_equal_the_textbooks(values):
    summary = summarize(values)
    assert summary.mean == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert summary.std == pytest.approx(statistics.stdev(values), abs=1e-9)
    half = stats.t.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    low, high = summary.interval
    assert (high - low) / 2 == pytest.approx(half, rel=1e-3, abs=1e-9)  # the table's digits
    assert (low + high) / 2 == pytest.approx(summary.mean, abs=1e-9)


def test_the_target_itself_counts_as_reached():
    assert summarize([93.9, 94.0, 94.2, 94.1], target=94.0).share_at_target == 0.75


def test_one_run_has_no_interval():
    summary = summarize([94.0])
    assert (summary.mean, summary.std, summary.interval) == (94.0, 0.0, None)
    assert summary.text() == "94.00 (1 run)"
    assert summarize([94.0], target=94).text("%") == "94.00 % (1 run, 100% at the target)"


def test_the_text_holds_mean_deviation_interval_and_share():
    text = summarize([93.0, 94.0, 95.0], target=94).text()
    # t(2) = 4.303, so the half width is 4.303 * 1 / sqrt(3) = 2.48.
    assert text == "94.00 ± 1.00 (95 % interval 91.52 to 96.48, 3 runs, 67% at the target)"


@pytest.mark.parametrize("values", [[], [1.0, float("nan")]])
def test_bad_values_are_refused(values):
    with pytest.raises(ValueError, match="values must"):
        summarize(values)


def test_of_seconds_the_runs_at_or_under_the_target_reach_it():
    seconds = [10.0, 11.0, 12.0, 13.0]
    assert summarize(seconds, target=11, mode="min").share_at_target == 0.5
    assert summarize(seconds, target=11).share_at_target == 0.75
    with pytest.raises(ValueError, match="mode must be"):
        summarize(seconds, mode="fast")


@pytest.mark.parametrize("kind", [tuple, np.array, torch.tensor, iter])
def test_arrays_tensors_and_iterators_of_figures_will_do(kind):
    assert summarize(kind([1.0, 2.0, 4.5])) == summarize([1.0, 2.0, 4.5])
    with pytest.raises(ValueError, match="at least one figure"):
        summarize(kind([]))


@pytest.mark.parametrize("value", [np.array(94.0), torch.tensor(0.0)])
def test_one_figure_is_no_runs(value):
    with pytest.raises(ValueError, match="one figure a run, got the single figure"):
        summarize(value)


def test_a_run_that_did_not_get_there_is_no_figure():
    with pytest.raises((TypeError, ValueError), match="values must be"):
        summarize([10.0, None])
