"""What a user reads of a comparison: scores, recovery, paired differences, refusals, and what is missing."""

import json
import math
import random

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stages.compare.config import CompareConfig
from stages.errors import ConfigError, DataError

right_or_wrong = st.lists(st.sampled_from([0.0, 1.0]), min_size=1, max_size=40)
fractions = st.lists(st.sampled_from([0.0, 0.25, 0.3, 1.0]), min_size=1, max_size=40)
numbers = st.floats(0, 1, allow_subnormal=False)
paired_scores = st.one_of(
    st.lists(st.tuples(st.sampled_from([0.0, 1.0]), st.sampled_from([0.0, 1.0])), min_size=1, max_size=40),
    st.lists(st.tuples(numbers, numbers), min_size=1, max_size=40),
)
few_examples = settings(max_examples=15, deadline=None)


def test_a_right_wrong_task_gives_score_recovery_difference_and_mcnemar(run, write_evaluation):
    trial = [1.0] * 30 + [0.0] * 70
    base = [0.0] * 2 + [1.0] * 28 + [1.0] * 20 + [0.0] * 50
    found = run({"t": write_evaluation("t", trial, truncated=[3, 5])}, {"t": write_evaluation("t", base)}).whole
    assert (found["n"], found["num_missing"], found["num_truncated"], found["num_pairs"]) == (100, 0, 2, 100)
    assert (found["score"], found["base_score"]) == (0.30, 0.48)
    assert (found["score_low"], found["score_high"]) == pytest.approx((0.2189, 0.3959), abs=1e-4)  # Wilson
    assert found["recovery"] == pytest.approx(0.30 / 0.48)
    assert found["recovery_low"] < found["recovery"] < found["recovery_high"] < 1
    assert found["difference"] == pytest.approx(-0.18)
    assert found["difference_low"] < -0.18 < found["difference_high"] < 0
    assert (found["num_base_only_right"], found["num_trial_only_right"]) == (20, 2)
    assert found["mcnemar_p"] == pytest.approx(2 * sum(math.comb(22, k) for k in range(3)) / 2**22)
    assert (found["verdict"], found["reason"]) == ("degraded", "beyond margin")


def test_the_whole_task_is_returned_as_metrics_and_opens_the_json(run, write_evaluation):
    result = run({"t": write_evaluation("t", [1.0, 0.0])}, {"t": write_evaluation("t", [1.0, 1.0])})
    assert result.metrics == {name: result.whole[name] for name in result.metrics}
    assert {"score", "score_low", "recovery", "difference", "mcnemar_p", "n", "num_missing"} <= result.metrics.keys()
    assert result.document["headline"]["score"] == 0.5
    assert result.document["leaves"]["t"]["comparable"]["engine_version"] == "0.32.0"


@few_examples
@given(paired_scores)
def test_swapping_trial_and_base_changes_the_sign_of_the_difference_alone(run, write_evaluation, pairs):
    first, second = (write_evaluation("t", [pair[side] for pair in pairs]) for side in (0, 1))
    one, other = run({"t": first}, {"t": second}).whole, run({"t": second}, {"t": first}).whole
    assert one["difference"] == -other["difference"]
    assert one["mcnemar_p"] == other["mcnemar_p"]
    assert one["num_base_only_right"] == other["num_trial_only_right"]
    assert one["difference_p"] == other["difference_p"]
    if one["difference_low"] is not None:
        assert one["difference_low"] == pytest.approx(-other["difference_high"])
    if one["recovery"] and other["recovery"]:
        assert one["recovery"] * other["recovery"] == pytest.approx(1)


@few_examples
@given(st.one_of(right_or_wrong, fractions))
def test_a_trial_compared_with_itself_has_lost_nothing(run, write_evaluation, scores):
    shard = write_evaluation("t", scores)
    found = run({"t": shard}, {"t": shard}).whole
    assert (found["difference"], found["verdict"], found["num_changed"]) == (0, "inconclusive", 0)
    if found["is_right_or_wrong"]:
        assert found["difference_low"] < 0 < found["difference_high"], "so few documents are never sure"
        assert found["num_needed"] == 189
    else:
        assert found["difference_low"] is None and found["reason"] == "fewer than 10 documents changed"
    assert found["recovery"] in (1, None)


