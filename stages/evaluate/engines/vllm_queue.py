"""Requests as vLLM's scheduler takes them, made before they are put into it.

Of a request with a long prompt vLLM checks and copies everything and hashes each block of its tokens: 0.5 ms for a
thousand tokens, in the thread that also runs the engine's steps.  Of a shard of a thousand documents with four choices
each a GPU would wait 2.6 s for that.  So they are made bit by bit behind the steps before, whose successors the GPU has
already; in a thread of their own they kept the steps waiting for Python's lock.
"""

import itertools
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams

Asked = tuple[Sequence[int], "SamplingParams"]  # a prompt, and what is to be done with it

SHARE_OF_STEP = 0.25  # of a step's time, after it: what the GPU has to do takes longer


@dataclass(frozen=True, slots=True)
class Made:
    """A request for vLLM's output side, and the same for its scheduler."""

    name: str
    asked: Any
    scheduled: tuple[Any, int]


class Pending:
    """Requests of which some are made, to be added once; what is wrong with one is said when they are."""

    def __init__(self, asked: Sequence[Asked]) -> None:
        self.made: list[Made] = []
        self.left = deque(asked)
        self.error: Exception | None = None


class Queue:
    """The way into an ``LLMEngine`` whose core is in this process: what its ``add_request`` does, in two parts."""

    def __init__(self, llm_engine: Any) -> None:
        self._engine = llm_engine
        self._core = llm_engine.engine_core.engine_core
        self._numbers = itertools.count()

    def make_some(self, pending: Pending, for_s: float) -> None:
        """Make requests for that long, at least one if any is left."""
        until = time.perf_counter() + for_s
        while pending.left and pending.error is None:
            try:
                pending.made.append(self._made(*pending.left.popleft()))
            except Exception as error:  # of other requests than those that are being answered
                pending.error = error
            if time.perf_counter() >= until:
                return

    def add(self, pending: Pending) -> list[str]:
        """Make the rest and put them into the engine, all before its next step; their names."""
        self.make_some(pending, float("inf"))
        if pending.error is not None:
            raise pending.error
        for request in pending.made:
            self._engine.output_processor.add_request(request.asked, None, None, 0)
            self._core.add_request(*request.scheduled)
        return [request.name for request in pending.made]

    def _made(self, prompt: Sequence[int], params: "SamplingParams") -> Made:
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        name, inputs = str(next(self._numbers)), self._engine.input_processor
        tokens = {"prompt_token_ids": list(prompt)}
        asked = inputs.process_inputs(name, tokens, params, supported_tasks=self._engine.get_supported_tasks())
        inputs.assign_request_id(asked)
        return Made(name, asked, self._core.preprocess_add_request(asked))
