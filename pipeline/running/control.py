"""Stop a run from outside: by signal, or before its budget of GPU time is spent.

A stop is a request in the ledger: every worker, wherever it runs, looks before each step.
"""

import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
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


class GpuMeter:
    """GPU time of a run, summed up from samples of what is running."""

    def __init__(self) -> None:
        self.spent_s = 0.0
        self._last_s: float | None = None
        self._since: dict[StepRef, tuple[str, float]] = {}
        self._longest: dict[str, float] = {}  # by stage

    def sample(self, running: Iterable[Step], now_s: float) -> float:
        """Count the time since the last sample; returns the GPU seconds spent once what is running has ended."""
        steps = {step.ref: step for step in running if step.resources.num_gpus}
        for ref in [ref for ref in self._since if ref not in steps]:
            stage, since_s = self._since.pop(ref)
            self._longest[stage] = max(self._longest.get(stage, 0.0), now_s - since_s)
        for ref in steps:
            self._since.setdefault(ref, (ref.stage, now_s))
        num_gpus = sum(step.resources.num_gpus for step in steps.values())
        self.spent_s += num_gpus * (now_s - (now_s if self._last_s is None else self._last_s))
        self._last_s = now_s
        return self.spent_s + sum(step.resources.num_gpus * self._left_s(step.ref, now_s) for step in steps.values())

    def _left_s(self, ref: StepRef, now_s: float) -> float:
        stage, since_s = self._since[ref]
        return max(0.0, self._longest.get(stage, 0.0) - (now_s - since_s))


@contextmanager
def budgeted(
    gpu_hours: float | None, running: Callable[[], Iterable[Step]], request_stop: RequestStop
) -> Iterator[None]:
    """Ask for a stop as soon as finishing what is in flight would use up ``gpu_hours``."""
    if gpu_hours is None:
        yield
        return
    done = threading.Event()
    watcher = threading.Thread(target=_spend, args=(gpu_hours, running, request_stop, done), daemon=True)
    watcher.start()
    try:
        yield
    finally:
        done.set()
        watcher.join()


def _spend(
    gpu_hours: float, running: Callable[[], Iterable[Step]], request_stop: RequestStop, done: threading.Event
) -> None:
    meter, steps = GpuMeter(), list[Step]()
    while not done.wait(SAMPLE_EVERY_S):
        with suppress(OSError):  # what ran a moment ago still does
            steps = list(running())
        if meter.sample(steps, time.monotonic()) >= gpu_hours * 3600:
            request_stop(f"budget.gpu_hours={gpu_hours:g} is used up")
            return
