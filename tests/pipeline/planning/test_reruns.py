"""What is evaluated twice: which trials, which documents, how otherwise, and what of a plan stays as it was."""

from collections import Counter
from pathlib import Path

import pytest

from pipeline.planning.plan import Plan
from pipeline.planning.shards import Run, rerun_of
from pipeline.results.plan_summary import summarize
from pipeline.steps.fingerprint import differences
from pipeline.steps.roles import under
from pipeline.steps.step import Step
from pipeline.store.store import Store
from stages.evaluate.answer import session_key
from stages.evaluate.order import documents_of
from tests.pipeline.planning.test_plan import by_stage, planned

STUDY = [
    *("+sweep=llama31", "data.mirror=null"),
    *("sweep.axes.model=[llama31_8b,llama31_70b]", "sweep.axes.recipe=[bf16,w8a8_fp]"),
]
AGAIN = ["+sweep=smoke", "base_reruns=1"]


def again(plan: Plan, name: str) -> list[Step]:
    return [plan.steps[ref] for ref in under(plan.trials[name].steps, "answer_again").values()]


def documents(steps: list[Step]) -> set[tuple[str, int]]:
    """By leaf, the documents that steps ask."""
    configs = [step.config for step in steps]
    return {
        (config.task, doc)
        for config in configs
        for doc in documents_of(config.num_docs, config.start, config.stop, config.limit_seed)
    }


@pytest.mark.dear
def test_a_study_asks_each_base_again_and_of_each_format_the_first_trial(tmp_path: Path) -> None:
    plan = planned(tmp_path, *STUDY)
    first_run = [ref for trial in plan.trials.values() for ref in under(trial.steps, "answer").values()]
    asked = 7 * 1319 + 1267 + 1165 + 817 + 541 + 756 + 1192 + 62  # of 14 tasks at most 1,319 documents
    numbers = {name: sum(step.num_documents for step in again(plan, name)) for name in plan.trials}
    assert numbers == {
        "llama31_8b/bf16": asked,
        "llama31_8b/w8a8_fp": asked,
        "llama31_70b/bf16": asked,
        "llama31_70b/w8a8_fp": 0,
    }
    assert plan.num_evaluations == sum(plan.steps[ref].num_documents for ref in first_run) + 3 * asked
    summary = summarize(plan, Store(tmp_path / "store"), plan.trials["llama31_8b/bf16"].trial.config)
    assert (summary.num_again, summary.num_evaluations) == (3 * asked, plan.num_evaluations)
    shown = [trial.shards for trial in plan.trials.values()]
    assert sum(plan.steps[ref].num_documents for refs in shown for ref in refs) == plan.num_evaluations


def test_of_many_leaves_each_gives_its_share() -> None:
    sizes = {f"leaf{index}": size for index, size in enumerate([100, 1534, 171, 895, 1, 0, 2000])}
    found = rerun_of(Run(sizes), 2, 1319)
    total = sum(sizes.values())
    assert found.rerun == 2 and abs(sum(found.sizes.values()) - 1319) <= 1
    assert all(abs(found.sizes[leaf] - size * 1319 / total) <= 1 for leaf, size in sizes.items())
    assert found.sizes["leaf4"] == 1 and found.sizes["leaf5"] == 0, "no leaf that is asked is without any"
    assert rerun_of(Run(sizes), 1, 5000).sizes == sizes


@pytest.mark.dear
@pytest.mark.parametrize(
    "limit",
    [[], ["limit=90", "limit_order=random"], ["limit=90"], ["limit=null"]],
    ids=["few", "random", "first", "all"],
)
def test_what_is_asked_again_was_asked_before(tmp_path: Path, limit: list[str]) -> None:
    plan = planned(tmp_path, *AGAIN, "rerun_documents=15", *(f"tasks.tabular.{each}" for each in limit))
    trial = plan.trials["smollm2_135m/bf16"]
    before = [plan.steps[ref] for ref in under(trial.steps, "answer", "tabular").values()]
    after = [plan.steps[ref] for ref in under(trial.steps, "answer_again", "tabular", "1").values()]
    assert documents(after) < documents(before)
    assert len(documents(after)) == sum(step.num_documents for step in after) == 15
    assert len({leaf for leaf, _ in documents(after)}) == len({leaf for leaf, _ in documents(before)})


@pytest.mark.dear
def test_another_run_is_asked_in_another_engine_and_otherwise_alike(tmp_path: Path) -> None:
    plan = planned(tmp_path, *AGAIN)
    trial = plan.trials["smollm2_135m/w8a8_fp"]
    for index in ("tabular/{}tabular_iris/0000", "mathador/{}mathador/0000"):
        first, second = (
            plan.steps[trial.steps[f"{kind}/{index.format(part)}"]]
            for kind, part in (("answer", ""), ("answer_again", "1/"))
        )
        changed = {field for field, _, _ in differences(first.payload[3], second.payload[3])}
        assert changed == {"rerun", "engine.seed"}
        assert session_key(first.config) != session_key(second.config)
        assert (
            second.config.engine.max_num_seqs == first.config.engine.max_num_seqs * 3 // 4
            and second.after == first.after
        )
        assert second.label == f"{first.label}-rerun1"


def test_an_endpoint_gets_fewer_requests_at_once_than_before(tmp_path: Path) -> None:
    endpoint = [
        "engine=endpoint",
        "engine.url=http://127.0.0.1:9/v1",
        "engine.served_model=own",
        "sweep.axes.recipe=[bf16]",
    ]
    plan = planned(tmp_path, *AGAIN, *endpoint)
    assert {step.config.engine.max_num_seqs for step in again(plan, "smollm2_135m/bf16")} == {24}


@pytest.mark.dear
def test_a_comparison_reads_the_reruns_of_both_sides(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke", "base_reruns=2")
    inputs = {name: sorted(plan.steps[trial.steps["compare/tabular"]].inputs) for name, trial in plan.trials.items()}
    base = ["base/scores", "base_rerun/1/scores", "base_rerun/2/scores"]
    own = ["trial/scores", "trial_rerun/1/scores"]
    assert inputs.pop("smollm2_135m/bf16") == [*own, "trial_rerun/2/scores"]
    assert list(inputs.values()) == [[*base, *own]] * 3
    reruns = [step for step in by_stage(plan, "score") if "rerun" in step.label]
    assert Counter(step.label.partition("-rerun")[0] for step in reruns)["smollm2_135m/bf16-tabular"] == 2
    assert all(step.config.num_expected == {"tabular": 20, "mathador": 12}[step.label.split("-")[1]] for step in reruns)


def test_without_reruns_a_plan_is_what_it_was(tmp_path: Path) -> None:
    for sweep in (["+sweep=smoke"], []):
        plan = planned(tmp_path, *sweep)
        assert not any("again" in role for trial in plan.trials.values() for role in trial.steps)
        assert not any("rerun" in step.payload[3] for step in plan.steps.values())
    once, twice = planned(tmp_path, "+sweep=smoke"), planned(tmp_path, *AGAIN)
    kept = {ref for ref in once.steps if ref.stage != "compare"}
    assert kept < set(twice.steps), "what was made stays made"
