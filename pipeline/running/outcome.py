"""How a step ends, and what every batch of a run shares: values that travel between driver and workers."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from pipeline.errors import FailureClass
from pipeline.steps.step import StepRef
from pipeline.store.store import Address


class Status(Enum):
    """How a step ended."""

    succeeded = "succeeded"
    failed = "failed"
    skipped = "skipped"  # something it depends on failed
    not_run = "not run"  # the run was stopped before


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a step ended, and why; ``seconds``: what an attempt that succeeded took."""

    ref: StepRef
    status: Status
    failure_class: FailureClass | None = None
    message: str = ""
    seconds: float | None = None


Outcomes = dict[StepRef, Outcome]
OnBatchDone = Callable[[Sequence[Outcome]], None]


def upstream_of(refs: Iterable[StepRef], outcomes: Outcomes) -> list[Outcome]:
    """How those of the steps ended that this run has had."""
    return [outcomes[ref] for ref in refs if ref in outcomes]


@dataclass(frozen=True, slots=True)
class RunContext:
    """What every batch of a run shares.

    ``timeout_s`` holds limits by stage.  They are enforced by ending the process, so only where it is a worker's
    (``kills``).  ``changes`` say in which ways this environment is not the one that the sweep was begun in.
    ``node_id``: where a process is that Ray does not know of.
    """

    store: Address
    run_id: str
    max_attempts: int
    timeout_s: Mapping[str, float] = field(default_factory=dict)
    back_off_s: float = 0
    kills: bool = False
    changes: tuple[str, ...] = ()
    node_id: str | None = None

    def limit_s(self, stage: str) -> float | None:
        """Seconds that a step of the stage may take here."""
        return self.timeout_s.get(stage) if self.kills else None
