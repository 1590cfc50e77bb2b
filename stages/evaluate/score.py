"""Score what a task's documents were answered: lm-eval's filters, then the task's own metrics, and no model.

A scorer that changes reads the stored answers again; the documents come from the data that they were asked from.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.errors import ConfigError, DataError
from stages.evaluate.answers import Answered, AnswerFacts, read_answer_facts, read_answers
from stages.evaluate.artifact import Sample, ScoreFacts, TaskFacts, write_scores
from stages.evaluate.config import LeafConfig, ScoreConfig
from stages.evaluate.differences import check_one_arithmetic, differences
from stages.evaluate.digests import digest
from stages.evaluate.harness import data_sets, leaf_entry, load_task
from stages.evaluate.metrics import metric_facts
from stages.evaluate.nltk_data import provide_nltk_data
from stages.evaluate.opened import only_known_files
from stages.evaluate.repeats import OF_REPEATS
from stages.evaluate.scoring import score_documents
from stages.evaluate.task_identity import check_unchanged, identities
from stages.evaluate.task_index import task_roots

VERSION = 3


def score(config: ScoreConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``samples.parquet`` and ``task.json`` from answers ``<leaf>/<shard>`` and data sets ``data:<hub id>``.

    Metrics count documents, and those that have no score.  Raises DataError where shards disagree or overlap, where a
    document is not the one that was asked, or where no document of a leaf could be scored.
    """
    scored: dict[str, list[Sample]] = {}
    facts: dict[str, TaskFacts] = {}
    with TemporaryDirectory(prefix="score_") as work_dir:
        provide_nltk_data(Path(work_dir))
        for index, leaf in enumerate(config.leaves):
            rows_dir = Path(work_dir) / f"rows_{index}"
            scored[leaf.task], facts[leaf.task] = _score_leaf(config, leaf, inputs, rows_dir)
    write_scores(out, scored, ScoreFacts(leaves=facts))
    samples = [sample for each in scored.values() for sample in each]
    return {"num_documents": len(samples), "num_missing": sum(sample.error is not None for sample in samples)}


def _score_leaf(
    config: ScoreConfig, leaf: LeafConfig, inputs: Mapping[str, Path], rows_dir: Path
) -> tuple[list[Sample], TaskFacts]:
    shards = {name: inputs[name] for name in sorted(inputs) if name.rpartition("/")[0] == leaf.task}
    if not shards:
        raise DataError(f"{leaf.task}: no answers were given; name inputs {leaf.task}/<shard>")
    asked = _agreed(leaf.task, {name: read_answer_facts(path, name) for name, path in shards.items()})
    answered = _together(leaf.task, [each for name, path in shards.items() for each in read_answers(path, name)])
    _check_pass_at(leaf.task, config, answered)
    entry = leaf_entry(leaf.task, config.include_paths)
    check_unchanged(entry, leaf.harness, leaf.reads, lambda: identities(entry, leaf.overrides, leaf.reads).whole)
    task = load_task(leaf.task, leaf.overrides, config.include_paths, data_sets(inputs), rows_dir, leaf.reads)
    with only_known_files(leaf.task, task.known_files):
        samples = score_documents(task, answered, config.scoring, asked.reasoning, config.harness_compat)
    _check_some_scored(leaf.task, samples)
    _check_repeats_told(leaf.task, config, samples)
    if config.cluster is not None:
        _note_clusters(task, samples, leaf.task, config.cluster)
    return samples, _facts(task, asked, samples, config, is_repeated=max(_num_repeats(answered), default=1) > 1)


def _agreed(task: str, facts: Mapping[str, AnswerFacts]) -> AnswerFacts:
    """What all shards say.  Raises DataError for the first that says otherwise."""
    first, asked = next(iter(facts.items()))
    for name, other in facts.items():
        if other.task != task:
            raise DataError(f"{name}: holds answers to task {other.task}, not to {task}")
        ours, theirs = (each.comparable | {"version": each.version} for each in (asked, other))
        if found := differences(ours, theirs, f"shard {first}", f"shard {name}"):
            raise DataError(f"{task}: shards disagree: {found}; evaluate them alike")
    check_one_arithmetic(task, {f"shard {name}": other.arithmetic for name, other in facts.items()})
    return asked


