"""What documents add to a difference: their squares and products, by cluster, are the task's own error."""

import numpy as np
import pytest

from stages.compare.artifact import read_influences

MEAN = {"aggregation": {"name": "mean"}, "higher_is_better": True}
GRADED = {"acc,none": MEAN | {"kind": "graded"}}
RIGHT_OR_WRONG = {"acc,none": MEAN | {"kind": "right_or_wrong"}}


@pytest.fixture
def influences(run, write_evaluation, tmp_path):
    """Of {leaf: scores of trial and base}: what documents add, and the errors of the whole task."""

    def influences(leaves, *, facts=GRADED, written=None, **config):
        sides = [
            {
                leaf: write_evaluation(leaf, scores[side], facts=facts, **(written or {}))
                for leaf, scores in leaves.items()
            }
            for side in (0, 1)
        ]
        found = run(*sides, **config)
        (tmp_path / "influences.parquet").write_bytes(found.files["influences.parquet"])
        return read_influences(tmp_path), found.document["errors"], found

    return influences


def scores(rng, n):
    base = rng.random(n)
    return [np.clip(base + 0.2 * rng.standard_normal(n) - 0.02, 0, 1).tolist(), base.tolist()]


def check(table, error, prefix=""):
    """As the design has it: leaves, clusters, weights and scales included."""
    _, members = np.unique(table["cluster"].to_pylist(), return_inverse=True)
    sums = [np.bincount(members, table[f"{prefix}{name}"].to_numpy()) for name in ("difference", "base")]
    found = [(sums[0] ** 2).sum(), (sums[1] ** 2).sum(), (sums[0] * sums[1]).sum()]
    assert found == pytest.approx([error[name] for name in ("difference", "base", "covariance")], rel=1e-6)


def test_of_a_task_s_documents(influences):
    table, errors, _ = influences({"t": scores(np.random.default_rng(0), 400)}, random_baseline=0.25)
    assert table.num_rows == 400 == len(set(table["document"].to_pylist()))
    assert table["document"] == table["cluster"]
    check(table, errors["raw"])
    check(table, errors["normalized"], "normalized_")


@pytest.mark.parametrize("weight_by_size", [True, False])
def test_of_leaves_of_unlike_size_and_baselines(influences, weight_by_size):
    rng = np.random.default_rng(1)
    leaves = {"a": scores(rng, 300), "b": scores(rng, 250)}
    config = {"weight_by_size": weight_by_size, "leaf_baselines": {"a": 0.5, "b": 0.0}}
    table, errors, _ = influences(leaves, **config)
    check(table, errors["raw"])
    check(table, errors["normalized"], "normalized_")


def test_of_stories_and_of_questions_that_are_in_two_leaves(influences):
    rng = np.random.default_rng(2)
    one = scores(rng, 600)
    table, errors, _ = influences({"t": one}, written={"clusters": [each % 40 for each in range(600)]})
    assert (len(set(table["cluster"].to_pylist())), len(set(table["document"].to_pylist()))) == (40, 600)
    check(table, errors["raw"])
    leaves = {"a": one, "b": [side[:250] for side in scores(rng, 600)]}
    table, errors, _ = influences(leaves, written={"is_shared": True})
    assert (table.num_rows, len(set(table["document"].to_pylist()))) == (850, 600)
    check(table, errors["raw"])


def test_documents_that_one_side_lacks_are_not_in_it(influences):
    trial, base = scores(np.random.default_rng(3), 300)
    trial[7] = base[9] = float("nan")
    table, errors, found = influences({"t": [trial, base]})
    assert table.num_rows == found.whole["num_pairs"] == 298
    check(table, errors["raw"])
    assert errors["raw"]["worst_loss"] > 2 * 0.3 / 300


@pytest.mark.dear
def test_other_aggregations_have_them_up_to_the_groups_of_their_jackknife(influences):
    facts = {"acc,none": {"aggregation": {"name": "median"}, "higher_is_better": True, "kind": "graded"}}
    rng = np.random.default_rng(4)
    table, errors, _ = influences({"t": scores(rng, 500)}, facts=facts)
    check(table, errors["raw"])
    table, errors, _ = influences({"t": scores(rng, 700)}, facts=facts)
    assert table.num_rows == 700 and table["difference"].null_count == 700
    assert errors["raw"]["difference"] > 0


def test_a_base_has_none(run, write_evaluation):
    assert "influences.parquet" not in run({"t": write_evaluation("t", [1.0, 0.0] * 10)}).files


@pytest.mark.parametrize("kind", ["score", "clusters", "student", "subsets", "leaves", "lower is better"])
def test_the_wide_margin_s_p_and_the_interval_are_one_statistic(influences, kind):
    """Losses around it, of every kind of interval; missing ones are in its worst."""
    rng, seen = np.random.default_rng(5), set()
    for lost in (0.01, 0.03, 0.04, 0.05, 0.08):
        n = 150 if kind == "subsets" else 600
        base = (rng.random(n) < 0.7).astype(float)
        trial, facts, written = np.where(rng.random(n) < lost, 0.0, base), RIGHT_OR_WRONG, {}
        if kind in ("student", "subsets"):
            facts, trial = GRADED, trial + 0.01 * rng.random(n)
        if kind == "clusters":
            written = {"clusters": [each // 6 for each in range(n)]}
        if kind == "lower is better":
            facts = {"acc,none": MEAN | {"kind": "graded", "higher_is_better": False}}
            base, trial = 10 + base, (10 + base) * (1 + lost / 2) + 0.1 * rng.standard_normal(n)
        leaves = {"t": [trial.tolist(), base.tolist()]}
        if kind == "leaves":
            leaves = {"a": [side[:200] for side in leaves["t"]], "b": [side[200:] for side in leaves["t"]]}
        _, _, found = influences(leaves, facts=facts, written=written, weight_by_size=False)
        row = found.whole
        worst = -row["difference_high"] if kind == "lower is better" else row["difference_low"]
        seen.add(worst > -row["wide_margin"])
        assert (row["wide_margin_p"] < 0.025) == (worst > -row["wide_margin"]), lost
        assert row["verdict_p"] == row["difference_p"]
    assert seen == {True, False}


def test_missing_documents_are_in_the_wide_margin_s_p(influences):
    base = np.repeat([1.0, 0.0], [700, 300])
    trial = base.copy()
    _, _, whole = influences({"t": [trial.tolist(), base.tolist()]}, facts=RIGHT_OR_WRONG)
    trial[:60] = float("nan")
    _, _, lacking = influences({"t": [trial.tolist(), base.tolist()]}, facts=RIGHT_OR_WRONG)
    assert whole.whole["wide_margin_p"] < 0.001 and lacking.whole["wide_margin_p"] > 0.5
    assert lacking.whole["worst_difference_low"] < -lacking.whole["wide_margin"] < lacking.whole["difference_low"]