@few_examples
@given(paired_scores, st.randoms(use_true_random=False))
def test_neither_shards_nor_row_order_change_a_byte(run, write_evaluation, pairs, rng):
    def side(index, docs_of_shards):
        return [write_evaluation("t", [pairs[doc][index] for doc in docs], docs=docs) for docs in docs_of_shards]

    docs = list(range(len(pairs)))
    shuffled = rng.sample(docs, len(docs))
    cut = rng.randint(0, len(docs) - 1)
    whole = run({"t": side(0, [docs])}, {"t": side(1, [docs])})
    parts = run({"t": side(0, [shuffled[cut:], shuffled[:cut]])}, {"t": side(1, [shuffled])})
    assert whole.files == parts.files


@few_examples
@given(paired_scores, st.integers(1, 5))
def test_documents_only_one_side_has_are_counted_and_change_no_pair(run, write_evaluation, pairs, num_extra):
    trial, base = ([pair[side] for pair in pairs] for side in (0, 1))
    shard = write_evaluation("t", trial)
    extended = write_evaluation("t", [1.0] * num_extra + base, docs=[*range(900, 900 + num_extra), *range(len(base))])
    plain, extra = run({"t": shard}, {"t": write_evaluation("t", base)}), run({"t": shard}, {"t": extended})
    of_pairs = [name for name in plain.whole if name.startswith(("num_pairs", "paired", "recovery", "difference"))]
    assert {name: plain.whole[name] for name in of_pairs} == {name: extra.whole[name] for name in of_pairs}
    assert plain.document["notes"] == []
    assert f"0 documents of the trial and {num_extra} of the base" in extra.document["notes"][0]


def test_identical_documents_pair_in_the_order_of_their_ids(run, write_evaluation):
    def shard(scores):
        return write_evaluation("t", scores, docs=["same", "same", "other"], doc_ids=[0, 1, 2])

    found = run({"t": shard([1.0, 0.0, 1.0])}, {"t": shard([1.0, 0.0, 1.0])}).whole
    assert (found["num_pairs"], found["num_base_only_right"], found["num_trial_only_right"]) == (3, 0, 0)


def test_a_metric_that_no_document_has_is_not_the_score(run, write_evaluation):
    """Code of a task's own may report others than the task declares."""
    mean = {"aggregation": {"name": "mean"}, "higher_is_better": True}
    facts = {"pass_at_k,all": mean, "pass@1,all": mean}
    columns = {"pass_at_k,all": [None, None], "pass@1,all": [1.0, 0.0]}
    result = run({"t": write_evaluation("t", columns, facts=facts)})
    assert (result.whole["metric"], result.whole["score"], result.whole["n"]) == ("pass@1,all", 0.5, 2)


def test_documents_asked_under_another_prompt_are_not_compared_and_it_says_so(run, write_evaluation):
    base = write_evaluation("t", [1.0, 1.0, 0.0], prompts=["prompt 0", "another", "yet another"])
    result = run({"t": write_evaluation("t", [0.0, 1.0, 1.0])}, {"t": base})
    assert (result.whole["num_pairs"], result.whole["difference"]) == (1, -1.0)
    assert "2 of them had a different prompt" in result.document["notes"][0]


def test_without_any_pair_there_is_no_difference(run, write_evaluation):
    base = write_evaluation("t", [1.0, 1.0], prompts=["a", "b"])
    found = run({"t": write_evaluation("t", [0.0, 1.0])}, {"t": base}).whole
    assert (found["score"], found["base_score"], found["num_pairs"]) == (0.5, 1.0, 0)
    assert [found[name] for name in ("recovery", "difference", "difference_low", "mcnemar_p", "verdict")] == [None] * 5


def test_a_document_that_could_not_be_scored_is_missing_and_not_wrong(run, write_evaluation):
    trial = write_evaluation("t", [1.0, None, 0.0, float("nan")])
    found = run({"t": trial}, {"t": write_evaluation("t", [1.0, 0.0, None, 1.0])}).whole
    assert (found["n"], found["num_missing"], found["score"]) == (2, 2, 0.5)
    assert (found["base_n"], found["base_num_missing"]) == (3, 1)
    assert (found["num_pairs"], found["paired_score"], found["paired_base_score"], found["recovery"]) == (1, 1, 1, 1)


