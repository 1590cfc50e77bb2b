"""What several starts of a server say, and that requests within one do not stand for another."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.measured import Measured, Replicated, mean_ratio, num_for_quantile, weighted_sum

THREE = {1: 0.99, 2: 1.0, 3: 1.01}
STARTS = st.lists(st.floats(0.5, 2), min_size=3, max_size=3).map(lambda values: dict(enumerate(values, 1)))


def test_three_starts_have_student_s_interval_on_the_logarithm():
    found = Replicated.of("a", {1: 90.0, 2: 100.0, 3: 110.0}).measured
    logs = [math.log(90), math.log(100), math.log(110)]
    mean = sum(logs) / 3
    sd = math.sqrt(sum((log - mean) ** 2 for log in logs) / 2)
    half = 4.302653 * sd / math.sqrt(3)
    assert found == pytest.approx((math.exp(mean), math.exp(mean - half), math.exp(mean + half)), rel=1e-6)


def test_one_start_has_no_interval_however_much_was_measured_in_it():
    once = Replicated.of("a", {1: 2.0})
    assert once.measured == Measured(pytest.approx(2.0), None, None)
    assert once.over(Replicated.of("b", THREE)).measured.low is None


def test_two_servers_are_compared_by_welch_on_logarithms():
    """Against scipy's own test."""
    from scipy.stats import ttest_ind

    one, other = {1: 1.0, 2: 1.02, 3: 1.05}, {1: 1.1, 2: 1.11, 3: 1.19, 4: 1.15}
    theirs = ttest_ind([math.log(v) for v in one.values()], [math.log(v) for v in other.values()], equal_var=False)
    a, b = Replicated.of("a", one), Replicated.of("b", other)
    assert a.p_apart(b) == pytest.approx(theirs.pvalue)
    low, high = theirs.confidence_interval()
    assert a.over(b).measured[1:] == pytest.approx((math.exp(low), math.exp(high)))
    assert a.over(b).p_below(1.0) == pytest.approx(theirs.pvalue / 2)


def test_what_one_start_does_to_all_its_workloads_is_not_averaged_out():
    """Ten workloads whose starts were slow together are known no better than one; ten that differ by chance are."""
    together = weighted_sum((0.1, Replicated.of("a", THREE)) for _ in range(10))
    assert together.measured == pytest.approx(Replicated.of("a", THREE).measured)
    orders = [{1: 0.99, 2: 1.0, 3: 1.01}, {1: 1.01, 2: 0.99, 3: 1.0}, {1: 1.0, 2: 1.01, 3: 0.99}]
    apart = weighted_sum((1 / 3, Replicated.of("a", each)) for each in orders).measured
    assert apart.high - apart.low < 0.001


@given(STARTS, STARTS)
def test_a_sum_is_as_uncertain_as_the_sums_of_its_starts(one, other):
    """To first order: exactly so for logarithms, whose sum a product is."""
    a, b = Replicated.of("a", one), Replicated.of("a", other)
    product = Replicated.of("a", {start: one[start] * other[start] for start in one})
    ours = a.over(b.reciprocal())
    assert ours.measured == pytest.approx(product.measured)


def test_a_start_that_lacks_a_workload_adds_to_no_error():
    found = weighted_sum([(0.5, Replicated.of("a", THREE)), (0.5, Replicated.of("a", {1: 0.98, 3: 1.02}))])
    assert {server: set(starts) for server, starts in found.deviations.items()} == {"a": {1, 3}}
    lone = weighted_sum([(0.5, Replicated.of("a", {1: 1.0, 2: 1.1})), (0.5, Replicated.of("a", {2: 1.0, 3: 1.1}))])
    assert lone.is_once


def test_a_mean_ratio_is_of_what_both_have():
    base = {"chat": Replicated.of("a", {1: 1.0}), "rag": Replicated.of("a", {1: 2.0})}
    found = mean_ratio({"chat": Replicated.of("b", {1: 3.0})}, base)
    assert found.value == pytest.approx(3.0)
    assert mean_ratio({}, base) is None


def test_numbers_without_any_error_are_known_exactly():
    assert Replicated(2.0).measured == (2.0, 2.0, 2.0)
    same = Replicated.of("a", {1: 2.0, 2: 2.0})
    assert same.p_apart(Replicated(2.0)) == 1.0
    assert same.p_apart(Replicated(3.0)) == 0.0


def test_so_many_requests_hold_a_quantile():
    assert (num_for_quantile(0.9), num_for_quantile(0.99)) == (29, 299)
