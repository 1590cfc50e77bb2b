"""GuideLLM behind a pipe: one process that stays, since its imports take 15 s, makes the load of every point.

A line of JSON in is a ``Load`` (stages/serving/load.py), a line out ``{"requests": [...]}`` or ``{"error": "..."}``.
Its workers are forked from a server that has imported everything: 0.1 s for each instead of 8.
"""

import asyncio
import json
import multiprocessing
import os
import sys
from functools import cache
from typing import Any

from stages.serving.prompts import random_prompts

_PRELOADED = ["guidellm.entrypoints", "guidellm.backends.openai", "guidellm.scheduler", "transformers"]


def main() -> None:
    """Serve loads until the pipe closes."""
    # Whatever a library prints goes to the log; the answers have the pipe to themselves.
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    multiprocessing.get_context("forkserver").set_forkserver_preload(_PRELOADED)
    for line in sys.stdin:
        try:
            answer: dict[str, Any] = {"requests": asyncio.run(_run(json.loads(line)))}
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {' '.join(str(error).split())[:600]}"}
        answers.write(json.dumps(answer) + "\n")


async def _run(load: dict[str, Any]) -> list[dict[str, Any]]:
    from guidellm.entrypoints import benchmark_generative_text
    from guidellm.schemas.benchmark import BenchmarkScenario

    scenario = BenchmarkScenario.create(spec=_spec(load), benchmarks=[], metadata={}, scenario=None)
    report, _ = await benchmark_generative_text(args=scenario, progress=False, console=None)
    requests = report.benchmarks[0].requests
    return [_record(request) for group in (requests.successful, requests.errored) for request in group]


def _spec(load: dict[str, Any]) -> dict[str, Any]:
    # Written beforehand: GuideLLM's own texts take 60 ms for 4,096 tokens, while the engine waits for them.
    prompts = random_prompts(_tokenizer(load["tokenizer"]), load["num_requests"], load["prompt_tokens"], load["seed"])
    rows = [{"prompt": prompt, "output_tokens_count": load["output_tokens"]} for prompt in prompts]
    return {
        "backend": {
            "kind": "openai_http",
            "target": load["target"],
            "request_format": "/v1/completions",
            "stream": load["stream"],
            "http2": False,
            "extras": {"body": {"temperature": 0.0}},
        },
        "profile": load["profile"],
        "constraints": [{"kind": "max_requests", "count": load["num_requests"]}],
        "data": [{"kind": "in_memory_dict_list", "data": rows}],
        "data_loader": {"kind": "pytorch", "samples": len(rows)},
        "tokenizer": {"kind": "huggingface_auto", "model": load["tokenizer"]},
        "seed": {"kind": "static", "value": load["seed"]},
        "metrics": {"kind": "generative", "sample_size": 0},  # no texts are kept
        "outputs": [],
    }


@cache
def _tokenizer(path: str) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(path)


def _record(request: Any) -> dict[str, Any]:
    return {
        "start_s": request.request_start_time,
        "end_s": request.request_end_time,
        "ttft_ms": request.time_to_first_token_ms,
        "itl_ms": request.inter_token_latency_ms,
        "prompt_tokens": request.prompt_tokens,
        "output_tokens": request.output_tokens,
        "error": request.info.error,
    }


if __name__ == "__main__":
    main()