def test_a_task_with_no_scored_document_has_no_score(run, write_evaluation):
    found = run({"t": write_evaluation("t", [None, None])}, {"t": write_evaluation("t", [1.0, 0.0])}).whole
    assert (found["n"], found["num_missing"], found["score"], found["score_low"]) == (0, 2, None, None)
    assert (found["base_score"], found["recovery"], found["difference"]) == (0.5, None, None)


@pytest.mark.parametrize("nothing", [0.0, 1e-310])
def test_a_base_of_zero_has_a_difference_and_no_recovery(run, write_evaluation, nothing):
    found = run({"t": write_evaluation("t", [1.0, 0.0])}, {"t": write_evaluation("t", [nothing, 0.0])}).whole
    assert (found["difference"], found["recovery"], found["recovery_low"], found["recovery_high"]) == (0.5, *[None] * 3)


def test_a_base_trial_has_a_score_and_nothing_to_compare_with(run, write_evaluation):
    found = run({"t": write_evaluation("t", [1.0, 0.0, 1.0])}).whole
    assert found["score"] == pytest.approx(2 / 3)
    assert found["score_low"] < found["score"] < found["score_high"]
    assert [found[name] for name in ("base_score", "num_pairs", "recovery", "difference", "verdict")] == [None] * 5


@pytest.mark.parametrize(
    ("num_lost", "num_won", "verdict"),
    [(3, 0, "inconclusive"), (4, 0, "degraded"), (12, 1, "degraded"), (1, 12, "improved"), (20, 19, "inconclusive")],
)
def test_the_verdict_calls_a_drop_real_only_beyond_noise(run, write_evaluation, num_lost, num_won, verdict):
    trial = [0.0] * num_lost + [1.0] * num_won + [1.0] * (100 - num_lost - num_won)
    base = [1.0] * num_lost + [0.0] * num_won + [1.0] * (100 - num_lost - num_won)
    found = run({"t": write_evaluation("t", trial)}, {"t": write_evaluation("t", base)}).whole
    assert found["verdict"] == verdict


def test_partial_credit_has_student_s_intervals_and_no_mcnemar(run, write_evaluation):
    rng = np.random.default_rng(0)
    base = rng.random(400)
    trial = np.clip(base - 0.05 + 0.1 * rng.standard_normal(400), 0, 1)
    shards = {"t": write_evaluation("t", trial.tolist())}, {"t": write_evaluation("t", base.tolist())}
    found = run(*shards).whole
    assert found["interval"] == "student"
    assert found["mcnemar_p"] is found["num_base_only_right"] is None
    expected = 1.96 * np.array([trial.std(), (trial - base).std()]) / 20
    widths = [(found[f"{name}_high"] - found[f"{name}_low"]) / 2 for name in ("score", "difference")]
    np.testing.assert_allclose(widths, expected, rtol=0.01)
    assert found["verdict"] == "degraded"


@pytest.mark.dear
@few_examples
@given(st.lists(right_or_wrong, min_size=2, max_size=4), st.booleans())
def test_a_group_is_the_mean_that_lm_eval_makes_of_it(run, write_evaluation, leaves, weight_by_size):
    from lm_eval.api.metrics import aggregate_subtask_metrics

    trial = {f"leaf{index}": write_evaluation(f"leaf{index}", scores) for index, scores in enumerate(leaves)}
    result = run(trial, trial, task="group", weight_by_size=weight_by_size)
    means, sizes = [sum(scores) / len(scores) for scores in leaves], [len(scores) for scores in leaves]
    assert result.whole["score"] == pytest.approx(aggregate_subtask_metrics(means, sizes, weight_by_size))
    assert result.whole["n"] == sum(sizes)
    low, high = result.whole["score_low"], result.whole["score_high"]
    assert 0 <= low <= result.whole["score"] + 1e-12 and result.whole["score"] - 1e-12 <= high <= 1
    assert low < high
    assert [row["leaf"] for row in result.rows] == [*trial, None]
    assert [row["score"] for row in result.rows[:-1]] == means


