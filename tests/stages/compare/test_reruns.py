"""One checkpoint evaluated twice: its own flips beside those against the base, and what they forbid to say."""

import numpy as np
import pytest

from stages.errors import DataError
from stages.inference import tango_interval, tango_statistic, two_sided_p
from stages.statistics import mcnemar_p

MEAN = {"aggregation": {"name": "mean"}, "higher_is_better": True}
RIGHT_OR_WRONG, GRADED = MEAN | {"kind": "right_or_wrong"}, MEAN | {"kind": "graded"}
N = 1000


def flipped(scores, places):
    found = list(scores)
    for place in places:
        found[place] = 1 - found[place]
    return found


BASE = [float(index % 10 < 7) for index in range(N)]
LOST = [index for index in range(N) if BASE[index]]
WRONG = [index for index in range(N) if not BASE[index]]


@pytest.fixture
def compared(run, write_evaluation):
    """A task of one leaf; ``again`` are scores, or (documents, scores), by trial_rerun/NUMBER and base_rerun/NUMBER."""

    def compared(trial, base=None, again=(), facts=RIGHT_OR_WRONG, **config):
        def leaf(scores, docs=None):
            return {"t": write_evaluation("t", scores, docs=docs, facts={"acc,none": facts})}

        reruns = {
            name: leaf(*reversed(scores)) if isinstance(scores, tuple) else leaf(scores)
            for name, scores in dict(again).items()
        }
        return run(leaf(trial), leaf(base) if base is not None else None, reruns, **config).whole

    return compared


def of(row, prefix):
    names = ("n", "num_changed", "difference", "difference_low", "difference_high", "difference_p")
    return [row[f"{prefix}{name}"] for name in names]


def test_a_base_beside_itself(compared):
    """Flips, difference with Tango's interval and the score p: those of a comparison of its two runs."""
    again = flipped(BASE, [*LOST[:12], *WRONG[:5]])
    row = compared(BASE, again={"trial_rerun/1": again})
    low, high = tango_interval(12, 5, N, 1.959964)
    p = two_sided_p(float(tango_statistic(12, 5, N, 0.0)))
    assert of(row, "rerun_") == pytest.approx([N, 17, -0.007, float(low), float(high), p], abs=1e-6)
    assert row["verdict"] is None and row["base_rerun_n"] is None and row["excess_flips"] is None


def test_flips_of_the_base_and_of_the_trial_with_themselves_stand_apart_from_those_against_the_base(compared):
    trial = flipped(BASE, [*LOST[:40], *WRONG[:30]])
    again = {
        "base_rerun/1": flipped(BASE, [*LOST[30:40], *WRONG[28:32]]),
        "trial_rerun/1": flipped(trial, [*LOST[100:150], *WRONG[100:145]]),
    }
    row = compared(trial, BASE, again)
    assert (row["num_changed"], row["base_rerun_num_changed"], row["rerun_num_changed"]) == (70, 14, 95)
    # Changed by the trial alone 30 + 28, by the base alone 2, by both 12.
    assert row["excess_flips"] == pytest.approx((70 - 14) / N)
    assert row["excess_flips_p"] == pytest.approx(two_sided_p((58 - 2) / 60**0.5))
    assert row["excess_flips_low"] < row["excess_flips"] < row["excess_flips_high"]
    assert row["mcnemar_p"] == pytest.approx(mcnemar_p(40, 30)), "as without reruns"


def test_a_rerun_of_some_documents_is_compared_with_those(compared):
    trial, docs = flipped(BASE, LOST[:50]), list(range(0, N, 4))
    again = [1 - BASE[doc] if doc in LOST[:8] else BASE[doc] for doc in docs]
    row = compared(trial, BASE, {"base_rerun/1": (docs, again)})
    changed = [doc for doc in docs if doc in LOST[:8]]
    assert (row["base_rerun_n"], row["base_rerun_num_changed"]) == (250, len(changed))
    share = sum(doc in LOST[:50] for doc in docs) - len(changed)
    assert row["excess_flips"] == pytest.approx(share / 250)
    assert row["num_pairs"] == N


def test_two_reruns_are_pooled_and_a_document_is_one_cluster(compared):
    again = {f"base_rerun/{number}": flipped(BASE, LOST[:10]) for number in (1, 2)}
    row, once = compared(BASE, BASE, again), compared(BASE, BASE, {"base_rerun/1": again["base_rerun/1"]})
    assert (row["base_rerun_n"], row["base_rerun_num_changed"]) == (2 * N, 20)
    assert row["base_rerun_difference"] == pytest.approx(once["base_rerun_difference"])
    ends = [[found[f"base_rerun_difference_{end}"] for end in ("low", "high")] for found in (row, once)]
    assert ends[0] == pytest.approx(ends[1], abs=0.002), "the same again is no more evidence"


