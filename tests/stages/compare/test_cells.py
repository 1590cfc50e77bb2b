"""The verdict of a cell: what a difference to the base amounts to, and where nothing can be said."""

import csv
import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from stages.compare.asked import Ask
from stages.compare.config import CompareConfig
from stages.compare.intervals import FEWEST_CLUSTERS
from stages.compare.rows import rows
from stages.compare.whole import RAW, compared
from stages.inference import critical_value
from tests.benchmarks.statistics import evidence_of

DATA = Path(__file__).parents[2] / "data"
MEAN = {"aggregation": {"name": "mean"}, "higher_is_better": True}
GRADED, RIGHT_OR_WRONG = MEAN | {"kind": "graded"}, MEAN | {"kind": "right_or_wrong"}


def table(both, lost, won, neither):
    """Of trial and base whether each document is right."""
    trial = [1.0] * both + [0.0] * lost + [1.0] * won + [0.0] * neither
    return trial, [1.0] * both + [1.0] * lost + [0.0] * won + [0.0] * neither


@pytest.fixture
def cell(run, write_evaluation):
    """The whole task's row of trial and base by leaf, {leaf: scores}, or of one leaf."""

    def cell(trial, base, *, facts=None, clusters=None, is_shared=False, **config):
        sides = [side if isinstance(side, dict) else {"t": side} for side in (trial, base)]
        known = {"acc,none": facts} if facts else None
        shards = [
            {
                leaf: write_evaluation(leaf, scores, facts=known, clusters=clusters, is_shared=is_shared)
                for leaf, scores in side.items()
            }
            for side in sides
        ]
        return run(*shards, **config).whole

    return cell


def difference(found, prefix=""):
    return found[f"{prefix}difference_low"], found[f"{prefix}difference_high"]


def test_one_graded_document_says_nothing(cell):
    found = cell([0.4], [0.5], facts=GRADED)
    assert (found["difference"], *difference(found)) == (pytest.approx(-0.1), None, None)
    assert (found["verdict"], found["score_low"]) == ("inconclusive", None)


def test_where_nothing_flips_the_interval_has_a_width(cell):
    found = cell(*table(10, 0, 0, 10))
    assert difference(found) == pytest.approx((-0.1611, 0.1611), abs=1e-4)
    assert found["recovery"] == 1 and found["recovery_low"] < 0.75 and found["recovery_high"] > 1.25
    assert (found["verdict"], found["num_needed"]) == ("inconclusive", 189)
    assert cell(*table(100, 0, 0, 89))["verdict"] == "equivalent"
    assert cell(*table(100, 0, 0, 88))["verdict"] == "inconclusive"


def test_interval_and_test_are_one_statistic(cell):
    found = cell(*table(60, 4, 0, 36))
    assert difference(found) == pytest.approx((-0.098, -0.0015), abs=5e-4)
    assert found["difference_p"] == pytest.approx(0.0455, abs=1e-4)
    assert (found["mcnemar_p"], found["mcnemar_mid_p"]) == (0.125, 0.0625)
    assert (found["verdict"], found["num_base_only_right"]) == ("degraded", 4)


def test_the_score_test_sees_what_the_exact_one_is_too_timid_for(cell):
    found = cell(*table(300, 9, 2, 230))
    assert found["difference_p"] < 0.05 < found["mcnemar_p"]
    assert found["verdict"] == "degraded"


def test_too_few_documents_are_inconclusive_and_say_how_many_would_decide(cell):
    found = cell(*table(6, 0, 0, 6))
    assert (found["verdict"], found["reason"], found["num_needed"]) == ("inconclusive", None, 189)
    flipping = cell(*table(60, 5, 5, 30))
    assert (flipping["verdict"], flipping["num_needed"]) == ("inconclusive", 3282)  # .1 * 100 / 99 * 12.995 / .02 ** 2


