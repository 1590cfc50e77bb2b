"""What a plan must know of its tasks: leaves, sizes, data sets, and what makes their prompts."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from pipeline.config.schema import TaskConfig
from pipeline.errors import UserError
from pipeline.planning.data_sources import Sources
from pipeline.planning.remembered import cached, stamps_of
from pipeline.steps.fingerprint import canonical_json
from stages.fetch import DatasetSource
from stages.local_files import Parts, digest_files, found, local_identity


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a plan needs of a task slot."""

    leaves: Mapping[str, int]  # leaf task -> number of documents; 0: its data is missing or does not fit it
    datasets: tuple[DatasetSource, ...]
    weight_by_size: bool
    overrides: Mapping[str, Mapping[str, Any]]  # leaf task -> settings that the group lays over it
    prompts: Mapping[str, str]  # leaf task -> what makes its prompts
    harness: Mapping[str, str]  # leaf task -> what makes its prompts and metrics
    reads: Mapping[str, list[str]]  # leaf task -> names of the local files that it reads beside its own folder
    output_types: Mapping[str, str | None]  # leaf task -> lm-eval's word; None where its files do not say
    output_tokens: Mapping[str, int | None]  # leaf task -> the most an answer may have by the task itself, 0: choices
    is_sampled: Mapping[str, bool | None]  # leaf task -> whether its answers are drawn; None: a class knows
    repeats: Mapping[str, int | None]  # leaf task -> answers to a document by the task itself; None: a class knows
    metric: str | None = None  # that the group averages


def task_key(task: TaskConfig) -> str:
    """Of slots with the same key the same facts hold."""
    declared = [task.num_docs, task.datasets, task.weight_by_size, task.output_tokens]
    return canonical_json([task.task, task.leaves, declared, task.overrides, task.num_fewshot, task.metric])


def task_facts(
    tasks: Mapping[str, TaskConfig], sources: Sources, catalog: Mapping[str, Any], cache_dir: Path | None
) -> dict[str, TaskFacts]:
    """Facts by ``task_key``.  Raises UserError for tasks that do not exist or cannot be asked that way."""
    for known in catalog.values():
        if "error" in known:
            raise UserError(known["error"])
    identity = _Identity(cache_dir)
    facts = {key: _facts_of(task, catalog[key], sources, identity) for key, task in tasks.items()}
    sources.check_some_at_hand([task.datasets for task in facts.values()])
    return facts


def _facts_of(task: TaskConfig, known: Mapping[str, Any], sources: Sources, identity: "_Identity") -> TaskFacts:
    num_docs: Mapping[str, int | None] = task.num_docs or known["num_docs"]
    leaves = task.leaves or list(num_docs)
    if strange := [leaf for leaf in leaves if leaf not in num_docs]:
        raise UserError(f"task {task.task} has no member {strange[0]!r}; its members: {', '.join(num_docs)[:300]}")
    for leaf in leaves:
        _check_member(task, leaf, known)
    _check_num_fewshot(task, leaves, known["num_examples"], known["num_fewshot"])
    _check_metric(task, leaves, known)
    uncounted = [leaf for leaf in leaves if num_docs[leaf] is None]
    if uncounted and not sources.is_mirrored:
        raise UserError(
            f"task {uncounted[0]}: its data is not at hand, so its documents cannot be counted: give data.mirror=DIR, "
            f"or declare num_docs and datasets in the task's config"
        )
    repo_ids: Mapping[str, str | None] = task.datasets or {
        repo_id: None for leaf in leaves for repo_id in known["datasets"].get(leaf, [])
    }
    weight = task.weight_by_size if task.weight_by_size is not None else known["weight_by_size"]
    reads = {leaf: known["reads"].get(leaf, []) for leaf in leaves}
    return TaskFacts(
        leaves={leaf: num_docs[leaf] or 0 for leaf in leaves},
        datasets=tuple(sources.get(repo_id, revision) for repo_id, revision in sorted(repo_ids.items())),
        weight_by_size=weight is not False,
        overrides={leaf: known["overrides"].get(leaf, {}) for leaf in leaves},
        prompts={leaf: identity.of(known, leaf, "prompts") for leaf in leaves},
        harness={leaf: identity.of(known, leaf, "whole") for leaf in leaves},
        reads=reads,
        metric=_group_metric(task, leaves, known),
        output_types={leaf: known["output_type"].get(leaf) for leaf in leaves},
        output_tokens={leaf: _output_tokens(task, known, leaf) for leaf in leaves},
        is_sampled={leaf: known["is_sampled"].get(leaf) for leaf in leaves},
        repeats={leaf: known["repeats"].get(leaf) for leaf in leaves},
    )


