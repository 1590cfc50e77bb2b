"""Mirror a sweep into MLflow: an experiment per sweep, a parent run per plan, a child run per trial.

The store is the truth and MLflow the place to review it.  Writing is idempotent, keyed by fingerprint: mirroring
twice changes nothing, and mirroring after the server was away catches up.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from pipeline.config.execution import TrackingConfig
from pipeline.config.schema import Config
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.results import mlflow_place
from pipeline.results.mlflow_content import (
    content_of,
    datasets_of,
    flat_params,
    last_ended_s,
    small_files,
    trial_key,
    trial_metrics,
)
from pipeline.results.mlflow_frame import for_frame
from pipeline.results.mlflow_numbers import metrics
from pipeline.results.mlflow_review import is_reviewed, parent_review, trial_review
from pipeline.results.mlflow_review_writing import write_experiment, write_review
from pipeline.results.mlflow_table import TABLES_TAG, TAGGED, write_table
from pipeline.results.mlflow_view import address, run_name
from pipeline.running.capture import log_path
from pipeline.store.provenance import git_state, package_versions
from pipeline.store.store import Store
from stages.errors import redacted
from stages.report.artifact import HTML, Summary, read_document

COMPUTED_TAG = "computed_by"
PLAN_TAG, TRIAL_TAG, PARENT_TAG = "plan_fingerprint", "trial_fingerprint", "mlflow.parentRunId"
CONTENT_TAG = "digest.content"  # a digest of what a run shows: nothing is written twice
STORE_TAG = "store"
MAX_PARAMS_A_CALL, MAX_RUNS = 100, 10_000


@dataclass(frozen=True, slots=True)
class Mirror:
    """Writes one plan's state into MLflow."""

    plan: Plan
    store: Store
    settings: TrackingConfig

    def write(self, report: Path | None = None, status: str = "RUNNING") -> str:
        """Bring MLflow up to date with the store; returns the address of its runs, behind the host.

        Raises what the MLflow client raises.
        """
        client, experiment_id = self._connect()
        self._close_predecessors(client, experiment_id)
        tags = {STORE_TAG: self._owner}
        parent = self._run(client, experiment_id, PLAN_TAG, self.plan.fingerprint, self.plan.name, tags)
        document = None if report is None else read_document(report)
        parent_id = parent.info.run_id
        runs: dict[str, str] = {}
        for trial in self.plan.trials.values():
            run = self._trial_run(client, experiment_id, parent_id, trial)
            runs[trial.trial.name] = run.info.run_id
            if document is not None:  # first: MLflow's pages show metrics in the order in which they came
                review = trial_review(document, trial.trial.name, experiment_id, parent_id, run.info.run_id)
                if review is not None:
                    write_review(client, run, review)
            self._write_trial(client, run, trial, status)
        if report is not None and document is not None:
            self._write_report(client, parent, report, document, runs)
            write_experiment(client, parent, document)
        _set_status(client, parent, status)
        return address(experiment_id)

    def end(self, status: str) -> None:
        """Say of this plan's run how it ended, if MLflow shows it as running; nothing else is written."""
        client, experiment_id = self._connect(is_hasty=True)
        own = self._running(client, experiment_id, lambda run: run.data.tags.get(PLAN_TAG) == self.plan.fingerprint)
        for run in own:
            client.set_terminated(run.info.run_id, status)

    def _close_predecessors(self, client: Any, experiment_id: str) -> None:
        """What drivers that died left running under this sweep's name; one that lives says so again in a minute."""

        def is_predecessor(run: Any) -> bool:
            tags = run.data.tags
            is_other = tags.get(PLAN_TAG, self.plan.fingerprint) != self.plan.fingerprint
            is_ours = run.info.run_name == self.plan.name and tags.get(STORE_TAG, self._owner) == self._owner
            return bool(is_other and is_ours)

        for run in self._running(client, experiment_id, is_predecessor):
            client.set_terminated(run.info.run_id, "KILLED")

    def _running(self, client: Any, experiment_id: str, is_meant: Callable[[Any], bool]) -> list[Any]:
        """Runs of plans that MLflow shows as running, and those of their trials."""
        found = client.search_runs([experiment_id], "attributes.status = 'RUNNING'", max_results=MAX_RUNS)
        parents = {run.info.run_id for run in found if is_meant(run)}
        return [run for run in found if parents & {run.info.run_id, run.data.tags.get(PARENT_TAG)}]

    @property
    def _owner(self) -> str:
        """Which store a plan's run is of: a server may be shared by several with sweeps of one name."""
        return redacted(str(self.store.address.root))

    def _connect(self, is_hasty: bool = False) -> tuple[Any, str]:
        place = mlflow_place.place_of(self.settings, self.store.local)
        client = mlflow_place.connect(place, is_hasty)
        return client, mlflow_place.experiment_id(client, place, self.settings.experiment or self.plan.name)

    def _run(self, client: Any, experiment_id: str, key: str, value: str, name: str, tags: Mapping[str, str]) -> Any:
        """The run with this fingerprint, made if there is none."""
        under = f" and tags.`{PARENT_TAG}` = '{tags[PARENT_TAG]}'" if PARENT_TAG in tags else ""

        def first() -> Any:
            order = ["attributes.start_time ASC", "attributes.run_id ASC"]
            found = client.search_runs([experiment_id], f"tags.{key} = '{value}'{under}", max_results=1, order_by=order)
            return found[0] if found else None

        if (found := first()) is not None:
            return found
        created = client.create_run(experiment_id, run_name=name, tags={key: value, **tags, **_circumstances()})
        # Another driver may have made one in the same moment: both keep the first.
        if (kept := first() or created).info.run_id != created.info.run_id:
            client.delete_run(created.info.run_id)
        return kept

    def _trial_run(self, client: Any, experiment_id: str, parent_id: str, trial: TrialPlan) -> Any:
        tags = {PARENT_TAG: parent_id, "model": trial.trial.config.model.name, "recipe": trial.trial.config.recipe.name}
        if trial.computed is not None and trial.computed.kernels:
            tags[COMPUTED_TAG] = trial.computed.shown
        name = trial.trial.name
        tags["trial"] = name
        run = self._run(client, experiment_id, TRIAL_TAG, trial_key(trial), run_name(name), tags)
        if run.info.run_name == name:  # of an earlier version; what a person has named it stays
            client.update_run(run.info.run_id, name=run_name(name))
        return run

    def _write_trial(self, client: Any, run: Any, trial: TrialPlan, status: str) -> None:
        steps = dict.fromkeys(trial.steps.values())
        present = [ref for ref in steps if self.store.has(ref)]
        complete = len(present) == len(steps)
        # While a trial is at work only its scores are shown, or what came before them would stand above them for ever.
        is_over = complete or status != "RUNNING"
        content = content_of(self.plan, present) if is_over else f"{content_of(self.plan, present)} at work"
        _set_status(client, run, "FINISHED" if complete else status)
        if run.data.tags.get(CONTENT_TAG) == content:
            return
        _log_params(client, run, trial.trial.config)
        # The time is the artifacts' own: the same values written again are the same rows.
        of_tasks, of_steps = trial_metrics(self.store, self.plan, trial)
        present_keys = {key for key in run.data.metrics if not is_reviewed(key)}
        values = of_tasks | {key: value for key, value in of_steps.items() if is_over or key in present_keys}
        gone = dict.fromkeys(present_keys - values.keys(), math.nan)
        _log_metrics(client, run, {**values, **gone}, last_ended_s(self.store, trial))
        self._log_inputs(client, run.info.run_id, trial)
        for local, remote in self._artifacts(trial):
            client.log_artifact(run.info.run_id, str(local), remote)
        self._log_table(client, run.info.run_id, trial)
        client.set_tag(run.info.run_id, CONTENT_TAG, content)

    def _log_inputs(self, client: Any, run_id: str, trial: TrialPlan) -> None:
        from mlflow.entities import Dataset, DatasetInput, InputTag

        inputs = [
            DatasetInput(
                Dataset(name=config["repo_id"], digest=ref.fingerprint[:12], source_type="store", source=str(path)),
                [InputTag("mlflow.data.context", "evaluation")],
            )
            for ref in datasets_of(self.plan, trial)
            if (path := self.store.find(ref)) is not None
            for config in [self.plan.steps[ref].payload[3]]
        ]
        if inputs:
            client.log_inputs(run_id, datasets=inputs)

    def _log_table(self, client: Any, run_id: str, trial: TrialPlan) -> None:
        with TemporaryDirectory(prefix="mlflow_table_") as directory:
            if (table := write_table(self.store, self.plan, trial, Path(directory))) is not None:
                client.log_artifact(run_id, str(table))
                client.set_tag(run_id, TABLES_TAG, TAGGED)

    def _artifacts(self, trial: TrialPlan) -> Iterator[tuple[Path, str]]:
        """Local files and the artifact folder each goes to; weights stay in the store."""
        for ref, folder, pattern in small_files(self.plan, trial):
            if (path := self.store.find(ref)) is not None:
                yield from ((file, folder) for file in sorted(path.glob(pattern)))
        for ref in dict.fromkeys(trial.steps.values()):
            log = self.store.find_log(log_path(self.store.local, self.plan.steps[ref]))
            if log is not None:
                yield log, f"logs/{ref.stage}"

    def _write_report(self, client: Any, parent: Any, report: Path, document: Summary, runs: Mapping[str, str]) -> None:
        experiment_id, run_id = parent.info.experiment_id, parent.info.run_id
        if parent.data.tags.get(CONTENT_TAG) != report.name:
            client.log_artifacts(run_id, str(report), "report")
            with TemporaryDirectory(prefix="mlflow_report_") as directory:
                framed = Path(directory) / HTML
                framed.write_text(for_frame((report / HTML).read_text(encoding="utf-8")), encoding="utf-8")
                client.log_artifact(run_id, str(framed), "report")
            client.set_tag(run_id, CONTENT_TAG, report.name)
        write_review(client, parent, parent_review(document, experiment_id, run_id, runs))


def _log_metrics(client: Any, run: Any, values: Mapping[str, float], at_s: float) -> None:
    """Of two values of one metric MLflow shows the later one."""
    if values:
        client.log_batch(run.info.run_id, metrics=metrics(values, int(at_s * 1000)))


def _log_params(client: Any, run: Any, config: Config) -> None:
    from mlflow.entities import Param

    params = [
        Param(key, redacted(str(value))[:6000])
        for key, value in flat_params(config).items()
        if key not in run.data.params
    ]
    for first in range(0, len(params), MAX_PARAMS_A_CALL):
        client.log_batch(run.info.run_id, params=params[first : first + MAX_PARAMS_A_CALL])


def _set_status(client: Any, run: Any, status: str) -> None:
    if run.info.status == status:
        return
    if status == "RUNNING":
        client.update_run(run.info.run_id, status=status)
    else:
        client.set_terminated(run.info.run_id, status)


def _circumstances() -> dict[str, str]:
    git = git_state(Path(__file__).resolve().parent)
    versions = {f"version.{name}": version for name, version in package_versions().items()}
    return versions | ({"git_commit": git["commit"], "git_dirty": str(git["dirty"])} if git else {})
