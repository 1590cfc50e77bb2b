"""Intervals and tests of paired differences against published values, and against themselves."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.inference import (
    critical_value,
    detectable_difference,
    documents_needed,
    fewest_documents,
    mcnemar_mid_p,
    power_not_worse,
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


@pytest.mark.parametrize(
    ("n", "points"),
    [
        (14042, (0.24, 0.41, 0.53, 0.75)),
        (10042, (0.28, 0.48, 0.63, 0.88)),
        (12032, (0.26, 0.44, 0.57, 0.81)),
        (5761, (0.37, 0.64, 0.83, 1.17)),
        (1319, (0.77, 1.34, 1.72, 2.44)),
        (1267, (0.79, 1.36, 1.76, 2.49)),
        (1165, (0.82, 1.42, 1.84, 2.60)),
        (817, (0.98, 1.70, 2.19, 3.10)),
        (756, (1.0, 1.8, 2.3, 3.2)),
        (541, (1.2, 2.1, 2.7, 3.8)),
        (164, (2.2, 3.8, 4.9, 6.9)),
    ],
)
def test_the_smallest_loss_that_is_seen_four_times_of_five(n, points):
    found = [100 * detectable_difference(math.sqrt(flips / n), 0.95) for flips in (0.01, 0.03, 0.05, 0.10)]
    assert found == pytest.approx(points, abs=0.051 if n <= 756 else 0.0051)


@pytest.mark.parametrize(
    ("margin", "flips", "needed"),
    [
        (0.01, 0.05, 6498),
        (0.02, 0.05, 1625),
        (0.02, 0.02, 650),
        (0.02, 0.06, 1950),
        (0.018, 0.02, 803),
        (0.018, 0.06, 2407),
        (0.014, 0.02, 1326),
        (0.014, 0.06, 3978),
        (0.015, 0.02, 1156),
        (0.015, 0.06, 3466),
    ],
)
def test_documents_that_show_equivalence_nine_times_of_ten(margin, flips, needed):
    assert documents_needed(0.0, flips, margin, 0.95) == pytest.approx(needed, abs=1)


@pytest.mark.parametrize(("n", "flips", "wide", "power"), [(546, 0.15, 0.0375, 0.62), (756, 0.10, 0.0328, 0.81)])
def test_the_chance_to_be_shown_not_worse(n, flips, wide, power):
    assert power_not_worse(wide, math.sqrt(flips / n), 0.95) == pytest.approx(power, abs=0.005)


@pytest.mark.parametrize(("n", "largest"), [(1319, 0.31), (817, 0.19), (541, 0.13)])
def test_with_the_most_flips_nine_of_ten_pass_the_gate(n, largest):
    assert power_not_worse(0.05, math.sqrt(largest / n), 0.95) == pytest.approx(0.9, abs=0.01)


def test_without_any_flip_so_many_documents_are_within_a_margin():
    for margin in (0.01, 0.02, 0.05, 0.2):
        n = fewest_documents(margin, 0.95)
        assert float(tango_interval(0, 0, n, Z)[1]) < margin <= float(tango_interval(0, 0, n - 1, Z)[1])
