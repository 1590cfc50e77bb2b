"""From the answers to documents to their rows: lm-eval's filters, then the task's own metrics.

Repeated answers to a document are scored one by one, and its score is their mean; a task whose filters vote or choose
among them gets them all at once, as in lm-eval.
"""

import copy
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from stages.documents import encodable
from stages.evaluate.answers import Answer, Answered, Response, is_any, response_of, total
from stages.evaluate.artifact import Sample
from stages.evaluate.config import ScoringConfig
from stages.evaluate.digests import digest, dumps
from stages.evaluate.harness import document_error
from stages.evaluate.reasoning import Reasoning
from stages.evaluate.repeats import drop_partial, mean_of_repeats, of_repeats

ALL_AT_ONCE = slice(None)


@dataclass(slots=True)
class _Page:
    """A document under way: its row, its requests with their responses, and what each filter made of them."""

    sample: Sample
    doc: Any
    responses: list[list[Any]]  # of each request, by repeat
    instances: list[Any]
    filtered: dict[str, list[list[Any]]] = field(default_factory=dict)  # by filter: of each view, of each request


def score_documents(
    task: Any,
    answered: Sequence[Answered],
    config: ScoringConfig,
    reasoning: Reasoning | None = None,
    harness_compat: bool = False,
) -> list[Sample]:
    """The row of each document; a document that is not the one that was asked is missing, like one without answers.

    Filters see all documents at once, as in lm-eval; where they fail on that, each by itself: one costs itself only.
    """
    _seed_scorers()
    docs = task.eval_docs
    docs = docs if hasattr(docs, "__getitem__") else list(docs)
    pages = [_page(task, docs, each, reasoning) for each in answered]
    whole = [page for page in pages if page.sample.error is None]
    for ensemble in task._filters:
        for view in _views(ensemble, whole, harness_compat):
            _filter(ensemble, whole, view)
    for page in whole:
        if page.sample.error is None:
            _measure(page, task, config)
    drop_partial(page.sample.metrics for page in whole)
    return [page.sample for page in pages]


def _seed_scorers() -> None:
    """The one that draws: of short texts langdetect finds now one language, now another."""
    if (langdetect := sys.modules.get("langdetect")) is not None:
        langdetect.DetectorFactory.seed = 0


def _page(task: Any, docs: Any, answered: Answered, reasoning: Reasoning | None) -> _Page:
    doc = docs[answered.doc_id] if answered.doc_id < len(docs) else None
    sample = Sample(
        doc_id=answered.doc_id,
        doc_digest=answered.doc_digest,
        prompt_digest=answered.prompt_digest,
        question=_question(task, doc),
        choices=_choices(task, doc),
        target=_target(task, doc),
        error=answered.error,
    )
    if digest(doc) != answered.doc_digest:
        sample.error = "not scored: its data holds another document than the one that was asked"
    if sample.error is not None:
        return _Page(sample, doc, [], [])
    by_request = [[response_of(answer, reasoning) for answer in repeats] for repeats in answered.by_request]
    _count(sample, answered.answers)
    _note_ends(sample, [response for repeats in by_request for response in repeats])
    if reasoning is not None and any(answer.opening is not None for answer in answered.answers):
        sample.thinking = sample.thoughts is not None
    responses = [[response.value for response in repeats] for repeats in by_request]
    sample.loglikelihoods = _loglikelihoods([repeats[0] for repeats in responses])
    return _Page(sample, doc, responses, [_instance(task, doc, answered, index) for index in range(len(responses))])


def _instance(task: Any, doc: Any, answered: Answered, index: int) -> Any:
    """A request as filters see it; what was asked is no longer of interest."""
    from lm_eval.api.instance import Instance

    kind = "loglikelihood" if task.OUTPUT_TYPE == "multiple_choice" else task.OUTPUT_TYPE
    repeats = len(answered.by_request[index])
    return Instance(kind, doc, (), index, metadata=(task.config["task"], answered.doc_id, repeats))


