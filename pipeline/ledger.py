"""The ledger: every attempt at a step, written before it starts, so that a worker that dies leaves its mark.

``<root>/ledger/<stage>-<fp12>.jsonl``, one JSON object a line, appended.  The ledger explains and counts; it never
satisfies a look-up.
"""

import json
import os
import socket
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import FailureClass
from pipeline.step import StepRef


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last attempt at a step ended, when it did not succeed."""

    failure_class: FailureClass
    message: str
    log_path: str | None
    num_attempts: int


class Ledger:
    """Attempts of all runs over one store."""

    def __init__(self, root: Path) -> None:
        self.directory = root / "ledger"

    def started(self, ref: StepRef, run_id: str, log_path: Path | None) -> None:
        """Record an attempt; call before the stage does anything."""
        self._append(
            ref,
            event="started",
            run_id=run_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            log=str(log_path) if log_path else None,
        )

    def succeeded(self, ref: StepRef, run_id: str, seconds: float) -> None:
        self._append(ref, event="succeeded", run_id=run_id, seconds=round(seconds, 3))

    def failed(self, ref: StepRef, run_id: str, failure_class: FailureClass, message: str) -> None:
        self._append(ref, event="failed", run_id=run_id, failure_class=failure_class.value, message=message)

    def skipped(self, ref: StepRef, run_id: str, cause: str) -> None:
        self._append(ref, event="skipped", run_id=run_id, message=cause)

    def events(self, ref: StepRef) -> list[dict[str, Any]]:
        """Every event of a step, oldest first; a line torn by a kill is passed over."""
        try:
            lines = self._path(ref).read_text(encoding="utf-8").splitlines()
        except FileNotFoundError:
            return []
        return [event for line in lines if (event := _parse(line))]

    def deaths(self, ref: StepRef, run_id: str) -> int:
        """How many attempts of this run ended with their worker: started, and neither succeeded nor failed.

        Attempts of other runs do not count: a driver that was killed leaves the same mark, and is no fault of the step.
        """
        events = [event["event"] for event in self.events(ref) if event.get("run_id") == run_id]
        return events.count("started") - events.count("failed") - events.count("succeeded")

    def failure_in(self, ref: StepRef, run_id: str) -> Failure | None:
        """The failure that ended the step in this run, if one did: it is not tried again before the next run."""
        events = self.events(ref)
        ended = bool(events) and events[-1]["event"] == "failed" and events[-1].get("run_id") == run_id
        return self.last_failure(ref) if ended else None

    def last_failure(self, ref: StepRef) -> Failure | None:
        """Why the step is not there, by its latest attempt; None when it was never tried."""
        events = self.events(ref)
        if not events:
            return None
        starts = [event for event in events if event["event"] == "started"]
        last, log_path = events[-1], starts[-1].get("log") if starts else None
        if last["event"] == "skipped":
            return Failure(FailureClass.upstream, last["message"], log_path, len(starts))
        if last["event"] == "failed":
            return Failure(FailureClass(last["failure_class"]), last["message"], log_path, len(starts))
        return Failure(FailureClass.crash, "the worker died or was stopped during the attempt", log_path, len(starts))

    def _path(self, ref: StepRef) -> Path:
        return self.directory / f"{ref.short}.jsonl"

    def _append(self, ref: StepRef, **event: Any) -> None:
        self.directory.mkdir(parents=True, exist_ok=True)
        line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
        # The leading newline keeps this event readable after a line that a kill tore.
        with self._path(ref).open("a", encoding="utf-8") as stream:
            stream.write(f"\n{line}\n")


def _parse(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) else None
