"""What shards share: an engine with a checkpoint's weights, the tasks built so far, and what is under way.

The next checkpoint of the same family takes the place of the first in it: tasks and tokens stay what they are.

The next shards are built in a thread of their own while the engine answers this one.  The engine stays in the thread
that opened it: on a CPU, moved to another, it kept that one waiting until it had nothing left to do.
"""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError, DataError, EngineError, StageError, one_line
from stages.evaluate.engines.family import family
from stages.evaluate.engines.protocol import Generation, Overlapping, Replaceable
from stages.evaluate.harness import BuiltTask, Document, document_error, leaf_entry, load_task
from stages.evaluate.metrics import metric_facts
from stages.evaluate.order import documents_of
from stages.evaluate.reasoning import AUTO, Reasoning, find_reasoning
from stages.evaluate.task_identity import check_unchanged, identities
from stages.evaluate.task_index import task_roots

if TYPE_CHECKING:
    from stages.evaluate.answers import Answer
    from stages.evaluate.artifact import MetricFacts
    from stages.evaluate.config import AnswerConfig, EngineConfig, PromptConfig
    from stages.evaluate.engines.harness_model import Encoded, HarnessModel
    from stages.evaluate.engines.protocol import Engine

# Python hands over between threads after 5 ms otherwise, as long as a small model's decode step.
SWITCH_INTERVAL_S = 0.0005


@dataclass(frozen=True, slots=True)
class AnsweredShard:
    """A shard's documents, and the answers to the requests of each, by request and then by repeat."""

    built: BuiltTask
    documents: Sequence[Document]
    answers: Sequence[Sequence["Answer"]]


@dataclass(frozen=True, slots=True)
class Built:
    """A shard's documents and the requests of each, as tokens."""

    task: BuiltTask
    documents: Sequence[Document]
    work: Sequence[Sequence["Encoded"]]

    @property
    def requests(self) -> list["Encoded"]:
        return [item for items in self.work for item in items]


@dataclass(slots=True, eq=False)
class Shard:
    """A shard under way; ``names`` are those of its requests in the engine, once they are there."""

    checkpoint: Path
    built: Future[Built]
    names: list[str] | None = None


class Tasks:
    """Tasks under their prompt configs, each built once: few-shot examples depend on the documents before."""

    def __init__(self, model: "HarnessModel", work_dir: Path) -> None:
        self._model, self._work_dir = model, work_dir
        self._built: dict[str, BuiltTask] = {}

    def documents(self, config: "AnswerConfig", data: Mapping[str, Path]) -> tuple[BuiltTask, list[Document]]:
        """A shard's task and documents.  Raises ConfigError or DataError for what cannot be asked."""
        built = self._task(config, data)
        _check_size(config, built.num_docs)
        # Refuses what cannot be averaged before it is paid.
        _check_means(built.task, metric_facts(built.task, task_roots(config.include_paths), ()))
        return built, built.documents(documents_of(built.num_docs, config.start, config.stop, config.limit_seed))

    def _task(self, config: "AnswerConfig", data: Mapping[str, Path]) -> BuiltTask:
        key = _key(config, data)
        if key not in self._built:
            rows_dir = self._work_dir / f"rows_{len(self._built)}"
            self._built[key] = build_task(config, data, self._model, rows_dir)
        return self._built[key]


