"""Steps: the nodes of a plan.  A step names its inputs by fingerprint, so it is small, flat and can go anywhere."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

from pipeline.steps.fingerprint import fingerprint, payload

Metrics = Mapping[str, float | None]


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a stage's code is: ``function`` of ``module``, with ``VERSION`` beside it.

    ``sessions`` says that the module has ``session_key(config)`` and ``open_session(config, inputs)``, and perhaps
    ``announce(config, inputs, session)``.
    """

    name: str
    module: str
    function: str
    sessions: bool = False

    def _load(self, name: str) -> Any:
        return getattr(importlib.import_module(self.module), name)

    @property
    def version(self) -> int:
        return cast(int, self._load("VERSION"))

    def run(self, config: Any, inputs: Mapping[str, Path], out: Path, session: Any = None) -> Metrics:
        """Call the stage's function; a stage with sessions gets the open session as its last argument."""
        function = cast(Callable[..., Metrics], self._load(self.function))
        return function(config, inputs, out, session) if self.sessions else function(config, inputs, out)

    def smaller(self, config: Any) -> Any | None:
        """``config`` with a smaller batch and the same identity; None where the stage cannot be made smaller."""
        shrink = getattr(importlib.import_module(self.module), "smaller", None)
        return None if shrink is None else shrink(config)

    def announce(self, config: Any, inputs: Mapping[str, Path], session: Any) -> None:
        """Tell an open session of a step that will come, if the stage wants to know."""
        begin = getattr(importlib.import_module(self.module), "announce", None)
        if begin is not None:
            begin(config, inputs, session)

    def session_key(self, config: Any) -> str:
        return cast(str, self._load("session_key")(config))

    def open_session(self, config: Any, inputs: Mapping[str, Path]) -> AbstractContextManager[Any]:
        return cast(AbstractContextManager[Any], self._load("open_session")(config, inputs))


FETCH_MODEL = Stage("fetch_model", "stages.fetch", "fetch_model")
FETCH_DATASET = Stage("fetch_dataset", "stages.fetch", "fetch_dataset")
CALIBRATE = Stage("calibrate", "stages.calibrate", "calibrate")
QUANTIZE = Stage("quantize", "stages.quantize", "quantize")
GATE = Stage("gate", "stages.gate.stage", "gate")
DRIFT = Stage("drift", "stages.drift", "drift")
DUMMY = Stage("dummy", "stages.dummy", "dummy")
EVALUATE = Stage("evaluate", "stages.evaluate.stage", "evaluate", sessions=True)
PROFILE = Stage("profile", "stages.serving.stage", "profile", sessions=True)
CEILINGS = Stage("ceilings", "stages.serving.ceilings", "ceilings")
COMPARE = Stage("compare", "stages.compare.stage", "compare")
REPORT = Stage("report", "stages.report.stage", "report")


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
    the progress display; neither is identity.
    """

    stage: Stage
    config: Any
    label: str
    inputs: Mapping[str, StepRef] = field(default_factory=dict)
    after: tuple[StepRef, ...] = ()
    trial: str = ""
    resources: Resources = Resources()
    num_documents: int = 0
    payload: list[Any] = field(init=False)
    fingerprint: str = field(init=False)

    def __post_init__(self) -> None:
        upstream = {name: ref.fingerprint for name, ref in self.inputs.items()}
        described = payload(self.stage.name, self.stage.version, self.config, upstream)
        object.__setattr__(self, "payload", described)
        object.__setattr__(self, "fingerprint", fingerprint(described))

    @property
    def ref(self) -> StepRef:
        return StepRef(self.stage.name, self.fingerprint)

    @property
    def upstream(self) -> tuple[StepRef, ...]:
        return tuple(dict.fromkeys((*self.inputs.values(), *self.after)))
