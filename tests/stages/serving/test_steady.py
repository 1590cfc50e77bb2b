"""What one start says, and what it leaves to the others."""

from dataclasses import asdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binom

from stages.serving.steady import distribution, has_drifted, num_warm_up, quantile_interval, spread

POSITIVE = st.floats(0.1, 100)


def test_warm_up_is_a_fixed_share_of_the_requests():
    assert [num_warm_up(number) for number in (0, 2, 4, 5, 11, 300)] == [0, 0, 0, 1, 2, 60]


@given(st.lists(POSITIVE, min_size=2, max_size=40))
def test_a_start_has_no_interval_of_its_median(values):
    found = asdict(distribution(values))
    assert min(values) <= found["median"] <= max(values)
    assert {"low", "high"}.isdisjoint(found)


def test_a_quantile_that_so_few_cannot_show_is_missing():
    assert distribution([1.0] * 9).p90 is None
    assert distribution([1.0] * 10).p90 == 1.0
    assert distribution([1.0] * 99).p99 is None
    assert distribution([1.0] * 100).p99 == 1.0


def test_quantiles_are_those_whose_median_is_right():
    """Of ten values the median-unbiased p90 lies at rank (10 + 1/3) * 0.9 + 1/3 = 9.63."""
    assert distribution([float(value) for value in range(1, 11)]).p90 == pytest.approx(9.6333333)


@pytest.mark.parametrize(("quantile", "fewest"), [(0.9, 29), (0.99, 299)])
def test_a_quantile_has_an_interval_from_as_many_requests_as_hold_it(quantile, fewest):
    assert quantile_interval(np.arange(float(fewest - 1)), quantile) == (None, None)
    assert quantile_interval(np.arange(float(fewest)), quantile)[1] == fewest - 1, "the largest"


@pytest.mark.parametrize("quantile", [0.9, 0.99])
@pytest.mark.parametrize("n", [299, 300, 341, 1000, 5000])
def test_the_interval_of_a_quantile_is_of_ranks_that_hold_it_often_enough(n, quantile):
    """Values that are their own ranks show which were taken."""
    low, high = (int(each) for each in quantile_interval(np.arange(float(n)), quantile))
    holds = binom.cdf(high, n, quantile) - binom.cdf(low, n, quantile)
    assert 0.95 <= holds < 0.975
    assert 1 - binom.cdf(high, n, quantile) <= 0.05


def test_what_was_not_measured_is_missing_not_zero():
    found = distribution([None, None])
    assert found.n == 0
    assert {value for name, value in asdict(found).items() if name != "n"} == {None}


def test_one_repeat_has_no_spread():
    assert spread([3.0]) is None


def test_what_still_rises_is_no_steady_state():
    rng = np.random.default_rng(0)
    steady = rng.lognormal(3, 0.1, 100)
    assert not has_drifted(steady, 0.1)
    assert has_drifted(steady * np.linspace(1, 1.6, 100), 0.1)
    assert has_drifted(steady[::-1] * np.linspace(1.6, 1, 100), 0.1)
    assert not has_drifted([1.0, 2.0], 0.1)
