"""What ``mode=plan`` says: of each trial and stage what there is to do and what it needs; ``terminal`` prints it."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pipeline.config.schema import Config
from pipeline.planning.memory import GpuMemory, bytes_to_write, gpu_memory
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.planning.power import GatePower, TaskPower, gate_power, power
from pipeline.results.earlier import measured_changes
from pipeline.running.expectation import Expectation, StageCost, expect
from pipeline.running.selection import chosen
from pipeline.steps.roles import slot_of, under
from pipeline.steps.stages import FETCH_DATASET
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from stages.checkpoints.kernels import Answer
from stages.fetch import DatasetSource


@dataclass(frozen=True, slots=True)
class TrialSummary:
    """One trial; ``base`` is None where it is its own, ``memory`` where the model's sizes are not known."""

    name: str
    base: str | None
    num_gpus: float
    memory: GpuMemory | None
    num_evaluations: int
    num_to_run: int  # of the evaluations
    computed: Answer | None = None  # what its format is computed with; None where vLLM computes none


@dataclass(frozen=True, slots=True)
class StageSummary:
    """The steps of one stage; what ``only`` leaves out is in neither number.  ``cost`` is None if nothing is to run."""

    name: str
    num_to_run: int
    num_to_reuse: int
    cost: StageCost | None = None


@dataclass(frozen=True, slots=True)
class PlanSummary:
    """A whole plan; ``missing_data`` are data sets that are nowhere to be had, with who would read them."""

    fingerprint: str
    trials: list[TrialSummary]
    stages: list[StageSummary]
    num_steps: int
    num_steps_to_run: int
    num_evaluations: int
    num_evaluations_to_run: int
    missing_data: dict[str, list[str]]
    expected: Expectation
    bytes_to_write: int
    power: Sequence[TaskPower] = ()
    gates: Sequence[GatePower] = ()
    num_again: int = 0  # of the evaluations, those of what another step evaluates first


def summarize(plan: Plan, store: Store, config: Config) -> PlanSummary:
    """Of a plan, what of it the store lacks, and what of that a run with ``config`` would make."""
    absent = store.missing(plan.steps.values())
    steps = chosen(plan, absent, config.only)
    missing, to_run = ({step.ref for step in some} for some in (absent, steps))
    expected = expect(plan, steps, store, config.cluster)
    tasks = power(plan, measured_changes(plan, store))
    return PlanSummary(
        fingerprint=plan.fingerprint,
        trials=[_trial(plan, trial, to_run) for trial in plan.trials.values()],
        stages=_stages(plan, missing, to_run, {cost.name: cost for cost in expected.stages()}),
        num_steps=len(plan.steps),
        num_steps_to_run=len(to_run),
        num_evaluations=plan.num_evaluations,
        num_evaluations_to_run=_num_documents(plan, to_run),
        missing_data=_missing_data(plan, to_run),
        expected=expected,
        bytes_to_write=bytes_to_write(plan, steps),
        power=tasks,
        gates=gate_power(tasks, config.suites, config.compare.confidence),
        num_again=_num_documents(plan, _again(plan)),
    )


def _trial(plan: Plan, planned: TrialPlan, to_run: set[StepRef]) -> TrialSummary:
    trial, shards = planned.trial, planned.shards
    return TrialSummary(
        name=trial.name,
        base=None if trial.is_base else trial.base,
        num_gpus=trial.config.engine.num_gpus_held,
        memory=gpu_memory(planned),
        num_evaluations=_num_documents(plan, shards),
        num_to_run=_num_documents(plan, to_run.intersection(shards)),
        computed=planned.computed,
    )


def _num_documents(plan: Plan, refs: Iterable[StepRef]) -> int:
    return sum(plan.steps[ref].num_documents for ref in refs)


def _again(plan: Plan) -> Iterator[StepRef]:
    for trial in plan.trials.values():
        yield from under(trial.steps, "answer_again").values()


def _stages(
    plan: Plan, missing: set[StepRef], to_run: set[StepRef], costs: Mapping[str, StageCost]
) -> list[StageSummary]:
    refs: dict[str, list[StepRef]] = {}
    for ref in plan.steps:
        refs.setdefault(ref.stage, []).append(ref)
    return [
        StageSummary(name, sum(ref in to_run for ref in some), sum(ref not in missing for ref in some), costs.get(name))
        for name, some in refs.items()
    ]


def _missing_data(plan: Plan, to_run: set[StepRef]) -> dict[str, list[str]]:
    """By data set the tasks and texts that would read it."""
    found: dict[str, dict[str, None]] = {}
    for name, trial in plan.trials.items():
        for role, ref in trial.steps.items():
            for source in _datasets_read(plan, ref) if ref in to_run else ():
                if source.digest is None and source.revision is None:
                    reader = slot_of(role) or f"the {role.replace('_', ' ')} of {name}"
                    found.setdefault(source.repo_id, {})[reader] = None
    return {name: list(found[name]) for name in sorted(found)}


def _datasets_read(plan: Plan, ref: StepRef) -> list[DatasetSource]:
    inputs = plan.steps[ref].inputs.values()
    return [plan.steps[each].config for each in inputs if each.stage == FETCH_DATASET.name]