def test_within_the_noise_of_a_rerun_nothing_is_equivalent(compared):
    """Few flips against the base, many between two runs: twice the error of such a difference is above the margin."""
    trial = flipped(BASE, [*LOST[:3], *WRONG[:3]])
    noisy = flipped(BASE, [*LOST[:100], *WRONG[:100]])
    quiet = flipped(BASE, [*LOST[:5], *WRONG[:5]])
    assert compared(trial, BASE)["verdict"] == "equivalent"
    assert compared(trial, BASE, {"base_rerun/1": quiet})["verdict"] == "equivalent"
    for role in ("base_rerun/1", "trial_rerun/1"):
        again = noisy if role.startswith("base") else flipped(trial, [*LOST[200:300], *WRONG[200:300]])
        row = compared(trial, BASE, {role: again})
        assert (row["verdict"], row["reason"], row["num_needed"]) == ("inconclusive", "margin within noise", None)
        assert row["margin"] < 2 * (200 / N**2) ** 0.5
        assert compared(trial, BASE, {role: again}, margin_points=4.0)["verdict"] == "equivalent"


def test_noise_forbids_no_other_verdict(compared):
    noisy = flipped(BASE, [*LOST[:100], *WRONG[:100]])
    assert compared(flipped(BASE, LOST[:60]), BASE, {"base_rerun/1": noisy})["verdict"] == "degraded"


def test_a_small_sample_of_a_large_task_says_little_of_it_but_does_not_forbid(compared):
    """The noise of all documents is less than that of the few that were asked again."""
    docs = list(range(100))
    row = compared(BASE, BASE, {"base_rerun/1": (docs, BASE[:100])})
    assert row["base_rerun_difference_high"] / 1.96 * 2 > row["margin"]
    assert row["verdict"] == "equivalent"


def test_leaves_with_unlike_baselines_are_held_against_the_noise_on_their_scale(run, write_evaluation):
    baselines = {"a": 0.9, "b": 0.0}

    def sides(scores):
        return {leaf: write_evaluation(leaf, scores, facts={"acc,none": RIGHT_OR_WRONG}) for leaf in baselines}

    trial, again = flipped(BASE, [*LOST[:1], *WRONG[:1]]), flipped(BASE, [*LOST[:20], *WRONG[:20]])
    settings = {"leaf_baselines": baselines, "leaves": list(baselines), "margin_points": 5.0, "wide_margin_points": 9}
    assert run(sides(trial), sides(BASE), **settings).whole["verdict"] == "equivalent"
    row = run(sides(trial), sides(BASE), {"base_rerun/1": sides(again)}, **settings).whole
    assert (row["verdict"], row["reason"]) == ("inconclusive", "margin within noise")
    assert row["base_rerun_n"] == 2 * N and row["base_rerun_num_changed"] == 80


def test_graded_scores_change_by_parts(compared):
    rng = np.random.default_rng(0)
    base = list(rng.random(300))
    again = [score + 0.01 * (index < 30) for index, score in enumerate(base)]
    row = compared(base, again={"trial_rerun/1": again}, facts=GRADED)
    assert (row["rerun_num_changed"], row["rerun_difference"]) == (30, pytest.approx(0.001))
    same = compared(base, again={"trial_rerun/1": base}, facts=GRADED)
    assert (same["rerun_num_changed"], same["rerun_difference"], same["rerun_difference_p"]) == (0, 0.0, None)
    trial = [score + 1e-9 for score in base]
    row = compared(trial, base, again={"base_rerun/1": again}, facts=GRADED)
    assert (row["base_rerun_num_changed"], row["excess_flips"]) == (30, None), "nothing flips that is graded"


def test_what_was_not_scored_in_either_run_is_in_neither_number(compared):
    missing = [None, *BASE[1:]]
    row = compared(BASE, BASE, {"base_rerun/1": missing})
    assert (row["base_rerun_n"], row["num_pairs"]) == (N - 1, N)
    assert compared(missing, BASE, {"base_rerun/1": BASE})["excess_flips"] == 0


def test_a_rerun_that_was_asked_otherwise_is_refused(run, write_evaluation):
    def leaf(**settings):
        return {"t": write_evaluation("t", BASE, **settings)}

    with pytest.raises(DataError, match="rerun and first run are not comparable: dtype"):
        run(leaf(), leaf(), {"base_rerun/1": leaf(dtype="float16")})
