"""A suite's mean: its error where its tasks share documents and where they do not, and its verdict."""

from dataclasses import replace

import numpy as np
import pytest

from stages.compare.artifact import Error
from stages.grid.joint import Influences, Member
from stages.grid.suites import mean_difference
from stages.inference import critical_value


def member(values, documents, clusters=None, *, base=0.7, task="t", **error):
    """A task with a difference of each document; its base is right in a share of them."""
    values, documents = np.array(values, dtype=float), np.array(documents)
    centred = (values - values.mean()) / len(values) * np.sqrt(len(values) / (len(values) - 1))
    variance = max(float((centred**2).sum()), 1 / len(values) ** 2)
    return Member(
        task=task,
        difference=float(values.mean()),
        base=base,
        error=Error(difference=variance, base=0.21 / len(values), covariance=0.0, **error),
        influences=Influences(
            documents, documents if clusters is None else np.array(clusters), np.column_stack([centred, 0 * centred])
        ),
    )


def reading(one, *sources):
    return replace(one, sources=frozenset(sources))


def unknown(one):
    return replace(one, influences=None)


def width(members):
    low, high = mean_difference(members, lower_is_better=False).interval(0.95)
    return high - low


def flips(rng, n, share=0.1):
    return rng.choice([-1.0, 1.0, 0.0], n, p=[share / 2, share / 2, 1 - share])


def test_tasks_of_their_own_documents_are_independent_and_of_the_same_are_as_correlated_as_they_are():
    rng = np.random.default_rng(1)
    one, other, ids = flips(rng, 4000), flips(rng, 4000), np.arange(4000)
    half = np.where(rng.random(4000) < 0.5, one, other)
    alone = width([member(one, ids)])
    assert width([member(one, ids), member(other, 4000 + ids)]) == pytest.approx(alone / 2**0.5, rel=0.03)
    assert width([member(one, ids), member(one, ids)]) == pytest.approx(alone, rel=1e-6)
    shared = [member(one, ids), member(half, ids)]
    of_both = (one + half) / 2
    expected = 2 * 1.96 * of_both.std(ddof=1) / 4000**0.5
    assert width(shared) == pytest.approx(expected, rel=0.01)
    assert width([member(one, ids), member(-one, ids)]) < alone / 5


def test_where_nothing_flips_what_flips_next_is_taken_to_flip_in_both():
    ids, still = np.arange(100), np.zeros(100)
    alone = width([member(still, ids)])
    assert width([member(still, ids), member(still, ids)]) == pytest.approx(alone)
    assert width([member(still, ids), member(still, 100 + ids)]) == pytest.approx(alone / 2**0.5)
    between = width([member(still, ids), member(still, 50 + ids)])
    assert alone / 2**0.5 < between < alone


def test_documents_of_one_story_belong_together_in_whatever_task():
    """The other task asks other questions of the same stories, or only one of them knows the stories."""
    rng = np.random.default_rng(2)
    ids, stories = np.arange(600), np.arange(600) // 6
    values = np.repeat(flips(rng, 100, 0.4), 6)
    independent = width([member(values, ids), member(values, 600 + ids)])
    named = [member(values, ids, 5000 + stories), member(values, 600 + ids, 5000 + stories)]
    assert width(named) == pytest.approx(2**0.5 * independent, rel=0.02)
    by_one = [member(values, ids, 5000 + stories), member(values[::6], ids[::6])]
    assert width(by_one) > 1.15 * width([member(values, ids, 5000 + stories), member(values[::6], 600 + ids[::6])])


def test_what_nobody_knows_of_is_taken_to_be_correlated():
    rng = np.random.default_rng(3)
    one, other = member(flips(rng, 500), np.arange(500)), member(flips(rng, 500), np.arange(500, 1000))
    assert width([unknown(one), other]) == pytest.approx((width([one]) + width([other])) / 2)
    lost = Influences(other.influences.documents - 500, other.influences.clusters - 500, np.full((500, 2), np.nan))
    hidden = Member(task="t", difference=0.0, base=0.7, error=other.error, influences=lost)
    assert width([one, hidden]) == pytest.approx((width([one]) + width([other])) / 2)


def test_documents_of_one_data_set_that_look_otherwise_are_taken_to_be_the_same():
    rng = np.random.default_rng(6)
    one, other = member(flips(rng, 500), np.arange(500), task="arc"), member(flips(rng, 500), np.arange(500, 1000))
    whole, apart = (width([one]) + width([other])) / 2, width([one, other])
    assert width([reading(one, "ai2_arc"), reading(other, "ai2_arc")]) == pytest.approx(whole)
    assert width([reading(one, "ai2_arc"), reading(other, "gsm8k")]) == pytest.approx(apart)
    found = mean_difference([reading(one, "a"), reading(other, "b"), reading(one, "b")], lower_is_better=False)
    assert found.unknown == (("t", "arc"),)
    seen = member(flips(rng, 500), np.arange(500))
    assert width([reading(one, "a"), reading(seen, "a")]) < whole, "the documents that they share are known"


def test_few_clusters_widen_the_interval_as_far_as_they_weigh():
    values, ids = flips(np.random.default_rng(4), 900), np.arange(900)
    few, many = member(values, ids, freedom=11), member(values, 900 + ids)
    found = mean_difference([few, few], lower_is_better=False)
    assert found.freedom == pytest.approx(22)
    assert mean_difference([many, many], lower_is_better=False).freedom is None
    low, high = found.interval(0.95)
    assert high - low == pytest.approx(2 * critical_value(0.95, 22) * found.variance**0.5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_suite_s_verdict_is_where_its_interval_lies_and_missing_documents_count_against_it(sign):
    def judged(difference, **error):
        errors = Error(difference=1e-6, base=1e-6, covariance=0.0, **error)
        one = Member(task="t", difference=sign * difference, base=0.7, error=errors)
        found = mean_difference([one], lower_is_better=sign < 0)
        return *found.judged(0.01, 0.95), found.loss_p(0.01)

    assert judged(-0.004)[:2] == ("equivalent", None)
    assert judged(-0.009)[:2] == ("degraded", None)
    assert judged(-0.015)[:2] == ("degraded", "beyond margin")
    assert judged(+0.015)[:2] == ("improved", None)
    assert judged(-0.001, worst_loss=0.02)[:2] == ("inconclusive", "missing")
    assert judged(-0.001, worst_loss=0.002)[:2] == ("equivalent", None)
    assert judged(-0.001, worst_loss=None) == ("inconclusive", "missing", None)
    assert judged(-0.001, reason="fewer than 10 documents changed") == (
        "inconclusive",
        "t: fewer than 10 documents changed",
        None,
    )
    for difference, lost in ((-0.008, 0.0), (-0.0081, 0.0), (-0.007, 0.001), (-0.007, 0.0012)):
        p = judged(difference, worst_loss=lost)[2]
        assert (p < 0.025) == (difference - lost - 1.96e-3 > -0.01)


def test_recovery_s_interval_contains_the_ratio_and_knows_that_the_bases_are_of_the_same_documents():
    rng = np.random.default_rng(5)
    ids = np.arange(800)
    members = [member(flips(rng, 800), ids), member(flips(rng, 800), ids)]
    found = mean_difference(members, lower_is_better=False)
    low, high = found.recovery_interval(0.95)
    assert low < 1 + found.value / found.base < high