def test_a_plain_mean_of_leaves_has_the_interval_of_its_leaves_combined(run, write_evaluation):
    rng = np.random.default_rng(3)
    trial, base = ({"a": rng.random(50) < p, "b": rng.random(800) < p} for p in (0.5, 0.6))

    def shards(side):
        return {leaf: write_evaluation(leaf, scores.astype(float).tolist()) for leaf, scores in side.items()}

    found = run(shards(trial), shards(base), weight_by_size=False).whole
    variances = [np.var(trial[leaf].astype(float) - base[leaf]) / len(trial[leaf]) / 4 for leaf in trial]
    width = (found["difference_high"] - found["difference_low"]) / 2
    assert width == pytest.approx(1.96 * math.sqrt(sum(variances)), rel=0.03)
    assert found["difference"] == pytest.approx(np.mean([trial[leaf].mean() - base[leaf].mean() for leaf in trial]))
    assert (found["difference_p"] < 0.05) == (found["difference_high"] < 0)


def test_leaves_in_one_artifact_are_compared_as_in_one_each(run, write_evaluation, tmp_path):
    one, other = write_evaluation("a", [1.0, 0.0, 1.0]), write_evaluation("b", [0.0, 1.0])
    both = tmp_path / "both"
    both.mkdir()
    tables = [pq.read_table(path / "samples.parquet") for path in (one, other)]
    pq.write_table(pa.concat_tables(tables), both / "samples.parquet")
    facts = [json.loads((path / "task.json").read_text())["leaves"] for path in (one, other)]
    (both / "task.json").write_text(json.dumps({"leaves": facts[0] | facts[1]}))
    apart = run({"a": one, "b": other}, {"a": one, "b": other}, task="group")
    assert run({"x": both}, {"x": both}, task="group", leaves=["a", "b"]).files == apart.files


def test_how_answers_ended_is_counted_for_both_sides_and_the_score_among_the_finished_is_there(run, write_evaluation):
    trial = write_evaluation(
        "t", [1.0, 0.0, 0.0, 1.0], cut=[1, 2], cut_in_thoughts=[2], stopped={0: ["\n\n"]}, apply_chat_template=True
    )
    base = write_evaluation("t", [1.0, 1.0, 0.0, 1.0], cut=[2], apply_chat_template=True)
    result = run({"t": trial}, {"t": base})
    found = result.whole
    assert (found["num_cut"], found["num_cut_in_thoughts"], found["num_stopped"]) == (2, 1, 1)
    assert (found["base_num_cut"], found["base_num_cut_in_thoughts"], found["base_num_stopped"]) == (1, 0, 0)
    assert (found["finished_score"], found["base_finished_score"]) == (1.0, 1.0)
    assert result.document["notes"] == ["t: answers that ended at a stop string: '\\n\\n' 1"]
    chosen = run({"t": write_evaluation("t", [1.0])}, {"t": write_evaluation("t", [1.0])}).whole
    assert {chosen[name] for name in ("num_cut", "num_stopped", "finished_score", "base_num_cut")} == {None}
    plain = run({"t": write_evaluation("t", [1.0], cut=[], stopped={0: ["."]}, apply_chat_template=False)}).whole
    assert (plain["num_cut"], plain["num_stopped"]) == (0, None), "without a chat template that is how an answer ends"


def test_a_group_without_one_of_its_leaves_has_no_score(run, write_evaluation):
    trial, base = ({leaf: write_evaluation(leaf, [1.0, 0.0]) for leaf in ("a", "b")} for _ in range(2))
    del trial["b"]
    result = run(trial, base, task="group", leaves=["a", "b"], num_expected=4)
    scores = {row["leaf"]: row["score"] for row in result.rows}
    assert scores == {"a": 0.5, "b": None, None: None}
    assert result.whole["recovery"] is result.whole["difference"] is result.metrics["score"] is None
    assert result.document["notes"] == ["b: no results, so group has no score"]


def test_a_base_without_one_leaf_leaves_the_group_a_score_and_no_comparison(run, write_evaluation):
    trial = {leaf: write_evaluation(leaf, [1.0, 0.0]) for leaf in ("a", "b")}
    result = run(trial, {"a": trial["a"]})
    assert (result.whole["score"], result.whole["base_score"], result.whole["recovery"]) == (0.5, None, None)
    assert result.document["notes"] == ["b: no results of the base to compare with"]


