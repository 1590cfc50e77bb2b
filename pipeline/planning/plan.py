"""The plan: from trials and facts to the DAG of steps.  Pure: no file, clock, environment or network."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace

from pipeline.config.schema import Config, TaskConfig, Weights
from pipeline.config.sweep import Trial
from pipeline.errors import UserError
from pipeline.planning.devices import Device
from pipeline.planning.facts import Facts
from pipeline.planning.points import points
from pipeline.planning.resources import resources_of
from pipeline.planning.shards import evaluate_config, shard_ranges
from pipeline.planning.task_facts import TaskFacts, task_key
from pipeline.steps.fingerprint import fingerprint
from pipeline.steps.step import (
    CALIBRATE,
    CEILINGS,
    COMPARE,
    DRIFT,
    DUMMY,
    EVALUATE,
    FETCH_DATASET,
    FETCH_MODEL,
    GATE,
    PROFILE,
    QUANTIZE,
    Stage,
    Step,
    StepRef,
)
from stages.calibrate import CalibrationConfig
from stages.compare.config import CompareConfig
from stages.drift import DriftConfig
from stages.dummy import DummyConfig
from stages.fetch import DatasetSource
from stages.quantize import (
    Algorithm,
    QuantizeConfig,
    check_group_size,
    needs_calibration,
)
from stages.serving.config import CeilingsConfig


@dataclass(slots=True)
class TrialPlan:
    """The steps of one trial by their role."""

    trial: Trial
    model: StepRef
    checkpoint: StepRef
    gate: StepRef | None = None
    calibration: StepRef | None = None
    drift: StepRef | None = None
    evaluations: dict[str, dict[str, list[StepRef]]] = field(default_factory=dict)  # slot -> leaf -> shards
    comparisons: dict[str, StepRef] = field(default_factory=dict)  # slot -> step
    profiles: dict[str, StepRef] = field(default_factory=dict)  # workload/mode -> point
    ceilings: StepRef | None = None  # of the device that the profiles are measured on


@dataclass(slots=True)
class Plan:
    """A sweep's steps, each before its dependants, and its trials by name."""

    name: str
    trials: dict[str, TrialPlan] = field(default_factory=dict)
    steps: dict[StepRef, Step] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the whole plan: the steps of every trial."""
        return fingerprint([self.name, sorted(ref.fingerprint for ref in self.steps)])

    @property
    def num_evaluations(self) -> int:
        """Documents to be answered and scored, over all trials."""
        return sum(step.num_documents for step in self.steps.values())

    def add(self, step: Step) -> StepRef:
        """Put a step into the plan; steps that are the same thing become one, under the first trial that needs them."""
        self.steps.setdefault(step.ref, step)
        return step.ref


def make_plan(name: str, trials: Iterable[Trial], facts: Facts) -> Plan:
    """The plan of a sweep.  Raises UserError for a recipe that does not fit its model."""
    plan = Plan(name)
    trials = list(trials)
    for trial in sorted(trials, key=lambda t: not t.is_base):  # a comparison needs its base's shards
        plan.trials[trial.name] = _add_trial(plan, trial, facts)
    plan.trials = {trial.name: plan.trials[trial.name] for trial in trials}
    return plan


def _add_trial(plan: Plan, trial: Trial, facts: Facts) -> TrialPlan:
    config = replace(trial.config, model=facts.models[trial.config.model.name])
    trial = replace(trial, config=config)
    checkpoint = _add_checkpoint(plan, trial, config, facts)
    for slot, task in config.tasks.items():
        known = facts.tasks[task_key(task)]
        checkpoint.evaluations[slot] = dict(_add_evaluations(plan, checkpoint, config, slot, task, known))
        checkpoint.comparisons[slot] = _add_comparison(plan, checkpoint, config, slot, task, known)
    if config.workloads:
        _add_profiles(plan, checkpoint, config, facts.devices[config.gpu.name])
    return checkpoint


def _add_checkpoint(plan: Plan, trial: Trial, config: Config, facts: Facts) -> TrialPlan:
    model_name = config.model.name
    if config.model.weights is Weights.dummy:
        return _add_dummy(plan, trial, config)
    model = plan.add(_step(config, FETCH_MODEL, config.model.source, model_name, trial=trial.name))
    if config.recipe.algorithm is Algorithm.none:
        return TrialPlan(trial, model, checkpoint=model)
    _check_recipe(config)
    inputs = {"model": model}
    label = f"{model_name}-{config.recipe.name}"
    calibration = None
    if needs_calibration(config.recipe):
        calibration = inputs["calibration"] = _add_text(plan, trial, config, config.calibration, model, facts)
    quantization = QuantizeConfig(recipe=config.recipe, seed=config.seed)
    checkpoint = plan.add(_step(config, QUANTIZE, quantization, label, inputs, trial=trial.name))
    pair = {"base": model, "checkpoint": checkpoint}
    gate = plan.add(_step(config, GATE, config.gate, label, pair, trial=trial.name))
    planned = TrialPlan(trial, model, checkpoint, gate, calibration)
    if config.drift.text is not None:
        text = _add_text(plan, trial, config, config.drift.text, model, facts)
        planned.drift = _add_drift(plan, trial, config, label, {**pair, "text": text}, gate)
    return planned


def _add_dummy(plan: Plan, trial: Trial, config: Config) -> TrialPlan:
    """A shape in place of weights: nothing to fetch, to quantize or to check."""
    assert config.model.shape is not None, "resolve() refuses dummy weights without a shape"
    _check_recipe(config)
    made = DummyConfig(shape=asdict(config.model.shape), recipe=config.recipe)
    checkpoint = plan.add(_step(config, DUMMY, made, f"{config.model.name}-{config.recipe.name}", trial=trial.name))
    return TrialPlan(trial, checkpoint, checkpoint)


def _add_text(
    plan: Plan, trial: Trial, config: Config, text: CalibrationConfig, model: StepRef, facts: Facts
) -> StepRef:
    """Token sequences for a model, to calibrate on or to compare on."""
    inputs = {"model": model}
    if text.dataset is not None:
        source = facts.datasets[text.dataset.repo_id]
        text = replace(text, dataset=source)
        inputs["data"] = _add_dataset(plan, config, source)
    label = f"{config.model.name}-{text.method.name}"
    return plan.add(_step(config, CALIBRATE, text, label, inputs, trial=trial.name))


def _add_drift(
    plan: Plan, trial: Trial, config: Config, label: str, inputs: Mapping[str, StepRef], gate: StepRef
) -> StepRef:
    return plan.add(_step(config, DRIFT, DriftConfig(**asdict(config.compare)), label, inputs, (gate,), trial.name))


def _add_dataset(plan: Plan, config: Config, source: DatasetSource) -> StepRef:
    return plan.add(_step(config, FETCH_DATASET, source, source.repo_id))


def _add_evaluations(
    plan: Plan, trial: TrialPlan, config: Config, slot: str, task: TaskConfig, known: TaskFacts
) -> Iterator[tuple[str, list[StepRef]]]:
    inputs = {"checkpoint": trial.checkpoint}
    inputs |= {f"data:{source.repo_id}": _add_dataset(plan, config, source) for source in known.datasets}
    after = (trial.gate,) if trial.gate else ()
    for leaf, num_docs in known.leaves.items():
        shards = [
            _step(
                config,
                EVALUATE,
                evaluate_config(config, task, leaf, known, start, stop),
                f"{trial.trial.name}-{leaf}-{start:06d}",
                inputs,
                after,
                trial.trial.name,
                num_documents=min(stop, num_docs) - start,
            )
            for start, stop in shard_ranges(num_docs, task)
        ]
        yield leaf, [plan.add(shard) for shard in shards]


def _add_profiles(plan: Plan, trial: TrialPlan, config: Config, device: Device) -> None:
    name = trial.trial.name
    after = (trial.gate,) if trial.gate else ()
    measured = CeilingsConfig(
        device=device.product,
        driver=device.driver,
        on_gpu=config.engine.on_gpu,
        allow_busy_gpu=config.server.allow_busy_gpu,
    )
    trial.ceilings = plan.add(_step(config, CEILINGS, measured, device.product, trial=name))
    for point in points(config, device, config.model.weights is Weights.dummy):
        inputs = {"checkpoint": trial.checkpoint}
        if point.after is not None:
            inputs["throughput"] = trial.profiles[point.after]
        label = f"{name}-{point.name}"
        trial.profiles[point.name] = plan.add(_step(config, PROFILE, point.config, label, inputs, after, name))


def _add_comparison(
    plan: Plan, trial: TrialPlan, config: Config, slot: str, task: TaskConfig, known: TaskFacts
) -> StepRef:
    inputs = _shard_inputs("trial", trial.evaluations[slot])
    if not trial.trial.is_base:
        inputs |= _shard_inputs("base", plan.trials[trial.trial.base].evaluations[slot])
    settings = CompareConfig(
        task=slot,
        leaves=list(known.leaves),
        metric=task.metric,
        weight_by_size=known.weight_by_size,
        random_baseline=task.random_baseline,
        leaf_baselines=_leaf_baselines(slot, task, known),
        **asdict(config.compare),
        num_expected=sum(
            plan.steps[ref].num_documents for shards in trial.evaluations[slot].values() for ref in shards
        ),
        include_paths=config.data.task_paths,
    )
    label = f"{trial.trial.name}-{slot}"
    return plan.add(_step(config, COMPARE, settings, label, inputs, trial=trial.trial.name))


def _leaf_baselines(slot: str, task: TaskConfig, known: TaskFacts) -> dict[str, float]:
    """Those of the leaves that are evaluated."""
    if not task.leaf_baselines:
        return {}
    if lacking := [leaf for leaf in known.leaves if leaf not in task.leaf_baselines]:
        raise UserError(f"tasks.{slot}.leaf_baselines lacks {lacking[0]}: say what guessing scores on it")
    return {leaf: task.leaf_baselines[leaf] for leaf in known.leaves}


def _shard_inputs(role: str, shards: Mapping[str, list[StepRef]]) -> dict[str, StepRef]:
    return {f"{role}/{leaf}/{index:04d}": ref for leaf, refs in shards.items() for index, ref in enumerate(refs)}


def _check_recipe(config: Config) -> None:
    if config.model.shape is None:
        return
    try:
        check_group_size(config.recipe, config.model.shape)
    except ValueError as error:
        raise UserError(f"model {config.model.name}: {error}") from None


def _step(
    config: Config,
    stage: Stage,
    stage_config: object,
    label: str,
    inputs: Mapping[str, StepRef] | None = None,
    after: tuple[StepRef, ...] = (),
    trial: str = "",
    num_documents: int = 0,
) -> Step:
    return Step(
        stage=stage,
        config=stage_config,
        label=label,
        inputs=inputs or {},
        after=after,
        trial=trial,
        resources=resources_of(config, stage),
        num_documents=num_documents,
    )
