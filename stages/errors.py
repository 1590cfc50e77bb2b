"""Failures a stage can name; the class decides what the runner does next (design: failure classes)."""


class StageError(Exception):
    """A failure of one step.  The message is one line: what is wrong and how to fix it."""

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