@few_examples
@given(st.lists(right_or_wrong, min_size=1, max_size=4), st.sampled_from([0.0, 0.1, 0.25, 0.5]))
def test_normalized_scores_are_the_leaderboards_formula(run, write_evaluation, leaves, baseline):
    trial = {f"leaf{index}": write_evaluation(f"leaf{index}", scores) for index, scores in enumerate(leaves)}
    means = [sum(scores) / len(scores) for scores in leaves]
    expected = [max(0, 100 * (mean - baseline) / (1 - baseline)) for mean in means]
    by_leaf = run(trial, trial, task="group", leaf_baselines=dict.fromkeys(trial, baseline))
    assert [row["normalized"] for row in by_leaf.rows] == pytest.approx([*expected, sum(expected) / len(expected)])
    whole = run(trial, trial, task="group", random_baseline=baseline).whole
    assert whole["normalized"] == pytest.approx(max(0, 100 * (whole["score"] - baseline) / (1 - baseline)))
    for row in (whole, *by_leaf.rows):
        low, high = row["normalized_low"], row["normalized_high"]
        assert 0 <= low <= row["normalized"] + 1e-9 and row["normalized"] - 1e-9 <= high <= 100 + 1e-9
        assert row["normalized_recovery"] in (1, None)


def test_a_normalized_interval_is_the_raw_one_on_the_other_scale(run, write_evaluation):
    trial, base = [1.0] * 60 + [0.0] * 40, [1.0] * 70 + [0.0] * 30
    shards = {"t": write_evaluation("t", trial)}, {"t": write_evaluation("t", base)}
    found = run(*shards, random_baseline=0.25).whole
    for end in ("low", "high"):
        assert found[f"normalized_{end}"] == pytest.approx(100 * (found[f"score_{end}"] - 0.25) / 0.75)
        assert found[f"normalized_difference_{end}"] == pytest.approx(100 * found[f"difference_{end}"] / 0.75)
    assert found["base_normalized"] == pytest.approx(60)
    assert found["normalized_recovery"] == pytest.approx((0.6 - 0.25) / (0.7 - 0.25))
    assert found["normalized_recovery_low"] < found["normalized_recovery"] < found["normalized_recovery_high"] < 1
    assert found["normalized_recovery"] < found["recovery"]  # what guessing gives away is not counted as kept


def test_only_the_primary_metric_is_normalized_and_only_where_a_baseline_is_declared(run, write_evaluation):
    shard = {"t": write_evaluation("t", {"acc,none": [1.0, 0.0], "acc_norm,none": [1.0, 1.0]})}
    found = run(shard, shard, metric="acc_norm,none", random_baseline=0.5)
    assert {row["metric"]: row["normalized"] for row in found.rows} == {"acc,none": None, "acc_norm,none": 100}
    assert run(shard, shard).metrics["normalized"] is None
    without_leaf = run(shard, leaves=["t", "u"], leaf_baselines={"t": 0.5, "u": 0.25})
    assert [row["normalized"] for row in without_leaf.rows if row["primary"]] == [0, None, None]


def test_every_metric_is_there_and_the_chosen_one_leads(run, write_evaluation):
    metrics = {"exact_match,strict": [1.0, 0.0], "exact_match,flexible": [1.0, 1.0]}
    shards = {leaf: write_evaluation(leaf, metrics) for leaf in ("a", "b")}
    result = run(shards, shards, metric="exact_match,flexible")
    labels = [(row["leaf"], row["metric"], row["primary"]) for row in result.rows]
    assert labels == [(leaf, metric, metric.endswith("flexible")) for leaf in ("a", "b", None) for metric in metrics]
    assert result.metrics["score"] == 1.0
    assert run(shards, shards).metrics["score"] == 0.5


def test_a_group_whose_leaves_report_different_metrics_has_no_score_but_each_leaf_has_its_own(run, write_evaluation):
    trial = {
        "a": write_evaluation("a", {"acc,none": [1.0, 0.0]}),
        "b": write_evaluation("b", {"exact_match,strict": [1.0, 1.0], "exact_match,loose": [1.0, 1.0]}),
    }
    result = run(trial, trial, task="openllm")
    scores = {(row["leaf"], row["metric"]): row["score"] for row in result.rows}
    leaves = {("a", "acc,none"): 0.5, ("b", "exact_match,strict"): 1.0, ("b", "exact_match,loose"): 1.0}
    assert scores == {**leaves, (None, None): None}
    assert result.metrics["score"] is result.metrics["recovery"] is result.document["metric"] is None
    assert "the leaves of openllm report different metrics" in result.document["notes"][0]


