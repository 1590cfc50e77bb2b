"""The generation arguments that lm-eval's tasks and sweeps may name, and what each may be."""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

SAMPLING_NAMES = (
    "temperature", "top_p", "top_k", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"
)  # fmt: skip
LENGTH_NAMES = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # one thing, four names
OTHER_NAMES = ("do_sample", "until", "num_beams", "use_cache")
DEFAULT_MAX_TOKENS = 256  # lm-eval's, for tasks that name none
KNOWN_NAMES = (*SAMPLING_NAMES, *LENGTH_NAMES, *OTHER_NAMES)


class _Rule(NamedTuple):
    """What an argument may be, in words and as a test."""

    words: str
    holds: Callable[[Any], bool]


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_LENGTH = _Rule("a whole number from 1", lambda value: _is_count(value) and value >= 1)
_PENALTY = _Rule("a number from -2 to 2", lambda value: _is_number(value) and -2 <= value <= 2)
_SWITCH = _Rule("true or false", lambda value: isinstance(value, bool))
_RULES = {
    "temperature": _Rule("a number from 0", lambda value: _is_number(value) and 0 <= value < float("inf")),
    "top_p": _Rule("a number above 0, up to 1", lambda value: _is_number(value) and 0 < value <= 1),
    "top_k": _Rule("a whole number from 1, or -1 or 0 for all", lambda value: _is_count(value) and value >= -1),
    "min_p": _Rule("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1),
    "repetition_penalty": _Rule("a number above 0, up to 2", lambda value: _is_number(value) and 0 < value <= 2),
    "presence_penalty": _PENALTY,
    "frequency_penalty": _PENALTY,
    **dict.fromkeys(LENGTH_NAMES, _LENGTH),
    "do_sample": _SWITCH,
    "use_cache": _SWITCH,
    "until": _Rule(
        "a text or a list of texts",
        lambda value: _is_text(value) or (isinstance(value, list | tuple) and all(map(_is_text, value))),
    ),
    "num_beams": _Rule("1", lambda value: _is_count(value) and value == 1),
}


def is_sampled(gen_kwargs: Mapping[str, Any]) -> bool | None:
    """Whether answers under these arguments are drawn; None where they do not say."""
    if gen_kwargs.get("do_sample") is False:
        return False
    if (temperature := gen_kwargs.get("temperature")) is not None:
        return bool(temperature > 0)
    return True if gen_kwargs.get("do_sample") else None


def check_gen_kwargs(gen_kwargs: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that is unknown or cannot be what it is; null is the task's own."""
    if unknown := sorted(set(gen_kwargs) - set(KNOWN_NAMES)):
        raise ValueError(f"gen_kwargs {', '.join(unknown)} are unknown; there are {', '.join(KNOWN_NAMES)}")
    for name, value in gen_kwargs.items():
        if value is not None and not _RULES[name].holds(value):
            raise ValueError(f"gen_kwargs.{name} must be {_RULES[name].words}; got {value!r}")
