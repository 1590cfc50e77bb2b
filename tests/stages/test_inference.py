"""Intervals and tests of paired differences against published values, and against themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.inference import (
    critical_value,
    documents_needed,
    mcnemar_mid_p,
    ratio_interval,
    subset_interval,
    subset_means,
    tango_interval,
    tango_statistic,
    two_sided_p,
)
from stages.statistics import mcnemar_p

Z = critical_value(0.95)
tables = st.tuples(*[st.integers(0, 300)] * 4).filter(any)


@pytest.mark.parametrize(
    ("table", "low", "high"),
    [
        ((10, 0, 0, 10), -0.1611, 0.1611),
        ((0, 4, 0, 96), -0.0984, -0.0015),
        ((990, 0, 10, 0), 0.0054, 0.0183),
        ((482, 4, 0, 0), -0.0210, -0.0003),
    ],
)
def test_tango_s_interval_has_the_known_ends(table, low, high):
    both, lost, won, neither = table
    assert tango_interval(lost, won, both + lost + won + neither, Z) == pytest.approx((low, high), abs=6e-5)


@given(tables)
def test_each_end_of_tango_s_interval_is_where_its_statistic_reaches_the_critical_value(table):
    _both, lost, won, _neither = table
    n = sum(table)
    low, high = (float(end) for end in tango_interval(lost, won, n, Z))
    assert -1 <= low < high <= 1 and low <= (won - lost) / n <= high
    for end, sign in ((low, 1), (high, -1)):
        if abs(end) < 1:
            assert float(tango_statistic(lost, won, n, end)) == pytest.approx(sign * Z, abs=1e-6)
    mirrored = [-float(end) for end in tango_interval(won, lost, n, Z)]
    assert (high, low) == pytest.approx(mirrored, abs=1e-9)


@given(tables)
def test_interval_and_p_are_one_statistic(table):
    """At 0 Tango's statistic is McNemar's score."""
    _, lost, won, _ = table
    n = sum(table)
    statistic = float(tango_statistic(lost, won, n, 0.0))
    assert statistic == pytest.approx((won - lost) / math.sqrt(won + lost) if won + lost else 0.0)
    low, high = tango_interval(lost, won, n, Z)
    if abs(abs(statistic) - Z) > 1e-6:
        assert (two_sided_p(statistic) < 0.05) == (not low <= 0 <= high)


def test_tango_s_interval_takes_a_grid_at_once():
    lost, won = np.array([0, 4, 30]), np.array([0, 0, 10])
    low, high = tango_interval(lost, won, 100, Z)
    for place in range(3):
        assert (low[place], high[place]) == pytest.approx(tango_interval(lost[place], won[place], 100, Z))


def test_mid_p_is_between_half_and_all_of_the_exact_p():
    assert mcnemar_mid_p(4, 0, mcnemar_p(4, 0)) == pytest.approx(0.0625)
    assert mcnemar_mid_p(0, 0, 1.0) == 1
    assert mcnemar_mid_p(1, 1, 1.0) == pytest.approx(0.75)
    assert mcnemar_mid_p(2, 12, mcnemar_p(2, 12)) == pytest.approx(
        0.0074, abs=5e-5
    )  # Fagerland et al. 2013: by formula


def test_the_means_of_all_subsets_of_few_values_are_taken():
    assert subset_means(np.array([0.0, 3.0])).tolist() == [0, 1.5, 3]
    assert subset_interval(np.array([1.0, 2.0, 3.0]), 0.95)[0] == (None, None), "7 subsets do not reach 95 %"
    many = np.random.default_rng(0).normal(0.3, 1, 150)
    (low, high), p = subset_interval(many, 0.95)
    half = critical_value(0.95, 149) * many.std(ddof=1) / math.sqrt(150)
    assert (low, high) == pytest.approx((many.mean() - half, many.mean() + half), rel=0.1)
    assert (p < 0.05) == (low > 0)
    assert subset_interval(many, 0.95) == ((low, high), p), "the same subsets each time"


def test_fieller_is_the_set_of_ratios_that_are_not_refuted():
    base, difference, base_variance, covariance, variance = 0.5, -0.05, 0.0004, -0.0001, 0.0003
    half = Z * math.sqrt(variance)
    low, high = ratio_interval(base, difference, (difference - half, difference + half), covariance, base_variance, Z)
    for end in (low, high):
        share = end - 1
        error = math.sqrt(variance - 2 * share * covariance + share**2 * base_variance)
        assert abs(difference - share * base) == pytest.approx(Z * error)
    assert ratio_interval(0.03, 0.0, (-0.01, 0.01), 0.0, 0.0004, Z) == (None, None), "the base may be 0"


def test_the_documents_that_would_decide_are_those_of_the_power_formula():
    """5 % flips, one point, no difference, 90 % power: 6,498; where nothing flips the score interval alone decides."""
    assert documents_needed(0.0, 0.05, 0.01, 0.95) == 6498
    assert documents_needed(0.0, 0.05, 0.02, 0.95) == 1625
    assert documents_needed(0.0, 0.0, 0.02, 0.95) == 189
    _low, high = tango_interval(0, 0, np.array([188, 189]), Z)
    assert (high < 0.02).tolist() == [False, True]
