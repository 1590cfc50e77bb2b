"""What to ship, in a sentence: verdicts, costs and sizes as they were measured, and what is missing to say it."""

from typing import Any

import pytest

from stages.measured import Measured
from stages.report.artifact import Row, SuiteMean, TrialVerdict
from stages.report.config import TrialRow
from stages.report.sentence import listed, sentences
from stages.report.serving.relative import Cost

SIZES = {"bf16": 15.0, "w8a8_fp": 8.4, "w8a8_int": 8.1, "w4a16_int": 5.1}
COSTS = {
    "m/w8a8_fp": Cost("1 × H100 at 2.49 $/h", saturated=Measured(1.47, 1.40, 1.55)),
    "m/w4a16_int": Cost("1 × H100 at 2.49 $/h", Measured(1.9), Measured(1.57, 1.5, 1.6)),
}


def trial(recipe: str, sizes: dict[str, float] = SIZES) -> TrialRow:
    is_base = recipe == "bf16"
    base = None if is_base else "m/bf16"
    return TrialRow(
        name=f"m/{recipe}", model="m", recipe=recipe, is_base=is_base, base=base, size_gib=sizes.get(recipe)
    )


def verdict(recipe: str, decision: str | None = None, *reasons: str, **counts: Any) -> TrialVerdict:
    is_base = recipe == "bf16"
    return TrialVerdict(
        trial=f"m/{recipe}",
        model="m",
        recipe=recipe,
        is_base=is_base,
        decision=decision,
        reasons=list(reasons),
        **counts,
    )


def suite(recipe: str, name: str, word: str) -> SuiteMean:
    return SuiteMean(trial=f"m/{recipe}", suite=name, mean=0.5, verdict=word)


def degraded(recipe: str, task: str, *, is_confirmed: bool = True) -> Row:
    return {"trial": f"m/{recipe}", "task": task, "verdict": "degraded", "is_confirmed": is_confirmed}


def said(
    verdicts: list[TrialVerdict],
    rows: list[Row] | None = None,
    suites: list[SuiteMean] | None = None,
    costs: dict[str, Cost] | None = None,
    sizes: dict[str, float] = SIZES,
    members: dict[str, list[str]] | None = None,
) -> str:
    trials = [trial(each.recipe, sizes) for each in verdicts]
    return sentences(trials, verdicts, rows or [], suites or [], costs or {}, members or {})["m"]


def test_verdicts_costs_and_hardware_are_joined_and_what_is_cheaper_is_named_with_what_speaks_against_it() -> None:
    assert said(
        [verdict("bf16"), verdict("w8a8_fp", "ship"), verdict("w4a16_int", "do not ship", "mmlu_pro: lost 3 points")],
        [degraded("w4a16_int", "mmlu_pro"), degraded("w4a16_int", "arc", is_confirmed=False)],
        [suite("w8a8_fp", "V1", "equivalent"), suite("w8a8_fp", "V2", "inconclusive")],
        COSTS,
    ) == (
        "Ship w8a8_fp: equivalent on V1, not worse on V2; 1.47 [1.40, 1.55] times the queries per dollar of bf16 at "
        "saturation (1 × H100 at 2.49 $/h); w4a16_int is 1.57 times but degraded on mmlu_pro."
    )


def test_a_price_that_was_measured_once_says_so() -> None:
    once = {"m/w8a8_fp": Cost("H100", Measured(1.4), Measured(1.5)), "m/w4a16_int": Cost("H100", Measured(1.6))}
    ship, refuse = verdict("w8a8_fp", "ship"), verdict("w4a16_int", "do not ship", "arc: lost 3 points")
    assert said([verdict("bf16"), ship, refuse], costs=once) == (
        "Ship w8a8_fp: 1.50 (measured once) times the queries per dollar of bf16 at saturation, 1.40 (measured once) "
        "one at a time (H100); w4a16_int is 1.60 times, measured once, but not to ship (arc: lost 3 points)."
    )
    assert "(1.60 times the queries per dollar of bf16, measured once; arc" in said(
        [verdict("bf16"), refuse], costs=once
    )


def test_what_was_not_served_is_said_by_its_size_and_what_has_none_by_nothing() -> None:
    verdicts = [verdict("bf16"), verdict("w8a8_fp", "ship", num_equivalent=9, num_cells=11)]
    assert said(verdicts) == (
        "Ship w8a8_fp: equivalent on 9 of 11 tasks; 0.56 of the size of bf16; what it costs to serve was not measured."
    )
    assert said(verdicts, sizes={}).endswith("9 of 11 tasks; what it costs to serve was not measured.")


