"""Failures a stage can name; the class decides what the runner does next (design: failure classes)."""

import re

HIDDEN = "***"
# How queries name a secret, and how forms and connection strings do, where many a token is none.
_IN_QUERY = r"[\w.%-]*(?:pass|pwd|secret|token|sig|credential|auth|key)[\w.%-]*"
_IN_FORM = r"(?:pass(?:word|wd)?|pwd|secret|(?:api|access|private|secret|auth)[_-]?(?:key|token))"
_SECRETS = (
    # Who logs in at a URI, whatever characters the password has.
    (re.compile(r"(\w://)(?:[^\s/?#'\"<>@:]+:[^\s'\"<>]*|[^\s/?#'\"<>]+)@"), rf"\1{HIDDEN}@"),
    (re.compile(rf"([?&;]{_IN_QUERY}=)[^\s&;'\"<>]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"(?<![\w-])({_IN_FORM}['\"]?\s*[=:]\s*['\"]?)[^\s&;,'\"<>)}}\]]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (
        re.compile(r"(\bbearer\s+|\bauthorization['\"]?\s*[=:]\s*['\"]?(?:\w+\s+)?)[\w.~+/=-]{8,}", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # Tokens that are known by their shape.
    (re.compile(r"\b(?:hf|ghp|gho|glpat|sk|xox[abp])[_-][\w-]{16,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"), HIDDEN),
)


def redacted(text: str) -> str:
    """``text`` without passwords and tokens, as far as their place or their shape says that they are some."""
    for pattern, rest in _SECRETS:
        text = pattern.sub(rest, text)
    return text


class ExplainedError(Exception):
    """An error whose message is one line that stands for itself: what is wrong and how to fix it."""


class StageError(ExplainedError):
    """A failure of one step."""

    failure_class = "crash"


class ConfigError(StageError):
    """The config asks for something that cannot be done."""

    failure_class = "config"


class DataError(StageError):
    """An input is missing, unreadable or not what was promised."""

    failure_class = "data"


class CheckpointError(StageError):
    """A checkpoint is damaged, incomplete or fails its gate."""

    failure_class = "checkpoint"


class EngineError(StageError):
    """The inference engine died or answered nonsense; the shard is void, not wrong."""

    failure_class = "engine"


def one_line(error: BaseException | str, limit: int = 400, cut: str = "…") -> str:
    """Class and message on one line of at most ``limit`` characters; of an ExplainedError the message alone.

    ``cut`` ends a line that had to be cut.  Secrets are left out.
    """
    line = redacted(" ".join(str(error).split()))
    if isinstance(error, BaseException) and not isinstance(error, ExplainedError):
        line = f"{type(error).__name__}: {line}"
    return line if len(line) <= limit else line[: limit - len(cut)] + cut
