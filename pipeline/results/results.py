"""Read a sweep's results from the store: what the terminal, MLflow and notebooks show.

    from pipeline.results import load
    smoke = load("results/store", "smoke")
    smoke.summary().to_pandas()

The store is the truth; this module only reads it, and needs no GPU library.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from pipeline.errors import UserError
from pipeline.results import record
from pipeline.results.record import TrialRecord
from pipeline.steps.roles import slots, under
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from stages.compare.artifact import read_flips, read_rows
from stages.evaluate.artifact import read_samples
from stages.report.artifact import read_decisions, read_serving, read_suites, read_summary

Named = TypeVar("Named")


@dataclass(frozen=True, slots=True)
class Results:
    """A sweep's latest plan, and whatever of it the store holds."""

    store: Store
    name: str
    plan_fingerprint: str
    trials: Mapping[str, TrialRecord]
    report: StepRef | None

    def summary(self) -> pa.Table:
        """One row per trial and task: n, score, recovery, paired difference, their intervals, checkpoint size."""
        return read_summary(self.report_dir())

    def suites(self) -> pa.Table:
        """One row per trial and suite: its mean and recovery, null where a member is missing."""
        return read_suites(self.report_dir())

    def decisions(self) -> pa.Table:
        """One row per trial: whether it may be shipped, what speaks against it or is missing, counts of verdicts."""
        return read_decisions(self.report_dir())

    def serving(self) -> pa.Table | None:
        """One row per trial, workload and mode: rates, latencies, costs, validity; None if nothing was served."""
        return read_serving(self.report_dir())

    def report_dir(self) -> Path:
        """The directory of the latest report; raises UserError before there is one, and for one that was changed."""
        run = f"run it with python -m pipeline +sweep={self.name}"
        found = self.store.find(self.report) if self.report else None
        if self.report is None or found is None:
            raise UserError(f"sweep {self.name!r} has no report yet: {run}")
        if what := self.store.damage(self.report):
            raise UserError(f"sweep {self.name!r}: its report {found} is damaged ({what}): {run}, which makes it again")
        return found

    def comparison(self, trial: str, task: str) -> pa.Table | None:
        """Every metric of a task, per leaf and for the whole; None while the step has no result."""
        comparisons = under(_named(self.trials, "trial", trial).steps, "compare")
        found = self.store.find(_named(comparisons, "task", task))
        return None if found is None else read_rows(found)

    def flips(self, trial: str, task: str) -> pa.Table | None:
        """Every document that the trial answers otherwise than its base, whole; None while the step has no result."""
        comparisons = under(_named(self.trials, "trial", trial).steps, "compare")
        found = self.store.find(_named(comparisons, "task", task))
        return None if found is None else read_flips(found)[0]

    def samples(self, trial: str, task: str) -> pa.Table:
        """One row per document of each ``leaf``; an empty table before the task is scored."""
        steps = _named(self.trials, "trial", trial).steps
        scores = under(steps, "score")
        if task not in scores and task in slots(steps):
            raise UserError(
                f"{task} of {trial} was evaluated by a version of this project that kept documents otherwise: run "
                f"+sweep={self.name} again, or read them with that version"
            )
        found = self.store.find(_named(scores, "task", task))
        return pa.table({}) if found is None else read_samples(found)


def _named(found: Mapping[str, Named], kind: str, name: str) -> Named:
    if name not in found:
        raise UserError(f"there is no {kind} {name!r}; there are: {', '.join(found) or 'none'}")
    return found[name]


def load(root: str | Path, name: str, cache: Path | None = None) -> Results:
    """The results of the sweep ``name`` in the store at ``root``; a URL needs a ``cache`` directory of this machine."""
    store = Store(root, cache)
    found = record.read(store, name)
    if found is None:
        known = ", ".join(map(repr, record.names(store))) or "none"
        raise UserError(f"the store {root} has no sweep {name!r}; it has: {known}")
    return Results(store, name, found.plan_fingerprint, found.trials, found.report)