class Session:
    """An open engine with one checkpoint, the tasks built so far, and the shards that were announced.

    With ``overlaps`` the engine begins to write the answers of the next shard while the last ones of a shard are
    still being written; otherwise every shard meets an engine that remembers nothing and has nothing else to do.
    """

    def __init__(
        self, model: "HarnessModel", engine: "Engine", checkpoint: Path, work_dir: Path, overlaps: bool = False
    ) -> None:
        self.model = model
        self.engine = engine
        self._checkpoint = checkpoint
        self._tasks = Tasks(model, work_dir)
        self._overlaps = overlaps
        self._under_way: dict[tuple[Path, str], Shard] = {}
        self._generations: dict[str, Generation] = {}
        self._switch_interval_s = sys.getswitchinterval()
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        self._builder = ThreadPoolExecutor(1, "builder")

    def announce(self, config: "AnswerConfig", checkpoint: Path, data: Mapping[str, Path]) -> None:
        """Begin to build a shard that will be asked for, of this checkpoint or of one that takes its place."""
        key = checkpoint, _key(config, data, *_range(config))
        if key not in self._under_way:
            self._under_way[key] = Shard(checkpoint, self._builder.submit(self._build, config, data))

    def answered(self, config: "AnswerConfig", data: Mapping[str, Path]) -> AnsweredShard:
        """The answers to a shard, announced or not.  Raises what building or answering it raised."""
        self.announce(config, self._checkpoint, data)
        key = self._checkpoint, _key(config, data, *_range(config))
        try:
            return self._answer(self._under_way[key])
        finally:
            del self._under_way[key]

    def exchange(self, checkpoint: Path) -> None:
        """Answer from another checkpoint from now on, as if the session had been opened with it.

        Raises StageError where that cannot be, or went wrong: the session must be closed then.
        """
        if not isinstance(self.engine, Replaceable):
            raise EngineError("this engine keeps the weights it was opened with")
        if family(checkpoint) != family(self._checkpoint):
            raise EngineError(
                f"{checkpoint.name} has another config, tokenizer or tensors than {self._checkpoint.name}"
            )
        self._finish_begun()
        self._generations.clear()
        self._under_way = {key: shard for key, shard in self._under_way.items() if shard.checkpoint == checkpoint}
        self.engine.replace(checkpoint)
        self._checkpoint = checkpoint

    def close(self) -> None:
        """Drop what is under way and close the engine."""
        try:
            self._builder.shutdown(cancel_futures=True)
        finally:
            sys.setswitchinterval(self._switch_interval_s)
            self.engine.close()

    def _build(self, config: "AnswerConfig", data: Mapping[str, Path]) -> Built:
        built, documents = self._tasks.documents(config, data)
        self.model.tokenize(instance for document in documents for instance in document.instances)
        work = [_encode(document, self.model, config, built.reasoning) for document in documents]
        _check_repeats(config, work)
        return Built(built, documents, work)

    def _answer(self, shard: Shard) -> AnsweredShard:
        """All requests of the shard at once, in document order; its bytes depend on no other shard unless they overlap.

        Nor do they depend on a restart in between.
        """
        built, engine = shard.built.result(), self.engine
        if self._overlaps and isinstance(engine, Overlapping) and _only_writes(built):
            answers = iter(self._written(shard, built, engine))
        else:
            self._finish_begun()
            engine.reset()
            answers = iter(self.model.answer(engine, built.requests))
        return AnsweredShard(built.task, built.documents, [[next(answers) for _ in items] for items in built.work])

    def _written(self, shard: Shard, built: Built, engine: Overlapping) -> list["Answer"]:
        """Generations, with the next shards' beside them as soon as those are built."""
        if shard.names is None:
            shard.names = self._put(engine, built)
        self._begin(engine)
        while not all(name in self._generations for name in shard.names):
            self._generations.update(engine.advance())
            self._begin(engine)
        written = (self._generations.pop(name) for name in shard.names)
        return self.model.assembled(built.requests, iter(()), written)

    def _finish_begun(self) -> None:
        """Let the engine end what was begun for shards that were not asked for, so that it can be emptied."""
        begun = [name for shard in self._under_way.values() for name in shard.names or ()]
        while isinstance(self.engine, Overlapping) and not all(name in self._generations for name in begun):
            self._generations.update(self.engine.advance())

    def _begin(self, engine: Overlapping) -> None:
        """Put into the engine what is built, up to the first shard that must have it alone, or other weights."""
        for shard in list(self._under_way.values()):
            if shard.checkpoint != self._checkpoint or not shard.built.done():
                return
            if shard.names is not None or shard.built.exception():
                continue
            if not _only_writes(shard.built.result()):
                return
            with suppress(ConfigError):  # that shard's own fault, told when it is asked for
                shard.names = self._put(engine, shard.built.result())

    def _put(self, engine: Overlapping, built: Built) -> list[str]:
        return engine.begin([item.generation for item in built.requests if item.generation is not None])


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
    template = model.harness_chat_template if prompt.harness_compat else model.apply_chat_template
    return partial(template, **prompt.chat_template_kwargs)


def _check_read(given: Mapping[str, Any], model: "HarnessModel") -> None:
    """What a template does not read would change nothing, without a word."""
    if given and (unread := sorted(given.keys() - model.template_variables)):
        raise ConfigError(
            f"the chat template reads no chat_template_kwargs.{unread[0]}; it reads "
            f"{', '.join(sorted(model.template_variables))}"
        )


def _reasoning(prompt: "PromptConfig", model: "HarnessModel") -> Reasoning | None:
    """lm-eval takes thoughts for the answer; a model that is not spoken to as a chat model has none of their tags."""
    if prompt.reasoning_end == AUTO and (prompt.harness_compat or not prompt.apply_chat_template):
        return None
    return find_reasoning(prompt.reasoning_end, model.tokenizer)


def _only_writes(built: Built) -> bool:
    return all(item.generation is not None for item in built.requests)


def open_engine(checkpoint: Path, config: "EngineConfig") -> "Engine":
    """Load ``checkpoint`` into the engine of that kind.  Raises EngineError when it does not start."""
    if config.kind.name == "vllm":
        from stages.evaluate.engines.vllm_engine import VllmEngine

        return VllmEngine(checkpoint, config)
    if config.is_endpoint:
        from stages.evaluate.engines.endpoint import EndpointEngine

        return EndpointEngine(checkpoint, config)
    from stages.evaluate.engines.transformers_engine import TransformersEngine

    return TransformersEngine(checkpoint, config)


def _key(config: "AnswerConfig", data: Mapping[str, Path], *asked: int | None) -> str:
    places = {name: str(path) for name, path in data.items()}
    overrides = [config.overrides, config.scoring_overrides]
    return json.dumps([config.task, overrides, asdict(config.prompt), config.include_paths, places, asked])


def _range(config: "AnswerConfig") -> tuple[int | None, ...]:
    return config.start, config.stop, config.limit_seed, config.repeat_start, config.repeat_stop


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
