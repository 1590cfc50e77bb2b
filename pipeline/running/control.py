"""Stop a run from outside: by signal, or before its budget of GPU time is spent.

A stop is a request in the ledger: every worker, wherever it runs, looks before each step.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from types import FrameType

from pipeline.steps.step import Step, StepRef

SAMPLE_EVERY_S = 1.0
BY_USER = "stopped by the user"

RequestStop = Callable[[str], None]


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM stops as Ctrl-C does, so that what a run has begun to say elsewhere can be ended."""
    before = signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextmanager
def interruptible(request_stop: RequestStop) -> Iterator[None]:
    """Ctrl-C once finishes what is in flight, twice stops now, like SIGTERM; either way a rerun resumes."""

    def on_interrupt(signum: int, frame: FrameType | None) -> None:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        request_stop(BY_USER)

    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGINT, on_interrupt)
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def gpus_held(step: Step) -> float:
    """What an hour of a step costs in GPU-hours."""
    return step.resources.num_gpus


@dataclass(frozen=True, slots=True)
class Limit:
    """No more than ``amount``, of which an hour of a step costs ``an_hour``; ``name`` is what the user wrote."""

    name: str
    amount: float
    an_hour: Callable[[Step], float] = gpus_held


class GpuMeter:
    """What the GPUs of a run have cost, summed up from samples of what is running; times 3,600."""

    def __init__(self, an_hour: Callable[[Step], float] = gpus_held) -> None:
        self.spent = 0.0
        self._an_hour = an_hour
        self._last_s: float | None = None
        self._since: dict[StepRef, tuple[str, float]] = {}
        self._longest: dict[str, float] = {}  # by stage

    def sample(self, running: Iterable[Step], now_s: float) -> float:
        """Count the time since the last sample; returns what is spent once what is running has ended."""
        steps = {step.ref: step for step in running if step.resources.num_gpus}
        for ref in [ref for ref in self._since if ref not in steps]:
            stage, since_s = self._since.pop(ref)
            self._longest[stage] = max(self._longest.get(stage, 0.0), now_s - since_s)
        for ref in steps:
            self._since.setdefault(ref, (ref.stage, now_s))
        an_hour = {ref: self._an_hour(step) for ref, step in steps.items()}
        self.spent += sum(an_hour.values()) * (now_s - (now_s if self._last_s is None else self._last_s))
        self._last_s = now_s
        return self.spent + sum(rate * self._left_s(ref, now_s) for ref, rate in an_hour.items())

    def _left_s(self, ref: StepRef, now_s: float) -> float:
        stage, since_s = self._since[ref]
        return max(0.0, self._longest.get(stage, 0.0) - (now_s - since_s))


@contextmanager
def budgeted(
    limits: Sequence[Limit], running: Callable[[], Iterable[Step]], request_stop: RequestStop
) -> Iterator[None]:
    """Ask for a stop as soon as finishing what is in flight would use up one of the limits."""
    if not limits:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_spend, args=(limits, running, request_stop, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _spend(
    limits: Sequence[Limit], running: Callable[[], Iterable[Step]], request_stop: RequestStop, done: threading.Event
) -> None:
    meters, steps = [(limit, GpuMeter(limit.an_hour)) for limit in limits], list[Step]()
    while not done.wait(SAMPLE_EVERY_S):
        with suppress(OSError):  # what ran a moment ago still does
            steps = list(running())
        now_s = time.monotonic()
        spent = {limit.name: meter.sample(steps, now_s) >= limit.amount * 3600 for limit, meter in meters}
        if used_up := [name for name, is_spent in spent.items() if is_spent]:
            request_stop(f"{used_up[0]} is used up")
            return