@pytest.mark.parametrize(
    ("lost", "won", "verdict", "reason"),
    [
        (10, 10, "equivalent", None),
        (30, 10, "equivalent", None),  # below 0, and within the margin
        (60, 20, "degraded", None),
        (150, 10, "degraded", "beyond margin"),
        (20, 60, "improved", None),
        (60, 50, "inconclusive", None),
    ],
)
def test_a_verdict_is_where_the_interval_lies_beside_the_margin(cell, lost, won, verdict, reason):
    n = 2500 if verdict != "inconclusive" else 600
    found = cell(*table(n // 2, lost, won, n - n // 2 - lost - won))
    assert (found["verdict"], found["reason"]) == (verdict, reason)
    low, high = difference(found)
    assert (verdict == "equivalent") == (-found["margin"] < low and high < found["margin"])


def test_margins_are_of_the_scale_from_guessing_to_perfect_and_a_task_may_have_its_own(cell):
    sides = table(500, 20, 20, 500)
    assert (cell(*sides)["margin"], cell(*sides)["wide_margin"]) == pytest.approx((0.02, 0.05))
    assert cell(*sides, random_baseline=0.25)["margin"] == pytest.approx(0.015)
    assert cell(*sides, margin_points=1.0)["margin"] == pytest.approx(0.01)
    for wrong in ({"margin_points": 0.0}, {"margin_points": 6.0}, {"loss_margin_percent": 100.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            CompareConfig(task="t", leaves=["t"], **wrong)


def test_the_same_question_in_several_leaves_is_one(cell):
    """546 questions, of which 448 and 198 are also in two other leaves."""
    rng = np.random.default_rng(4)
    base, trial = ((rng.random(546) < share).astype(float).tolist() for share in (0.34, 0.31))
    leaves = {"extended": 546, "main": 448, "diamond": 198}
    copied = [{leaf: side[:size] for leaf, size in leaves.items()} for side in (trial, base)]
    once, thrice = cell(trial, base), cell(*copied, is_shared=True)
    assert (thrice["num_pairs"], thrice["num_clusters"]) == (1192, 546)
    assert thrice["design_effect"] == pytest.approx((98 + 250 * 4 + 198 * 9) / 1192, abs=0.1)
    width, of_once = (high - low for low, high in (difference(thrice), difference(once)))
    assert width > 0.95 * of_once
    assert once["num_clusters"] is None and cell(*copied)["num_clusters"] is None


def test_a_declared_story_is_the_unit_and_few_of_them_say_nothing(cell):
    """K / (K - 1) of the squares of what each story adds, and Student's distribution of K - 1."""
    rng = np.random.default_rng(1)
    stories = np.repeat(np.arange(40), 25)
    shift = rng.normal(0, 0.4, 40)[stories]
    base = (rng.random(1000) < 0.6).astype(float)
    trial = np.where(rng.random(1000) < 0.3, rng.random(1000) < 0.55 + shift, base).astype(float)
    found = cell(trial.tolist(), base.tolist(), clusters=stories.tolist())
    change = trial - base
    sums = np.bincount(stories, change - change.mean())
    half = critical_value(0.95, 39) * math.sqrt(40 / 39 * (sums**2).sum()) / 1000
    low, high = difference(found)
    assert (high - low) / 2 == pytest.approx(half, rel=0.01)
    assert found["difference"] == pytest.approx(change.mean()) and found["num_clusters"] == 40
    alone = cell(trial.tolist(), base.tolist())
    assert found["design_effect"] == pytest.approx(
        (half / critical_value(0.95, 39) * 1000) ** 2 / change.var() / 1000, rel=0.01
    )
    assert high - low > alone["difference_high"] - alone["difference_low"]
    few = cell(*table(400, 90, 0, 10), clusters=[each % (FEWEST_CLUSTERS - 1) for each in range(500)])
    assert (few["verdict"], few["reason"]) == ("inconclusive", "under 10 clusters")


def test_leaves_are_fixed_strata_and_a_single_document_has_its_neighbour_s_variance(cell):
    rng = np.random.default_rng(2)
    base = {"a": rng.random(300), "b": rng.random(40), "c": rng.random(1)}
    trial = {leaf: scores - 0.02 + 0.1 * rng.standard_normal(len(scores)) for leaf, scores in base.items()}
    sides = [{leaf: scores.tolist() for leaf, scores in side.items()} for side in (trial, base)]
    found = cell(*sides, facts=GRADED, weight_by_size=False)
    change = {leaf: trial[leaf] - base[leaf] for leaf in base}
    both = np.concatenate([change["b"], change["c"]])
    parts = np.array([change["a"].var(ddof=1) / 300, change["b"].var(ddof=1) / 40, both.var(ddof=1)]) / 9
    freedom = parts.sum() ** 2 / (parts**2 / [299, 39, 40]).sum()
    low, high = difference(found)
    assert (high - low) / 2 == pytest.approx(critical_value(0.95, freedom) * math.sqrt(parts.sum()), rel=1e-6)


def test_recovery_of_a_base_near_guessing_is_no_number(cell):
    found = cell(*table(252, 0, 10, 738), random_baseline=0.25)
    assert [found[name] for name in ("recovery", "normalized_recovery", "normalized_recovery_low")] == [None] * 3
    assert found["normalized_difference"] == pytest.approx(4 / 3)
    assert difference(found, "normalized_") == pytest.approx((0.725, 2.441), abs=1e-3)
    assert cell(*table(452, 0, 10, 538), random_baseline=0.25)["normalized_recovery"] > 1
    assert cell(*table(40, 0, 10, 950))["recovery"] is None, "4 points"


def test_a_score_below_guessing_is_shown_as_0_and_its_difference_is_not(cell):
    leaves = {"murder": 0.5, "object": 0.2, "team": 1 / 3}
    base = {leaf: table(100, 20, 0, 130)[1] for leaf in leaves}
    trial = {leaf: table(100, 20, 0, 130)[0] for leaf in leaves}
    found = cell(trial, base, leaf_baselines=leaves)
    scaled = [100 * (0.4 - baseline) / (1 - baseline) for baseline in leaves.values()]
    assert found["normalized"] == pytest.approx(sum(max(0, score) for score in scaled) / 3)
    assert found["normalized_difference"] == pytest.approx(sum(-8 / (1 - baseline) for baseline in leaves.values()) / 3)
    assert found["paired_normalized"] == pytest.approx(sum(scaled) / 3)
    assert found["is_verdict_normalized"] and (found["margin"], found["verdict"]) == (2.0, "degraded")
    low, high = difference(found, "normalized_")
    assert low < found["normalized_difference"] < high < 0


def test_missing_documents_are_bounded_at_their_worst(cell):
    trial, base = table(1000, 0, 0, 1000)
    assert cell(trial, base)["verdict"] == "equivalent"
    lacking = [None] * 40 + trial[40:]
    found = cell(lacking, base)
    assert (found["num_pairs"], found["verdict"], found["reason"]) == (1960, "inconclusive", "missing")
    assert found["worst_difference_low"] < -0.02 < found["difference_low"]
    assert cell([None] * 3 + trial[3:], base)["verdict"] == "equivalent"
    lost, all_there = table(500, 200, 0, 300)
    assert cell(lost[:-5] + [None] * 5, all_there)["verdict"] == "degraded"
    unbounded = cell([None, *([12.0] * 20), *([10.0] * 20)], [12.1] * 41, facts=GRADED | {"higher_is_better": False})
    assert (unbounded["difference_high"] < 0, unbounded["verdict"], unbounded["reason"]) == (
        True,
        "inconclusive",
        "missing",
    )


def test_what_is_declared_decides_and_not_how_the_values_look(cell):
    """Twelve graded documents that all happen to be 0 are not a share of right answers."""
    graded = cell([0.0] * 12, [0.0] * 12, facts=GRADED)
    assert (graded["is_right_or_wrong"], graded["score_low"], graded["verdict"]) == (False, None, "inconclusive")
    right = cell([0.0] * 12, [0.0] * 12, facts=RIGHT_OR_WRONG)
    assert (right["is_right_or_wrong"], right["score_low"]) == (True, 0) and right["score_high"] > 0.2


@pytest.mark.parametrize(("num", "is_known"), [(59, False), (60, True)])
def test_pass_at_k_has_an_interval_from_60_documents_on(cell, num, is_known):
    scores = np.random.default_rng(3).beta(5, 0.5, num)
    found = cell(scores.tolist(), (scores**1.1).tolist(), facts=MEAN | {"kind": "pass_at"})
    assert (found["score_low"] is not None) is (found["difference_low"] is not None) is is_known
    assert found["reason"] == (None if is_known else "under 60 documents")
    if is_known:
        assert found["score"] - found["score_low"] > found["score_high"] - found["score"] > 0
        assert found["score_high"] < 1


def test_few_documents_that_changed_say_nothing_of_a_graded_metric(cell):
    base = [0.5] * 300
    for num_changed, verdict in ((9, "inconclusive"), (10, "equivalent")):
        found = cell([0.4] * num_changed + base[num_changed:], base, facts=GRADED)
        assert (found["num_changed"], found["verdict"]) == (num_changed, verdict)


IFEVAL = {"file": "ifeval_strict/ifeval_strict.py", "function": "mean_of_both_levels"}


def followed(rng, num):
    """Of trial and base for each prompt which of its instructions are followed."""
    base = [(rng.random(rng.integers(1, 4)) < 0.8).tolist() for _ in range(num)]
    return [[each if rng.random() > 0.1 else not each for each in of_prompt] for of_prompt in base], base


def linearized(prompts):
    """Half of each prompt's own part in the share of prompts, and half of its part in the share of instructions."""
    sizes, sums = (np.array([measure(each) for each in prompts]) for measure in (len, sum))
    is_all = np.array([all(each) for each in prompts])
    return (is_all - is_all.mean()) / 2 + (sums - sums.sum() / sizes.sum() * sizes) / 2 / sizes.mean()


@pytest.fixture
def ifeval(run, write_evaluation):
    def compared(leaves, clusters=None):
        facts = {"strict_acc,none": {"aggregation": IFEVAL, "higher_is_better": True, "kind": "graded"}}
        sides = [
            {
                leaf: write_evaluation(
                    leaf, {"strict_acc,none": [json.dumps(each) for each in pair[side]]}, facts=facts, clusters=clusters
                )
                for leaf, pair in leaves.items()
            }
            for side in (0, 1)
        ]
        return run(*sides)

    return compared


def test_ifeval_s_error_is_the_linearized_one_and_no_draw(ifeval):
    trial, base = followed(np.random.default_rng(5), 541)
    found = ifeval({"t": (trial, base)})
    half = critical_value(0.95, 540) * (linearized(trial) - linearized(base)).std(ddof=1) / math.sqrt(541)
    low, high = difference(found.whole)
    assert (high - low) / 2 == pytest.approx(half, rel=0.005)
    assert ifeval({"t": (trial, base)}).files == found.files


def test_other_aggregations_of_leaves_and_of_stories_have_their_errors_too(ifeval):
    rng = np.random.default_rng(6)
    leaves = {"a": followed(rng, 300), "b": followed(rng, 250)}
    changes = [linearized(trial) - linearized(base) for trial, base in leaves.values()]
    sizes = np.array([300, 250])
    variance = sum(each.var(ddof=1) * len(each) for each in changes) / sizes.sum() ** 2
    whole = ifeval(leaves).whole
    low, high = difference(whole)
    assert whole["num_clusters"] is None, "leaves ask different documents"
    assert (high - low) / 2 == pytest.approx(critical_value(0.95, 540) * math.sqrt(variance), rel=0.01)
    trial, base = (side * 3 for side in followed(rng, 250))
    low, high = difference(ifeval({"t": (trial, base)}, clusters=[*range(250)] * 3).whole)
    once = linearized(trial[:250]) - linearized(base[:250])
    half = critical_value(0.95, 249) * once.std(ddof=1) / math.sqrt(250)
    assert (high - low) / 2 == pytest.approx(half, rel=0.02), "three copies are no more than one"
    few = ifeval({"t": (trial, base)}, clusters=[each % 9 for each in range(750)]).whole
    assert (few["verdict"], few["reason"]) == ("inconclusive", "under 10 clusters")


def test_real_pairs_have_their_known_verdicts():
    """44 cells of models and their 4-bit GPTQ, one of them broken, and 292 of one checkpoint evaluated twice; counts
    from metabench's item matrices.
    """
    found, broken = {"gptq": Counter(), "rerun": Counter()}, []
    with (DATA / "pairs.csv").open() as stream:
        cells = list(csv.DictReader(stream))
    config = CompareConfig(task="t", leaves=["t"])
    for each in cells:
        n, base_right, lost, won = (int(each[name]) for name in ("n", "base_right", "lost", "won"))
        trial, base = table(base_right - lost, lost, won, n - base_right - won)
        ask = Ask(raw=compared([evidence_of(np.array(trial), np.array(base), is_right_or_wrong=True)], True, [RAW]))
        (row,) = rows([ask], config, lower_is_better=False)
        assert row["mcnemar_p"] == pytest.approx(float(each["p_exact"]), rel=1e-4)
        found[each["kind"]][row["verdict"]] += 1
        found[each["kind"]]["beyond"] += row["reason"] == "beyond margin"
        if each["note"] == "broken":
            broken.append((row["verdict"], row["reason"]))
    assert broken == [("degraded", "beyond margin")] * 4
    assert found["gptq"] == Counter(degraded=11, improved=5, equivalent=1, inconclusive=27, beyond=9)
    assert found["rerun"] == Counter(degraded=2, improved=0, equivalent=75, inconclusive=215, beyond=0)


def test_a_cell_says_what_it_would_have_seen(cell):
    """With the flips there were; where nothing flipped, with those that may have been."""
    found = cell(*table(700, 33, 33, 553))
    assert found["detectable_difference"] == pytest.approx((1.96 + 0.8416) * math.sqrt(66) / 1319, rel=0.03)
    assert 0.2 < cell(*table(10, 0, 0, 10))["detectable_difference"] < 0.25
    assert cell([0.4], [0.5], facts=GRADED)["detectable_difference"] is None
    unlike = {"a": 0.5, "b": 0.0}
    sides = [dict.fromkeys(unlike, side) for side in table(50, 2, 2, 46)]
    found = cell(*sides, leaf_baselines=unlike, leaves=list(unlike))
    assert found["is_verdict_normalized"] and found["detectable_difference"] > 3, "in normalized points"
