"""Steps: the nodes of a plan.  A step names its inputs by fingerprint, so it is small, flat and can go anywhere."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pipeline.steps.fingerprint import fingerprint, payload
from pipeline.steps.stages import Stage


class StepRef(NamedTuple):
    """A step as its dependants know it."""

    stage: str
    fingerprint: str

    @property
    def short(self) -> str:
        return f"{self.stage}-{self.fingerprint[:12]}"


@dataclass(frozen=True, slots=True)
class Resources:
    """What a step occupies while it runs."""

    num_cpus: float = 1
    num_gpus: float = 0
    num_nodes: int = 1  # the GPUs are spread evenly over so many
    is_alone: bool = False  # nothing else is scheduled on its node
    memory_gib: float | None = None  # resident; more ends the step


@dataclass(frozen=True, slots=True)
class Step:
    """One node of the plan.

    ``inputs`` enter the fingerprint, ``after`` only orders (a gate must pass before an evaluation starts, yet a new
    gate threshold does not make old scores wrong).  ``label`` names the artifact's directory, ``trial`` the row of
    the progress display, ``family`` the steps whose checkpoints may take each other's place in an open session; of what
    could run, a lower ``turn`` is first, so that repetitions of several trials alternate.  None of these is identity.
    """

    stage: Stage
    config: Any
    label: str
    inputs: Mapping[str, StepRef] = field(default_factory=dict)
    after: tuple[StepRef, ...] = ()
    trial: str = ""
    family: str = ""
    turn: int = 0
    resources: Resources = Resources()
    num_documents: int = 0
    output_tokens: int | None = None  # the most that a document's answer may have, 0 for choices; None: not known
    expected_s: float | None = None  # what it was estimated to take before the run; None: not known
    payload: list[Any] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        upstream = {name: ref.fingerprint for name, ref in self.inputs.items()}
        described = payload(self.stage.name, self.stage.version, self.config, upstream)
        object.__setattr__(self, "payload", described)
        object.__setattr__(self, "fingerprint", fingerprint(described))

    def expecting(self, seconds: float | None) -> "Step":
        """The same step, of which so much is expected; nothing is hashed again."""
        found = copy.copy(self)
        object.__setattr__(found, "expected_s", seconds)
        return found

    @property
    def ref(self) -> StepRef:
        return StepRef(self.stage.name, self.fingerprint)

    @property
    def upstream(self) -> tuple[StepRef, ...]:
        return tuple(dict.fromkeys((*self.inputs.values(), *self.after)))
