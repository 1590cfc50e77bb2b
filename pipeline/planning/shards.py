"""Shards: how the documents of a leaf task are divided among evaluation steps, and what each of those asks."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from pipeline.config.schema import Config, LimitOrder, TaskConfig
from pipeline.planning.task_facts import TaskFacts
from stages.evaluate.config import (
    SCORING_SETTINGS,
    SIMULATION_VERSION,
    AnswerConfig,
    EngineConfig,
    EngineKind,
    LeafConfig,
    PromptConfig,
    ScoreConfig,
    ScoringConfig,
)


@dataclass(frozen=True, slots=True)
class Shard:
    """Documents ``start`` to ``stop`` (half open) of a leaf, and which of their repeats; None: all there are."""

    start: int
    stop: int
    num_documents: int
    repeats: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """Part of the name of its artifact."""
        return f"{self.start:06d}" if self.repeats is None else f"{self.start:06d}-{self.repeats[0]:04d}"


@dataclass(frozen=True, slots=True)
class Run:
    """One evaluation of a task slot: so many documents of each leaf, for the first time (0) or again."""

    sizes: Mapping[str, int]
    rerun: int = 0

    @property
    def label(self) -> str:
        """Part of the names of its artifacts."""
        return f"-rerun{self.rerun}" if self.rerun else ""


def first_run(task: TaskConfig, known: TaskFacts) -> Run:
    """Of all documents that are asked."""
    return Run({leaf: num_asked(task, known, leaf) for leaf in known.leaves})


def rerun_of(first: Run, number: int, most: int) -> Run:
    """Of ``most`` documents of the first run, from each leaf its share of them, and at least one."""
    whole = max(most, sum(first.sizes.values()))
    ends = itertools.accumulate(first.sizes.values(), initial=0)
    shares = [stop - start for start, stop in itertools.pairwise(end * most // whole for end in ends)]
    if whole == most:
        return Run(first.sizes, number)
    return Run(
        {leaf: max(share, min(size, 1)) for (leaf, size), share in zip(first.sizes.items(), shares, strict=True)},
        number,
    )


def shards_of(task: TaskConfig, run: Run, leaf: str) -> list[Shard]:
    """How a leaf is divided: ``shard_size`` counts answers, so that of many repeats a shard has fewer documents.

    A leaf without data still has a step, one that fails and says why.
    """
    num_asked_of = run.sizes[leaf]
    if not num_asked_of:
        return [Shard(0, 1, 0)]
    num_repeats = task.num_repeats or 1
    parts = ranges(num_repeats, task.shard_size) if num_repeats > task.shard_size else [None]
    documents = ranges(num_asked_of, max(1, task.shard_size // num_repeats))
    return [Shard(start, stop, stop - start, part) for start, stop in documents for part in parts]


def num_asked(task: TaskConfig, known: TaskFacts, leaf: str) -> int:
    """How many documents of a leaf are asked."""
    return min(known.leaves[leaf], task.limit or known.leaves[leaf])


def limit_seed(task: TaskConfig, known: TaskFacts, run: Run, leaf: str) -> int | None:
    """What draws the documents of a leaf, of a rerun from the first run's; None where all are asked, or the first."""
    is_limited_to_first = task.limit_order is LimitOrder.first and num_asked(task, known, leaf) < known.leaves[leaf]
    is_drawn = run.sizes[leaf] < known.leaves[leaf] and not is_limited_to_first
    return task.limit_seed if is_drawn else None


def ranges(num_items: int, size: int) -> list[tuple[int, int]]:
    """Half-open ranges that cover ``num_items``, as even as ``size`` allows."""
    num_ranges = -(-num_items // size)
    bounds = [num_items * index // num_ranges for index in range(num_ranges + 1)]
    return list(itertools.pairwise(bounds))


def answer_config(
    config: Config, task: TaskConfig, leaf: str, known: TaskFacts, run: Run, shard: Shard, effective: str | None
) -> AnswerConfig:
    """What a shard is asked; ``effective`` is what its format is computed as, where that is not what it says."""
    overrides, scoring = known.overrides[leaf], _scoring_settings(known, leaf)
    repeat_start, repeat_stop = shard.repeats or (0, None)
    return AnswerConfig(
        task=leaf,
        prompt=PromptConfig(**{each.name: getattr(task, each.name) for each in fields(PromptConfig)}),
        overrides={name: value for name, value in overrides.items() if name not in scoring},
        scoring_overrides={name: value for name, value in overrides.items() if name in scoring},
        start=shard.start,
        stop=shard.stop,
        limit_seed=limit_seed(task, known, run, leaf),
        repeat_start=repeat_start,
        repeat_stop=repeat_stop,
        num_docs=known.leaves[leaf],
        harness=known.prompts[leaf],
        reads=list(known.reads[leaf]),
        include_paths=config.data.task_paths,
        engine=_engine_of(config.engine, run.rerun),
        rerun=run.rerun,
        simulation=SIMULATION_VERSION if _may_be_simulated(config) else None,
        effective=effective,
    )


def _engine_of(engine: EngineConfig, rerun: int) -> EngineConfig:
    """Of a rerun one that computes fewer requests side by side, and draws sampled answers with another seed."""
    if not rerun:
        return engine
    return replace(
        engine,
        seed=engine.seed + rerun,
        max_num_seqs=max(1, engine.num_at_once * 3 // 4),
        batch_size=max(1, engine.batch_size * 3 // 4),
    )


def _scoring_settings(known: TaskFacts, leaf: str) -> frozenset[str]:
    """Of choices lm-eval asks for more where a metric needs it (acc_mutual_info)."""
    writes = known.output_types[leaf] == "generate_until"
    return SCORING_SETTINGS if writes else SCORING_SETTINGS - {"metric_list"}


def score_config(config: Config, task: TaskConfig, known: TaskFacts, run: Run) -> ScoreConfig:
    """How all answers to a task slot are scored."""
    return ScoreConfig(
        leaves=[
            LeafConfig(
                task=leaf,
                overrides=dict(known.overrides[leaf]),
                harness=known.harness[leaf],
                reads=list(known.reads[leaf]),
            )
            for leaf in known.leaves
        ],
        scoring=ScoringConfig(pass_at=task.pass_at, majority=task.majority),
        harness_compat=task.harness_compat,
        cluster=task.cluster,
        num_expected=sum(run.sizes.values()),
        include_paths=config.data.task_paths,
    )


def output_tokens(task: TaskConfig, known: TaskFacts, leaf: str, shard: Shard) -> int | None:
    """The most tokens that the answers to a document of a shard may have, 0 where choices are scored; None where it is
    not known.
    """
    if (found := known.output_tokens[leaf]) == 0:
        return 0
    first, last = shard.repeats or (0, task.num_repeats or 1)
    most = found if task.asked_tokens is None else task.asked_tokens
    return None if most is None else most * (last - first)


def _may_be_simulated(config: Config) -> bool:
    """Whether vLLM on a CPU answers with a quantized checkpoint; all other answers are as they always were."""
    is_on_cpu = config.engine.kind is EngineKind.vllm and not config.engine.on_gpu
    return is_on_cpu and not config.recipe.is_base
