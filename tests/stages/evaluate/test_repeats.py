"""Repeated answers: their mean, pass@k and the majority, against what the words mean."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stages.evaluate.config import ScoringConfig
from stages.evaluate.repeats import drop_partial, mean_of_repeats, of_repeats, pass_at

rights = st.lists(st.sampled_from([0.0, 1.0]), min_size=2, max_size=8)


@given(rights, st.integers(1, 8))
def test_pass_at_k_is_the_share_of_draws_of_k_with_a_right_one(answers, k):
    k = min(k, len(answers))
    draws = list(itertools.combinations(answers, k))
    expected = sum(map(any, draws)) / len(draws)
    assert pass_at(k, len(answers), int(sum(answers))) == pytest.approx(expected)


@given(rights)
def test_pass_at_one_is_the_mean_and_more_tries_never_hurt(answers):
    config = ScoringConfig(pass_at=list(range(1, len(answers) + 1)))
    found = of_repeats([{"m": each} for each in answers], [""] * len(answers), config)
    assert found["m_pass@1"] == pytest.approx(mean_of_repeats([{"m": each} for each in answers])["m"])
    assert list(found.values()) == sorted(found.values())
    assert found[f"m_pass@{len(answers)}"] == (1.0 if any(answers) else 0.0)


def test_the_majority_is_the_score_of_the_answer_that_is_given_most_often():
    each = [{"m": score} for score in (0.0, 1.0, 0.0, 1.0, 1.0)]
    found = of_repeats(each, [["41"], ["42"], ["40"], ["42"], ["42"]], ScoringConfig(majority=True))
    assert found == {"m_majority@5": 1.0}
    tied = of_repeats(each[:2], [["41"], ["42"]], ScoringConfig(majority=True))
    assert tied == {"m_majority@2": 0.0}, "of equally many the one that came first"


def test_partial_credit_has_no_pass_at_and_a_list_no_mean():
    each = [{"m": 0.5}, {"m": 1.0}]
    assert of_repeats(each, ["", ""], ScoringConfig(pass_at=[1])) == {"m_pass@1": None}
    assert mean_of_repeats(each) == {"m": 0.75}
    with pytest.raises(ValueError, match="m of repeated answers is no number"):
        mean_of_repeats([{"m": [1, 2]}, {"m": [3, 4]}])


def test_what_has_no_pass_at_of_one_document_has_none_of_any():
    """A mean over the documents that happen to be all or nothing would be another number."""
    whole = {"f1,none": 1.0, "f1_pass@2,none": 1.0, "em_pass@2,none": 1.0, "f1_majority@2,none": 1.0}
    documents = [whole, {"f1,none": 0.7, "f1_pass@2,none": None, "em_pass@2,none": 0.0, "f1_majority@2,none": 0.4}, {}]
    drop_partial(documents)
    assert [each.get("f1_pass@2,none") for each in documents] == [None, None, None] and documents[2] == {}
    assert documents[0]["em_pass@2,none"] == documents[0]["f1_majority@2,none"] == 1.0


def test_one_answer_has_neither():
    assert of_repeats([{"m": 1.0}], [""], ScoringConfig(pass_at=[1], majority=True)) == {}


def test_twenty_answers_to_thirty_problems_by_the_closed_form():
    """Problem number p is right p times in twenty, up to all of them."""
    counts = [min(problem, 20) for problem in range(30)]
    for k in (1, 5, 10):
        expected = sum(1 - math.comb(20 - right, k) / math.comb(20, k) for right in counts) / 30
        assert sum(pass_at(k, 20, right) for right in counts) / 30 == pytest.approx(expected)
