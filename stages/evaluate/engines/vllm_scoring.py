"""Scoring continuations in vLLM with every context computed once.

A request with ``prompt_logprobs`` makes vLLM skip the prefix cache and form logits of every prompt token.  Here the
context goes first, alone; then each continuation with ``skip_reading_prefix_cache=False``, which forms logits after the
cached blocks only.  Of what was cached nothing comes back, not even for the token right after it.  So wherever a block
that continuations share ends, at the end of their context or later, their next tokens are asked for by name
(``logprob_token_ids``), with one request for all of them.  A continuation of one token needs no other, nor do those
that are so short and so alike that there are no more places to ask at than continuations (a line break, then a letter).
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stages.errors import EngineError
from stages.evaluate.engines.protocol import Score, ScoreRequest
from stages.evaluate.engines.vllm_rows import asked_rows

if TYPE_CHECKING:
    from vllm import SamplingParams

Tokens = tuple[int, ...]

_MAX_LABELS = 128  # vLLM's upper bound on the length of logprob_token_ids


@dataclass(frozen=True, slots=True)
class Job:
    """One request to vLLM: the prompt is ``context`` and the beginning ``after`` of a continuation.

    Its output says how likely ``labels`` come next; with ``is_span``, how likely the tokens of ``after`` were.
    """

    context: Tokens
    after: Tokens = ()
    labels: Tokens = ()
    is_span: bool = False
    reads_cache: bool = True

    @property
    def prompt(self) -> Tokens:
        return self.context + self.after

    @property
    def params(self) -> "SamplingParams":
        from vllm import SamplingParams

        options: dict[str, Any] = {"logprob_token_ids": list(self.labels)} if self.labels else {}
        if self.is_span:
            options = {"prompt_logprobs": 1, "skip_reading_prefix_cache": not self.reads_cache}
            options["extra_args"] = asked_rows(len(self.after))
        return SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **options)


def jobs(context: Tokens, continuations: Sequence[Tokens], block_size: int) -> Iterator[Job]:
    """The requests that score ``continuations`` after ``context``; the context is ahead of what finds it cached."""
    longer = [continuation for continuation in continuations if len(continuation) > 1]
    if max(map(len, continuations)) <= max(1, len(longer)):
        places = _places(continuations)
        if len(places) <= max(1, len(longer)):
            for after, labels in places.items():
                yield from _label_jobs(context, after, labels)
            return
    branches: dict[Tokens, list[int]] = {(): [each[0] for each in continuations if len(each) == 1]}
    for after, labels in _hidden(context, longer, block_size).items():
        branches[after] = [*branches.get(after, []), *labels]
    at_context = branches.pop(())
    if not at_context and longer and len(context) >= block_size:
        yield Job(context)
    yield from _label_jobs(context, (), at_context)
    for continuation in longer:
        yield Job(context, continuation, is_span=True)
    for after, labels in branches.items():
        yield from _label_jobs(context, after, labels)


def _places(continuations: Sequence[Tokens]) -> dict[Tokens, list[int]]:
    """The next tokens by all that stands before one, shorter beginnings first."""
    found: dict[Tokens, list[int]] = {}
    for index in range(max(map(len, continuations))):
        for continuation in continuations:
            if index < len(continuation):
                found.setdefault(continuation[:index], []).append(continuation[index])
    return found


def _hidden(context: Tokens, longer: Sequence[Tokens], block_size: int) -> dict[Tokens, list[int]]:
    """Next tokens by what stands before them, where that ends a block which an earlier request leaves cached.

    Beyond the context that is a block which two continuations begin with: of one that a single continuation reaches,
    that one's own request forms the logits.
    """
    found: dict[Tokens, list[int]] = {}
    for continuation, num_shared in _shared(longer):
        stop = min(num_shared + 1, len(continuation))
        for end in range(-len(context) % block_size, stop, block_size):
            found.setdefault(continuation[:end], []).append(continuation[end])
    whole = set(longer)
    return {after: labels for after, labels in found.items() if not after or after in whole or len(set(labels)) > 1}


def _shared(continuations: Iterable[Tokens]) -> Iterator[tuple[Tokens, int]]:
    """Each with the number of tokens that it begins with like another one; in time linear in all tokens."""
    ordered = sorted(continuations)
    common = [0, *(_num_common(one, other) for one, other in itertools.pairwise(ordered)), 0]
    for index, continuation in enumerate(ordered):
        yield continuation, max(common[index : index + 2])


def _num_common(one: Tokens, other: Tokens) -> int:
    pairs = enumerate(zip(one, other, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(one), len(other)))


def _label_jobs(context: Tokens, after: Tokens, labels: Iterable[int]) -> Iterator[Job]:
    distinct = tuple(dict.fromkeys(labels))
    for start in range(0, len(distinct), _MAX_LABELS):
        yield Job(context, after, distinct[start : start + _MAX_LABELS])


class Known:
    """How likely tokens are by what stands before them, after one context: a tree, filled from outputs."""

    def __init__(self) -> None:
        self._nodes: dict[tuple[int, int], int] = {}  # (node, token) to the node behind that token
        self._scores: dict[tuple[int, int], Score] = {}

    def add(self, job: Job, output: Any) -> None:
        """Read what vLLM returned.  Raises EngineError for what is not a number."""
        *before, behind = self._nodes_of(job.after)
        if job.labels:
            self._add_labels(behind, job.labels, output.outputs[0])
        if not job.is_span:
            return
        places = list(zip(before, job.after, strict=True))
        # Counted from the end: vLLM's newer model runner leaves out the rows of cached tokens, the older one pads them.
        rows = (output.prompt_logprobs or [])[-len(places) :]
        num_hidden = (output.num_cached_tokens or 0) + 1 - len(job.context)
        for index, row in enumerate(rows, len(places) - len(rows)):
            place = places[index]
            if index >= num_hidden and row is not None and place[1] in row:
                self._scores.setdefault(place, _score(row, place[1]))

    def score(self, continuation: Tokens) -> Score | None:
        """None where the cache hid a token that no other request showed."""
        nodes = self._nodes_of(continuation)
        found = [self._scores.get(place) for place in zip(nodes, continuation, strict=False)]
        known = [score for score in found if score is not None]
        if len(known) < len(found):
            return None
        return Score(sum(score.logprob for score in known), all(score.is_greedy for score in known))

    def _add_labels(self, node: int, labels: Tokens, answer: Any) -> None:
        written, row = answer.token_ids[0], answer.logprobs[0]
        for label in labels:
            score = _score(row, label)
            # Of tokens that tie for the first place lm-eval takes each for the one that greedy decoding writes.
            is_greedy = label == written or (written in row and row[label].logprob >= row[written].logprob)
            self._scores.setdefault((node, label), Score(score.logprob, is_greedy))

    def _nodes_of(self, tokens: Tokens) -> list[int]:
        """What stands before each token, and behind the last."""
        nodes = [0]
        for token in tokens:
            nodes.append(self._nodes.setdefault((nodes[-1], token), len(self._nodes) + 1))
        return nodes


class Scoring:
    """Requests as jobs, and what the outputs of these show: of each context as soon as it has all of its own."""

    def __init__(self, groups: Sequence[tuple[Sequence[ScoreRequest], Sequence[Job]]]) -> None:
        self.jobs = [job for _, group in groups for job in group]
        self.scores: dict[ScoreRequest, Score | None] = {}  # None where the cache hid a token
        self._groups = groups
        self._place_of: dict[str, tuple[int, int]] = {}  # by name: its group, and where in that
        self._outputs: dict[int, dict[int, Any]] = {}

    @classmethod
    def of(cls, requests: Iterable[ScoreRequest], block_size: int) -> "Scoring":
        """Equal requests are asked once."""
        by_context: dict[Tokens, list[ScoreRequest]] = {}
        for request in dict.fromkeys(requests):
            by_context.setdefault(request.context, []).append(request)
        return cls(
            [
                (some, list(jobs(context, [request.continuation for request in some], block_size)))
                for context, some in by_context.items()
            ]
        )

    @property
    def is_complete(self) -> bool:
        return not self._place_of

    def named(self, names: Sequence[str]) -> None:
        """What the jobs are called in the engine, in their order."""
        places = [(index, place) for index, (_, group) in enumerate(self._groups) for place in range(len(group))]
        self._place_of = dict(zip(names, places, strict=True))

    def take(self, outputs: Mapping[str, Any]) -> None:
        """Read outputs by the names of their jobs; others are not of this."""
        for name in outputs.keys() & self._place_of.keys():
            index, place = self._place_of.pop(name)
            found = self._outputs.setdefault(index, {})
            found[place] = outputs[name]
            requests, group = self._groups[index]
            if len(found) == len(group):
                del self._outputs[index]
                self._read(requests, group, [found[each] for each in range(len(group))])

    def _read(self, requests: Sequence[ScoreRequest], group: Sequence[Job], outputs: Iterable[Any]) -> None:
        known = Known()
        for job, output in zip(group, outputs, strict=True):
            known.add(job, output)
        self.scores |= {request: known.score(request.continuation) for request in requests}


def _score(row: Mapping[int, Any], token: int) -> Score:
    logprob = row[token].logprob
    if math.isnan(logprob):
        raise EngineError(
            "vLLM returned a log-probability that is not a number; the checkpoint or its kernel is broken"
        )
    return Score(float(logprob), logprob >= max(each.logprob for each in row.values()))
