"""What of a trial is shown in tracking: its steps, metrics, parameters, data sets and small files."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict
from enum import Enum
from typing import Any, NamedTuple

from pipeline.config.schema import Config
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.fingerprint import fingerprint
from pipeline.steps.roles import kind_of, slot_of
from pipeline.steps.stages import FETCH_DATASET
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from stages.published import QUANTIZED


class Shown(NamedTuple):
    """What is shown of the steps of a stage; everything they printed is shown anyway."""

    metrics: tuple[str, ...] | None = None  # None: all
    by_slot: bool = False  # under the task's name alone, not under the role
    files: tuple[str, ...] = ("*",)


_CHECKPOINT = Shown(files=("config.json", "recipe.yaml", QUANTIZED))  # weights stay in the store
# A stage that is not here is shown whole, under its role.
SHOWN: Mapping[str, Shown] = {
    "compare": Shown(
        metrics=(
            "score", "recovery", "difference", "difference_low", "difference_high", "n", "num_missing", "num_cut",
            "num_cut_in_thoughts", "num_stopped", "finished_score", "normalized", "normalized_recovery",
            "normalized_difference", "difference_p", "margin", "num_base_only_right", "num_trial_only_right",
            "num_clusters", "design_effect", "num_needed",
        ),
        by_slot=True,
        files=("comparison.*",),
    ),
    "answer": Shown(metrics=(), files=("answers.json",)),  # every token stays in the store
    "score": Shown(metrics=()),
}  # fmt: skip
# Shared with other trials: what is known of a trial by its own steps stays known, whichever of these are shown.
_SHARED_ROLES = ("model", "drift_text", "ceilings")


def trial_key(trial: TrialPlan) -> str:
    """What a trial's run is found by."""
    own = {ref for role, ref in trial.steps.items() if role not in _SHARED_ROLES}
    return fingerprint(sorted(ref.fingerprint for ref in own))


class TrialMetrics(NamedTuple):
    """Numbers of a trial's tasks, and of its other steps."""

    of_tasks: dict[str, float]
    of_steps: dict[str, float]


def trial_metrics(store: Store, plan: Plan, trial: TrialPlan) -> TrialMetrics:
    """What the stages say of a trial's steps, by role, and what each kind took; what is unknown is not there."""
    of_tasks: dict[str, float | None] = {}
    of_steps: dict[str, float | None] = {}
    durations_s: dict[str, float] = {}
    for role, ref in trial.steps.items():
        if (manifest := store.manifest(ref)) is None:
            continue
        shown, metrics = _shown(plan, ref), manifest["metrics"]
        place = slot_of(role) if shown.by_slot else role
        names = metrics if shown.metrics is None else shown.metrics
        found = of_tasks if shown.by_slot else of_steps
        found |= {f"{place}/{name}": metrics.get(name) for name in names}
        if (duration_s := _duration_s(manifest)) is not None:
            took = f"{kind_of(role)}/duration_s"
            durations_s[took] = durations_s.get(took, 0.0) + duration_s
    return TrialMetrics(_known(of_tasks), _known({**of_steps, **durations_s}))


def _known(values: Mapping[str, float | None]) -> dict[str, float]:
    return {name: float(value) for name, value in values.items() if value is not None}


def last_ended_s(store: Store, trial: TrialPlan) -> float:
    """When the newest artifact of a trial was made (Unix seconds); 0 when there is none."""
    manifests = (store.manifest(ref) for ref in trial.steps.values())
    return max((float(manifest["provenance"].get("ended", 0)) for manifest in manifests if manifest), default=0.0)


def _duration_s(manifest: Mapping[str, Any]) -> float | None:
    times = manifest["provenance"]
    if "started" not in times or "ended" not in times:
        return None
    return round(float(times["ended"]) - float(times["started"]), 3)


def datasets_of(plan: Plan, trial: TrialPlan) -> list[StepRef]:
    read = {ref for own in trial.steps.values() for ref in plan.steps[own].inputs.values()}
    return sorted(ref for ref in read if ref.stage == FETCH_DATASET.name)


def small_files(plan: Plan, trial: TrialPlan) -> Iterator[tuple[StepRef, str, str]]:
    """Steps, the folder that shows each, and globs of its files; weights stay in the store."""
    for role, ref in trial.steps.items():
        yield from ((ref, role, pattern) for pattern in _shown(plan, ref).files)


def content_of(plan: Plan, refs: Iterable[StepRef]) -> str:
    """A digest of what is shown of published steps: of which, and how much of each."""
    return fingerprint([[list(ref), list(_shown(plan, ref))] for ref in refs])


def _shown(plan: Plan, ref: StepRef) -> Shown:
    return _CHECKPOINT if plan.steps[ref].stage.makes_checkpoint else SHOWN.get(ref.stage, Shown())


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
    if config.published is not None:
        groups["published"] = config.published
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
