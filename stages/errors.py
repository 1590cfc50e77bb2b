"""Failures a stage can name; the class decides what the runner does next (design: failure classes)."""

import re

HIDDEN = "***"
# How queries name a secret; and how variables, headers, forms and connection strings do, where many a token is none.
_IN_QUERY = (
    r"(?:[\w.%-]*[_.%-])?"
    r"(?:pass(?:word|wd)?|pwd|secret|token|sig(?:nature)?|credentials?|auth|(?:\w*access|api)?key(?:id)?)"
)
_IN_FORM = (
    r"(?:[\w-]*[_-])?(?:password|passwd|secret|(?:api|access|private|secret|auth|account|session|security)[_-]?"
    r"(?:key|token))|(?:pass|pwd)(?==)"
)
_VARIABLE = r"[A-Z][A-Z0-9_]*_(?:TOKEN|KEY|PASSWORD|SECRET)"
_VALUE = r"['\"]?\s*[=:]\s*['\"]?)[^\s&;,'\"<>)}\]]+"
_SECRETS = (
    # Who logs in at a URI, whatever characters the password has; what begins with a port is none.
    (
        re.compile(
            r"(\w://)(?:[^\s/?#'\"<>@:]+:(?!\d+[/?#,])[^\s'\"<>]{0,200}@"
            r"|(?<!ssh://)(?<!abfs://)(?<!abfss://)[^\s/?#'\"<>@:,]+@)"
        ),
        rf"\1{HIDDEN}@",
    ),
    (re.compile(rf"([?&;]{_IN_QUERY}=)[^\s&;'\"<>#]+", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"(?<![A-Za-z0-9])((?:{_IN_FORM}){_VALUE}", re.IGNORECASE), rf"\1{HIDDEN}"),
    (re.compile(rf"\b({_VARIABLE}{_VALUE}"), rf"\1{HIDDEN}"),
    (
        re.compile(r"(\bbearer\s+|\bauthorization['\"]?\s*[=:]\s*['\"]?(?:\w+\s+)?)[\w.~+/=-]{8,}", re.IGNORECASE),
        rf"\1{HIDDEN}",
    ),
    # Tokens that are known by their shape.
    (
        re.compile(
            r"\bhf_[A-Za-z0-9]{30,}|\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{40,}|\bglpat-[\w-]{20,}"
            r"|\bxox[abprs]-[\w-]{10,}|\bsk-ant-[\w-]{20,}|\bsk-(?:[a-z]+-)*[A-Za-z0-9]{32,}|\b(?:AKIA|ASIA)[A-Z0-9]{16}\b"
            r"|\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*"
        ),
        HIDDEN,
    ),
)


def redacted(text: str) -> str:
    """``text`` without passwords and tokens, as far as their place or their shape says that they are some."""
    for pattern, rest in _SECRETS:
        text = pattern.sub(rest, text)
    return text


class ExplainedError(Exception):
    """An error whose message is one line that stands for itself, without secrets: what is wrong and how to fix it."""

    def __init__(self, message: str) -> None:
        super().__init__(redacted(message))


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
