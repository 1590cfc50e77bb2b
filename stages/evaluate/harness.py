"""lm-eval's tasks over local data, and their documents as requests, exactly as lm-eval builds them.

Few-shot examples are drawn from one random stream that every document moves on, so the prompts of some documents are
right only if all documents before them were built as well (0.5 ms each): a task is built once, and some are taken.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError, DataError, StageError, one_line
from stages.evaluate.gen_kwargs import LENGTH_NAMES
from stages.evaluate.opened import only_known_files
from stages.evaluate.refusals import refused_kind, unfit_environment
from stages.evaluate.task_files import home_of
from stages.evaluate.task_index import Entry, Index, build_index
from stages.imports import no_collection
from stages.local_files import found

if TYPE_CHECKING:
    from stages.evaluate.config import PromptConfig
    from stages.evaluate.reasoning import Reasoning

MAX_ERROR_LENGTH = 500  # characters of a document's error


@dataclass(frozen=True, slots=True)
class _Reading:
    """What a task may read while it is being loaded."""

    data: Mapping[str, Path]  # by hub id
    rows_dir: Path  # where the datasets library may keep what it reads
    docs_split: str | None  # of the documents, which must be there


_readings: list[_Reading] = []


@dataclass(slots=True)
class Document:
    """One document and lm-eval's requests for it, or why there are none."""

    doc_id: int
    doc: Any
    instances: list[Any] = field(default_factory=list)
    error: str | None = None


class BuiltTask:
    """A leaf task with its prompt settings; ``chat_template`` turns messages into text (None: plain prompts), and
    ``reasoning`` is how its model thinks, if it does.
    """

    def __init__(
        self, task: Any, prompt: "PromptConfig", chat_template: Any | None, reasoning: "Reasoning | None" = None
    ) -> None:
        self.task = task
        self.reasoning = reasoning
        self.num_fewshot = _set_num_fewshot(task, prompt.num_fewshot)
        _merge_gen_kwargs(task, prompt.gen_kwargs)
        if prompt.num_repeats is not None:
            task.set_config(key="repeats", value=prompt.num_repeats)
        task.set_fewshot_seed(seed=prompt.fewshot_seed)
        self._left_out: list[Any] = []  # what may not be among the examples: the document that is being asked
        if not prompt.harness_compat and draws_from_documents(task):
            _leave_out(task.sampler, self._left_out)
        self._prompt = prompt
        self._chat_template = chat_template
        docs = task.eval_docs
        self._docs = docs if hasattr(docs, "__getitem__") else list(docs)
        self._built: list[Document] = []

    @property
    def num_docs(self) -> int:
        """Documents of the whole task."""
        return len(self._docs)

    def documents(self, doc_ids: Sequence[int]) -> list[Document]:
        """The documents with those numbers, with prompts as if the whole task had been built."""
        with only_known_files(self.task.config.task, self.task.known_files):
            while len(self._built) <= max(doc_ids):
                self._built.append(self._build(len(self._built)))
        return [self._built[doc_id] for doc_id in doc_ids]

    def _build(self, doc_id: int) -> Document:
        document = Document(doc_id, self._docs[doc_id])
        try:
            instances = self._requests(doc_id, document.doc)
            document.instances = instances if isinstance(instances, list) else [instances]
        except Exception as error:
            document.error = document_error(error)
        return document

    def _requests(self, doc_id: int, doc: Any) -> Any:
        prompt, task = self._prompt, self.task
        self._left_out[:] = [doc]
        context = task.fewshot_context(
            doc,
            num_fewshot=self.num_fewshot,
            system_instruction=prompt.system_instruction,
            apply_chat_template=prompt.apply_chat_template,
            fewshot_as_multiturn=prompt.fewshot_as_multiturn,
            chat_template=self._chat_template,
            gen_prefix=task.doc_to_prefix(doc),
        )
        return task.construct_requests(
            doc=doc,
            ctx=context,
            metadata=(task.config["task"], doc_id, task.config.repeats),
            apply_chat_template=prompt.apply_chat_template,
            chat_template=self._chat_template,
        )


