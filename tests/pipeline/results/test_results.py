"""What a store remembers of a sweep: its latest plan, and the environment it was begun in."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import FailureClass, UserError
from pipeline.planning.plan import Plan
from pipeline.results import load, record, resubmission
from pipeline.results.environment import changes
from pipeline.results.garbage import collect
from pipeline.results.report_step import report_step
from pipeline.results.resubmission import export
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure
from pipeline.store.manifest import environment_of
from pipeline.store.store import Store
from stages.report.artifact import Summary, TrialVerdict, write_summary
from stages.report.config import SuiteRow
from stages.report.methods import notes
from tests.pipeline.fakes import note
from tests.pipeline.planning.test_plan import planned, trials_of

COMMIT = "0123456789abcdef" * 2 + "01234567"


def test_a_plan_that_takes_another_one_s_name_knows_what_that_leaves_behind(tmp_path: Path) -> None:
    store = Store(tmp_path)
    for step in (note("kept"), note("left")):
        with store.draft(step) as draft:
            draft.publish({}, {})
    before, after = _plan(note("kept"), note("left"), note("never made")), _plan(note("kept"), note("new"))
    assert record.num_replaced(store, before) == 0
    record.save(store, before, None)
    assert record.num_replaced(store, before) == 0
    assert record.num_replaced(store, after) == 1
    record.save(store, after, None)
    assert record.num_replaced(store, after) == 0


def test_uncommitted_changes_are_another_environment() -> None:
    clean, changed = (environment_of({"provenance": {"git": {"commit": COMMIT, "dirty": dirty}}}) for dirty in (0, 1))
    assert changes(clean, changed) == ["git commit: 0123456789ab -> 0123456789ab with changes"]
    assert changes(clean, clean) == []
    assert environment_of({}) == {"packages": None, "git": None}


@pytest.mark.dear
def test_what_a_suite_is_judged_by_is_the_report_s_identity_alone(tmp_path: Path) -> None:
    def made(suite: str) -> tuple[str, str, SuiteRow]:
        overrides = ("+sweep=smoke", f"+suites={{both: {suite}}}")
        plan = planned(tmp_path, *overrides)
        step = report_step(plan, trials_of(*overrides)[0].config, Store(tmp_path))
        return plan.fingerprint, step.fingerprint, step.config.suites[0]

    plan, report, suite = made("{tasks: [mathador, tabular]}")
    assert (suite.name, suite.points, suite.gate_tasks) == ("both", 1.0, ["mathador", "tabular"])
    same_plan, other_report, other = made("{tasks: [mathador, tabular], margin_points: 2, gate: []}")
    assert same_plan == plan and other_report != report
    assert (other.points, other.gate_tasks) == (2.0, [])


@pytest.mark.dear
def test_a_report_knows_which_data_sets_each_task_reads(tmp_path: Path) -> None:
    overrides = ("+sweep=llama31", "suite=leaderboard_v1", "sweep.axes.model=[llama31_8b]", "sweep.axes.recipe=[bf16]")
    plan = planned(tmp_path, *overrides)
    data = report_step(plan, trials_of(*overrides)[0].config, Store(tmp_path)).config.data
    assert data["mmlu"] == data["mmlu_cot"] == ["cais/mmlu"]
    assert set(data) == {"mmlu", "mmlu_cot", "arc_challenge", "gsm8k", "hellaswag", "winogrande", "truthfulqa"}


@pytest.mark.dear
def test_a_report_says_how_many_layers_gptq_only_rounded(tmp_path: Path) -> None:
    overrides = ("+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_int,w4a16_int]")
    plan, store = planned(tmp_path, *overrides), Store(tmp_path)
    for recipe, num_rounded in (("w8a8_int", 0), ("w4a16_int", 3)):
        with store.draft(plan.steps[plan.trials[f"smollm2_135m/{recipe}"].checkpoint]) as draft:
            draft.publish({"num_gptq_layers": 14, "num_rounded_layers": num_rounded}, {})
    trials = report_step(plan, trials_of(*overrides)[0].config, store).config.trials
    (note,) = notes(trials, {}, [])
    assert note.startswith("smollm2_135m/w4a16_int: GPTQ could not invert the second moments of 3 of 14 layers")
    assert "recipe.dampening_frac" in note and "more tokens" in note


@pytest.mark.dear
def test_a_report_says_how_many_tensors_of_a_base_are_not_loaded(tmp_path: Path) -> None:
    overrides = ("+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_fp]")
    plan, store = planned(tmp_path, *overrides), Store(tmp_path)
    with store.draft(plan.steps[plan.trials["smollm2_135m/bf16"].checkpoint]) as draft:
        draft.publish({"size_gib": 0.25, "num_unread": 12}, {})
    trials = report_step(plan, trials_of(*overrides)[0].config, store).config.trials
    (note,) = notes(trials, {}, [])
    assert "12 tensors of the base's files are not loaded and in no checkpoint" in note
    assert trials[0].size_gib == 0.25


def test_whether_a_trial_may_be_shipped_and_why_not_is_read_from_the_latest_report(tmp_path: Path) -> None:
    base = {"trial": "m/bf16", "model": "m", "recipe": "bf16", "is_base": True}
    lossy = {"trial": "m/w4", "model": "m", "recipe": "w4", "is_base": False, "decision": "do not ship", "p": 0.75}
    reasons = ["quiz: confirmed to have lost more than its margin", "suite v1: -3 points"]
    trials = [TrialVerdict(**base), TrialVerdict(**lossy, reasons=reasons, num_cells=2, num_confirmed_degraded=1)]
    store, report = Store(tmp_path), note("report")
    record.save(store, _plan(report), report.ref)
    with pytest.raises(UserError, match="has no report yet"):
        load(tmp_path, "test").decisions()
    with store.draft(report) as draft:
        write_summary(draft.path, Summary(title="a sweep", rows=[], trials=trials))
        draft.publish({}, {})
    of_base, of_lossy = load(tmp_path, "test").decisions().to_pylist()
    assert (of_base["trial"], of_base["decision"], of_base["reasons"], of_base["p"]) == ("m/bf16", None, [], None)
    assert of_lossy.items() >= (lossy | {"num_cells": 2, "num_confirmed_degraded": 1}).items()
    assert of_lossy["reasons"] == reasons and of_lossy["num_equivalent"] is None


def _plan(*steps: Step, name: str = "test") -> Plan:
    return Plan(name, {}, {step.ref: step for step in steps})


def test_a_record_of_the_first_version_is_read_and_its_results_are_found(tmp_path: Path) -> None:
    """What a store holds that was made before trials had roles."""
    refs = {name: ["note", name * 64] for name in "abcdefg"}
    trial = {
        "name": "m/r", "base": "m/bf16", "model": "m", "recipe": "r",
        "checkpoint": refs["a"], "gate": refs["b"], "calibration": None, "drift": None,
        "evaluations": {"quiz": {"quiz_a": [refs["c"], refs["d"]]}}, "comparisons": {"quiz": refs["e"]},
        "profiles": {"rag/throughput": refs["f"]}, "ceilings": refs["g"],
    }  # fmt: skip
    old = {"name": "old", "plan_fingerprint": "f" * 64, "trials": [trial], "steps": [], "report": None}
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "old.json").write_text(json.dumps(old))
    assert load(tmp_path, "old").trials["m/r"].steps == {
        "checkpoint": StepRef("note", "a" * 64),
        "gate": StepRef("note", "b" * 64),
        "ceilings": StepRef("note", "g" * 64),
        "answer/quiz/quiz_a/0000": StepRef("note", "c" * 64),
        "answer/quiz/quiz_a/0001": StepRef("note", "d" * 64),
        "compare/quiz": StepRef("note", "e" * 64),
        "profile/rag/throughput": StepRef("note", "f" * 64),
    }
    with pytest.raises(UserError, match=r"quiz of m/r was evaluated by a version .* run \+sweep=old again"):
        load(tmp_path, "old").samples("m/r", "quiz")


def test_a_record_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "new.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UserError, match=r"newer version.*sweeps/new\.json has version 99"):
        load(tmp_path, "new")


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke")
    store = Store(tmp_path / "store")
    record.save(store, plan, None, {"packages": {}})
    found = record.read(store, plan.name)
    assert found is not None
    assert {name: trial.steps for name, trial in found.trials.items()} == {
        name: trial.steps for name, trial in plan.trials.items()
    }
    assert found.steps == set(plan.steps)
    assert record.first_environment(store, plan.name) == {"packages": {}}


@pytest.mark.usefixtures("notes_are_collected")
@pytest.mark.parametrize("text", ["", '{"name": "smoke", ', "[]"])
def test_a_damaged_record_is_named_and_nothing_is_collected(tmp_path: Path, text: str) -> None:
    store, step = Store(tmp_path), note("kept")
    with store.draft(step) as draft:
        draft.publish({}, {})
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "smoke.json").write_text(text)
    for read in (lambda: load(tmp_path, "smoke"), lambda: collect(store, delete=True)):
        with pytest.raises(UserError, match=r"sweeps/smoke\.json is damaged"):
            read()
    assert store.has(step.ref)


def test_garbage_collection_refuses_a_record_of_a_newer_version(tmp_path: Path) -> None:
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "new.json").write_text(json.dumps({"version": 99}))
    with pytest.raises(UserError, match="newer version"):
        collect(Store(tmp_path), delete=True)


NAMES = [
    "x y",
    "x-y",
    "x@y",
    "été 1",
    "t-1",
    "日本",
    "漢字",
    "artifact",
    "-",
    "a" * 200,
    "a" * 199 + "b",
    "a/../b",
    "A",
    "a",
]


def test_every_name_of_a_sweep_has_a_record_of_its_own(tmp_path: Path) -> None:
    store = Store(tmp_path)
    plans = [_plan(note(str(index)), name=name) for index, name in enumerate(NAMES)]
    for _ in range(2):
        for plan in plans:
            record.save(store, plan, None)
    assert sorted(record.names(store)) == sorted(NAMES)
    assert [load(tmp_path, plan.name).plan_fingerprint for plan in plans] == [plan.fingerprint for plan in plans]
    assert (tmp_path / "sweeps" / "x-y.json").exists(), "a name that a file can have is the file's"


@settings(max_examples=25)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), min_size=1) | st.text("ab- @.", min_size=1)))
def test_a_record_is_found_by_the_name_that_it_was_saved_under(names: list[str]) -> None:
    with tempfile.TemporaryDirectory() as directory:
        store = Store(directory)
        plans = {name: _plan(note(str(index)), name=name) for index, name in enumerate(names)}
        for plan in plans.values():
            record.save(store, plan, None)
        for name, plan in plans.items():
            found = record.read(store, name)
            assert found is not None
            assert (found.name, found.plan_fingerprint) == (name, plan.fingerprint)


def test_a_record_under_the_file_name_of_earlier_versions_is_found_moved_and_never_taken(tmp_path: Path) -> None:
    store, old, other = Store(tmp_path), _plan(note("a"), name="llama 31"), _plan(note("b"), name="llama-31")
    record.save(store, old, None)
    [file] = (tmp_path / "sweeps").iterdir()
    file.rename(tmp_path / "sweeps" / "llama-31.json")
    assert load(tmp_path, "llama 31").plan_fingerprint == old.fingerprint
    with pytest.raises(UserError, match="has no sweep 'llama-31'; it has: 'llama 31'"):
        load(tmp_path, "llama-31")
    record.save(store, other, None)
    record.save(store, old, None)
    for plan in (old, other):
        assert load(tmp_path, plan.name).plan_fingerprint == plan.fingerprint
    assert len(record.files(store)) == 2, "what was moved is at one place"


@pytest.mark.parametrize("change", [{"steps": ["x"]}, {"environment": None}, {"overrides": [1]}, {"version": 2}, None])
def test_a_file_of_failures_that_was_changed_is_refused(tmp_path: Path, change: dict[str, object] | None) -> None:
    path = tmp_path / "failed.json"
    failure = Failure(FailureClass.oom, "no memory left", None, 1)
    export(path, _plan(note("a")), {note("a").ref: failure}, ["mode=status"], {"packages": {}})
    content = resubmission.read(path)
    assert [step["label"] for step in content["steps"]] == ["a"]
    path.write_text("[]" if change is None else json.dumps({**content, **change}))
    with pytest.raises(UserError, match=r"failed\.json is not a file that failures.export= of this version wrote, or"):
        resubmission.read(path)
