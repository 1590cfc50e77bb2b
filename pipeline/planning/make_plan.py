"""Planning: the steps of each trial, put into the plan after those they need.  Pure, like the plan itself."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, fields, replace
from typing import Any

from pipeline.config.schema import TaskConfig, Weights
from pipeline.config.sweep import Trial
from pipeline.errors import UserError
from pipeline.planning.answers_asked import check_answers_asked
from pipeline.planning.facts import Facts
from pipeline.planning.kernels_asked import check_split, computed, effective, with_emulation
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.planning.published import published_key
from pipeline.planning.resources import resources_of
from pipeline.planning.serving_points import points
from pipeline.planning.shards import (
    Run,
    answer_config,
    first_run,
    output_tokens,
    rerun_of,
    score_config,
    shards_of,
)
from pipeline.planning.task_facts import TaskFacts, task_key
from pipeline.steps.roles import Roles, answers_role, scores_role, shard_role, under
from pipeline.steps.stages import (
    ANSWER,
    CALIBRATE,
    CEILINGS,
    COMPARE,
    DRIFT,
    DUMMY,
    FETCH_DATASET,
    FETCH_MODEL,
    FETCH_PUBLISHED,
    FETCH_TOKENIZER,
    GATE,
    OBSERVE,
    PROFILE,
    QUANTIZE,
    SCORE,
    Stage,
)
from pipeline.steps.step import Step, StepRef
from stages.calibrate import CalibrationConfig
from stages.compare.config import CompareConfig, CompareSettings, Margins
from stages.drift import DriftConfig
from stages.dummy import DummyConfig
from stages.fetch import DatasetSource
from stages.gate.config import ObserveConfig
from stages.quantize import QuantizeConfig, check_fits, family, needs_calibration, weight_format
from stages.serving.config import CeilingsConfig

Inputs = Mapping[str, StepRef]


def make_plan(name: str, trials: Iterable[Trial], facts: Facts) -> Plan:
    """The plan of a sweep.  Raises UserError for a recipe that does not fit its model."""
    plan = Plan(name)
    trials = list(trials)
    again = _asked_again(trials)
    for trial in sorted(trials, key=lambda t: not t.is_base):  # a comparison needs its base's shards
        plan.trials[trial.name] = _Builder(plan, trial, facts, again[trial.name]).build()
    plan.trials = {trial.name: plan.trials[trial.name] for trial in trials}
    return plan


def _asked_again(trials: Iterable[Trial]) -> dict[str, int]:
    """How often each trial is evaluated once more: a base as often as asked, of each format its first trial once."""
    seen: set[str] = set()
    found = {}
    for trial in trials:
        recipe, asked = trial.config.recipe, trial.config.base_reruns
        made = repr([weight_format(recipe), recipe.published, recipe.source])
        found[trial.name] = asked if trial.is_base else min(asked, 1) if made not in seen else 0
        seen.update([] if trial.is_base else [made])
    return found


class _Builder:
    """Adds one trial's steps to a plan, which is evaluated ``num_reruns`` times more."""

    def __init__(self, plan: Plan, trial: Trial, facts: Facts, num_reruns: int) -> None:
        engine, published = facts.engine(trial.config.engine), facts.published.get(published_key(trial.config))
        engine = with_emulation(replace(trial.config, engine=engine), published, facts.vllm)
        self._config = replace(trial.config, model=facts.models[trial.config.model.name], engine=engine)
        self._plan, self._facts, self._num_reruns = plan, facts, num_reruns
        self._planned = TrialPlan(
            replace(trial, config=self._config),
            facts.sizes.get(trial.config.model.name),
            published,
        )
        self._steps = self._planned.steps

    @property
    def _trial(self) -> Trial:
        return self._planned.trial

    @property
    def _after_gate(self) -> tuple[StepRef, ...]:
        """A checkpoint that fails its gate is neither evaluated nor served."""
        return (self._steps["gate"],) if "gate" in self._steps else ()

    def build(self) -> TrialPlan:
        """Everything that the trial's config asks for."""
        self._planned.computed = computed(self._config, self._planned.published, self._facts.vllm, self._trial.name)
        check_split(self._config, self._planned, self._facts.vllm)
        self._add_checkpoint()
        for slot, task in self._config.tasks.items():
            known = self._planned.tasks[slot] = self._facts.tasks[task_key(task)]
            check_answers_asked(self._config, slot, task, known)
            for run in self._runs(task, known):
                self._add_answers(slot, task, known, run)
                self._add_scores(slot, task, known, run)
            self._add_comparison(slot, task, known)
        if self._config.workloads:
            self._add_ceilings()
            self._add_profiles()
        return self._planned

    def _add(
        self,
        role: str,
        stage: Stage,
        config: object,
        label: str,
        inputs: Inputs | None = None,
        after: tuple[StepRef, ...] = (),
        num_documents: int = 0,
        output_tokens: int | None = None,
        family: str = "",
        turn: int = 0,
    ) -> StepRef:
        step = Step(
            stage=stage,
            config=config,
            label=label,
            inputs=inputs or {},
            after=after,
            trial=self._trial.name,
            family=family,
            turn=turn,
            resources=resources_of(self._config, stage),
            num_documents=num_documents,
            output_tokens=output_tokens,
        )
        ref = self._steps[role] = self._plan.add(step)
        return ref

    def _add_dataset(self, source: DatasetSource) -> StepRef:
        """It belongs to no trial: many read it."""
        resources = resources_of(self._config, FETCH_DATASET)
        return self._plan.add(Step(stage=FETCH_DATASET, config=source, label=source.repo_id, resources=resources))

    def _add_checkpoint(self) -> None:
        config, name = self._config, self._config.model.name
        if config.model.weights is Weights.dummy:
            self._add_dummy()
        elif not config.loads_model:
            # Whoever answers, or has answered, has the checkpoint; prompts need the tokenizer.
            self._add("checkpoint", FETCH_TOKENIZER, config.model.source, name)
        elif config.recipe.is_base:
            self._add("checkpoint", FETCH_MODEL, config.model.source, name)
        else:
            self._check_recipe()
            self._add_quantized(self._add("model", FETCH_MODEL, config.model.source, name))

    def _add_dummy(self) -> None:
        """A shape in place of weights: nothing to fetch, to quantize or to check."""
        config = self._config
        assert config.model.shape is not None, "resolve() refuses dummy weights without a shape"
        self._check_recipe()
        made = DummyConfig(shape=asdict(config.model.shape), recipe=config.recipe)
        self._add("checkpoint", DUMMY, made, f"{config.model.name}-{config.recipe.name}")

    def _add_quantized(self, model: StepRef) -> None:
        config = self._config
        label = f"{config.model.name}-{config.recipe.name}"
        pair = {"base": model, "checkpoint": self._add_made(model, label)}
        looked_for = ObserveConfig(num_probe_tokens=config.gate.num_probe_tokens)
        observed = self._add("observed", OBSERVE, looked_for, config.model.name, {"model": model})
        self._add("gate", GATE, config.gate, label, {**pair, "observed": observed})
        if config.drift.text is not None:
            text = self._add_tokens("drift_text", replace(config.drift.text, teaches=False), model)
            settings = DriftConfig(
                confidence=config.compare.confidence,
                num_resamples=config.drift.num_resamples,
                seed=config.drift.seed,
            )
            self._add("drift", DRIFT, settings, label, {**pair, "text": text}, self._after_gate)

    def _add_made(self, model: StepRef, label: str) -> StepRef:
        """A checkpoint of the model: somebody else's, or one that is quantized here."""
        config, inputs = self._config, {"model": model}
        if self._planned.published is not None:
            return self._add("checkpoint", FETCH_PUBLISHED, self._planned.published.source, label, inputs)
        if needs_calibration(config.recipe):
            inputs["calibration"] = self._add_tokens("calibration", config.calibration, model)
        made = QuantizeConfig(recipe=config.recipe, seed=config.seed)
        return self._add("checkpoint", QUANTIZE, made, label, inputs)

    def _add_tokens(self, role: str, text: CalibrationConfig, model: StepRef) -> StepRef:
        """Token sequences for a model, to calibrate on or to compare on."""
        inputs = {"model": model}
        if text.dataset is not None:
            source = self._facts.datasets[text.dataset.repo_id]
            text = replace(text, dataset=source)
            inputs["data"] = self._add_dataset(source)
        return self._add(role, CALIBRATE, text, f"{self._config.model.name}-{text.method.name}", inputs)

    def _runs(self, task: TaskConfig, known: TaskFacts) -> list[Run]:
        first = first_run(task, known)
        again = range(1, self._num_reruns + 1)
        return [first, *(rerun_of(first, number, self._config.rerun_documents) for number in again)]

    def _add_answers(self, slot: str, task: TaskConfig, known: TaskFacts, run: Run) -> None:
        inputs = {"checkpoint": self._planned.checkpoint, **self._data(known)}
        computes = effective(self._config, self._planned.published, self._planned.computed, self._facts.vllm)
        for leaf in known.leaves:
            for index, shard in enumerate(shards_of(task, run, leaf)):
                self._add(
                    shard_role(slot, leaf, index, run.rerun),
                    ANSWER,
                    answer_config(self._config, task, leaf, known, run, shard, computes),
                    f"{self._trial.name}-{leaf}-{shard.label}{run.label}",
                    inputs,
                    self._after_gate,
                    num_documents=shard.num_documents,
                    output_tokens=output_tokens(task, known, leaf, shard),
                    family=self._family,
                )

    def _add_scores(self, slot: str, task: TaskConfig, known: TaskFacts, run: Run) -> None:
        inputs = {**under(self._steps, answers_role(slot, run.rerun)), **self._data(known)}
        settings, label = score_config(self._config, task, known, run), f"{self._trial.name}-{slot}{run.label}"
        self._add(scores_role(slot, run.rerun), SCORE, settings, label, inputs)

    def _data(self, known: TaskFacts) -> dict[str, StepRef]:
        return {f"data:{source.repo_id}": self._add_dataset(source) for source in known.datasets}

    @property
    def _family(self) -> str:
        """Of the quantized checkpoints of one model those in one format: an open engine may exchange their weights."""
        recipe = self._config.recipe
        is_foretold = "model" in self._steps and self._planned.published is None
        if not is_foretold or not self._config.engine.exchange_weights:
            return ""
        return f"{self._steps['model'].fingerprint} {family(recipe)}"

    def _add_comparison(self, slot: str, task: TaskConfig, known: TaskFacts) -> None:
        inputs = _scores_of("trial", slot, self._steps)
        if not self._trial.is_base:
            inputs |= _scores_of("base", slot, self._plan.trials[self._trial.base].steps)
        settings = CompareConfig(
            task=slot,
            leaves=list(known.leaves),
            metric=task.metric or known.metric,
            weight_by_size=known.weight_by_size,
            random_baseline=task.random_baseline,
            leaf_baselines=_leaf_baselines(slot, task, known),
            num_expected=sum(first_run(task, known).sizes.values()),
            include_paths=self._config.data.task_paths,
            **_compare_settings(self._config.compare, slot, task),
        )
        self._add(f"compare/{slot}", COMPARE, settings, f"{self._trial.name}-{slot}", inputs)

    def _add_ceilings(self) -> None:
        device = self._facts.devices[self._config.gpu.name]
        measured = CeilingsConfig(
            device=device.product,
            driver=device.driver,
            on_gpu=self._config.engine.on_gpu,
            allow_busy_gpu=self._config.server.allow_busy_gpu,
        )
        self._add("ceilings", CEILINGS, measured, device.product)

    def _add_profiles(self) -> None:
        config, device = self._config, self._facts.devices[self._config.gpu.name]
        for point in points(config, device, config.model.weights is Weights.dummy):
            inputs = {"checkpoint": self._planned.checkpoint}
            if point.after is not None:
                inputs["throughput"] = self._steps[f"profile/{point.after}"]
            label = f"{self._trial.name}-{point.name}"
            role, turn = f"profile/{point.name}", point.config.start - 1
            self._add(role, PROFILE, point.config, label, inputs, self._after_gate, turn=turn)

    def _check_recipe(self) -> None:
        if self._planned.sizes is None:
            return
        try:
            check_fits(self._config.recipe, self._planned.sizes)
        except ValueError as error:
            raise UserError(f"model {self._config.model.name}: {error}") from None


