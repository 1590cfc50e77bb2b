"""The protocol between lm-eval's rules (``harness_model``) and an engine: token ids in, log-probabilities and text out.

Every choice about text is made before or after this line (templates, special tokens, truncation, stop strings of a
task), so two engines can differ in arithmetic only.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable


@dataclass(frozen=True, slots=True)
class ScoreRequest:
    """Tokens ``continuation`` to be scored after tokens ``context``; neither is empty, together they fit the window."""

    context: tuple[int, ...]
    continuation: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Score:
    """Log-probability of a continuation, and whether greedy decoding would have written it."""

    logprob: float  # nats
    is_greedy: bool


@dataclass(frozen=True, slots=True)
class GenerateRequest:
    """Write up to ``max_tokens`` after ``prompt``; greedy without ``sampling``, else by that and its own ``seed``.

    ``text`` is the prompt before it was tokenised, for a server that takes no tokens; ``is_complete`` says that it
    holds what a tokenizer would put around it.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    stop: tuple[str, ...] = ()
    sampling: tuple[tuple[str, float], ...] = ()  # temperature, top_p, ... by name
    seed: int | None = None
    text: str = field(default="", compare=False, repr=False)
    is_complete: bool = field(default=True, compare=False, repr=False)


@dataclass(frozen=True, slots=True)
class Generation:
    """The text written (special tokens kept, the end token and what follows a stop string removed).

    ``stopped_by`` is the stop string that ended it; None where its end token or the limit did, or nobody tells.
    """

    text: str
    num_tokens: int
    finish_reason: str  # FINISHED or CUT_OFF
    token_ids: tuple[int, ...] | None = None  # all that were written; None: the engine does not tell
    stopped_by: str | None = None


class Engine(Protocol):
    """An open model.  All methods raise EngineError when the engine is dead or answers nonsense."""

    @property
    def facts(self) -> Mapping[str, Any]:
        """What a result depends on: ``engine``, ``engine_version``, ``platform`` (cpu or cuda)."""

    @property
    def arithmetic(self) -> Mapping[str, Any]:
        """``method`` of the linear layers: ``dense``, ``native`` and its kernels, or ``simulated`` and its settings."""

    @property
    def scoring(self) -> Mapping[str, str]:
        """The method behind ``loglikelihood``: of one-token and of longer continuations."""

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Score every request, in order; requests that share a context should lie together."""

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer every request, in order."""

    def reset(self) -> None:
        """Forget what earlier requests left behind, so that the next answers do not depend on them."""

    def close(self) -> None:
        """Give back memory, threads and process state, so that another engine can open in this process."""


@runtime_checkable
class Replaceable(Protocol):
    """An engine that can be given other weights of the same family, in less time than another one takes to open."""

    def replace(self, checkpoint: Path) -> None:
        """Answer from the weights of ``checkpoint`` from now on, as an engine that was opened with them would.

        Raises EngineError where that cannot be, or went wrong: the engine must be closed then.
        """


@runtime_checkable
class Overlapping(Protocol):
    """An engine that writes answers to new requests beside those it is at, so that it never runs empty between two."""

    def begin(self, requests: Sequence[GenerateRequest]) -> list[str]:
        """Put requests into the engine; their names."""

    def advance(self) -> Mapping[str, Generation]:
        """Go one step on; the answers that are complete, by their requests' names."""


@runtime_checkable
class Ahead(Protocol):
    """An engine that works on requests before their scores are asked for, while something else is done here."""

    def ready(self, requests: Sequence[ScoreRequest]) -> Any:
        """What ``start`` takes, made in any thread while the engine is at other requests; good for one start."""

    def start(self, ready: Any) -> None:
        """Forget what was before and begin with what ``loglikelihood`` will be asked for next; ``reset`` drops it."""
