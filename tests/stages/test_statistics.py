"""Wilson, McNemar and the bootstrap against independent references: SciPy, published values, the plain bootstrap."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.statistics import (
    generator,
    mcnemar_p,
    recovery_of,
    resample_means,
    wilson_interval,
)

counts = st.integers(0, 400)


@settings(deadline=None)  # the first example imports SciPy
@given(counts, counts)
def test_mcnemar_is_the_two_sided_binomial_test_of_the_discordant_pairs(base_only, trial_only):
    from scipy.stats import binomtest

    n = base_only + trial_only
    expected = 1.0 if n == 0 else binomtest(base_only, n, 0.5).pvalue
    assert mcnemar_p(base_only, trial_only) == pytest.approx(expected, rel=1e-9)


def test_mcnemar_of_many_discordant_pairs_neither_overflows_nor_vanishes():
    assert mcnemar_p(30_000, 30_000) == 1.0
    assert 0 < mcnemar_p(4_800, 5_200) < 1e-4


@pytest.mark.parametrize(
    ("num_right", "n", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilson_gives_the_published_intervals(num_right, n, low, high):
    """Newcombe, Statistics in Medicine 17 (1998), 857-872, Table I, method 3."""
    assert wilson_interval(num_right, n, 0.95) == pytest.approx((low, high), abs=5e-5)


@settings(deadline=None)
@given(st.integers(1, 5000), st.data(), st.sampled_from([0.8, 0.95, 0.99]))
def test_wilson_is_scipys_and_holds_the_share(n, data, confidence):
    from scipy.stats import binomtest

    num_right = data.draw(st.integers(0, n))
    low, high = wilson_interval(num_right, n, confidence)
    expected = binomtest(num_right, n).proportion_ci(confidence, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert 0 <= low <= num_right / n <= high <= 1


def test_no_documents_have_no_interval():
    assert wilson_interval(0, 0, 0.95) == (None, None)


def plain_bootstrap(values, num_resamples):
    """One index array after the other, as in a textbook."""
    rng = np.random.default_rng(7)
    return np.array([values[rng.integers(0, len(values), len(values))].mean(axis=0) for _ in range(num_resamples)])


@pytest.mark.parametrize("kind", ["right_or_wrong", "continuous"])
def test_resampled_means_are_distributed_as_the_plain_bootstraps(kind):
    rng = np.random.default_rng(0)
    base = rng.random(300)
    values = np.column_stack([0.7 * base + 0.3 * rng.random(300), base])
    if kind == "right_or_wrong":
        values = (values > 0.4).astype(float)
    fast, plain = resample_means(values, 20_000, generator(0, kind)), plain_bootstrap(values, 20_000)
    np.testing.assert_allclose(fast.mean(axis=0), values.mean(axis=0), atol=1e-3)
    np.testing.assert_allclose(np.cov(fast.T), np.cov(plain.T), rtol=0.06)
    for tail in (0.025, 0.5, 0.975):
        np.testing.assert_allclose(np.quantile(fast, tail, axis=0), np.quantile(plain, tail, axis=0), atol=4e-3)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=30, max_size=60), st.randoms(use_true_random=False))
def test_the_order_of_many_documents_with_few_distinct_values_does_not_change_the_draws(values, random):
    shuffled = random.sample(values, len(values))
    first, second = (resample_means(np.array([v]).T, 200, generator(3)) for v in (values, shuffled))
    np.testing.assert_array_equal(first, second)


def test_each_label_has_its_own_stream_and_keeps_it():
    assert generator(0, "a").random() == generator(0, "a").random()
    assert len({generator(0, "a").random(), generator(1, "a").random(), generator(0, "b").random()}) == 3


@given(st.floats(0.01, 100), st.floats(0.01, 100), st.booleans())
def test_a_loss_is_a_recovery_below_one_whichever_way_is_better(score, base_score, lower_is_better):
    recovery = recovery_of(score, base_score, lower_is_better)
    assert recovery == pytest.approx(base_score / score if lower_is_better else score / base_score)
    is_loss = score > base_score if lower_is_better else score < base_score
    assert recovery <= 1 if is_loss else recovery >= 1


def test_what_would_divide_by_zero_or_is_missing_has_no_recovery():
    assert [recovery_of(0.5, 0.0, False), recovery_of(0.0, 0.5, True), recovery_of(None, 0.5, True)] == [None] * 3
    assert (recovery_of(0.0, 0.5, False), recovery_of(0.5, 0.0, True)) == (0, 0)
