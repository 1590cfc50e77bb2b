"""What a sweep can see, before it runs: of each task the smallest loss, whether a format without any loss could be
called equivalent, and the chance that it passes the gate.  Pure.

All numbers are in points of the scale of the margins, from guessing (0) to perfect (100).
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from pipeline.planning.plan import Plan, TrialPlan
from pipeline.planning.shards import first_run, output_tokens, shards_of
from pipeline.steps.roles import under
from stages.compare.config import CompareConfig
from stages.inference import detectable_difference, documents_needed, fewest_documents, power_not_worse
from stages.report.config import SuiteConfig

GUESSED_FLIPS = {8: 0.02, 4: 0.06}  # of documents, by the bits of a weight
LONG_ANSWER_TOKENS = 100  # answers that may be as long have twice the flips


class Change(NamedTuple):
    """What quantization is taken to do to single documents.

    ``variance`` of a document's difference (which never is more than the share that flips), with what clusters add;
    ``flips`` None where scores are graded.
    """

    variance: float
    flips: float | None
    is_measured: bool = False


Measured = Mapping[tuple[str, str], Change]  # by trial and task slot


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskPower:
    """Of one task under recipes of so many bits; ``num_all`` are the documents that there are, asked or not.

    ``change`` and what follows from it are None where nothing can be foretold.
    """

    task: str
    bits: int
    num_documents: int
    num_all: int
    margin: float
    wide_margin: float
    has_clusters: bool = False  # whose number is not known before
    change: Change | None = None
    error: float | None = None
    raw_error: float | None = None  # in points of the score itself
    detectable: float | None = None  # a loss; None also where not even the largest would be seen
    num_needed: int | None = None  # to be called equivalent
    not_worse: float | None = None  # the chance to be shown not to have lost the wide margin

    @property
    def can_be_equivalent(self) -> bool | None:
        """With the documents that are asked."""
        return None if self.num_needed is None else self.num_needed <= self.num_documents

    @property
    def never_equivalent(self) -> bool:
        """Not even with all documents that there are."""
        return self.num_needed is not None and self.num_needed > self.num_all


def power(plan: Plan, measured: Measured) -> list[TaskPower]:
    """By task and bits; of trials that differ the one that sees least."""
    found: dict[tuple[str, int], TaskPower] = {}
    for planned in plan.trials.values():
        for each in _of_trial(plan, planned, measured):
            other = found.setdefault((each.task, each.bits), each)
            if (each.error or 0.0) > (other.error or 0.0):
                found[each.task, each.bits] = each
    return list(found.values())


@dataclass(frozen=True, slots=True)
class GatePower:
    """Under recipes of so many bits, of each suite and task that is asked of a format before it is shipped, the chance
    that one without any loss is shown to have lost less than the margin.
    """

    bits: int
    parts: Mapping[str, float]

    @property
    def chance(self) -> float:
        """To pass in all of them, as if they were independent, and no other trial looked at."""
        return math.prod(self.parts.values())


def gate_power(tasks: Sequence[TaskPower], suites: Mapping[str, SuiteConfig], confidence: float) -> list[GatePower]:
    """By bits; a suite of which some task cannot be foretold is left out.  Without suites every task is asked."""
    found = []
    for bits in sorted({each.bits for each in tasks}, reverse=True):
        by_task = {each.task: each for each in tasks if each.bits == bits}
        named = [task for suite in suites.values() for task in suite.gate_tasks] if suites else list(by_task)
        alone = {name: by_task[name].not_worse for name in dict.fromkeys(named) if name in by_task}
        means = {name: _of_mean(suite, by_task, confidence) for name, suite in suites.items()}
        parts = {name: chance for name, chance in (means | alone).items() if chance is not None}
        found += [GatePower(bits, parts)] if parts else []
    return found


def _of_mean(suite: SuiteConfig, by_task: Mapping[str, TaskPower], confidence: float) -> float | None:
    """As if no two of its tasks asked the same documents."""
    members = [by_task[task] for task in suite.tasks if task in by_task]
    errors = [each.error if suite.normalized else each.raw_error for each in members]
    known = [error for error in errors if error is not None]
    if len(known) < len(suite.tasks):
        return None
    return power_not_worse(suite.points, math.hypot(*known) / len(known), confidence)


def _of_trial(plan: Plan, planned: TrialPlan, measured: Measured) -> Iterable[TaskPower]:
    bits = planned.num_bits
    if planned.trial.is_base or bits is None:
        return
    for slot, ref in under(planned.steps, "compare").items():
        change: Change | None = measured.get((planned.trial.name, slot)) or _guessed(bits, planned, slot)
        if "loglikelihood_rolling" in planned.tasks[slot].output_types.values():
            change = None  # a perplexity is no share of documents
        yield _task_power(planned, slot, plan.steps[ref].config, change, bits)


def _guessed(bits: int, planned: TrialPlan, slot: str) -> Change:
    task, known = planned.trial.config.tasks[slot], planned.tasks[slot]
    run = first_run(task, known)
    most = [output_tokens(task, known, leaf, shards_of(task, run, leaf)[0]) for leaf in known.leaves]
    is_long = any(tokens is None or tokens > LONG_ANSWER_TOKENS * (task.num_repeats or 1) for tokens in most)
    flips = GUESSED_FLIPS[8 if bits >= 8 else 4] * (2 if is_long else 1)
    num_all = sum(known.leaves.values())
    return Change(flips * max(1.0, num_all / (task.num_clusters or num_all or 1)), flips)


def _task_power(planned: TrialPlan, slot: str, asked: CompareConfig, change: Change | None, bits: int) -> TaskPower:
    task, known = planned.trial.config.tasks[slot], planned.tasks[slot]
    sizes = list(first_run(task, known).sizes.values())
    units = [100 / (1 - asked.baseline_of(leaf)) for leaf in known.leaves]
    found = TaskPower(
        task=slot,
        bits=bits,
        num_documents=sum(sizes),
        num_all=sum(known.leaves.values()),
        margin=asked.margin_points,
        wide_margin=asked.wide_margin_points,
        has_clusters=task.cluster is not None and task.num_clusters is None and not (change and change.is_measured),
        change=change,
    )
    return found if change is None or not all(sizes) else _foretold(found, asked, change, sizes, units)


def _foretold(
    found: TaskPower, asked: CompareConfig, change: Change, sizes: Sequence[int], units: Sequence[float]
) -> TaskPower:
    """By the variance that leaves, as fixed strata, give to the sum of their scores, each times its weight and unit."""
    weights = _weights(asked, sizes)
    unit = math.fsum(weight * each for weight, each in zip(weights, units, strict=True))
    spread = sum((weight * each) ** 2 / n for weight, each, n in zip(weights, units, sizes, strict=True))
    error, margins = math.sqrt(change.variance * spread), (found.margin / unit, found.wide_margin / unit)
    variance = found.num_documents * (error / unit) ** 2
    is_enough = found.num_documents >= fewest_documents(margins[1], asked.confidence)
    return replace(
        found,
        error=error,
        raw_error=100 * error / unit,
        detectable=_detectable(change, error, spread / unit, asked.confidence),
        num_needed=documents_needed(0.0, variance, margins[0], asked.confidence),
        not_worse=power_not_worse(found.wide_margin, error, asked.confidence) if is_enough else 0.0,
    )


def _weights(asked: CompareConfig, sizes: Sequence[int]) -> list[float]:
    """Leaves with unlike baselines count alike, as they do in a comparison."""
    if asked.weight_by_size and not asked.leaf_baselines:
        return [size / sum(sizes) for size in sizes]
    return [1 / len(sizes)] * len(sizes)


def _detectable(change: Change, error: float, spread: float, confidence: float) -> float | None:
    """A loss flips at least as many documents as are lost: one of more than the usual flips brings its own."""
    errors = detectable_difference(1.0, confidence)
    least = errors**2 * spread * change.variance / change.flips if change.flips else 0.0
    found = max(errors * error, least)
    return found if found <= 100 else None