def _scores_of(side: str, slot: str, steps: Roles) -> dict[str, StepRef]:
    """Those of the first run, and of each rerun."""
    again = under(steps, "score_again", slot)
    first = {f"{side}/scores": steps[scores_role(slot)]}
    return first | {f"{side}_rerun/{number}/scores": ref for number, ref in again.items()}


def _compare_settings(settings: CompareSettings, slot: str, task: TaskConfig) -> dict[str, Any]:
    """What all comparisons are asked, with the task's own margins."""
    own = {each.name: getattr(task, each.name) for each in fields(Margins)}
    found = asdict(settings) | {name: value for name, value in own.items() if value is not None}
    try:
        Margins(**{name: found[name] for name in own}).check_margins(f"tasks.{slot}")
    except ValueError as error:
        raise UserError(str(error)) from None
    return found


def _leaf_baselines(slot: str, task: TaskConfig, known: TaskFacts) -> dict[str, float]:
    """Those of the leaves that are evaluated."""
    if not task.leaf_baselines:
        return {}
    if lacking := [leaf for leaf in known.leaves if leaf not in task.leaf_baselines]:
        raise UserError(f"tasks.{slot}.leaf_baselines lacks {lacking[0]}: say what guessing scores on it")
    return {leaf: task.leaf_baselines[leaf] for leaf in known.leaves}
