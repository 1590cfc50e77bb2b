"""A sweep with everything around it that a mode needs."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.console import Console

from pipeline.config.schema import Config
from pipeline.planning.plan import Plan
from pipeline.store.store import Store

SUCCESS, FAILURE, USER_ERROR, INTERRUPTED = 0, 1, 2, 130


@dataclass(frozen=True)
class PlannedSweep:
    """What ``mode=`` acts on.

    It is planned when its plan is first looked at, since some modes look at none.  ``overrides`` are the command line's
    own, from which it can be planned again.
    """

    make_plan: Callable[[], Plan]
    config: Config
    store: Store
    console: Console
    overrides: Sequence[str] = ()

    @cached_property
    def plan(self) -> Plan:
        return self.make_plan()
