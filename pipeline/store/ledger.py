"""The ledger: every attempt at a step, written before it starts, so that a worker that dies leaves its mark.

The record ``ledger/<stage>-<fp12>.jsonl`` of the store, one JSON object a line, appended.  The ledger explains and
counts; it never satisfies a look-up.
"""

import json
import os
import socket
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

from pipeline.errors import FailureClass
from pipeline.steps.step import Step, StepRef
from pipeline.store.heartbeat import repeated
from pipeline.store.storage import Records

NUM_READERS = 16
_TOLD = "ledger/told.jsonl"
# A driver says so often that it lives; one that was silent for longer, or whose clock is off by more, does not.
HEARTBEAT_S, DEAD_AFTER_S = 30.0, 120.0
_CLASSES = [each.value for each in FailureClass]


@dataclass(frozen=True, slots=True)
class Failure:
    """How the last attempt at a step ended, when it did not succeed."""

    failure_class: FailureClass
    message: str
    log: str | None
    num_attempts: int


@dataclass(frozen=True, slots=True)
class History:
    """A step's attempts in one run; ``failure`` and ``open_since`` (Unix seconds) tell how the latest one stands."""

    num_started: int
    deaths: tuple[str | None, ...]  # the node of each attempt that came to no end
    num_oom: int
    failure: tuple[FailureClass, str] | None
    open_since: float | None

    @property
    def num_deaths(self) -> int:
        return len(self.deaths)


class Ledger:
    """Attempts of all runs over one store."""

    def __init__(self, records: Records) -> None:
        self._records = records

    def started(self, ref: StepRef, run_id: str, log: str | None, node: str | None = None) -> None:
        """Record an attempt, the cluster's node, and where its log will be; call before the stage does anything."""
        self._append(
            ref,
            event="started",
            run_id=run_id,
            host=socket.gethostname(),
            pid=os.getpid(),
            node=node,
            log=log,
        )

    def succeeded(self, ref: StepRef, run_id: str, seconds: float) -> None:
        self._append(ref, event="succeeded", run_id=run_id, seconds=round(seconds, 3))

    def failed(
        self, ref: StepRef, run_id: str, failure_class: FailureClass, message: str, unopened: bool = False
    ) -> None:
        """Record how an attempt failed, and whether the session that it needed did not even open."""
        told = {"unopened": True} if unopened else {}
        self._append(ref, event="failed", run_id=run_id, failure_class=failure_class.value, message=message, **told)

    def skipped(self, ref: StepRef, run_id: str, cause: str) -> None:
        self._append(ref, event="skipped", run_id=run_id, message=cause)

    def stopped(self, ref: StepRef, run_id: str) -> None:
        """Record that the user, or the loss of a machine, ended an attempt: it says nothing against the step."""
        self._append(ref, event="stopped", run_id=run_id)

    def forgive(self, refs: Iterable[StepRef], run_id: str, alive: Collection[str]) -> None:
        """Record of the attempts under way on nodes that are not ``alive`` that they were stopped."""
        for ref in refs:
            events = [event for event in self.events(ref) if event.get("run_id") == run_id]
            if events and events[-1]["event"] == "started" and events[-1].get("node") not in alive:
                self.stopped(ref, run_id)

    def events(self, ref: StepRef) -> list[dict[str, Any]]:
        """Every event of a step, oldest first; a line torn by a kill is passed over."""
        record = _record(ref)
        return [event for line in self._records.lines(record) if (event := _parse(line, record))]

    def events_in(self, run_id: str, steps: Iterable[Step]) -> dict[StepRef, list[dict[str, Any]]]:
        """Of each step its events of one run, oldest first."""
        refs = [step.ref for step in steps]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = zip(refs, readers.map(self.events, refs), strict=True)
            return {ref: [event for event in events if event.get("run_id") == run_id] for ref, events in found}

    def history(self, ref: StepRef, run_id: str) -> History:
        """A step's attempts in one run.

        Attempts of other runs do not count: a driver that was killed leaves the mark of a death, and that is no fault
        of the step.
        """
        events = [event for event in self.events(ref) if event.get("run_id") == run_id]
        names = [event["event"] for event in events]
        failed = [event for event in events if event["event"] == "failed"]
        return History(
            num_started=names.count("started") - names.count("stopped"),
            deaths=_deaths(events),
            num_oom=sum(event["failure_class"] == FailureClass.oom.value for event in failed),
            failure=(FailureClass(failed[-1]["failure_class"]), failed[-1]["message"])
            if names[-1:] == ["failed"]
            else None,
            open_since=events[-1]["time"] if names[-1:] == ["started"] else None,
        )

    def request_stop(self, run_id: str, reason: str) -> None:
        """Ask every worker of a run to stop after the step it is at; the first reason stays."""
        self._records.create(_stop_record(run_id), reason)

    def stop_reason(self, run_id: str) -> str | None:
        """Why a run was asked to stop; None when it was not."""
        try:
            reason = self._records.read(_stop_record(run_id))
        except ValueError:  # damaged: the request stands, its reason is lost
            reason = ""
        return reason if reason is None else reason or "stopped"

    def clear_stop(self, run_id: str) -> None:
        """Remove the request when the run is over."""
        self._records.delete(_stop_record(run_id))

    def lose(self, run_id: str) -> None:
        """Record that a run lost its cluster: no attempt of it that has no end says anything against its step."""
        self._records.create(_lost_record(run_id), "lost")

    def tell(self, sweep: str, run_id: str, text: str) -> None:
        """Record what happened to a run, of no step in particular."""
        line = {"time": round(time.time(), 3), "sweep": sweep, "run_id": run_id, "text": text}
        self._records.append(_TOLD, json.dumps(line, ensure_ascii=False))

    def told(self, sweep: str) -> list[tuple[float, str]]:
        """What happened to a sweep's latest run: when (Unix seconds), and what."""
        found = map(_told, self._records.lines(_TOLD))
        lines = [each for each in found if each is not None and each["sweep"] == sweep]
        return [(each["time"], each["text"]) for each in lines if each["run_id"] == lines[-1]["run_id"]]

    @contextmanager
    def alive(self, run_id: str) -> Iterator[None]:
        """Say until the block ends that this run's driver lives: an attempt it began and did not end is under way."""
        record = _run_record(run_id)
        try:
            with repeated(lambda: self._records.write(record, f"{time.time():.3f}"), HEARTBEAT_S):
                yield
        finally:
            with suppress(OSError):
                self._records.delete(record)

    def is_alive(self, run_id: str) -> bool:
        """Whether the driver of a run said so lately."""
        try:
            return abs(time.time() - float(self._records.read(_run_record(run_id)) or 0)) < DEAD_AFTER_S
        except ValueError:  # damaged; a driver that lives says it again in a moment
            return False

    def last_failure(self, ref: StepRef) -> Failure | None:
        """Why the step is not there, by its latest attempt.

        None when it was never tried, is being tried, or succeeded and its artifact was removed since.  An attempt
        that the user stopped leaves the step as it was before.
        """
        events = self.events(ref)
        while events and events[-1]["event"] == "stopped":
            begun = [index for index, event in enumerate(events) if event["event"] == "started"]
            events = events[: begun[-1]] if begun else []
        if not events:
            return None
        starts = [event for event in events if event["event"] == "started"]
        last, log = events[-1], starts[-1].get("log") if starts else None
        if last["event"] == "skipped":
            return Failure(FailureClass.upstream, last["message"], log, len(starts))
        if last["event"] == "failed":
            return Failure(FailureClass(last["failure_class"]), last["message"], log, len(starts))
        if last["event"] == "succeeded" or self.is_alive(last["run_id"]):
            return None
        if self._records.read(_lost_record(last["run_id"])) is not None:
            return None
        return Failure(FailureClass.crash, "the worker died during the attempt", log, len(starts))

    def running(self, steps: Iterable[Step]) -> set[StepRef]:
        """Those of the steps that a run whose driver lives is at."""
        refs = [step.ref for step in steps]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            return {
                ref for ref, is_running in zip(refs, readers.map(self._is_running, refs), strict=True) if is_running
            }

    def _is_running(self, ref: StepRef) -> bool:
        events = self.events(ref)
        return bool(events) and events[-1]["event"] == "started" and self.is_alive(events[-1]["run_id"])

    def failures(self, steps: Iterable[Step]) -> dict[StepRef, Failure]:
        """Why each of these steps is not there; steps that were never tried are left out."""
        refs = [step.ref for step in steps]
        with ThreadPoolExecutor(NUM_READERS) as readers:
            found = readers.map(self.last_failure, refs)
            return {ref: failure for ref, failure in zip(refs, found, strict=True) if failure is not None}

    def _append(self, ref: StepRef, **event: Any) -> None:
        line = json.dumps({"time": round(time.time(), 3), **event}, ensure_ascii=False)
        self._records.append(_record(ref), line)