def _together(task: str, answered: Sequence[Answered]) -> list[Answered]:
    """A row for each document, with its repeats from all shards."""
    found: dict[int, Answered] = {}
    for each in answered:
        found[each.doc_id] = _joined(task, found[each.doc_id], each) if each.doc_id in found else each
    _check_alike(task, list(found.values()))
    return [found[doc_id] for doc_id in sorted(found)]


def _joined(task: str, one: Answered, other: Answered) -> Answered:
    if one.error is not None or other.error is not None:
        return one if one.error is not None else other
    seeds, others = ({answer.seed for answer in each.answers} for each in (one, other))
    if len(seeds & others) == min(len(seeds), len(others)):  # two of many may be equal by chance
        raise DataError(f"{task}: document {one.doc_id} is in two shards; shards must not overlap")
    by_request = zip(one.by_request, other.by_request, strict=True)
    answers = [answer for repeats in by_request for part in repeats for answer in part]
    return Answered(**{name: getattr(one, name) for name in one.__slots__} | {"answers": answers})


def _num_repeats(answered: Sequence[Answered]) -> list[int]:
    return sorted({len(each.by_request[0]) for each in answered if each.by_request})


def _check_alike(task: str, answered: Sequence[Answered]) -> None:
    if len(repeats := _num_repeats(answered)) > 1:
        raise DataError(f"{task}: documents have {' and '.join(map(str, repeats))} answers; a shard is missing")


def _check_pass_at(task: str, config: ScoreConfig, answered: Sequence[Answered]) -> None:
    fewest = min(_num_repeats(answered), default=1)
    if (most := max(config.scoring.pass_at, default=0)) > fewest:
        raise ConfigError(
            f"task {task}: pass_at={most} needs as many answers to a document, and there are {fewest}: raise "
            "num_repeats of its task slot"
        )


def _check_some_scored(task: str, samples: Sequence[Sample]) -> None:
    """A task that scores nothing is broken; a single document may be."""
    if len(samples) > 1 and all(sample.error is not None for sample in samples):
        raise DataError(f"task {task}: none of {len(samples)} documents could be scored; the first: {samples[0].error}")


def _check_repeats_told(task: str, config: ScoreConfig, samples: Sequence[Sample]) -> None:
    """What is asked of repeats must be among the scores."""
    asked = [name for name in ("pass_at", "majority") if getattr(config.scoring, name)]
    is_told = any(OF_REPEATS.search(name.rpartition(",")[0]) for sample in samples for name in sample.metrics)
    if asked and not is_told and any(sample.error is None for sample in samples):
        raise ConfigError(
            f"task {task}: {asked[0]} needs several answers to a document that are scored one by one: raise "
            f"num_repeats of its task slot, or leave {asked[0]} out where the task's own filters choose among them"
        )


def _note_clusters(task: Any, samples: Sequence[Sample], name: str, cluster: str) -> None:
    """The digest of each document's field.  Raises ConfigError where there is no such field."""
    docs = task.eval_docs
    docs = docs if hasattr(docs, "__getitem__") else list(docs)
    for sample in samples:
        doc = docs[sample.doc_id] if sample.doc_id < len(docs) else {}
        if doc and cluster not in doc:
            known = ", ".join(map(str, doc))
            raise ConfigError(f"task {name}: cluster={cluster} is no field of its documents; they have {known}")
        sample.cluster = digest(doc[cluster]) if doc else sample.doc_digest


def _facts(
    task: Any, asked: AnswerFacts, samples: Sequence[Sample], config: ScoreConfig, is_repeated: bool
) -> TaskFacts:
    return TaskFacts(
        task=asked.task,
        version=asked.version,
        output_type=asked.output_type,
        num_docs=asked.num_docs,
        metrics=metric_facts(task, task_roots(config.include_paths), (each.metrics for each in samples), is_repeated),
        scoring=asked.scoring,
        arithmetic=asked.arithmetic,
        cluster=config.cluster,
        comparable=asked.comparable,
    )
