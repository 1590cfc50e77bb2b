"""lm-eval's files of samples, line by line: what each document was asked there, and what was answered."""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import DataError
from stages.evaluate.answers import Answer
from stages.evaluate.differences import differences
from stages.evaluate.digests import dumps

if TYPE_CHECKING:
    from stages.evaluate.harness import Document
    from stages.evaluate.reasoning import Reasoning

_SHOWN = 40  # characters of two texts from where they part
_UNKNOWN: dict[str, Any] = {"num_prompt_tokens": None, "num_output_tokens": None, "truncated": None}

Line = Mapping[str, Any]


class SamplesFile:
    """A file of samples, of which only where each document's lines are is kept; a line for each document and filter."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._places: dict[int, list[int]] = {}
        filters: set[tuple[int, str]] = set()
        with path.open("rb") as stream:
            for text in iter(stream.readline, b""):
                line = self._read(text)
                key = line["doc_id"], str(line.get("filter"))
                if key in filters:
                    raise DataError(
                        f"{path.name} has document {key[0]} twice: its run was begun again, or two are in it"
                    )
                filters.add(key)
                self._places.setdefault(key[0], []).append(stream.tell() - len(text))

    def check_known(self, num_docs: int) -> None:
        """Raise DataError for a document that the task does not have."""
        if unknown := [doc_id for doc_id in self._places if not 0 <= doc_id < num_docs]:
            raise DataError(
                f"{self.path.name} has document {unknown[0]}, and the task has {num_docs}: it was run on other data"
            )

    def lines(self, doc_id: int) -> list[Line]:
        """All of a document.  Raises DataError where there is none."""
        if doc_id not in self._places:
            raise DataError(
                f"{self.path.name} lacks document {doc_id}, which is asked for: run lm_eval without --limit, or set "
                "the limit of the task slot to what it was, with limit_order: first"
            )
        return [self._line_at(place) for place in self._places[doc_id]]

    def _line_at(self, place: int) -> Line:
        with self.path.open("rb") as stream:
            stream.seek(place)
            return self._read(stream.readline())

    def _read(self, text: bytes) -> Line:
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not _is_sample(line):
            raise DataError(f"{self.path.name} has a line that is no sample of lm-eval's: {text[:_SHOWN]!r}")
        return dict(line)


def _is_sample(line: Any) -> bool:
    if not isinstance(line, dict) or type(line.get("doc_id")) is not int:
        return False
    asked, answered = line.get("arguments"), line.get("resps")
    are_asked = isinstance(asked, dict) and all(isinstance(each, dict) for each in asked.values())
    return are_asked and isinstance(answered, list) and all(isinstance(each, list) for each in answered)


def recorded_answers(file: SamplesFile, document: "Document", reasoning: "Reasoning | None") -> list[Answer]:
    """What was answered to a document, by request and then by repeat.

    Raises DataError where it was another document, or was asked otherwise.
    """
    lines, place = file.lines(document.doc_id), f"{file.path.name}, document {document.doc_id}"
    _check_document(place, document, lines)
    if document.error is not None:
        return []
    for line in lines:
        _check_requests(place, document.instances, line)
    responses = _responses(place, lines)
    _check_repeats(place, document.instances, responses)
    return [
        _answer(place, instance, response, reasoning)
        for instance, given in zip(document.instances, responses, strict=True)
        for response in given
    ]


def _check_document(place: str, document: "Document", lines: Sequence[Line]) -> None:
    from lm_eval.utils import handle_non_serializable

    ours = json.loads(json.dumps(document.doc, default=handle_non_serializable))
    for line in lines:
        if dumps(line.get("doc")) != dumps(ours):
            theirs = found if isinstance(found := line.get("doc"), dict) else {}
            names = ours if isinstance(ours, dict) else ()
            field = next((name for name in names if dumps(theirs.get(name)) != dumps(ours[name])), "another field")
            raise DataError(f"{place}: it is another document there ({field} differs): it was run on other data")


def _check_requests(place: str, instances: Sequence[Any], line: Line) -> None:
    """All that was asked must be what is asked here: contexts, given texts, and how to write."""
    theirs = [list(each.values()) for each in line["arguments"].values()]
    ours = [json.loads(dumps(list(instance.args))) for instance in instances]
    if len(theirs) != len(ours):
        raise DataError(f"{place}: {len(theirs)} requests were made of it there, and {len(ours)} are here")
    for asked, wanted in zip(theirs, ours, strict=True):
        if dumps(asked) != dumps(wanted):
            raise DataError(f"{place}: {_how_differs(asked, wanted)}")


def _how_differs(theirs: Sequence[Any], ours: Sequence[Any]) -> str:
    one, other = next(
        (pair for pair in zip(theirs, ours, strict=False) if dumps(pair[0]) != dumps(pair[1])), (theirs, ours)
    )
    if isinstance(one, dict) and isinstance(other, dict):
        return f"it was asked with other gen_kwargs: {differences(one, other, 'the samples', 'the task slot')}"
    if not isinstance(one, str) or not isinstance(other, str):
        return f"it was asked {one!r:.100}, and here it is {other!r:.100}"
    pairs = enumerate(zip(one, other, strict=False))
    start = next((index for index, (left, right) in pairs if left != right), min(len(one), len(other)))
    return (
        f"its prompt is another; from character {start} on it is {one[start : start + _SHOWN]!r} in the samples and "
        f"{other[start : start + _SHOWN]!r} here: give the task slot the settings of that run (harness_compat: true "
        "where prompts are lm-eval's own)"
    )


def _responses(place: str, lines: Sequence[Line]) -> list[list[Any]]:
    """By request, then by repeat; every filter's line has the same."""
    first: list[list[Any]] = lines[0]["resps"]
    if any(dumps(line["resps"]) != dumps(first) for line in lines):
        raise DataError(f"{place}: its filters were given different responses: lines of two runs are mixed")
    return first


def _check_repeats(place: str, instances: Sequence[Any], responses: Sequence[Sequence[Any]]) -> None:
    if len(responses) != len(instances):
        raise DataError(f"{place}: {len(responses)} requests were answered there, and {len(instances)} are made here")
    for instance, given in zip(instances, responses, strict=True):
        if len(given) != instance.repeats:
            raise DataError(
                f"{place}: it was answered {len(given)} times there, and {instance.repeats} answers are asked for "
                f"here: set num_repeats: {len(given)} on its task slot"
            )


def _answer(place: str, instance: Any, response: Any, reasoning: "Reasoning | None") -> Answer:
    if instance.request_type == "generate_until":
        if not isinstance(response, str):
            raise DataError(f"{place}: {response!r:.60} is no text that was written")
        opening = None if reasoning is None else reasoning.opening(instance.args[0])
        return Answer(text=response, opening=opening, **_UNKNOWN)
    if instance.request_type == "loglikelihood_rolling":
        return Answer(logprob=_number(place, response), **_UNKNOWN)
    if not isinstance(response, list) or len(response) != 2 or response[1] not in ("True", "False"):
        raise DataError(f"{place}: {response!r:.60} is no log-likelihood with whether it is greedy")
    return Answer(logprob=_number(place, response[0]), is_greedy=response[1] == "True", **_UNKNOWN)


def _number(place: str, text: Any) -> float:
    try:
        value = float(text)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value):
        raise DataError(f"{place}: {text!r:.60} is no log-likelihood")
    return value