def _deaths(events: Iterable[Mapping[str, Any]]) -> tuple[str | None, ...]:
    """The nodes of those attempts of one run that neither ended nor were stopped; the latest may be under way."""
    under_way = list[str | None]()
    for event in events:
        if event["event"] == "started":
            under_way.append(event.get("node"))
        elif event["event"] in ("failed", "succeeded", "stopped") and under_way:
            under_way.pop()
    return tuple(under_way)


def _record(ref: StepRef) -> str:
    return f"ledger/{ref.short}.jsonl"


def _stop_record(run_id: str) -> str:
    return f"ledger/stop-{run_id}"


def _lost_record(run_id: str) -> str:
    return f"ledger/lost-{run_id}"


def _run_record(run_id: str) -> str:
    return f"ledger/run-{run_id}"


def _parse(line: str, record: str) -> dict[str, Any] | None:
    """An event with all that is read of one; None for anything else."""
    match event := _json(line):
        case {"event": "failed", "failure_class": name, "message": str(message)} if _is_event(event):
            if name not in _CLASSES:
                said = f"{record} says it failed as {name!r}, which this version does not know: {message}"
                event |= {"failure_class": FailureClass.crash.value, "message": said}
            return dict(event)
        case {"event": "skipped", "message": str()} | {"event": "started" | "succeeded" | "stopped"}:
            return dict(event) if _is_event(event) else None
    return None


def _told(line: str) -> dict[str, Any] | None:
    match told := _json(line):
        case {"time": int() | float(), "sweep": str(), "run_id": str(), "text": str()}:
            return dict(told)
    return None


def _json(line: str) -> Any:
    """What a line holds; None of one that was torn."""
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _is_event(event: Any) -> bool:
    log = event.get("log")
    is_dated = isinstance(event.get("time"), int | float) and isinstance(event.get("run_id"), str)
    return is_dated and (log is None or isinstance(log, str))
