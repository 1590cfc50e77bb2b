"""A shard's documents as requests: tasks under their prompt configs, and what is refused before anything is paid."""

import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError, DataError, StageError, one_line
from stages.evaluate.answers import Answered
from stages.evaluate.digests import digest, prompt_digest
from stages.evaluate.harness import BuiltTask, Document, document_error, leaf_entry, load_task
from stages.evaluate.metrics import metric_facts
from stages.evaluate.nltk_data import provide_nltk_data
from stages.evaluate.order import asked_order, documents_of
from stages.evaluate.reasoning import AUTO, Reasoning
from stages.evaluate.task_identity import check_unchanged, identities
from stages.evaluate.task_index import task_roots
from stages.imports import no_collection

if TYPE_CHECKING:
    from stages.evaluate.answers import Answer
    from stages.evaluate.artifact import MetricFacts
    from stages.evaluate.config import AnswerConfig, EngineConfig, PromptConfig
    from stages.evaluate.engines.harness_model import Encoded, HarnessModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """How a task is asked; ``num_docs`` are those of the whole, ``num_repeats`` None where it does not say."""

    version: Any
    output_type: str
    num_docs: int
    num_fewshot: int
    num_repeats: int | None
    gen_kwargs: Mapping[str, Any] | None  # None: nothing is written
    reasoning: Reasoning | None


@dataclass(frozen=True, slots=True)
class Built:
    """A shard's documents, not answered yet, and the requests of each as tokens, by request and then by repeat.

    ``order``: the documents' places as an engine is asked, which decides what it computes side by side.
    """

    asked: Asked
    documents: Sequence[Answered]
    work: Sequence[Sequence["Encoded"]]
    order: Sequence[int]

    @property
    def requests(self) -> list["Encoded"]:
        """As an engine is asked."""
        return [item for place in self.order for item in self.work[place]]

    def answered(self, answers: Iterable["Answer"]) -> list[Answered]:
        """The documents in their own order, with the answers to ``requests``."""
        remaining = iter(answers)
        found = {place: [next(remaining) for _ in self.work[place]] for place in self.order}
        return [replace(document, answers=found[place]) for place, document in enumerate(self.documents)]


def open_model(checkpoint: Path, config: "EngineConfig", work_dir: Path) -> "HarnessModel":
    """The checkpoint's tokenizer with lm-eval's rules."""
    with no_collection():
        from transformers import AutoTokenizer

    from stages.evaluate.engines.harness_model import HarnessModel

    provide_nltk_data(work_dir)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    tokenizer.model_max_length = sys.maxsize  # prompts are cut here, not warned about there
    return HarnessModel(tokenizer, config.max_model_len, config.seed)


class Tasks:
    """Tasks under their prompt configs, each built once: few-shot examples depend on the documents before."""

    def __init__(self, model: "HarnessModel", work_dir: Path) -> None:
        self._model, self._work_dir = model, work_dir
        self._built: dict[str, BuiltTask] = {}

    def built(self, config: "AnswerConfig", data: Mapping[str, Path]) -> Built:
        """A shard's requests.  Raises ConfigError or DataError for what cannot be asked."""
        task, documents = self.documents(config, data)
        work = _encoded(documents, self._model, config, task.reasoning)
        order = asked_order(len(documents), config.rerun)
        return Built(asked(task), [answered(document) for document in documents], work, order)

    def documents(self, config: "AnswerConfig", data: Mapping[str, Path]) -> tuple[BuiltTask, list[Document]]:
        """A shard's task and documents.  Raises ConfigError or DataError for what cannot be asked."""
        built = self._task(config, data)
        _check_size(config, built.num_docs)
        # Refuses what cannot be averaged before it is paid.
        _check_means(built.task, metric_facts(built.task, task_roots(config.include_paths), ()))
        return built, built.documents(documents_of(built.num_docs, config.start, config.stop, config.limit_seed))

    def _task(self, config: "AnswerConfig", data: Mapping[str, Path]) -> BuiltTask:
        key = task_key(config, data)
        if key not in self._built:
            rows_dir = self._work_dir / f"rows_{len(self._built)}"
            self._built[key] = build_task(config, data, self._model, rows_dir)
        return self._built[key]


def build_task(config: "AnswerConfig", data: Mapping[str, Path], model: "HarnessModel", rows_dir: Path) -> BuiltTask:
    """The shard's task under its prompt config.  Raises ConfigError or DataError for what cannot be asked that way."""
    overrides = config.overrides | config.scoring_overrides
    entry = leaf_entry(config.task, config.include_paths)
    check_unchanged(entry, config.harness, config.reads, lambda: identities(entry, overrides, config.reads).prompts)
    task = load_task(config.task, overrides, config.include_paths, data, rows_dir, config.reads)
    if config.engine.is_endpoint and task.OUTPUT_TYPE != "generate_until":
        raise ConfigError(config.engine.refusal(config.task))
    template = _chat_template(config.prompt, model)
    return BuiltTask(task, config.prompt, template, _reasoning(config.prompt, model))