def _check_member(task: TaskConfig, leaf: str, known: Mapping[str, Any]) -> None:
    """Whatever forbids to evaluate it, before anything is paid."""
    if leaf not in known["leaves"]:
        raise UserError(f"task {task.task} has no member {leaf!r}; its members: {', '.join(known['leaves'])[:300]}")
    if (line := known["refused"].get(leaf)) is not None:
        raise UserError(line)


def _group_metric(task: TaskConfig, leaves: Iterable[str], known: Mapping[str, Any]) -> str | None:
    """None where the leaves of a slot that declares its sizes have it first, and so are compared by it anyway."""
    metric: str | None = known["group_metric"]
    is_first = all(known["metrics"][leaf][:1] == [metric] for leaf in leaves)
    return None if task.num_docs and not task.num_fewshot and is_first else metric


def _output_tokens(task: TaskConfig, known: Mapping[str, Any], leaf: str) -> int | None:
    looked_up: int | None = known["output_tokens"].get(leaf)
    return looked_up if task.output_tokens is None else task.output_tokens


def _check_num_fewshot(
    task: TaskConfig, leaves: Iterable[str], num_examples: Mapping[str, int | None], own: Mapping[str, int | None]
) -> None:
    for leaf in leaves:
        if task.num_fewshot and own.get(leaf) == 0:
            raise UserError(f"task {leaf} is fixed at 0 examples by lm-eval: leave num_fewshot={task.num_fewshot} out")
        pool = num_examples.get(leaf)
        if pool is not None and pool < (task.num_fewshot or 0):
            raise UserError(
                f"task {leaf} has {pool} examples to draw from, fewer than num_fewshot={task.num_fewshot}: lower it"
            )


def _check_metric(task: TaskConfig, leaves: Iterable[str], known: Mapping[str, Any]) -> None:
    """Of a task that may report more than it lists, the comparison alone can say that a metric is not there."""
    others = known["reports_others"]
    for metrics in (known["metrics"][leaf] for leaf in leaves if not others.get(leaf, True)):
        if task.metric is not None and task.metric not in metrics:
            raise UserError(
                f"task {task.task} has no metric {task.metric!r}; it has {' and '.join(map(repr, metrics))}"
            )


class _Identity:
    """Names the code and data that make prompts and metrics; large files are digested once."""

    def __init__(self, cache_dir: Path | None) -> None:
        self._lm_eval = f"lm_eval-{metadata.version('lm_eval')}"
        self._cache_dir = cache_dir
        self._known: dict[Any, str] = {}

    def of(self, known: Mapping[str, Any], leaf: str, which: str) -> str:
        """``which`` of the identities of a leaf that the catalog has told apart."""
        home, said = known["homes"].get(leaf), known["identities"][leaf][which]
        parts = Parts(said["code"], tuple(said["apart"]))
        return self._lm_eval + local_identity(home and Path(home), parts, known["reads"].get(leaf, []), self._digest)

    def _digest(self, names: Sequence[str], apart: Collection[str]) -> str:
        key = tuple(names), frozenset(apart)
        if key not in self._known:
            seen = [names, sorted(apart), [stamps_of(found(name)) for name in names]]
            self._known[key] = cached(self._cache_dir, ["files", *seen], lambda: digest_files(names, apart))
        return self._known[key]
