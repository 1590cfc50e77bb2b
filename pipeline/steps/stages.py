"""The table of stages: where each one's code is, what it occupies, and whether the report reads it."""

import importlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, cast

Metrics = Mapping[str, float | None]


class Occupies(Enum):
    """What a step of a stage holds while it runs; ``planning/resources.py`` says how much that is."""

    core = "one core"
    model = "a model in one process, on one GPU if there is one"
    engine = "an inference engine, with all its GPUs"
    server = "servers, alone on their node"
    device = "one device, alone on its node"


@dataclass(frozen=True, slots=True)
class Stage:
    """Where a stage's code is (``function`` of ``module``, with ``VERSION`` beside it), and how its steps are treated.

    ``sessions`` says that the module has ``session_key(config)`` and ``open_session(config, inputs)``, and perhaps
    ``announce(config, inputs, session)`` and ``exchange(inputs, session)``.  Any may have ``prepare(config)`` and
    ``smaller(config)``.
    """

    name: str
    module: str
    function: str
    sessions: bool = False
    occupies: Occupies = Occupies.core
    makes_checkpoint: bool = False
    in_report: bool = False  # the report reads its artifacts
    accompanies: str | None = None  # the kind of step that it is run along with, when only= takes some of a sweep

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

    def prepare(self, config: Any) -> None:
        """Import what a step of this config will need, if the stage says what that is; no GPU is touched."""
        prepare = getattr(importlib.import_module(self.module), "prepare", None)
        if prepare is not None:
            prepare(config)

    def announce(self, config: Any, inputs: Mapping[str, Path], session: Any) -> None:
        """Tell an open session of a step that will come, if the stage wants to know."""
        begin = getattr(importlib.import_module(self.module), "announce", None)
        if begin is not None:
            begin(config, inputs, session)

    def exchange(self, inputs: Mapping[str, Path], session: Any) -> None:
        """Give an open session another checkpoint; raises where only a new session will do."""
        self._load("exchange")(inputs, session)

    def session_key(self, config: Any) -> str:
        return cast(str, self._load("session_key")(config))

    def open_session(self, config: Any, inputs: Mapping[str, Path]) -> AbstractContextManager[Any]:
        return cast(AbstractContextManager[Any], self._load("open_session")(config, inputs))


FETCH_MODEL = Stage("fetch_model", "stages.fetch", "fetch_model", makes_checkpoint=True)
FETCH_PUBLISHED = Stage("fetch_published", "stages.published", "fetch_published", makes_checkpoint=True)
FETCH_TOKENIZER = Stage("fetch_tokenizer", "stages.fetch", "fetch_tokenizer", makes_checkpoint=True)
FETCH_DATASET = Stage("fetch_dataset", "stages.fetch", "fetch_dataset")
CALIBRATE = Stage("calibrate", "stages.calibrate", "calibrate")
QUANTIZE = Stage("quantize", "stages.quantize", "quantize", occupies=Occupies.model, makes_checkpoint=True)
OBSERVE = Stage("observe", "stages.gate.observe", "observe", occupies=Occupies.model)
GATE = Stage("gate", "stages.gate.stage", "gate", occupies=Occupies.model, in_report=True)
DRIFT = Stage("drift", "stages.drift", "drift", occupies=Occupies.model, in_report=True)
DUMMY = Stage("dummy", "stages.dummy", "dummy", makes_checkpoint=True)
ANSWER = Stage("answer", "stages.evaluate.answer", "answer", sessions=True, occupies=Occupies.engine)
SCORE = Stage("score", "stages.evaluate.score", "score")
PROFILE = Stage("profile", "stages.serving.stage", "profile", sessions=True, occupies=Occupies.server, in_report=True)
CEILINGS = Stage(
    "ceilings",
    "stages.serving.ceilings",
    "ceilings",
    occupies=Occupies.device,
    in_report=True,
    accompanies="profile",
)
COMPARE = Stage("compare", "stages.compare.stage", "compare", in_report=True)
REPORT = Stage("report", "stages.report.stage", "report")

_ALL = (
    FETCH_MODEL, FETCH_PUBLISHED, FETCH_TOKENIZER, FETCH_DATASET, CALIBRATE, QUANTIZE, OBSERVE, GATE, DRIFT, DUMMY,
    ANSWER, SCORE, PROFILE, CEILINGS, COMPARE, REPORT,
)  # fmt: skip
STAGES = {stage.name: stage for stage in _ALL}
