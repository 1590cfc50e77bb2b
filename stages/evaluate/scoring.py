"""From the responses to documents to their rows: lm-eval's filters, then the task's own metrics."""

import copy
import hashlib
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError
from stages.evaluate.artifact import MetricFacts, Sample, dumps
from stages.evaluate.harness import Document, document_error

if TYPE_CHECKING:
    from stages.evaluate.engines.harness_model import Answer


def score(task: Any, documents: Sequence[Document], answers: Sequence[Sequence["Answer"]]) -> list[Sample]:
    """The row of each document: its answers are ordered by request, then by repeat; none for a missing document.

    Filters see all documents at once, as in lm-eval; where they fail on that, each by itself: one costs itself only.
    """
    _seed_scorers()
    samples = [_sample(task, document, given) for document, given in zip(documents, answers, strict=True)]
    whole = [document for document in documents if document.error is None]
    is_filtered = _explained(lambda: _filter(task, whole)) is None
    for sample, document in zip(samples, documents, strict=True):
        if document.error is None:
            _measure(sample, task, document, is_filtered)
    return samples


def digest(value: Any) -> str:
    """Sha256 of canonical JSON."""
    return hashlib.sha256(dumps(value).encode()).hexdigest()


def prompt_digest(instances: Sequence[Any]) -> str:
    """Sha256 over the kind, final text and arguments of every request of a document, in order."""
    return digest([[instance.request_type, list(instance.args)] for instance in instances])


def metric_facts(task: Any, roots: Sequence[Path], seen: Sequence[str]) -> dict[str, MetricFacts]:
    """``aggregation`` and ``higher_is_better`` of every ``<metric>,<filter>``: declared ones, then others ``seen``.

    Raises ConfigError for an aggregation that cannot be found again by name.
    """
    filters = [ensemble.name for ensemble in task._filters]
    declared = [f"{metric},{name}" for name in filters for metric in task.aggregation()]
    directions = task.higher_is_better()
    facts = {}
    for column in dict.fromkeys([*declared, *seen]):
        metric = column.rpartition(",")[0]
        facts[column] = MetricFacts(
            aggregation=_aggregation(metric, task.aggregation().get(metric), roots),
            higher_is_better=directions.get(metric),
        )
    return facts


def _seed_scorers() -> None:
    """The one that draws: of short texts langdetect finds now one language, now another."""
    if (langdetect := sys.modules.get("langdetect")) is not None:
        langdetect.DetectorFactory.seed = 0


def _sample(task: Any, document: Document, answers: Sequence["Answer"]) -> Sample:
    """The row without its scores; the document's requests get what was answered."""
    sample = Sample(
        doc_id=document.doc_id,
        doc_digest=digest(document.doc),
        prompt_digest=prompt_digest(document.instances),
        target=_target(task, document.doc),
        error=document.error,
    )
    if document.error is None:
        _count(sample, answers)
        remaining = iter(answers)
        for instance in document.instances:
            instance.resps = [next(remaining).response for _ in range(instance.repeats)]
        sample.loglikelihoods = _loglikelihoods(document.instances)
    return sample


def _count(sample: Sample, answers: Sequence["Answer"]) -> None:
    reasons = {answer.finish_reason for answer in answers} - {None}
    sample.num_prompt_tokens = sum(answer.num_prompt_tokens for answer in answers)
    sample.num_output_tokens = sum(answer.num_output_tokens for answer in answers)
    sample.finish_reason = max(reasons, key=lambda reason: reason == "length", default=None)
    sample.truncated = any(answer.truncated for answer in answers)
    sample.responses = [_text(answer.response) for answer in answers]


def _filter(task: Any, documents: Sequence[Document]) -> None:
    instances = [instance for document in documents for instance in document.instances]
    for instance in instances:
        instance.filtered_resps = {}
    if instances:
        for ensemble in task._filters:
            ensemble.apply(instances)


def _measure(sample: Sample, task: Any, document: Document, is_filtered: bool) -> None:
    def measured() -> None:
        if not is_filtered:
            _filter(task, [document])
        ordered = sorted(document.instances, key=lambda instance: instance.idx)
        filtered = {name: [instance.filtered_resps[name] for instance in ordered] for name in ordered[0].filtered_resps}
        sample.filtered = dumps({name: values[0] if len(values) == 1 else values for name, values in filtered.items()})
        for name, responses in filtered.items():
            metrics = task.process_results(copy.deepcopy(document.doc), responses)
            sample.metrics |= {f"{metric},{name}": value for metric, value in metrics.items()}

    if (error := _explained(measured)) is not None:
        sample.error = f"not scored: {error}"
        sample.metrics = {}


def _explained(work: Callable[[], None]) -> str | None:
    """What went wrong with it, in a line; None where nothing did."""
    try:
        work()
    except (KeyboardInterrupt, SystemExit, GeneratorExit):
        raise
    except BaseException as error:  # math-verify's time-outs are no Exceptions
        return document_error(error)
    return None


def _loglikelihoods(instances: Sequence[Any]) -> list[float] | None:
    first = [instance.resps[0] for instance in instances]
    if any(isinstance(response, str) for response in first):
        return None
    return [response[0] if isinstance(response, tuple) else response for response in first]


def _target(task: Any, doc: Any) -> str:
    try:
        return _text(task.doc_to_target(doc))
    except Exception:
        return ""


def _text(value: Any) -> str:
    return value if isinstance(value, str) else dumps(value)


def _aggregation(metric: str, function: Any, roots: Sequence[Path]) -> dict[str, str]:
    from lm_eval.api.registry import AGGREGATION_REGISTRY

    if function is None:
        return {"name": "mean"}  # what lm-eval does with a metric that names none
    for name, registered in AGGREGATION_REGISTRY.items():
        if function is registered:
            return {"name": name}
    name = getattr(function, "__qualname__", "")
    if not isinstance(function, partial) and name.isidentifier():
        file = Path(function.__code__.co_filename).resolve()
        for root in roots:
            if file.is_relative_to(root.resolve()):
                return {"file": file.relative_to(root.resolve()).as_posix(), "function": name}
    raise ConfigError(f"metric {metric} is aggregated by a function that cannot be found by name; use another task")
