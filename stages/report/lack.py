"""Which of a trial's tasks have no result, and what stopped them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from stages.report.artifact import Row, SuiteMean
from stages.report.asked import Asked
from stages.report.config import FailureRow, TrialRow
from stages.report.sentence import listed

MOST_TASKS, MOST_CHARACTERS = 3, 160
_WITHOUT = ("failed", "skipped", "missing")


@dataclass(frozen=True, slots=True)
class Lack:
    """Tasks without a result, and a line that says so."""

    tasks: Sequence[str] = ()
    lines: list[str] = field(default_factory=list)

    def explains(self, asked: Asked) -> bool:
        """Whether nothing can be said of a task, or of a mean, because these have no result."""
        if asked.requirement.p is not None:
            return False
        if isinstance(asked.numbers, SuiteMean):
            return any((asked.why or "").startswith(f"{task} ") for task in self.tasks)
        return asked.requirement.name in self.tasks


def lack_of(trial: TrialRow, base: str | None, rows: Sequence[Row], failures: Sequence[FailureRow]) -> Lack:
    """Of a trial with that base, by its planned rows."""
    tasks = [row["task"] for row in rows if row["status"] in _WITHOUT]
    if not tasks:
        return Lack()
    names = "all tasks" if len(tasks) == len(rows) > 1 else listed(tasks, MOST_TASKS)
    have = "has" if len(tasks) == 1 else "have"
    return Lack(tasks, [f"{names} {have} no result: {_cause(trial.name, base, failures)}"])


def _cause(trial: str, base: str | None, failures: Sequence[FailureRow]) -> str:
    """What failed first: of the trial, else of its base, else of what several share; what was skipped is no cause."""
    failed = [each for each in failures if each.status == "failed"]
    for whose, words in ((trial, ""), (base or trial, "of the base "), (None, "")):
        if first := next((each for each in failed if each.trial == whose), None):
            return f"{first.step.partition('/')[0]} {words}failed ({_short(first.message)})"
    if any(each.status == "skipped" for each in failures if each.trial == trial):
        return "skipped, because of what failed elsewhere"
    return "not run yet"


def _short(message: str) -> str:
    text = " ".join(message.split()) or "no reason is known"
    return text if len(text) <= MOST_CHARACTERS else f"{text[:MOST_CHARACTERS]}…"
