"""The order in which trials are read, and the line that counts them."""

from typing import Any

import pytest

from stages.measured import Measured
from stages.report.artifact import TrialVerdict
from stages.report.config import TrialRow
from stages.report.order import counted, headline, in_order
from stages.report.serving.relative import Cost


def verdict(name: str, decision: str | None = None, **known: Any) -> TrialVerdict:
    model, recipe = name.split("/")
    return TrialVerdict(trial=name, model=model, recipe=recipe, is_base=recipe == "bf16", decision=decision, **known)


VERDICTS = [
    verdict("a/bf16"),
    verdict("a/w4", "do not ship", p=1.0),
    verdict("a/far", "not decided", p=0.4),
    verdict("a/near", "not decided", p=0.1),
    verdict("a/none"),
    verdict("a/large", "ship", p=0.001),
    verdict("a/small", "ship", p=0.01),
    verdict("b/bf16"),
    verdict("b/w4", "ship", p=0.01),
    verdict("b/open", "not decided"),
]
SIZES = {"a/large": 8.0, "a/small": 4.0}
TRIALS = [
    TrialRow(name=each.trial, model=each.model, recipe=each.recipe, size_gib=SIZES.get(each.trial)) for each in VERDICTS
]


def test_of_what_is_not_decided_that_comes_last_which_leans_to_no() -> None:
    verdicts = [
        verdict("a/no", "not decided", p=0.1, leaning="leans to no"),
        verdict("a/open", "not decided"),
        verdict("b/near", "not decided", p=0.2, leaning="passes alone"),
        verdict("a/w4", "do not ship", p=1.0),
    ]
    trials = [TrialRow(name=each.trial, model=each.model, recipe=each.recipe) for each in verdicts]
    assert [each.trial for each in in_order(trials, verdicts, {})] == ["a/open", "b/near", "a/no", "a/w4"]


def read(costs: dict[str, Cost]) -> list[str]:
    return [each.trial for each in in_order(TRIALS, VERDICTS, costs)]


def test_what_ships_comes_first_then_what_is_not_decided_then_what_is_not_to_ship_and_bases_last() -> None:
    assert read({}) == [
        *("a/small", "a/large", "b/w4"),
        *("a/near", "a/far", "b/open"),
        *("a/w4", "a/none", "a/bf16", "b/bf16"),
    ]


def test_of_what_ships_the_cheapest_comes_first() -> None:
    cheap = Cost("1 × H100 at 2.49 $/h", saturated=Measured(1.6, 1.5, 1.7))
    assert read({"a/large": cheap})[:3] == ["a/large", "a/small", "b/w4"]


def test_the_headline_counts_formats_by_what_is_decided() -> None:
    decided = "3 of 8 formats may be shipped, 1 not to be shipped, 3 not decided, 1 not compared yet"
    assert headline(VERDICTS) == decided
    assert headline([verdict("a/bf16")]) == headline([]) == ""
    assert headline([verdict("a/w4", "ship")]) == "1 of 1 format may be shipped"


@pytest.mark.parametrize(
    ("some", "text"), [(VERDICTS[:2], "1 base, 1 not to be shipped"), ([VERDICTS[0]] * 2, "2 bases")]
)
def test_trials_that_are_not_shown_at_once_are_counted(some: list[TrialVerdict], text: str) -> None:
    assert counted(some) == text
