"""Failures a stage can name; the class decides what the runner does next (design: failure classes)."""


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

    ``cut`` ends a line that had to be cut.
    """
    line = " ".join(str(error).split())
    if isinstance(error, BaseException) and not isinstance(error, ExplainedError):
        line = f"{type(error).__name__}: {line}"
    return line if len(line) <= limit else line[: limit - len(cut)] + cut