def test_a_loss_that_the_grid_confirms_is_never_left_out_of_what_is_shipped() -> None:
    sentence = said(
        [verdict("bf16"), verdict("w8a8_fp", "ship")],
        [degraded("w8a8_fp", "bbh")],
        [suite("w8a8_fp", "V1", "improved")],
    )
    assert "better on V1, though degraded within what is allowed on bbh" in sentence


def test_a_suite_is_said_with_its_tasks() -> None:
    sentence = said(
        [verdict("bf16"), verdict("w8a8_fp", "ship")],
        suites=[suite("w8a8_fp", "V1", "equivalent"), suite("w8a8_fp", "V2", "equivalent")],
        members={"V1": ["arc", "gsm8k"], "V2": ["bbh", "gpqa", "musr", "ifeval"]},
    )
    assert "equivalent on V1 (arc and gsm8k) and V2 (bbh, gpqa, musr and 1 more);" in sentence


def test_what_is_not_decided_says_to_which_side_it_leans() -> None:
    leaning = {"leaning": "leans to no"}
    verdicts = [verdict("bf16"), verdict("w4a16_int", "not decided", "arc: may have lost 3 points", **leaning)]
    assert said(verdicts) == (
        "Nothing may be shipped yet: w4a16_int (0.34 of the size of bf16; leans to no: arc: may have lost 3 points)."
    )
    assert said([*verdicts, verdict("w8a8_int", "ship")]).endswith(
        "; w4a16_int is 0.34 of the size but not decided, leans to no (arc: may have lost 3 points)."
    )


def test_of_two_that_may_be_shipped_the_cheaper_is_advised() -> None:
    sentence = said([verdict("bf16"), verdict("w8a8_fp", "ship"), verdict("w8a8_int", "ship")])
    assert sentence.startswith("Ship w8a8_int: ") and sentence.endswith(
        ". w8a8_fp (0.56 of the size) may be shipped, too."
    )


def test_what_is_missing_is_said_once_for_all_of_whom_it_is_true() -> None:
    missing = (
        "ifeval: may have lost 6.10 points, the limit is 5; about 1,950 documents would decide it, the task has 541"
    )
    sentence = said(
        [
            verdict("bf16"),
            verdict("w8a8_fp", "not decided", missing, "gpqa: the same"),
            verdict("w8a8_int", "not decided", missing, "gpqa: the same"),
            verdict("w4a16_int", "do not ship", "arc: lost at least 3 points"),
        ]
    )
    assert sentence == (
        f"Nothing may be shipped yet: w8a8_int and w8a8_fp ({missing}; and 1 more); w4a16_int is not to ship."
    )


def test_where_all_is_bad_it_is_said_why() -> None:
    sentence = said(
        [verdict("bf16"), verdict("w4a16_int", "do not ship", "arc: lost at least 3 points")],
        [degraded("w4a16_int", task) for task in ("a", "b", "c", "d", "e")],
    )
    assert (
        sentence == "Ship none of these formats: w4a16_int (0.34 of the size of bf16; degraded on a, b, c and 2 more)."
    )


def test_a_base_alone_is_compared_with_nothing() -> None:
    assert said([verdict("bf16")]) == "There is only the base, bf16: nothing to compare with it."
    failed = verdict("bf16", None, "all tasks have no result: answer failed (the engine died)")
    assert said([failed]).endswith("; bf16: all tasks have no result: answer failed (the engine died).")


def test_bases_under_several_seeds_are_told_apart() -> None:
    names = [f"m/bf16/seed={seed}" for seed in (1, 2)]
    trials = [TrialRow(name=name, model="m", recipe="bf16", is_base=True, base=name) for name in names]
    verdicts = [TrialVerdict(trial=name, model="m", recipe="bf16", is_base=True) for name in names]
    assert sentences(trials, verdicts, [], [], {}, {}) == {
        "m": "There are only bases, bf16/seed=1 and bf16/seed=2: nothing to compare with them."
    }


def test_a_sentence_stays_one_at_two_hundred_trials() -> None:
    others = [verdict(f"r{number}", "not decided", f"arc: reason {number}") for number in range(198)]
    sentence = said(
        [verdict("bf16"), verdict("w8a8_fp", "ship"), *others], sizes={f"r{n}": 1.0 for n in range(198)} | SIZES
    )
    assert len(sentence) < 500
    assert "196 more are cheaper or smaller, and may not be shipped yet" in sentence


@pytest.mark.parametrize(
    ("names", "most", "text"), [("a", None, "a"), ("abc", None, "a, b and c"), ("abcd", 2, "a, b and 2 more")]
)
def test_names_are_listed_as_people_list_them(names: str, most: int | None, text: str) -> None:
    assert listed(list(names), most) == text
