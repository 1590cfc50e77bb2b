"""Write a sweep's tables as Markdown, HTML and Parquet, with how every number was obtained."""

from dataclasses import dataclass

from stages.fields import identity

VERSION = 1


@dataclass(kw_only=True, slots=True)
class TrialRow:
    """A trial as the report names it."""

    name: str = identity()
    model: str = identity()
    recipe: str = identity()
    is_base: bool = identity(False)
    notes: str | None = identity(None)  # what a reader must know of the model
    size_gib: float | None = identity(None)


@dataclass(kw_only=True, slots=True)
class FailureRow:
    """A step that has no result: it failed, or was skipped because another did."""

    step: str = identity()
    trial: str | None = identity(None)
    task: str | None = identity(None)
    status: str = identity()  # failed, skipped
    failure_class: str | None = identity(None)
    message: str = identity("")


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What the report shows, in its order."""

    title: str = identity()
    trials: list[TrialRow] = identity()
    tasks: list[str] = identity()
    suites: dict[str, list[str]] = identity(
        factory=dict
    )  # name -> tasks; shown as plain means
    failures: list[FailureRow] = identity(factory=list)
