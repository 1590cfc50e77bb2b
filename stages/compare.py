"""Compare a trial with its base on one task: score, recovery and paired difference, each with its interval."""

from dataclasses import dataclass

from stages.fields import execution, identity

VERSION = 1


@dataclass(kw_only=True, slots=True)
class CompareConfig:
    """One task of one trial: a single lm-eval task, or a group that is a mean over several (``leaves``)."""

    task: str = identity()
    leaves: list[str] = identity()  # in the order of the rows
    metric: str | None = identity(
        None
    )  # the primary one, e.g. "exact_match,strict-match"; None: the task's first
    weight_by_size: bool = identity(
        True
    )  # a group's score: mean over documents, else plain mean of its leaves
    confidence: float = identity(0.95)
    num_resamples: int = identity(10_000)
    seed: int = identity(0)
    num_expected: int | None = identity(None)  # documents over all leaves
    include_paths: list[str] = execution(
        factory=list
    )  # where a task's own aggregation functions are looked for

    def __post_init__(self) -> None:
        if not self.leaves or len(set(self.leaves)) != len(self.leaves):
            raise ValueError(
                f"{self.task}: leaves must name each leaf task once, got {list(self.leaves)}"
            )
        if not 0 < self.confidence < 1:
            raise ValueError(
                f"{self.task}: confidence must lie between 0 and 1, got {self.confidence}"
            )
        if self.num_resamples < 100:
            raise ValueError(
                f"{self.task}: num_resamples must be at least 100, got {self.num_resamples}"
            )
