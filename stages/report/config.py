"""What a report is about: trials, tasks, suites, what failed, and what serving is paid for."""

from dataclasses import dataclass

from stages.fields import identity
from stages.report.serving.config import ServingConfig


@dataclass(kw_only=True, slots=True)
class TrialRow:
    """A trial as the report names it."""

    name: str = identity()
    model: str = identity()
    recipe: str = identity()
    is_base: bool = identity(False)
    base: str | None = identity(None, neutral=None)  # the trial that it is compared with
    notes: str | None = identity(None)  # what a reader must know of the model
    mixed: str | None = identity(None, neutral=None)  # in what the environments differ that its shards were made in
    size_gib: float | None = identity(None)

    @property
    def label(self) -> str:
        """Its name among the trials of its model: the recipe, and the other axes of the sweep."""
        return self.name.removeprefix(f"{self.model}/")


@dataclass(kw_only=True, slots=True)
class SuiteRow:
    """Tasks whose plain mean is shown: of their scores, or of their ``normalized`` ones."""

    name: str = identity()
    tasks: list[str] = identity()
    normalized: bool = identity(False)


@dataclass(kw_only=True, slots=True)
class FailureRow:
    """A step that has no result: it failed, was skipped because another did, or has not run."""

    step: str = identity()
    trial: str | None = identity(None)
    task: str | None = identity(None)
    status: str = identity()  # failed, skipped, missing
    failure_class: str | None = identity(None)
    message: str = identity("")


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What the report shows, in its order."""

    title: str = identity()
    trials: list[TrialRow] = identity()
    tasks: list[str] = identity()
    suites: list[SuiteRow] = identity(factory=list)
    failures: list[FailureRow] = identity(factory=list)
    serving: ServingConfig | None = identity(None, neutral=None)  # prices and mixes of the points among the inputs

    def __post_init__(self) -> None:
        names = [trial.name for trial in self.trials]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.title}: two trials have the same name: {', '.join(names)}")