def load_task(
    name: str,
    overrides: Mapping[str, Any],
    include_paths: Sequence[str],
    data: Mapping[str, Path],
    rows_dir: Path,
    reads: Sequence[str] = (),
) -> Any:
    """lm-eval's task object, its data sets read from the directories ``data`` (by hub id) and nowhere else.

    ``reads`` names the local files that it may read beside those in its own folder.  ``rows_dir`` must be new: the
    datasets library keys its cache by name, so an old one can hold other rows.
    Raises ConfigError for a task that cannot run here, DataError for data that is missing or does not fit the task.
    """
    with no_collection():
        import numpy as np
        from lm_eval.tasks import TaskManager

    entry = leaf_entry(name, include_paths)
    assert entry.path is not None
    _compile_templates_once()
    config = {**entry.config, **overrides}
    if (line := refused_kind(name, config)) is not None:  # before its file is imported, which may look for a runner
        raise ConfigError(line)
    reading = _Reading(data, rows_dir, config.get("test_split") or config.get("validation_split"))
    random.seed(0)  # lm-eval's own seeds: a task may shuffle its documents
    np.random.seed(1234)
    try:
        manager = TaskManager(include_defaults=False, include_path=str(entry.path.parent))
        known_files = _known_files(entry, reading, reads)
        with _only_local_data(reading), only_known_files(name, known_files):
            member = {"task": name, **overrides}
            task = manager.load([{"group": "one", "task": [member]}])["tasks"][name]
    except StageError:
        raise
    except Exception as error:
        if (line := unfit_environment(name, error)) is not None:
            raise ConfigError(line) from error
        raise DataError(f"task {name} does not load from its data: {one_line(error)}") from error
    task.known_files = known_files  # what its code may read later as well
    return task


def _known_files(entry: Entry, reading: _Reading, reads: Sequence[str]) -> list[Path]:
    home = home_of(entry)
    beside = [] if home is None else [path for path in home.iterdir() if path.is_file()]
    return [*beside, *(file for name in reads for file in found(name)), *reading.data.values(), reading.rows_dir]


def data_sets(inputs: Mapping[str, Path]) -> dict[str, Path]:
    """Those among a step's inputs, by hub id."""
    return {name.removeprefix("data:"): path for name, path in inputs.items() if name.startswith("data:")}


def document_error(error: BaseException) -> str:
    """Why a document has no score, as its row keeps it."""
    return one_line(error, MAX_ERROR_LENGTH, cut="")


@lru_cache(maxsize=4)
def _index(include_paths: tuple[str, ...]) -> Index:
    return build_index(include_paths)


def leaf_entry(name: str, include_paths: Sequence[str]) -> Entry:
    """Where a leaf task is defined.  Raises ConfigError for what is none."""
    entry = _index(tuple(include_paths)).get(name)
    if entry is None or entry.kind != "task":
        what = "is unknown to lm-eval" if entry is None else f"is a {entry.kind}: evaluate its members"
        raise ConfigError(f"task {name} {what}")
    return entry


def _compile_templates_once() -> None:
    """lm-eval compiles its Jinja templates again for every document: 79 of the 82 ms that an 8-shot prompt takes."""
    from lm_eval.utils import env

    if not hasattr(env.from_string, "cache_info"):
        env.from_string = lru_cache(maxsize=1024)(env.from_string)


@contextmanager
def _only_local_data(reading: _Reading) -> Iterator[None]:
    """Let ``datasets.load_dataset`` find hub ids in ``reading`` only: nothing reaches for the network or an old cache.

    One function replaces it for good, since a task's module may keep the name it imported; without a reading it is
    the original again.
    """
    import datasets

    datasets.disable_progress_bars()
    if getattr(datasets.load_dataset, "__name__", "") != "_load_local":
        datasets.load_dataset = _local_loader(datasets.load_dataset)
    _readings.append(reading)
    try:
        yield
    finally:
        _readings.clear()


