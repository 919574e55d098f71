"""Argument checks: what passes, what does not, and the numbers in the message."""

from __future__ import annotations

import re
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fasttricks._checks import (
    check_choice,
    check_fraction,
    check_integer,
    check_non_negative,
    check_number,
    check_positive,
)

NUMBER_CHECKS = [check_number, check_positive, check_non_negative, check_fraction]
finite = st.floats(allow_nan=False, allow_infinity=False) | st.integers(-(10**6), 10**6)


def passes(check, value, **options):
    """Whether ``check`` lets ``value`` through."""
    try:
        check("max_lr", value, **options)
    except ValueError:
        return False
    return True


@given(finite)
def test_each_number_check_accepts_exactly_its_range(value):
    assert passes(check_number, value)
    assert passes(check_positive, value) == (value > 0)
    assert passes(check_non_negative, value) == (value >= 0)
    assert passes(check_fraction, value) == (0 <= value <= 1)


@given(st.integers(-50, 50), st.integers(-50, 50))
def test_an_integer_passes_from_its_minimum_on(value, minimum):
    assert passes(check_integer, value, minimum=minimum) == (value >= minimum)


@pytest.mark.parametrize("value", [7, np.uint8(7), np.int64(7)])
def test_a_whole_number_comes_back_as_an_int(value):
    checked = check_integer("epochs", value)
    assert (type(checked), checked) == (int, 7)


def test_the_minimum_of_an_integer_is_zero_by_default():
    assert passes(check_integer, 0)
    assert not passes(check_integer, -1)


@pytest.mark.parametrize("check", NUMBER_CHECKS)
@pytest.mark.parametrize("value", [1, 1.0, Fraction(1, 2), np.float32(0.5), np.int64(1)])
def test_every_kind_of_real_number_passes(check, value):
    assert passes(check, value)


@pytest.mark.parametrize("check", NUMBER_CHECKS)
@pytest.mark.parametrize("value", [True, "0.1", None, 1j, [0.1]])
def test_what_is_no_real_number_is_a_type_error_that_shows_it(check, value):
    message = re.escape(f"max_lr must be a number, got max_lr={value!r}")
    with pytest.raises(TypeError, match=f"^{message}$"):
        check("max_lr", value)


@pytest.mark.parametrize("check", NUMBER_CHECKS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_finite_is_a_value_error_that_shows_it(check, value):
    with pytest.raises(ValueError, match=f"^max_lr must be finite, got max_lr={value}$"):
        check("max_lr", value)


@pytest.mark.parametrize("value", [True, 2.0, "2", None])
def test_what_is_no_whole_number_is_a_type_error_that_shows_it(value):
    message = re.escape(f"epochs must be a whole number, got epochs={value!r}")
    with pytest.raises(TypeError, match=f"^{message}$"):
        check_integer("epochs", value)


@pytest.mark.parametrize(
    ("check", "options", "value", "rule"),
    [
        (check_positive, {}, 0, "greater than 0"),
        (check_positive, {}, -0.5, "greater than 0"),
        (check_non_negative, {}, -0.5, "at least 0"),
        (check_fraction, {}, 1.5, "between 0 and 1"),
        (check_fraction, {}, -0.5, "between 0 and 1"),
        (check_integer, {}, -3, "at least 0"),
        (check_integer, {"minimum": 1}, 0, "at least 1"),
    ],
)
def test_the_message_gives_the_rule_and_what_came(check, options, value, rule):
    message = re.escape(f"momentum must be {rule}, got momentum={value}")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check("momentum", value, **options)


def test_a_choice_must_be_one_of_those_listed():
    assert check_choice("mode", "zero", ("reflect", "zero")) is None
    message = re.escape("mode must be one of 'reflect', 'zero', got mode='mirror'")
    with pytest.raises(ValueError, match=f"^{message}$"):
        check_choice("mode", "mirror", ("reflect", "zero"))
