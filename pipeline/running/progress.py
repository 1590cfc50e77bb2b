"""The live display: one line per trial, read from the ledger and the store, so that it shows any runner's work."""

import math
import os
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.planning.plan import Plan
from pipeline.running.batches import Batch
from pipeline.running.outcome import Outcome
from pipeline.running.time_left import Left, TimeLeft
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Ledger

REFRESH_S = 1.0
LOOK_EVERY_S = 5.0
IDLE_S = 40.0  # between two steps a process may start, and import for half a minute
SHARED = "(shared)"


@dataclass(slots=True)
class Row:
    """One trial's counts."""

    num_steps: int = 0
    num_done: int = 0
    num_failed: int = 0
    running: list[str] = field(default_factory=list)


class Progress:
    """Watches the ledger for the steps of this run; thread-safe because it only reads files."""

    def __init__(self, plan: Plan, batches: Sequence[Batch], time_left: TimeLeft, ledger: Ledger, run_id: str) -> None:
        self._plan = plan
        self._waiting: dict[int, list[Step]] = {index: list(batch.steps) for index, batch in enumerate(batches)}
        self._missing = {step.ref: step for batch in batches for step in batch.steps}
        self._time_left = time_left
        self._left: Left | None = None
        self._next_look_s = 0.0
        self._running_s: dict[StepRef, float] = {}  # of the steps that run, for how long
        self._ledger, self._run_id = ledger, run_id
        self._ended: dict[StepRef, str] = {}
        self._started = time.monotonic()
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._notice = ""
        self._worked_s = time.monotonic()
        self._console: Console | None = None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """Show the display on a terminal, or a line a minute elsewhere, until the block ends."""
        # The console keeps its own descriptor: a step in this process sends 1 and 2 to its log.
        with os.fdopen(os.dup(sys.stderr.fileno()), "w") as stream:
            console = self._console = Console(file=stream, force_terminal=sys.stderr.isatty() or None)
            thread = threading.Thread(target=self._show, args=(console,), daemon=True)
            thread.start()
            try:
                yield
            finally:
                self._stop.set()
                thread.join()

    def _show(self, console: Console) -> None:
        if not console.is_terminal:
            self._print_lines(console)
            return
        with Live(console=console, refresh_per_second=4) as live:
            while not self._stop.wait(REFRESH_S):
                live.update(self.render())
            live.update(self.render())

    def _print_lines(self, console: Console) -> None:
        while not self._stop.wait(30):
            self.render()
            console.print(self.summary(), highlight=False)

    def announce(self, notice: str) -> None:
        """Show a line until the end of the run; also called from a signal handler."""
        self._notice = notice
        if self._console is not None and not self._console.is_terminal:
            self._console.print(notice, highlight=False, markup=False)

    def tell(self, line: str) -> None:
        """Print a line that stays, above the display."""
        if self._console is not None:
            self._console.print(line, highlight=False, markup=False, soft_wrap=True)

    def running_steps(self) -> list[Step]:
        """The steps being worked on now."""
        with self._lock:
            return list(self._running())

    def note(self, outcomes: Iterable[Outcome]) -> None:
        """Take in how a whole batch ended."""
        for outcome in outcomes:
            if outcome.ref not in self._ended and outcome.seconds is not None:
                self._time_left.note(self._missing[outcome.ref], outcome.seconds)
            self._ended[outcome.ref] = outcome.status.value

    def render(self) -> Group:
        """The table and the line below it, as of now."""
        rows = self._rows()
        table = Table(box=None, pad_edge=False, header_style="bold")
        for heading in ("trial", "done", "failed", "running"):
            table.add_column(heading, overflow="fold" if heading == "running" else "ellipsis")
        for name, row in rows.items():
            cells = (name, f"{row.num_done}/{row.num_steps}", str(row.num_failed or ""), ", ".join(row.running))
            table.add_row(*map(Text, cells))
        return Group(table, Text(self.summary(), style="dim"), Text(self._notice, style="bold"))

    def summary(self) -> str:
        """Steps, documents a second and the time left, in one line."""
        elapsed_s = time.monotonic() - self._started
        ended = [step for ref, step in self._missing.items() if ref in self._ended]
        done, to_do = (sum(step.num_documents for step in steps) for steps in (ended, self._missing.values()))
        parts = [f"{len(ended)}/{len(self._missing)} steps", f"{elapsed_s / 60:.1f} min"]
        if done:
            parts += [f"{done}/{to_do} documents", f"{done / elapsed_s:.1f} a second"]
        if time.monotonic() - self._worked_s > IDLE_S:
            parts += ["nothing is running"]
        elif (left := self._looked_left()) is not None:
            parts += [f"{'at least' if left.is_floor else 'about'} {math.ceil(left.seconds / 60)} min left"]
        return ", ".join(parts)

    def _looked_left(self) -> Left | None:
        """Now and then: a plan may have thousands of batches."""
        now_s = time.monotonic()
        if now_s >= self._next_look_s:
            with self._lock:
                self._left = self._time_left.left(self._waiting, self._running_s)
            self._next_look_s = now_s + LOOK_EVERY_S
        return self._left

    def _rows(self) -> dict[str, Row]:
        rows: dict[str, Row] = defaultdict(Row)
        for step in self._plan.steps.values():
            row = rows[step.trial or SHARED]
            row.num_steps += 1
            row.num_done += step.ref not in self._missing or self._ended.get(step.ref) == "succeeded"
            row.num_failed += self._ended.get(step.ref) == "failed"
        running = self.running_steps()
        if running:
            self._worked_s = time.monotonic()
        for step in running:
            rows[step.trial or SHARED].running.append(_activity(step))
        return dict(rows)

    def _running(self) -> Iterable[Step]:
        """The steps being worked on; a batch works in order, so only its first open steps are looked at."""
        self._running_s.clear()
        for waiting in self._waiting.values():
            while waiting:
                known = self._ended.get(waiting[0].ref)
                last = None if known else self._last_event(waiting[0])
                event = known or (last and last["event"])
                if last and event == "started":
                    self._running_s[waiting[0].ref] = max(0.0, time.time() - last["time"])
                    yield waiting[0]
                if event not in ("succeeded", "failed", "skipped"):
                    break
                if event == "failed" and known is None and not self._has_begun(waiting[1:2]):
                    break  # it may be tried again
                if last and event == "succeeded":
                    self._time_left.note(waiting[0], last.get("seconds", 0.0))
                self._ended[waiting.pop(0).ref] = event

    def _has_begun(self, steps: Iterable[Step]) -> bool:
        return any(self._last_event(step) is not None for step in steps)

    def _last_event(self, step: Step) -> dict[str, Any] | None:
        events = [event for event in self._ledger.events(step.ref) if event.get("run_id") == self._run_id]
        return events[-1] if events else None


def _activity(step: Step) -> str:
    if not step.num_documents:
        return step.stage.name
    return f"{step.config.task} {step.config.start}-{step.config.stop}"
