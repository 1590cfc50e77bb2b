"""Read a sweep's results from the store: what the terminal, MLflow and notebooks show.

    from pipeline.results.results import load
    smoke = load("results/store", "smoke")
    smoke.summary().to_pandas()

The store is the truth; this module only reads it, and needs no GPU library.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar, cast

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.step import StepRef
from pipeline.store.manifest import file_name
from pipeline.store.store import Store
from stages.compare.artifact import read_rows
from stages.evaluate.artifact import read_samples
from stages.report.artifact import read_serving, read_suites, read_summary

Named = TypeVar("Named")


@dataclass(frozen=True, slots=True)
class TrialRecord:
    """One trial as a finished or running sweep left it on disk."""

    name: str
    base: str
    model: str
    recipe: str
    checkpoint: StepRef
    gate: StepRef | None
    calibration: StepRef | None
    drift: StepRef | None
    evaluations: Mapping[str, Mapping[str, list[StepRef]]]  # task slot -> leaf task -> shards
    comparisons: Mapping[str, StepRef]
    profiles: Mapping[str, StepRef]  # workload/mode -> point
    ceilings: StepRef | None


@dataclass(frozen=True, slots=True)
class Results:
    """A sweep's latest plan, and whatever of it the store holds."""

    store: Store
    name: str
    plan_fingerprint: str
    trials: Mapping[str, TrialRecord]
    report: StepRef | None

    def summary(self) -> pa.Table:
        """One row per trial and task: n, score, recovery, paired difference, their intervals, checkpoint size."""
        return read_summary(self.report_dir())

    def suites(self) -> pa.Table:
        """One row per trial and suite: its mean and recovery, null where a member is missing."""
        return read_suites(self.report_dir())

    def serving(self) -> pa.Table | None:
        """One row per trial, workload and mode: rates, latencies, costs, validity; None if nothing was served."""
        return read_serving(self.report_dir())

    def report_dir(self) -> Path:
        """The directory of the latest report; raises UserError before there is one."""
        found = self.store.find(self.report) if self.report else None
        if found is None:
            raise UserError(f"sweep {self.name!r} has no report yet: run it with python -m pipeline +sweep={self.name}")
        return found

    def comparison(self, trial: str, task: str) -> pa.Table | None:
        """Every metric of a task, per leaf and for the whole; None while the step has no result."""
        found = self.store.find(_named(_named(self.trials, "trial", trial).comparisons, "task", task))
        return None if found is None else read_rows(found)

    def samples(self, trial: str, task: str) -> pa.Table:
        """One row per document of what is evaluated so far, with the column ``leaf`` in front."""
        tables = [
            table.add_column(0, "leaf", pa.array([leaf] * table.num_rows, pa.string()))
            for leaf, shards in _named(_named(self.trials, "trial", trial).evaluations, "task", task).items()
            for ref in shards
            if (found := self.store.find(ref)) is not None
            for table in [read_samples(found)]
        ]
        return pa.concat_tables(tables, promote_options="permissive") if tables else pa.table({})


def _named(found: Mapping[str, Named], kind: str, name: str) -> Named:
    if name not in found:
        raise UserError(f"there is no {kind} {name!r}; there are: {', '.join(found) or 'none'}")
    return found[name]


def load(root: str | Path, name: str, cache: Path | None = None) -> Results:
    """The results of the sweep ``name`` in the store at ``root``; a URL needs a ``cache`` directory of this machine."""
    store = Store(root, cache)
    record = _record(store, name)
    if not record:
        known = [name.removesuffix(".json") for name in store.storage.records("sweeps")]
        raise UserError(f"the store {root} has no sweep {name!r}; it has: {', '.join(known) or 'none'}")
    trials = {trial["name"]: _trial_record(trial) for trial in record["trials"]}
    return Results(store, name, record["plan_fingerprint"], trials, _ref(record["report"]))


def save(store: Store, plan: Plan, report: StepRef | None, environment: Mapping[str, Any] | None = None) -> None:
    """Write down what the sweep consists of, so that its results can be found again without its configs.

    What is not given (``report``) and what is known already (``environment``, of the first run) stays as the same plan
    left it.
    """
    last = _record(store, plan.name)
    if last.get("plan_fingerprint") != plan.fingerprint:
        last = {}
    record = {
        "name": plan.name,
        "plan_fingerprint": plan.fingerprint,
        "environment": last.get("environment") or environment,
        "trials": [_trial_json(trial) for trial in plan.trials.values()],
        "steps": list(plan.steps),  # what garbage collection must leave, before anything is made of it
        "report": report or last.get("report"),
    }
    store.storage.write(_record_name(plan.name), json.dumps(record, indent=1))


def num_replaced(store: Store, plan: Plan) -> int:
    """How many steps of the plan that this sweep's name stood for until now are in the store and not in this plan."""
    steps = [StepRef(*ref) for ref in _record(store, plan.name).get("steps", [])]
    return sum(ref not in plan.steps and store.has(ref) for ref in steps)


def recorded_environment(store: Store, plan: Plan) -> Mapping[str, Any] | None:
    """The environment that a sweep of this name was first run in, whatever its plan was then; None if it never was."""
    return _record(store, plan.name).get("environment")


def _record(store: Store, name: str) -> dict[str, Any]:
    return cast(dict[str, Any], json.loads(store.storage.read(_record_name(name)) or "{}"))


def _record_name(name: str) -> str:
    return f"sweeps/{file_name(name)}.json"


def _trial_json(trial: TrialPlan) -> dict[str, Any]:
    return {
        "name": trial.trial.name,
        "base": trial.trial.base,
        "model": trial.trial.config.model.name,
        "recipe": trial.trial.config.recipe.name,
        "checkpoint": trial.checkpoint,
        "gate": trial.gate,
        "calibration": trial.calibration,
        "drift": trial.drift,
        "evaluations": trial.evaluations,
        "comparisons": trial.comparisons,
        "profiles": trial.profiles,
        "ceilings": trial.ceilings,
    }


def _trial_record(record: Mapping[str, Any]) -> TrialRecord:
    return TrialRecord(
        name=record["name"],
        base=record["base"],
        model=record["model"],
        recipe=record["recipe"],
        checkpoint=StepRef(*record["checkpoint"]),
        gate=_ref(record["gate"]),
        calibration=_ref(record["calibration"]),
        drift=_ref(record.get("drift")),
        evaluations={
            slot: {leaf: [StepRef(*ref) for ref in shards] for leaf, shards in leaves.items()}
            for slot, leaves in record["evaluations"].items()
        },
        comparisons={slot: StepRef(*ref) for slot, ref in record["comparisons"].items()},
        profiles={name: StepRef(*ref) for name, ref in record.get("profiles", {}).items()},
        ceilings=_ref(record.get("ceilings")),
    )


def _ref(pair: list[str] | None) -> StepRef | None:
    return None if pair is None else StepRef(*pair)
