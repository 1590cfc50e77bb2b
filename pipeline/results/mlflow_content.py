"""What of a trial is shown in tracking: its steps, metrics, parameters, data sets and small files."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any

from pipeline.config.schema import Config
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.step import StepRef
from pipeline.store.store import Store

TASK_METRICS = (
    "score", "recovery", "difference", "difference_low", "difference_high", "n", "num_missing",
    "normalized", "normalized_recovery",
)  # fmt: skip


def trial_refs(trial: TrialPlan) -> list[StepRef]:
    """Every step of a trial's own, in the plan's order."""
    own = [trial.calibration, trial.checkpoint, trial.gate, trial.drift]
    shards = [ref for leaves in trial.evaluations.values() for refs in leaves.values() for ref in refs]
    return [
        *(ref for ref in own if ref is not None),
        *shards,
        *trial.comparisons.values(),
        *trial.profiles.values(),
    ]


def trial_metrics(store: Store, trial: TrialPlan) -> dict[str, float]:
    """Headline numbers of a trial; what could not be measured is not there."""
    found: dict[str, float | None] = {}
    for slot, ref in trial.comparisons.items():
        metrics = (store.manifest(ref) or {}).get("metrics", {})
        found |= {f"{slot}/{name}": metrics.get(name) for name in TASK_METRICS}
    roles = {"checkpoint": trial.checkpoint, "gate": trial.gate, "drift": trial.drift}
    for role, ref_or_none in roles.items():
        manifest = store.manifest(ref_or_none) if ref_or_none else None
        if manifest is not None:
            found |= {f"{role}/{name}": value for name, value in manifest["metrics"].items()}
            found[f"{role}/duration_s"] = _duration_s(manifest)
    for name, ref in trial.profiles.items():
        found |= {f"serve/{name}/{key}": value for key, value in (store.manifest(ref) or {}).get("metrics", {}).items()}
    found["evaluate/duration_s"] = _evaluation_s(store, trial)
    return {name: float(value) for name, value in found.items() if value is not None}


def last_ended_s(store: Store, trial: TrialPlan) -> float:
    """When the newest artifact of a trial was made (Unix seconds); 0 when there is none."""
    manifests = (store.manifest(ref) for ref in trial_refs(trial))
    return max((float(manifest["provenance"]["ended"]) for manifest in manifests if manifest), default=0.0)


def _evaluation_s(store: Store, trial: TrialPlan) -> float | None:
    shards = [ref for leaves in trial.evaluations.values() for refs in leaves.values() for ref in refs]
    durations = [_duration_s(manifest) for ref in shards if (manifest := store.manifest(ref))]
    return sum(durations) if durations else None


def _duration_s(manifest: Mapping[str, Any]) -> float:
    times = manifest["provenance"]
    return round(float(times["ended"]) - float(times["started"]), 3)


def datasets_of(plan: Plan, trial: TrialPlan) -> list[StepRef]:
    read = {ref for own in trial_refs(trial) for ref in plan.steps[own].inputs.values()}
    return sorted(ref for ref in read if ref.stage == "fetch_dataset")


def small_files(trial: TrialPlan) -> Iterator[tuple[StepRef, str, str]]:
    if trial.gate is not None:
        yield trial.checkpoint, "checkpoint", "recipe.yaml"
        yield trial.gate, "gate", "gate.json"
    if trial.drift is not None:
        yield trial.drift, "drift", "drift.*"
    yield trial.checkpoint, "checkpoint", "config.json"
    if trial.calibration is not None:
        yield trial.calibration, "calibration", "*.parquet"
    for leaves in trial.evaluations.values():
        for leaf, shards in leaves.items():
            for index, ref in enumerate(shards):
                yield ref, f"samples/{leaf}/{index:04d}", "*"
    for slot, ref in trial.comparisons.items():
        yield ref, f"comparisons/{slot}", "comparison.*"
    for name, ref in trial.profiles.items():
        yield ref, f"profile/{name}", "*"


def flat_params(config: Config) -> dict[str, Any]:
    """Every knob of a trial as ``group.field``; long tables by leaf are left out."""
    groups: dict[str, Any] = {
        "model": config.model.source,
        "recipe": config.recipe,
        "calibration": config.calibration,
        "gate": config.gate,
        "engine": config.engine,
        "compare": config.compare,
        "drift": config.drift,
        "gpu": config.gpu,
        "server": config.server,
    }
    params = {"model": config.model.name, "recipe": config.recipe.name, "seed": config.seed}
    for group, values in groups.items():
        params |= {key: value for key, value in _flat(asdict(values), group) if value is not None}
    for name, workload in config.workloads.items():
        params |= dict(_flat(asdict(workload), f"workloads.{name}"))
    for slot, task in config.tasks.items():
        shown = {
            key: value for key, value in asdict(task).items() if key not in ("num_docs", "datasets", "leaf_baselines")
        }
        params |= {key: value for key, value in _flat(shown, f"tasks.{slot}") if value is not None}
    return params


def _flat(values: Mapping[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict) and value:
            yield from _flat(value, f"{prefix}.{key}")
        elif isinstance(value, Enum):
            yield f"{prefix}.{key}", value.name
        elif value not in ({}, []):
            yield f"{prefix}.{key}", json.dumps(value) if isinstance(value, list) else value