def _chat_template(prompt: "PromptConfig", model: "HarnessModel") -> Callable[..., str] | None:
    if not prompt.apply_chat_template:
        return None
    try:
        model.tokenizer.get_chat_template()
    except ValueError as error:
        raise ConfigError(
            f"the checkpoint's tokenizer has no chat template to use ({one_line(error)}); set "
            "apply_chat_template: false on its task slot"
        ) from error
    _check_read(prompt.chat_template_kwargs, model)
    template = model.chat.rendered_as_lm_eval if prompt.harness_compat else model.chat.rendered
    return partial(template, **prompt.chat_template_kwargs)


def _check_read(given: Mapping[str, Any], model: "HarnessModel") -> None:
    """What a template does not read would change nothing, without a word."""
    if given and (unread := sorted(given.keys() - model.chat.variables)):
        raise ConfigError(
            f"the chat template reads no chat_template_kwargs.{unread[0]}; it reads "
            f"{', '.join(sorted(model.chat.variables))}"
        )


def _reasoning(prompt: "PromptConfig", model: "HarnessModel") -> Reasoning | None:
    """lm-eval takes thoughts for the answer; a model that is not spoken to as a chat model has none of their tags."""
    if prompt.reasoning_end == AUTO and (prompt.harness_compat or not prompt.apply_chat_template):
        return None
    return model.reasoning(prompt.reasoning_end)


def asked(built: BuiltTask) -> Asked:
    """What is kept of how a task is asked."""
    task = built.task
    return Asked(
        version=task.VERSION,
        output_type=task.OUTPUT_TYPE,
        num_docs=built.num_docs,
        num_fewshot=built.num_fewshot,
        num_repeats=task.config.repeats,
        gen_kwargs=task.get_config("generation_kwargs") if task.OUTPUT_TYPE == "generate_until" else None,
        reasoning=built.reasoning,
    )


def answered(document: Document, answers: Sequence["Answer"] = ()) -> Answered:
    """A document by what is kept of it, and its answers."""
    return Answered(
        doc_id=document.doc_id,
        doc_digest=digest(document.doc),
        prompt_digest=prompt_digest(document.instances),
        num_requests=len(document.instances) if document.error is None else 0,
        answers=list(answers),
        error=document.error,
    )


def _encoded(
    documents: Sequence[Document], model: "HarnessModel", config: "AnswerConfig", reasoning: Reasoning | None
) -> list[list["Encoded"]]:
    model.tokenize(instance for document in documents for instance in document.instances)
    work = [_encode(document, model, config, reasoning) for document in documents]
    _check_repeats(config, work)
    return work


def asked_for(config: "AnswerConfig", data: Mapping[str, Path]) -> str:
    """What a shard is known by in a session."""
    asked = config.start, config.stop, config.limit_seed, config.repeat_start, config.repeat_stop, config.rerun
    return task_key(config, data, *asked)


def task_key(config: "AnswerConfig", data: Mapping[str, Path], *asked: int | None) -> str:
    """What a task is known by, with its data and prompt settings."""
    places = {name: str(path) for name, path in data.items()}
    overrides = [config.overrides, config.scoring_overrides]
    return json.dumps([config.task, overrides, asdict(config.prompt), config.include_paths, places, asked])


def _check_size(config: "AnswerConfig", num_docs: int) -> None:
    if config.num_docs not in (None, num_docs):
        raise DataError(f"task {config.task} has {num_docs} documents, not {config.num_docs} as planned; plan again")
    if config.stop > num_docs:
        raise DataError(f"task {config.task} has {num_docs} documents; {config.start} to {config.stop} is outside")


def _check_means(task: Any, metrics: Mapping[str, "MetricFacts"]) -> None:
    """Of repeated answers a document has the mean; a metric that is a list for each has none."""
    other = [name for name, facts in metrics.items() if facts.aggregation.get("name") not in ("mean", "bypass")]
    if (task.config.repeats or 1) > 1 and other:
        raise ConfigError(
            f"task {task.task_name} asks each document {task.config.repeats} times, but {other[0]} of several answers "
            "has no mean: set num_repeats=1 on its task slot"
        )


def _check_repeats(config: "AnswerConfig", work: Sequence[Sequence["Encoded"]]) -> None:
    """Refuse to pay for the same answer twice."""
    if (config.prompt.num_repeats or 1) == 1:
        return
    for item in (item for items in work for item in items):
        if item.generation is None or item.generation.seed is None:
            what = "scores given texts" if item.generation is None else "is greedy"
            raise ConfigError(
                f"task {config.task} {what}, so all {config.prompt.num_repeats} answers to a document would be one: "
                "leave num_repeats out, or set gen_kwargs.temperature of its task slot"
            )


def _encode(
    document: Document, model: "HarnessModel", config: "AnswerConfig", reasoning: Reasoning | None
) -> list["Encoded"]:
    if document.error is not None:
        return []
    try:
        return [
            model.encode(request, repeat, config.prompt.harness_compat, reasoning)
            for request in document.instances
            for repeat in range(config.repeat_start, config.repeat_stop or request.repeats)
        ]
    except StageError:
        raise
    except Exception as error:
        document.error = document_error(error)
        return []
