"""Loads and what came back: GuideLLM asks a server, and every request is kept as a row."""

import json
import select
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from stages.errors import EngineError
from stages.serving.process import spawn, stop

Request = Mapping[str, Any]  # start_s, end_s, ttft_ms, itl_ms, prompt_tokens, output_tokens, error


@dataclass(frozen=True, slots=True)
class Load:
    """Requests of one shape.  ``profile`` is GuideLLM's: synchronous, throughput with max_concurrency, poisson."""

    target: str
    tokenizer: str
    profile: Mapping[str, Any]
    prompt_tokens: int
    output_tokens: int
    num_requests: int
    stream: bool
    seed: int


class LoadClient:
    """A GuideLLM process with ``num_workers`` processes of its own that send requests."""

    def __init__(self, num_workers: int, log: Path) -> None:
        environment = {
            "GUIDELLM__MP_CONTEXT_TYPE": "forkserver",
            "GUIDELLM__MAX_WORKER_PROCESSES": str(num_workers),
            "GUIDELLM__LOGGING__CONSOLE_LOG_LEVEL": "ERROR",
            "HF_HUB_OFFLINE": "1",
            "TOKENIZERS_PARALLELISM": "false",
            "CUDA_VISIBLE_DEVICES": "",  # torch comes along; the GPU is the server's
        }
        command = [sys.executable, "-m", "stages.serving.guidellm_client"]
        self._process = spawn(command, environment, log, piped=True)

    def run(self, load: Load, timeout_s: float) -> list[Request]:
        """Send the load and wait for all answers, in the order they were asked; EngineError when none came back."""
        assert self._process.stdin is not None and self._process.stdout is not None
        try:
            self._process.stdin.write(json.dumps(asdict(load)) + "\n")
            self._process.stdin.flush()
        except OSError as error:
            raise EngineError(f"the load client died: {error}") from error
        answer = json.loads(self._answer(timeout_s))
        if "error" in answer:
            raise EngineError(f"the load client failed: {answer['error']}")
        requests: list[Request] = sorted(answer["requests"], key=lambda request: request["start_s"] or 0.0)
        return requests

    def close(self) -> None:
        """End the process and its workers."""
        stop(self._process)

    def _answer(self, timeout_s: float) -> str:
        assert self._process.stdout is not None
        ready, _, _ = select.select([self._process.stdout], [], [], timeout_s)
        line = self._process.stdout.readline() if ready else ""
        if not line:
            why = "died" if self._process.poll() is not None else f"had no answer after {timeout_s:g} s"
            raise EngineError(f"the load client {why}; its log is beside the server's")
        return line


def answered(requests: Sequence[Request]) -> list[Request]:
    """Those that were answered; a failed one is in no average."""
    return [request for request in requests if request["error"] is None]


def requests_per_s(requests: Sequence[Request]) -> float:
    """Answers a second from the first request's start to the last answer."""
    done = answered(requests)
    duration_s: float = max(r["end_s"] for r in done) - min(r["start_s"] for r in done)
    return len(done) / duration_s


def sustained_per_s(requests: Sequence[Request]) -> float | None:
    """Requests a second that came and were answered: the slower of arrivals and answers, each from first to last.

    On a short run either alone errs: answers bunch behind a slow first one, arrivals do not show a queue that grows.
    """
    done = answered(requests)
    if len(done) < 3:
        return None
    arrivals_s, answers_s = (max(r[name] for r in done) - min(r[name] for r in done) for name in ("start_s", "end_s"))
    slower_s: float = max(arrivals_s, answers_s)
    return (len(done) - 1) / slower_s