def test_lm_evals_bypass_is_no_metric(run, write_evaluation):
    facts = {"bypass,none": {"aggregation": {"name": "bypass"}, "higher_is_better": True}}
    result = run({"t": write_evaluation("t", {"bypass,none": [999.0], "acc,none": [1.0]}, facts=facts)})
    assert [row["metric"] for row in result.rows] == ["acc,none", "acc,none"]


@pytest.mark.dear
def test_other_aggregations_are_lm_evals_own(run, write_evaluation):
    from lm_eval.api.metrics import f1_score

    def shard(items):
        facts = {"f1,none": {"aggregation": {"name": "f1"}, "higher_is_better": True}}
        return write_evaluation("t", {"f1,none": [json.dumps(item) for item in items]}, facts=facts)

    rng = random.Random(0)
    gold = [rng.randint(0, 1) for _ in range(60)]
    base = [(label, label if rng.random() < 0.9 else 1 - label) for label in gold]
    trial = [(label, label if rng.random() < 0.7 else 1 - label) for label in gold]
    found = run({"t": shard(trial)}, {"t": shard(base)}).whole
    assert (found["score"], found["base_score"]) == pytest.approx((f1_score(trial), f1_score(base)))
    assert found["difference_low"] < found["difference"] < found["difference_high"]
    assert (found["aggregation"], found["interval"]) == ("f1", "subsets")


def test_documents_that_all_score_alike_have_no_interval_that_pretends_to_be_exact(run, write_evaluation):
    partial, nothing = (run({"t": write_evaluation("t", [value] * 4)}).whole for value in (0.5, 0.0))
    assert (partial["score"], partial["score_low"], partial["score_high"]) == (0.5, None, None)
    assert nothing["interval"] == "score" and nothing["score_high"] > 0.3


def test_a_worse_perplexity_is_no_recovery(run, write_evaluation):
    facts = {"ppl,none": {"aggregation": {"name": "mean"}, "higher_is_better": False}}
    base = [10.0 + index % 5 for index in range(60)]
    trial = [1.25 * value for value in base]
    found = run(
        {"t": write_evaluation("t", {"ppl,none": trial}, facts=facts)},
        {"t": write_evaluation("t", {"ppl,none": base}, facts=facts)},
    ).whole
    assert (found["recovery"], found["recovery_low"], found["recovery_high"]) == pytest.approx(
        (0.8, 0.8, 0.8), rel=0.003
    )
    assert (found["difference"] > 0, found["verdict"], found["reason"]) == (True, "degraded", "beyond margin")
    assert found["margin"] == pytest.approx(0.12), "1 % of the base's"


def test_a_tasks_own_aggregation_is_found_beside_its_yaml(run, write_evaluation, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "utils.py").write_text(
        "def share(items):\n    return sum(map(sum, items)) / sum(map(len, items))\n"
    )
    aggregation = {"file": "mine/utils.py", "function": "share"}
    facts = {"inst,none": {"aggregation": aggregation, "higher_is_better": True}}
    shard = write_evaluation("t", {"inst,none": ["[true, false, true]", None, "[true]"]}, facts=facts)
    found = run({"t": shard}, {"t": shard}, include_paths=[str(tmp_path)]).whole
    assert (found["n"], found["num_missing"], found["score"], found["recovery"]) == (2, 1, 0.75, 1)
    with pytest.raises(ConfigError, match=r"mine/utils.py:share is not found.*include_paths"):
        run({"t": shard}, {"t": shard})


@pytest.mark.parametrize(
    ("field", "value"),
    [("num_fewshot", 8), ("gen_kwargs", {"temperature": 1.0}), ("engine_version", "0.33.0"), ("version", 2)],
)
def test_what_is_not_comparable_is_refused_naming_field_and_both_values(run, write_evaluation, field, value):
    base = write_evaluation("t", [1.0], **{field: value})
    with pytest.raises(DataError) as refusal:
        run({"t": write_evaluation("t", [1.0])}, {"t": base}, task="gsm8k")
    message = str(refusal.value)
    assert "gsm8k, t: trial and base are not comparable" in message
    assert field in message and json.dumps(value) in message and "\n" not in message


