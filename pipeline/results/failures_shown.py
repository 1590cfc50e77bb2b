"""Failures as a person reads them: what failed alike is told once, with how many there were."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from rich.console import Console

from pipeline.results.console import say

# What tells two messages apart that say the same: digits of steps and addresses, numbers of documents.
_PARTICULAR = re.compile(r"\b(?:0x)?[0-9a-f]{6,}\b|\d+(?:\.\d+)?")
MAX_STEPS_SHOWN = 3  # of those that failed alike


@dataclass(frozen=True, slots=True)
class Told:
    """A step that has no result: how it ended, why, which it is, and its log."""

    ended: str
    message: str
    step: str
    log: str | None = None


@dataclass(slots=True)
class Alike:
    """Steps that ended in one way."""

    first: Told
    others: list[Told] = field(default_factory=list)

    @property
    def steps(self) -> list[Told]:
        return [self.first, *self.others]

    @property
    def ended(self) -> str:
        """How they ended, with their number where there are several."""
        return f"{self.first.ended} ×{len(self.steps)}" if self.others else self.first.ended


def grouped(failures: Iterable[Told]) -> list[Alike]:
    """Failures that are equal but for their numbers, in the order of the first of each."""
    found: dict[tuple[str, str], Alike] = {}
    for told in failures:
        key = told.ended, _PARTICULAR.sub("#", told.message)
        if key in found:
            found[key].others.append(told)
        else:
            found[key] = Alike(told)
    return list(found.values())


def say_briefly(console: Console, failures: Iterable[Told], max_shown: int) -> None:
    """A line for each kind of failure, the logs of their first steps, and how many kinds more there are."""
    kinds = grouped(failures)
    for kind in kinds[:max_shown]:
        more = f" and {len(kind.others)} more" if kind.others else ""
        say(console, (kind.ended, "red"), f" {kind.first.step}{more}: {kind.first.message}")
    for log in dict.fromkeys(kind.first.log for kind in kinds[:max_shown] if kind.first.log):
        say(console, f"log: {log}")
    if num_more := sum(len(kind.steps) for kind in kinds[max_shown:]):
        say(console, f"and {num_more} more steps without a result: the report lists all")


def say_fully(console: Console, failures: Sequence[Told]) -> None:
    """Each kind of failure with some of its steps and their logs."""
    for kind in grouped(failures):
        say(console, (kind.ended, "red"), f" {kind.first.message}")
        for told in kind.steps[:MAX_STEPS_SHOWN]:
            say(console, f"    {told.step}")
            if told.log:
                say(console, f"        log: {told.log}")
        if (num_more := len(kind.steps) - MAX_STEPS_SHOWN) > 0:
            say(console, f"    and {num_more} more: failures.export=FILE lists all")
