"""How a learning rate follows the batch size."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttricks.schedules import linear_scaled_lr, sqrt_scaled_lr

rates = st.floats(1e-6, 10)
sizes = st.integers(1, 100_000)
rules = pytest.mark.parametrize(("rule", "power"), [(linear_scaled_lr, 1), (sqrt_scaled_lr, 0.5)])


def test_the_linear_rule_gives_the_rates_of_goyal():
    # 0.1 for 256 images; 3.2 for 8192, section 2.1 and table 1
    assert linear_scaled_lr(0.1, batch_size=8192, base_batch_size=256) == pytest.approx(3.2)


@rules
@given(lr=rates, size=sizes)
def test_the_batch_size_of_the_rate_leaves_it_alone(rule, power, lr, size):
    assert rule(lr, batch_size=size, base_batch_size=size) == lr


@rules
@given(lr=rates, size=sizes, base=sizes, factor=st.integers(1, 64))
def test_a_larger_batch_multiplies_the_rate_by_a_power_of_the_factor(
    rule, power, lr, size, base, factor
):
    once = rule(lr, batch_size=size, base_batch_size=base)
    larger = rule(lr, batch_size=factor * size, base_batch_size=base)
    assert larger == pytest.approx(once * factor**power, rel=1e-12)


@given(lr=rates, size=sizes, base=sizes)
def test_the_square_root_rule_lies_between_the_rate_and_the_linear_rule(lr, size, base):
    linear = linear_scaled_lr(lr, batch_size=size, base_batch_size=base)
    root = sqrt_scaled_lr(lr, batch_size=size, base_batch_size=base)
    assert root == pytest.approx(math.sqrt(lr * linear), rel=1e-12)


@rules
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((0.0, 1, 1), "base_lr must be greater than 0, got base_lr=0.0"),
        ((0.1, 0, 1), "batch_size must be at least 1, got batch_size=0"),
        ((0.1, 1, -2), "base_batch_size must be at least 1, got base_batch_size=-2"),
    ],
)
def test_numbers_out_of_range_are_named(rule, power, arguments, message):
    lr, size, base = arguments
    with pytest.raises(ValueError, match=message):
        rule(lr, batch_size=size, base_batch_size=base)