def refusal(run, *args, **config):
    with pytest.raises((DataError, ConfigError)) as refused:
        run(*args, **config)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_shards_that_overlap_fall_short_or_disagree_are_refused(run, write_evaluation):
    first, second = write_evaluation("t", [1.0, 0.0], docs=[0, 1]), write_evaluation("t", [1.0, 0.0], docs=[1, 2])
    assert "document 1 is in two of its parts" in refusal(run, {"t": [first, second]})
    assert "2 documents instead of 4" in refusal(run, {"t": first}, num_expected=4)
    assert "2 documents instead of 1" in refusal(run, {"t": first}, num_expected=1)
    other = write_evaluation("t", [1.0], docs=[7], num_fewshot=8)
    assert "num_fewshot is 5 in trial/t/0000 and 8 in trial/t/0001" in refusal(run, {"t": [first, other]})


def test_damaged_and_foreign_artifacts_are_refused(run, write_evaluation):
    broken = write_evaluation("t", [1.0])
    (broken / "samples.parquet").write_bytes(b"PAR1 and nothing else")
    assert "trial/t/0000: samples.parquet cannot be read" in refusal(run, {"t": broken})
    (broken / "task.json").unlink()
    assert "trial/t/0000: task.json cannot be read" in refusal(run, {"t": broken})
    shard = write_evaluation("t", [1.0])
    assert "trial/u/0000: holds results of task t, not of u" in refusal(run, {"u": shard})
    assert "no evaluation of the trial" in refusal(run, {}, leaves=["t"])
    assert "they report acc,none" in refusal(run, {"t": shard}, metric="acc_norm,none")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"leaves": []}, "leaves"),
        ({"leaves": ["a", "a"]}, "leaves"),
        ({"confidence": 95.0}, "between 0 and 1"),
        ({"random_baseline": 25.0}, "below 1"),
        ({"leaf_baselines": {"b": 0.5}}, "name every leaf"),
        ({"random_baseline": 0.5, "leaf_baselines": {"a": 0.5}}, "not both"),
    ],
)
def test_impossible_settings_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        CompareConfig(**{"task": "t", "leaves": ["a"]} | values)


SIMULATED = {"method": "simulated", "weights": "dequantized to float32", "inputs": [], "rounding": None}
NATIVE = {"method": "native", "kernels": ["MacheteLinearKernel"]}
TRUE_FP4 = {"method": "native", "kernels": ["CutlassNvFp4LinearKernel"]}
FP4_AS_WEIGHTS = {
    "method": "native",
    "kernels": ["MarlinNvFp4LinearKernel"],
    "format": "W4A4",
    "effective": "W4A16",
}


def test_one_trial_has_one_arithmetic(run, write_evaluation):
    """Between its shards and between the leaves of a task; shards of before the field was written are read."""
    shard = write_evaluation
    other_dtype = SIMULATED | {"weights": "dequantized to bfloat16"}
    for first, second in ((SIMULATED, NATIVE), (SIMULATED, other_dtype), (TRUE_FP4, FP4_AS_WEIGHTS)):
        shards = [shard("t", [1.0], docs=[0], arithmetic=first), shard("t", [1.0], docs=[1], arithmetic=second)]
        message = refusal(run, {"t": shards})
        assert "t: two arithmetics" in message and "trial/t/0001" in message
    leaves = {"a": shard("a", [1.0], arithmetic=SIMULATED), "b": shard("b", [1.0], arithmetic=NATIVE)}
    message = refusal(run, leaves)
    assert (
        "leaves of the trial: two arithmetics" in message and 'method is "simulated" in a and "native" in b' in message
    )
    old = [shard("t", [1.0], docs=[0]), shard("t", [1.0], docs=[1])]
    assert run({"t": old}).whole["score"] == 1.0


