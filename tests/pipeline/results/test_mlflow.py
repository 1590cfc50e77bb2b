"""What tracking shows of a trial follows from its roles and the table of stages."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pipeline.config.execution import TrackingConfig
from pipeline.planning.plan import Plan
from pipeline.results.mlflow_content import small_files, trial_key, trial_metrics
from pipeline.results.mlflow_mirror import Mirror
from pipeline.steps.fingerprint import fingerprint
from pipeline.steps.stages import STAGES
from pipeline.store.store import Store
from tests.pipeline.planning.test_plan import planned

PROFILE = ("+sweep=smoke_profile", "drift=wikitext", "drift.text.num_calibration_samples=4")


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    return planned(tmp_path_factory.mktemp("plan"), *PROFILE)


@pytest.fixture
def store(plan: Plan, tmp_path: Path) -> Store:
    """Every step of the plan made, each with a file and a metric of its own."""
    store = Store(tmp_path / "store")
    for step in plan.steps.values():
        with store.draft(step) as draft:
            for name in ("ceilings.json", "config.json", "point.json", "calibration.parquet"):
                (draft.path / name).write_text(step.stage.name)
            draft.publish({"found": 1.0, "unknown": None}, {"started": 1.0, "ended": 3.0})
    return store


def test_every_step_of_a_trial_has_a_role_but_the_data_sets_that_many_read(plan: Plan) -> None:
    with_role = {ref for trial in plan.trials.values() for ref in trial.steps.values()}
    assert {ref.stage for ref in plan.steps.keys() - with_role} <= {"fetch_dataset"}


def test_every_stage_can_be_loaded_and_has_a_version() -> None:
    for name, stage in STAGES.items():
        assert (stage.name, stage.version >= 1) == (name, True)


@pytest.mark.dear
def test_ceilings_the_drift_text_and_the_model_of_a_quantized_trial_are_shown_by_themselves(
    plan: Plan, store: Store, tmp_path: Path, mlflow_at: Callable[[Path], Path]
) -> None:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{mlflow_at(tmp_path / 'mlflow.db')}")
    Mirror(plan, store, TrackingConfig()).write()
    experiment = client.get_experiment_by_name(plan.name)
    runs = {run.data.tags.get("trial"): run for run in client.search_runs([experiment.experiment_id])}
    shown = runs["smollm2_135m/w8a8_int"]
    expected = {"ceilings/found", "drift_text/found", "model/found", "profile/short/throughput/found", "gate/found"}
    assert expected <= shown.data.metrics.keys()
    assert not [name for name in shown.data.metrics if name.endswith("unknown")]
    artifacts = {artifact.path for artifact in client.list_artifacts(shown.info.run_id)}
    assert {"ceilings", "drift_text", "model", "checkpoint", "profile"} <= artifacts
    files = {name: [file.path for file in client.list_artifacts(shown.info.run_id, name)] for name in artifacts}
    assert "ceilings/ceilings.json" in files["ceilings"]
    assert files["model"] == ["model/config.json"]  # weights stay in the store


def test_answers_stay_in_the_store(tmp_path: Path) -> None:
    """Every token of every answer: a score's rows hold what was said."""
    plan = planned(tmp_path, "+sweep=smoke")
    trial = plan.trials["smollm2_135m/w8a8_int"]
    patterns = {(ref.stage, pattern) for ref, _, pattern in small_files(plan, trial)}
    assert {found for found in patterns if found[0] in ("answer", "score")} == {
        ("answer", "answers.json"),
        ("score", "*"),
    }


@pytest.mark.dear
def test_a_task_s_numbers_stand_under_its_name_and_durations_are_summed_by_kind(tmp_path: Path) -> None:
    plan = planned(tmp_path, "+sweep=smoke", "tasks.tabular.shard_size=5")
    store, trial = Store(tmp_path / "store"), plan.trials["smollm2_135m/w8a8_int"]
    for ref in trial.steps.values():
        if not store.has(ref):
            with store.draft(plan.steps[ref]) as draft:
                draft.publish({"score": 0.5, "p": 0.1}, {"started": 1.0, "ended": 3.0})
    of_tasks, of_steps = trial_metrics(store, plan, trial)
    assert not of_tasks.keys() & of_steps.keys()
    shown = of_tasks | of_steps
    assert of_tasks["tabular/score"] == 0.5
    assert "tabular/p" not in shown  # no headline
    assert not [name for name in shown if name.startswith("answer/") and name != "answer/duration_s"]
    num_shards = sum(role.startswith("answer/") for role in trial.steps)
    assert num_shards > 2
    assert of_steps["answer/duration_s"] == 2.0 * num_shards
    places = {place for _, place, _ in small_files(plan, trial)}
    assert {"answer/tabular/tabular_iris/0001", "compare/tabular"} <= places


def test_a_trial_s_run_is_found_by_the_same_key_as_before_roles(plan: Plan) -> None:
    """A trial that was mirrored by an earlier version must not get a second run."""
    trial = plan.trials["smollm2_135m/w8a8_int"]
    own = [ref for ref in dict.fromkeys(trial.steps.values()) if ref.stage not in ("fetch_model", "ceilings")]
    before = [ref for ref in own if ref != trial.steps["drift_text"]]
    assert trial_key(trial) == fingerprint(sorted(ref.fingerprint for ref in before))