def _count(sample: Sample, answers: Sequence[Answer]) -> None:
    reasons = {answer.finish_reason for answer in answers} - {None}
    sample.num_prompt_tokens = total(answer.num_prompt_tokens for answer in answers)
    sample.num_output_tokens = total(answer.num_output_tokens for answer in answers)
    sample.finish_reason = max(reasons, key=lambda reason: reason == "length", default=None)
    sample.truncated = is_any(answer.truncated for answer in answers)


def _note_ends(sample: Sample, responses: Sequence[Response]) -> None:
    sample.responses = [_text(response.value) for response in responses]
    if any(response.thoughts is not None for response in responses):
        sample.thoughts = [response.thoughts for response in responses]
    if all(response.is_cut is not None for response in responses):
        sample.cut = any(response.is_cut for response in responses)
        sample.cut_in_thoughts = any(response.is_cut_in_thoughts for response in responses)
    sample.stopped_by = [response.stopped_by for response in responses if response.stopped_by is not None]


def _views(ensemble: Any, pages: Sequence[_Page], harness_compat: bool) -> list[slice]:
    """The repeats that filters see together."""
    from lm_eval.filters.selection import MajorityVoteFilter, TakeFirstFilter, TakeKFilter

    filters = [make() for make in ensemble.filters]
    takes_one = any(isinstance(each, TakeFirstFilter) for each in filters)
    if not takes_one or any(isinstance(each, MajorityVoteFilter | TakeKFilter) for each in filters):
        return [ALL_AT_ONCE]
    repeats = max((len(page.responses[0]) for page in pages if page.responses), default=1)
    return [slice(index, index + 1) for index in range(1 if harness_compat else repeats)]


def _filter(ensemble: Any, pages: Sequence[_Page], view: slice) -> None:
    if _explained(partial(_apply, ensemble, pages, view)) is None:
        return
    for page in (page for page in pages if page.sample.error is None):
        if (error := _explained(partial(_apply, ensemble, [page], view))) is not None:
            _fail(page.sample, error)


def _apply(ensemble: Any, pages: Sequence[_Page], view: slice) -> None:
    live = [page for page in pages if page.sample.error is None and page.instances]
    for page in live:
        for instance, repeats in zip(page.instances, page.responses, strict=True):
            instance.resps, instance.filtered_resps = repeats[view], {}
    if live:
        ensemble.apply([instance for page in live for instance in page.instances])
    for page in live:
        found = [instance.filtered_resps[ensemble.name] for instance in page.instances]
        page.filtered.setdefault(ensemble.name, []).append(found)


def _measure(page: _Page, task: Any, config: ScoringConfig) -> None:
    sample = page.sample

    def measured() -> None:
        sample.filtered = dumps(
            {name: _short([_short(each) for each in views]) for name, views in page.filtered.items()}
        )
        for name, views in page.filtered.items():
            each = [task.process_results(copy.deepcopy(page.doc), responses) for responses in views]
            metrics = each[0] if len(each) == 1 else mean_of_repeats(each)
            metrics = metrics | of_repeats(each, views, config)
            sample.metrics |= {f"{metric},{name}": value for metric, value in metrics.items()}

    if (error := _explained(measured)) is not None:
        _fail(sample, error)


def _short(values: Sequence[Any]) -> Any:
    return values[0] if len(values) == 1 else values


def _fail(sample: Sample, error: str) -> None:
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


def _loglikelihoods(first: Sequence[Any]) -> list[float] | None:
    if any(isinstance(response, str) for response in first):
        return None
    return [response[0] if isinstance(response, tuple) else response for response in first]


def _question(task: Any, doc: Any) -> str:
    """Where a document is several beginnings of one text, which are its choices then, what they share."""
    try:
        found = task.doc_to_text(doc)
        return encodable(found) if isinstance(found, str) else _text(task.doc_to_target(doc))
    except Exception:
        return ""


def _choices(task: Any, doc: Any) -> list[str] | None:
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    try:
        return [_text(choice) for choice in task.doc_to_choice(doc)]
    except Exception:
        return None


def _target(task: Any, doc: Any) -> str:
    try:
        return _text(task.doc_to_target(doc))
    except Exception:
        return ""


def _text(value: Any) -> str:
    return encodable(value if isinstance(value, str) else dumps(value))