def test_four_bits_times_four_are_not_run_again_as_weights_alone(run, write_evaluation):
    first, again = ({"t": write_evaluation("t", [1.0], arithmetic=each)} for each in (TRUE_FP4, FP4_AS_WEIGHTS))
    with pytest.raises(DataError, match=r'two arithmetics: effective is "W4A16" in the rerun of t and null in its'):
        run(first, again={"trial_rerun/1": again})
    assert run(first, again={"trial_rerun/1": first}).whole["rerun_num_changed"] == 0


@pytest.mark.parametrize("arithmetic", [SIMULATED, NATIVE, FP4_AS_WEIGHTS, {"method": "dense"}, None])
def test_a_dense_base_is_compared_with_every_arithmetic(run, write_evaluation, arithmetic):
    trial = write_evaluation("t", [1.0, 0.0], arithmetic=arithmetic)
    for base in ({"method": "dense"}, None, arithmetic):
        result = run({"t": trial}, {"t": write_evaluation("t", [1.0, 1.0], arithmetic=base)})
        assert result.document["leaves"]["t"]["arithmetic"] == arithmetic


def served(**flags):
    return {"method": "served", "model": "own", "flags": flags}


def test_servers_are_compared_with_servers_alone_whatever_their_flags(run, write_evaluation):
    """What they compute with is not known: nothing of a difference says that it is of the checkpoint alone."""
    elsewhere = {"engine": "endpoint", "engine_version": "vllm 0.32.0", "platform": "endpoint", "dtype": "served"}
    trial = write_evaluation("t", [1.0, 0.0], arithmetic=served(quantization="fp8"), **elsewhere)
    base = write_evaluation("t", [1.0, 1.0], arithmetic=served(), **elsewhere)
    assert run({"t": trial}, {"t": base}).whole["recovery"] == 0.5
    for here in ({"method": "dense"}, None):
        message = refusal(run, {"t": trial}, {"t": write_evaluation("t", [1.0, 1.0], arithmetic=here)})
        assert 'engine is "endpoint" in trial and "vllm" in base' in message
    newer = write_evaluation("t", [1.0, 1.0], arithmetic=served(), **elsewhere | {"engine_version": "vllm 0.33.0"})
    assert "engine_version is" in refusal(run, {"t": trial}, {"t": newer})


def imported(**arguments):
    return {"method": "imported", "model": "hf", "model_args": arguments}


def test_recorded_answers_are_compared_with_recorded_ones_that_were_asked_alike(run, write_evaluation):
    """How long they are and why they ended is not known, which is not that none was cut."""
    elsewhere = {
        "engine": "lm-eval",
        "engine_version": "lm_eval 0.4.13, hf",
        "platform": "lm-eval",
        "dtype": "bfloat16",
    }
    trial = write_evaluation("t", [1.0, 0.0], arithmetic=imported(pretrained="a"), truncated=None, **elsewhere)
    base = write_evaluation("t", [1.0, 1.0], arithmetic=imported(pretrained="b"), truncated=None, **elsewhere)
    whole = run({"t": trial}, {"t": base}).whole
    assert (whole["recovery"], whole["num_truncated"], whole["num_cut"], whole["base_num_cut"]) == (0.5, *[None] * 3)
    for here in ({"method": "dense"}, served()):
        message = refusal(run, {"t": trial}, {"t": write_evaluation("t", [1.0, 1.0], arithmetic=here)})
        assert 'engine is "lm-eval" in trial and "vllm" in base' in message
    newer = write_evaluation("t", [1.0, 1.0], arithmetic=imported(), **elsewhere | {"engine_version": "lm_eval 0.5"})
    assert "engine_version is" in refusal(run, {"t": trial}, {"t": newer})


def test_shards_of_two_servers_are_not_one_trial(run, write_evaluation):
    flags = (served(), served(quantization="fp8"))
    shards = [write_evaluation("t", [1.0], docs=[place], arithmetic=each) for place, each in enumerate(flags)]
    assert 'flags is {} in trial/t/0000 and {"quantization": "fp8"} in trial/t/0001' in refusal(run, {"t": shards})


def test_a_simulated_base_is_not_compared_with_a_kernel(run, write_evaluation):
    sides = (write_evaluation("t", [1.0], arithmetic=arithmetic) for arithmetic in (NATIVE, SIMULATED))
    assert "arithmetic is native in trial and simulated in base" in refusal(run, *({"t": side} for side in sides))
