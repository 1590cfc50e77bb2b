"""Where warm-up ends and what repeats say."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.serving.steady import distribution, mean_interval, median_interval, num_warm_up, spread

POSITIVE = st.floats(0.1, 100)


def test_slow_first_requests_are_warm_up():
    steady = [1.0, 1.02, 0.99, 1.01, 1.0, 0.98, 1.01, 1.0]
    assert num_warm_up([3.1, 1.6, *steady]) == 2
    assert num_warm_up([1.0] * 8) == num_warm_up([]) == num_warm_up([3.0, 1.0, 1.0]) == 0


@given(st.lists(POSITIVE, max_size=30))
def test_at_most_half_is_cut(values):
    assert num_warm_up(values) <= len(values) // 2


@settings(deadline=None)
@given(st.lists(POSITIVE, min_size=2, max_size=40))
def test_the_interval_holds_the_median(values):
    found = distribution(values, "label")
    assert found.low <= found.median <= found.high
    assert found.n == len(values)


def test_a_quantile_that_so_few_cannot_show_is_missing():
    assert distribution([1.0] * 9, "x").p90 is None
    assert distribution([1.0] * 10, "x").p90 == 1.0
    assert distribution([1.0] * 99, "x").p99 is None
    assert distribution([1.0] * 100, "x").p99 == 1.0


def test_what_was_not_measured_is_missing_not_zero():
    found = distribution([None, None], "ttft")
    assert found.n == 0
    assert {value for name, value in asdict(found).items() if name != "n"} == {None}


def test_one_repeat_has_no_interval():
    assert mean_interval([3.0]) == median_interval([3.0], "x") == (None, None)
    assert spread([3.0]) is None


def test_the_interval_of_three_repeats_is_student_s():
    low, high = mean_interval([9.0, 10.0, 11.0])
    assert (low, high) == (pytest.approx(10 - 4.302653 / 3**0.5), pytest.approx(10 + 4.302653 / 3**0.5))


def test_the_interval_of_few_is_as_wide_as_few_deserve():
    """A bootstrap of three values holds their median in 74 of 100 cases, not in 95."""
    rng = np.random.default_rng(0)
    held = [low <= 10 <= high for low, high in (median_interval(rng.normal(10, 1, 3), "x") for _ in range(300))]
    assert sum(held) > 0.9 * len(held)


def test_the_same_values_give_the_same_interval():
    values = list(np.random.default_rng(0).random(20))
    assert median_interval(values, "a") == median_interval(values, "a")
