"""What an answer step writes: ``answers.parquet``, a row for each document with all that the engine said, and
``answers.json``, how it was asked.

Nothing is judged yet: texts are as they came, so that whoever scores them anew asks no engine again.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from stages.documents import read_json, read_table, write_json, write_table
from stages.evaluate.reasoning import Parts, Reasoning, parted

ANSWERS, FACTS = "answers.parquet", "answers.json"
FINISHED, CUT_OFF = "stop", "length"  # finish reasons

_DOCUMENT_COLUMNS = {
    "doc_id": pa.int32(),
    "doc_digest": pa.string(),
    "prompt_digest": pa.string(),
    "num_requests": pa.int32(),
    "error": pa.string(),
}
# Lists with an item for each answer: by request, then by repeat.
_ANSWER_COLUMNS = {
    "text": pa.string(),
    "token_ids": pa.list_(pa.int32()),
    "finish_reason": pa.string(),
    "stopped_by": pa.string(),
    "stop": pa.list_(pa.string()),
    "opening": pa.string(),
    "seed": pa.int64(),
    "logprob": pa.float64(),
    "is_greedy": pa.bool_(),
    "num_prompt_tokens": pa.int32(),
    "num_output_tokens": pa.int32(),
    "truncated": pa.bool_(),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer as it came: a text that was written, or what a given one is worth (``logprob``, nats).

    ``stop`` are the strings that an answer ends before, but for those that end a turn; ``stopped_by`` is the one that
    the engine ended it at; ``opening`` is what of a model's thoughts the prompt had begun (see Reasoning), None where
    it does not think; ``truncated`` says that the prompt was cut on the left.  What whoever answered does not tell is
    None: what ended a text, how many tokens there were, whether the prompt was cut.
    """

    text: str | None = None
    token_ids: Sequence[int] | None = None  # None: the engine does not tell
    finish_reason: str | None = None
    stopped_by: str | None = None
    stop: Sequence[str] = ()
    opening: str | None = None
    seed: int | None = None  # None: greedy
    logprob: float | None = None
    is_greedy: bool | None = None  # None: of a whole text
    num_prompt_tokens: int | None = 0
    num_output_tokens: int | None = 0
    truncated: bool | None = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """What is scored of an answer.

    ``value`` is what lm-eval expects: a text, (log-likelihood, is greedy), or the log-likelihood of a whole text.  Of a
    text also its ``thoughts``, the stop string it ended at, and whether the limit ended it, in its thoughts or later.
    """

    value: Any
    thoughts: str | None = None
    stopped_by: str | None = None
    is_cut: bool | None = None
    is_cut_in_thoughts: bool | None = None


def response_of(answer: Answer, reasoning: Reasoning | None) -> Response:
    """Thoughts are no part of the answer, and end at no stop string; thoughts that never end leave an empty answer."""
    if answer.text is None:
        return Response(value=answer.logprob if answer.is_greedy is None else (answer.logprob, answer.is_greedy))
    was_cut = None if answer.finish_reason is None else answer.finish_reason == CUT_OFF
    parts = parted(answer.text, answer.opening, bool(was_cut), reasoning) if reasoning else Parts(None, answer.text)
    if parts.answer is None:
        return Response(value="", thoughts=parts.thoughts, is_cut=was_cut, is_cut_in_thoughts=was_cut)
    found = min(((place, term) for term in answer.stop if (place := parts.answer.find(term)) >= 0), default=None)
    return Response(
        value=parts.answer if found is None else parts.answer[: found[0]],
        thoughts=parts.thoughts,
        stopped_by=answer.stopped_by if found is None else found[1],
        is_cut=was_cut and found is None,
        is_cut_in_thoughts=None if was_cut is None else False,
    )


def total(counts: Iterable[int | None]) -> int | None:
    """Their sum; None where one is not known."""
    known = list(counts)
    return None if None in known else sum(count for count in known if count is not None)


def is_any(said: Iterable[bool | None]) -> bool | None:
    """Whether one is; None where none is known to be, and of one it is not known."""
    known = list(said)
    return None if None in known and True not in known else True in known


@dataclass(slots=True, kw_only=True)
class Answered:
    """One document and its answers, ordered by request, then by repeat; ``error`` says why there are none."""

    doc_id: int
    doc_digest: str
    prompt_digest: str
    num_requests: int = 0
    answers: list[Answer] = field(default_factory=list)
    error: str | None = None

    @property
    def by_request(self) -> list[list[Answer]]:
        """The repeats of each request."""
        repeats = len(self.answers) // self.num_requests if self.num_requests else 0
        return [self.answers[index * repeats : (index + 1) * repeats] for index in range(self.num_requests)]


@dataclass(frozen=True, kw_only=True, slots=True)
class AnswerFacts:
    """How a task was asked; ``num_docs`` are those of the whole.

    ``comparable`` is what must be equal for two numbers to be subtracted, ``scoring`` how an engine finds the worth of
    a given text, and ``arithmetic`` what it multiplied with.
    """

    task: str
    version: Any
    output_type: str
    num_docs: int
    reasoning: Reasoning | None
    scoring: dict[str, str]
    arithmetic: dict[str, Any]
    comparable: dict[str, Any]


def write_answers(out: Path, answered: Sequence[Answered], facts: AnswerFacts) -> None:
    """``answered`` sorted by document."""
    rows = sorted(answered, key=lambda row: row.doc_id)
    columns = {name: pa.array([getattr(row, name) for row in rows], kind) for name, kind in _DOCUMENT_COLUMNS.items()}
    for name, kind in _ANSWER_COLUMNS.items():
        lists = [[getattr(answer, name) for answer in row.answers] for row in rows]
        columns[name] = pa.array(lists, pa.list_(kind))
    write_table(out / ANSWERS, pa.table(columns))
    write_json(out / FACTS, asdict(facts), ascii_only=False)


def read_answers(directory: Path, artifact: str | None = None) -> list[Answered]:
    """What was answered, without its tokens, which are most of the memory; errors name ``artifact``, by default the
    directory.
    """
    columns = [name for name in _ANSWER_COLUMNS if name != "token_ids"]
    table = read_table(directory / ANSWERS, [*_DOCUMENT_COLUMNS, *columns], artifact)
    documents = table.select(list(_DOCUMENT_COLUMNS)).to_pylist()
    answers = table.select(columns).to_pylist()
    return [Answered(**each, answers=_each(lists)) for each, lists in zip(documents, answers, strict=True)]


def _each(lists: Mapping[str, list[Any]]) -> list[Answer]:
    items = zip(*lists.values(), strict=True)
    return [Answer(**dict(zip(lists, item, strict=True))) for item in items]


def read_answer_facts(directory: Path, artifact: str | None = None) -> AnswerFacts:
    """How the task was asked; errors name ``artifact``, by default the directory."""
    return read_json(directory / FACTS, AnswerFacts, artifact)
