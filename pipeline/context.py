"""A planned sweep with everything around it that a mode needs."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Console

from pipeline.config.schema import Config
from pipeline.planning.plan import Plan
from pipeline.store.store import Store

SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True, slots=True)
class PlannedSweep:
    """What ``mode=`` acts on.  ``overrides`` are the command line's own, from which it can be planned again."""

    plan: Plan
    config: Config
    store: Store
    console: Console
    overrides: Sequence[str] = ()
