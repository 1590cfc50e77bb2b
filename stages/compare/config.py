"""What a comparison is asked: a task of a trial, its leaves, its primary metric, what guessing scores, and how large a
difference matters.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from stages.fields import execution, identity
from stages.statistics import check_confidence


def check_baselines(task: str, random_baseline: float | None, leaf_baselines: Mapping[str, float]) -> None:
    """Raise ValueError unless they are shares below 1, of the whole task or of its leaves."""
    if leaf_baselines and random_baseline is not None:
        raise ValueError(f"{task}: give random_baseline (of the whole task) or leaf_baselines, not both")
    for baseline in (random_baseline or 0.0, *leaf_baselines.values()):
        if not 0 <= baseline < 1:
            raise ValueError(f"{task}: a random baseline must be at least 0 and below 1, got {baseline}")


@dataclass(kw_only=True, slots=True)
class Margins:
    """The largest difference from the base that does not matter; never derived from the number of documents.

    ``margin_points`` of the scale from guessing (0; where no baseline is declared, a score of 0) to perfect (100), and
    the ``wide_margin_points`` below which no single task of a format that is shipped may lie; where lower is better
    ``loss_margin_percent`` of the base's score.
    """

    margin_points: float = identity(2.0)
    wide_margin_points: float = identity(5.0)
    loss_margin_percent: float = identity(1.0)

    def check_margins(self, place: str) -> None:
        """Raise ValueError for one that is no distance."""
        for name in ("margin_points", "wide_margin_points", "loss_margin_percent"):
            if not 0 < getattr(self, name) < 100:
                raise ValueError(f"{place}.{name} must lie between 0 and 100; got {getattr(self, name)}")
        if self.wide_margin_points < self.margin_points:
            raise ValueError(
                f"{place}.wide_margin_points={self.wide_margin_points:g} is narrower than margin_points="
                f"{self.margin_points:g}: raise it"
            )


@dataclass(kw_only=True, slots=True)
class CompareSettings(Margins):
    """What every comparison of a sweep is asked alike, unless a task has margins of its own."""

    confidence: float = identity(0.95)
    num_resamples: int | None = execution(None)  # of earlier versions' files: nothing is resampled any more

    def __post_init__(self) -> None:
        check_confidence(self.confidence, "compare")
        self.check_margins("compare")


@dataclass(kw_only=True, slots=True)
class CompareConfig(CompareSettings):
    """One task of one trial: a single lm-eval task, or a group that is a mean over several (``leaves``)."""

    task: str = identity()
    leaves: list[str] = identity()  # in the order of the rows
    metric: str | None = identity(None)  # the primary one, e.g. "exact_match,strict-match"; None: the task's first
    weight_by_size: bool = identity(True)  # a group's score: mean over documents, else plain mean of its leaves
    random_baseline: float | None = identity(None, neutral=None)  # what guessing scores in the primary metric
    leaf_baselines: dict[str, float] = identity(factory=dict, neutral={})  # or on each leaf; see whole.py
    num_expected: int | None = identity(None)  # documents over all leaves
    include_paths: list[str] = execution(factory=list)  # where a task's own aggregation functions are looked for

    def __post_init__(self) -> None:
        CompareSettings.__post_init__(self)
        if not self.leaves or len(set(self.leaves)) != len(self.leaves):
            raise ValueError(f"{self.task}: leaves must name each leaf task once, got {list(self.leaves)}")
        check_baselines(self.task, self.random_baseline, self.leaf_baselines)
        if self.leaf_baselines and set(self.leaf_baselines) != set(self.leaves):
            raise ValueError(f"{self.task}: leaf_baselines must name every leaf and no other")

    @property
    def is_normalized(self) -> bool:
        """Whether the primary metric is also shown relative to guessing."""
        return self.random_baseline is not None or bool(self.leaf_baselines)

    def baseline_of(self, leaf: str) -> float:
        """What guessing scores on one leaf."""
        return self.leaf_baselines.get(leaf, self.random_baseline or 0.0)