def _local_loader(original: Any) -> Any:
    def _load_local(path: str, *arguments: Any, **options: Any) -> Any:
        if not _readings:
            return original(path, *arguments, **options)
        (reading,) = _readings
        source = reading.data.get(path)
        if source is None and "/" in path and not Path(path).exists():
            raise DataError(f"data set {path} is not among this step's inputs: name it in the task's datasets")
        options.pop("trust_remote_code", None)
        loaded = original(str(source or path), *arguments, **options | {"cache_dir": str(reading.rows_dir)})
        return _splits(path, loaded, reading.docs_split) if isinstance(loaded, dict) and loaded else loaded

    return _load_local


def _splits(path: str, loaded: Any, docs_split: str | None) -> Any:
    """``loaded`` with every split but that of the documents empty where it is not there.

    lm-eval looks at a task's training split even for zero examples, and a mirror may have no more than the documents.
    """

    class Splits(type(loaded)):  # type: ignore[misc]
        def __missing__(self, name: str) -> Any:
            if name == docs_split:
                raise DataError(f"data set {path} has no split {name!r}; it has {', '.join(self)}")
            return next(iter(self.values())).select([])

    return Splits(loaded)


def _set_num_fewshot(task: Any, wanted: int | None) -> int:
    own = task.get_config("num_fewshot")
    if wanted is not None and own == 0 and wanted != 0:
        raise ConfigError(
            f"task {task.task_name} is fixed at 0 examples by lm-eval; leave num_fewshot out of its task slot"
        )
    num_fewshot = int(own or 0) if wanted is None else wanted
    task.set_config(key="num_fewshot", value=num_fewshot)
    pool = num_examples(task) if num_fewshot > 0 else None
    if pool is not None and num_fewshot > pool:
        raise ConfigError(
            f"task {task.task_name} has {pool} examples to draw from, fewer than num_fewshot={num_fewshot}: lower it"
        )
    return num_fewshot


def num_examples(task: Any) -> int | None:
    """What the few-shot examples of a document are drawn from; None for a task that draws none."""
    sampler = getattr(task, "sampler", None)
    if sampler is None or (examples := sampler.fewshot_indices or sampler.df) is None:
        return None
    return len(examples) - draws_from_documents(task)  # the document itself is left out


def draws_from_documents(task: Any) -> bool:
    """Whether the examples come from the split of the documents; lm-eval looks for that in test splits alone."""
    cfg = getattr(task, "fewshot_cfg", None)
    if cfg is None or (cfg.split is None and cfg.samples is not None):
        return False
    own = task.config
    examples = cfg.split or own.training_split or own.validation_split or own.test_split
    return bool(examples == (own.test_split or own.validation_split))


def _leave_out(sampler: Any, left_out: list[Any]) -> None:
    """Let the sampler draw no document that is in ``left_out`` when it draws."""
    draw = sampler.sample

    def sample(n: int, eval_doc: Any = None, **options: Any) -> Any:
        return draw(n, eval_doc=left_out[0], **options)

    sampler.sample = sample


def _merge_gen_kwargs(task: Any, gen_kwargs: Mapping[str, Any]) -> None:
    """Over the task's own, as lm-eval does; a length given under another of its names replaces the task's."""
    if task.get_config("output_type") != "generate_until" or not gen_kwargs:
        return
    merged = dict(task.get_config("generation_kwargs") or {})
    if any(name in gen_kwargs for name in LENGTH_NAMES):
        merged = {key: value for key, value in merged.items() if key not in LENGTH_NAMES}
    task.set_config(key="generation_kwargs", value=merged | dict(gen_kwargs))
