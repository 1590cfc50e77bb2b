"""The report step: what the store holds of a sweep, and what it does not and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields

from pipeline.config.schema import Config, Weights
from pipeline.errors import FailureClass
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.results.environment import changes
from pipeline.results.spent import costs_of
from pipeline.steps.roles import kind_of, slot_of, under
from pipeline.steps.stages import FETCH_PUBLISHED, REPORT
from pipeline.steps.step import Step, StepRef
from pipeline.store.store import Store
from stages.checkpoints.loadable import DEQUANTIZED
from stages.evaluate.config import EngineKind
from stages.published import Described, read_described
from stages.report.config import FailureRow, ReportConfig, ServingConfig, SuiteRow, TrialRow

_UNREAD = "are not loaded and in no checkpoint"


def report_step(plan: Plan, config: Config, store: Store) -> Step:
    """The report of the artifacts published so far, and of what they took: the same artifacts give the same report."""
    inputs = {name: ref for name, ref in _report_inputs(plan) if store.has(ref)}
    return Step(
        stage=REPORT,
        config=ReportConfig(
            title=plan.name,
            trials=[_trial_row(plan, trial, store) for trial in plan.trials.values()],
            tasks=list(dict.fromkeys(slot for trial in plan.trials.values() for slot in under(trial.steps, "compare"))),
            suites=[
                SuiteRow(**{each.name: getattr(suite, each.name) for each in fields(suite)}, name=name)
                for name, suite in config.suites.items()
            ],
            failures=list(_failures(plan, store)),
            serving=_serving(plan, config),
            costs=costs_of(plan, store),
            data=_data(plan),
        ),
        label=plan.name,
        inputs=inputs,
    )


def _report_inputs(plan: Plan) -> Iterator[tuple[str, StepRef]]:
    """Named by role, with the trial behind its kind: ``compare/TRIAL/mmlu``."""
    for name, trial in plan.trials.items():
        for role, ref in trial.steps.items():
            if plan.steps[ref].stage.in_report:
                kind, slash, rest = role.partition("/")
                yield f"{kind}/{name}{slash}{rest}", ref


def _data(plan: Plan) -> dict[str, list[str]]:
    """The data sets that each task reads, as its scores name them."""
    found: dict[str, dict[str, None]] = {}
    for trial in plan.trials.values():
        for slot, ref in under(trial.steps, "score").items():
            names = [name.removeprefix("data:") for name in plan.steps[ref].inputs if name.startswith("data:")]
            if names:
                found.setdefault(slot, {}).update(dict.fromkeys(names))
    return {slot: list(names) for slot, names in found.items()}


def _serving(plan: Plan, config: Config) -> ServingConfig | None:
    """Prices as they are now: a new price makes a new report, and no measurement again."""
    served = {name: trial.trial.config for name, trial in plan.trials.items() if under(trial.steps, "profile")}
    if not served:
        return None
    gpus = {each.gpu.name: each.gpu for each in served.values()}
    return ServingConfig(
        gpus=list(gpus.values()),
        gpu_of={name: each.gpu.name for name, each in served.items()},
        mixes={name: {workload: float(share) for workload, share in mix.items()} for name, mix in config.mixes.items()},
        slo=config.slo,
    )


def _trial_row(plan: Plan, trial: TrialPlan, store: Store) -> TrialRow:
    metrics = (store.manifest(trial.checkpoint) or {}).get("metrics", {})
    config = trial.trial.config
    return TrialRow(
        name=trial.trial.name,
        model=config.model.name,
        recipe=config.recipe.name,
        is_base=trial.trial.is_base,
        base=trial.trial.base,
        notes=_notes(config, metrics),
        mixed=_mixed([trial, plan.trials[trial.trial.base]], store),
        rounded=_rounded(metrics),
        quantized=_quantized(trial, store),
        computed=trial.computed.caution if trial.computed else _unrounded(trial, store),
        size_gib=metrics.get("size_gib"),
    )


def _quantized(trial: TrialPlan, store: Store) -> str | None:
    """What the headers of somebody else's checkpoint say, and the note of whoever listed it."""
    if trial.published is None:
        return None
    described = _described(trial, store)
    words = None if described is None else described.words
    return ". ".join(each for each in (words, trial.published.source.note) if each) or None


def _unrounded(trial: TrialPlan, store: Store) -> str | None:
    """That transformers makes dense weights of its form, and computes with those alone."""
    described = _described(trial, store)
    is_read_here = trial.trial.config.engine.kind is EngineKind.transformers
    if not is_read_here or described is None or described.method not in DEQUANTIZED or described.rounds is None:
        return None
    return (
        f"transformers computes with its dequantized weights alone and rounds no activation to {described.rounds}: "
        "another result than that of an engine which multiplies as the format says"
    )


def _described(trial: TrialPlan, store: Store) -> Described | None:
    is_there = trial.checkpoint.stage == FETCH_PUBLISHED.name and store.has(trial.checkpoint)
    return read_described(store.path(trial.checkpoint)) if is_there else None


def _rounded(metrics: Mapping[str, float | None]) -> str | None:
    if not (num_rounded := metrics.get("num_rounded_layers")):
        return None
    return (
        f"GPTQ could not invert the second moments of {num_rounded:g} of {metrics['num_gptq_layers']:g} layers and "
        "rounded these to nearest: raise recipe.dampening_frac or calibrate on more tokens"
    )


def _notes(config: Config, metrics: Mapping[str, float | None]) -> str | None:
    """What the plan noted of the model, and what its loader left out where a plan could not see that."""
    if config.model.weights is Weights.dummy:
        return "Random weights of the model's shape: its speed is measured, its answers mean nothing."
    if not (num_unread := metrics.get("num_unread")) or (config.model.note and _UNREAD in config.model.note):
        return config.model.note
    unread = f"{num_unread:g} tensors of the base's files {_UNREAD}: the log of its fetch step names them."
    return " ".join(filter(None, [config.model.note, unread]))


def _mixed(compared: Sequence[TrialPlan], store: Store) -> str | None:
    """In what the environments differ that the shards of a trial and its base were made in; None when it was one."""
    first, *others = store.environments(ref for trial in compared for ref in trial.shards) or [{}]
    found = [line for other in others for line in changes(first, other)]
    return f"made in different environments: {'; '.join(dict.fromkeys(found))}" if found else None


def _failures(plan: Plan, store: Store) -> Iterator[FailureRow]:
    task_of = {ref: _task_of(role) for trial in plan.trials.values() for role, ref in trial.steps.items()}
    for step in store.missing(plan.steps.values()):
        failure = store.ledger.last_failure(step.ref)
        if failure is None:
            status, failure_class, message = "missing", None, "not run yet"
        else:
            status = "skipped" if failure.failure_class is FailureClass.upstream else "failed"
            failure_class, message = failure.failure_class.value, failure.message
        yield FailureRow(
            step=step.ref.short,
            trial=step.trial or None,
            task=task_of.get(step.ref),
            status=status,
            failure_class=failure_class,
            message=message,
        )


def _task_of(role: str) -> str | None:
    """The report's name for what a step is about: a task, or a workload and its mode."""
    return role.partition("/")[2] if kind_of(role) == "profile" else slot_of(role)
