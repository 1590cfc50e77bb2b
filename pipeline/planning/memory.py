"""How much GPU memory and disk a trial needs, from its model's sizes, before a byte of it is fetched."""

from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.config.schema import Weights
from pipeline.errors import UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.stages import FETCH_TOKENIZER
from pipeline.steps.step import Step, StepRef
from stages.units import GIB


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """What an engine needs at least: the weights, and the keys and values of one full context (None: not known)."""

    weights_gib: float
    context_gib: float | None
    num_ranks: int

    @property
    def per_gpu_gib(self) -> float:
        return (self.weights_gib + (self.context_gib or 0.0)) / self.num_ranks


def gpu_memory(planned: TrialPlan) -> GpuMemory | None:
    """The floor for a trial's engine; None when the weights' size is not known, or nothing is loaded here."""
    engine, weights_gib = planned.trial.config.engine, planned.checkpoint_gib
    if weights_gib is None or engine.is_elsewhere:
        return None
    context_gib = None if planned.sizes is None else planned.sizes.kv_cache_gib(engine.max_model_len)
    if context_gib is not None and planned.published is not None and planned.published.has_narrow_cache:
        context_gib /= 2
    return GpuMemory(weights_gib, context_gib, engine.num_ranks)


def check_gpu_memory(plan: Plan) -> None:
    """Raise UserError for a trial that cannot fit the GPUs that ``engine.gpu_memory_gib`` describes."""
    for planned in plan.trials.values():
        trial, memory = planned.trial, gpu_memory(planned)
        engine = trial.config.engine
        if not engine.on_gpu or engine.gpu_memory_gib is None or memory is None:
            continue
        needed_gib, usable_gib = memory.per_gpu_gib, engine.gpu_memory_gib * engine.memory_share
        if (kept_gib := engine.kv_cache_gib) is not None:
            if kept_gib < (context_gib := (memory.context_gib or 0.0) / engine.num_ranks):
                raise UserError(
                    f"{trial.name} needs {context_gib:.2f} GiB on each GPU for the keys and values of one context of "
                    f"{engine.max_model_len} tokens: raise engine.kv_cache_gib={kept_gib:g}, or lower "
                    "engine.max_model_len"
                )
            needed_gib += kept_gib - context_gib
        if needed_gib > usable_gib:
            raise UserError(
                f"{trial.name} needs {needed_gib:.0f} GiB on each of {engine.num_ranks} GPUs, which can use "
                f"{usable_gib:.0f} of {engine.gpu_memory_gib:g}: raise engine.tensor_parallel_size, lower "
                "engine.max_model_len or engine.kv_cache_gib, or correct engine.gpu_memory_gib"
            )


def bytes_to_write(plan: Plan, missing: Iterable[Step]) -> int:
    """A floor for the disk space a run needs: the weights it will write."""
    absent = {step.ref for step in missing}
    needed: dict[StepRef, float] = {}
    for trial in plan.trials.values():
        if trial.trial.config.model.weights is Weights.dummy:
            continue
        if trial.model.stage != FETCH_TOKENIZER.name:
            needed[trial.model] = trial.model_gib or 0.0
        if trial.checkpoint != trial.model:
            needed[trial.checkpoint] = trial.checkpoint_gib or 0.0
    return int(sum(gib * GIB for ref, gib in needed.items() if ref in absent))
