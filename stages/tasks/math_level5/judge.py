"""Whether a mathematical answer agrees with the reference, as math-verify sees it.

The judge is a process of its own: math-verify's time limits are alarms, which only a main thread may set, and what
holds the interpreter (a power with a million digits) hears no alarm and must be killed.

    echo '["$\\\\frac{1}{2}$", "The answer is $0.5$."]' | python judge.py    # true
"""

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO

START_S, ANSWER_S = 120.0, 20.0
_ALARM_S = 5  # math-verify's own limit for each expression
_MEMORY_BYTES = 4 * 2**30


class JudgeError(Exception):
    """The judge could not tell; the document is missing, not wrong."""


class Judge:
    """Starts its process with the first question, and a new one where one had to be killed.  Threads may share it."""

    def __init__(self, answer_s: float = ANSWER_S) -> None:
        self._answer_s = answer_s
        self._lock = threading.Lock()
        self._process: subprocess.Popen[str] | None = None

    def agrees(self, reference: str, response: str) -> bool:
        """Whether the answer in ``response`` equals that of ``reference``.  Raises JudgeError if it cannot tell."""
        with self._lock:
            said = self._ask(json.dumps([reference, response]))
        if isinstance(said, str):
            raise JudgeError(said)
        return said

    def _ask(self, question: str) -> bool | str:
        process = self._process or self._start()
        assert process.stdin is not None
        try:
            process.stdin.write(f"{question}\n")
            process.stdin.flush()
        except BrokenPipeError:
            pass  # the missing answer says so
        said = self._read_line(process, self._answer_s)
        verdict: bool | str = json.loads(said) if said else f"no verdict within {self._answer_s:g} s"
        return verdict

    def _start(self) -> "subprocess.Popen[str]":
        command = [sys.executable, str(Path(__file__).resolve())]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if self._read_line(self._process, START_S) == "":
            raise JudgeError("the judge does not start; is math-verify installed?")
        return self._process

    def _read_line(self, process: "subprocess.Popen[str]", limit_s: float) -> str:
        """Empty when the process ended or had to be ended."""
        assert process.stdout is not None
        timer = threading.Timer(limit_s, process.kill)
        timer.start()
        line = process.stdout.readline()
        timer.cancel()
        if not line:
            process.wait()
            self._process = None
        return line


def judge(reference: str, response: str) -> bool:
    """math-verify's verdict with the settings of lm-eval's ``leaderboard_math_hard``; errors are raised, not False."""
    from math_verify import LatexExtractionConfig, parse, verify

    limits = {"parsing_timeout": _ALARM_S, "raise_on_error": True}
    gold = parse(reference, extraction_config=[LatexExtractionConfig()], **limits)
    if not gold:
        raise ValueError("the reference holds no answer")
    return bool(verify(gold, parse(response, **limits), timeout_seconds=_ALARM_S, raise_on_error=True))


def serve(questions: IO[str], verdicts: IO[str]) -> None:
    """One line for each: true, false, or a text that says why there is no verdict."""
    for question in questions:
        try:
            said: bool | str = judge(*json.loads(question))
        except KeyboardInterrupt:
            return
        except BaseException as error:  # math-verify's time-outs are no Exceptions
            said = f"{type(error).__name__}: {error}"[:300]
        print(json.dumps(said), file=verdicts, flush=True)


def main() -> None:
    """Say that the libraries are loaded, then serve until the questions end."""
    import resource

    import math_verify  # noqa: F401

    resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_BYTES, _MEMORY_BYTES))
    print("ready", flush=True)
    serve(sys.stdin, sys.stdout)


if __name__ == "__main__":
    main()
