"""Requests as vLLM's scheduler takes them, made before they are put into it.

Of a request with a long prompt vLLM checks and copies everything and hashes each block of its tokens: 0.5 ms for a
thousand tokens, in the thread that also runs the engine's steps.  A shard of a thousand documents with four choices
each left a GPU idle for 2.6 s that way.  Made in another thread while that one waits for the GPU, they go in at once.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vllm import SamplingParams


@dataclass(frozen=True, slots=True)
class Made:
    """A request for vLLM's output side, and the same for its scheduler."""

    name: str
    asked: Any
    scheduled: tuple[Any, int]


class Queue:
    """The way into an ``LLMEngine`` whose core is in this process: what its ``add_request`` does, in two parts."""

    def __init__(self, llm_engine: Any) -> None:
        self._engine = llm_engine
        self._core = llm_engine.engine_core.engine_core
        self._numbers = itertools.count()

    def made(self, prompts: Sequence[Sequence[int]], params: Sequence["SamplingParams"]) -> list[Made]:
        """Requests to be added once, also made while the engine is at work in another thread."""
        return [self._made(prompt, settings) for prompt, settings in zip(prompts, params, strict=True)]

    def add(self, requests: Sequence[Made]) -> list[str]:
        """Put them into the engine, all before its next step; their names."""
        for request in requests:
            self._engine.output_processor.add_request(request.asked, None, None, 0)
            self._core.add_request(*request.scheduled)
        return [request.name for request in requests]

    def _made(self, prompt: Sequence[int], params: "SamplingParams") -> Made:
        from vllm.sampling_params import RequestOutputKind

        params.output_kind = RequestOutputKind.FINAL_ONLY
        name, inputs = str(next(self._numbers)), self._engine.input_processor
        tokens = {"prompt_token_ids": list(prompt)}
        asked = inputs.process_inputs(name, tokens, params, supported_tasks=self._engine.get_supported_tasks())
        inputs.assign_request_id(asked)
        return Made(name, asked, self._core.preprocess_add_request(asked))
