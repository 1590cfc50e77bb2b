"""Requests of the protocol as vLLM's sampling parameters, and vLLM's outputs as answers."""

import math
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from stages.engines.protocol import CUT_OFF, FINISHED, GenerateRequest, Generation, Score, ScoreRequest, one_line
from stages.errors import ConfigError, EngineError

if TYPE_CHECKING:
    from vllm import SamplingParams

_MAX_LABELS = 128  # vLLM's upper bound on the length of logprob_token_ids


def score_jobs(
    requests: Sequence[ScoreRequest], block_size: int
) -> Iterator[tuple[list[ScoreRequest], tuple[int, ...], "SamplingParams"]]:
    """(requests answered, prompt, parameters); a context goes ahead of the continuations that find it cached."""
    by_context: dict[tuple[int, ...], list[ScoreRequest]] = {}
    for request in requests:
        by_context.setdefault(request.context, []).append(request)
    for context, group in by_context.items():
        labels = [request for request in group if len(request.continuation) == 1]
        longer = [request for request in group if len(request.continuation) > 1]
        for start in range(0, len(labels), _MAX_LABELS):
            some = labels[start : start + _MAX_LABELS]
            yield some, context, one_token(logprob_token_ids=[request.continuation[0] for request in some])
        if longer and not labels and len(context) >= block_size:
            yield [], context, one_token()
        for request in longer:
            params = one_token(prompt_logprobs=1, skip_reading_prefix_cache=False)
            yield [request], request.context + request.continuation, params


def one_token(**options: Any) -> "SamplingParams":
    from vllm import SamplingParams

    return SamplingParams(temperature=0.0, max_tokens=1, detokenize=False, **options)


def sampling(request: GenerateRequest) -> "SamplingParams":
    from vllm import SamplingParams

    options: dict[str, Any] = {"temperature": 0.0, **dict(request.sampling)}
    try:
        return SamplingParams(
            max_tokens=request.max_tokens,
            stop=list(request.stop),
            seed=request.seed,
            skip_special_tokens=False,
            spaces_between_special_tokens=False,
            **options,
        )
    except ValueError as error:
        raise ConfigError(f"gen_kwargs {options} are not valid: {one_line(error)}") from error


def label_score(request: ScoreRequest, output: Any) -> Score:
    """Of a continuation of one token, from the distribution after its context."""
    answer = output.outputs[0]
    (label,), written, row = request.continuation, answer.token_ids[0], answer.logprobs[0]
    # Of tokens that tie for the first place lm-eval takes each for the one that greedy decoding writes.
    is_greedy = label == written or (written in row and row[label].logprob >= row[written].logprob)
    return Score(_checked(row[label].logprob), is_greedy)


def span_score(request: ScoreRequest, output: Any) -> Score | None:
    """None where the prefix cache reached into the continuation, so that its log-probabilities were not formed."""
    if (output.num_cached_tokens or 0) >= len(request.context):
        return None
    # Counted from the end: vLLM's newer model runner leaves out the rows of cached tokens, the older one pads them.
    rows = (output.prompt_logprobs or [])[-len(request.continuation) :]
    if len(rows) < len(request.continuation) or any(
        row is None or token not in row for row, token in zip(rows, request.continuation, strict=True)
    ):
        return None
    found = [(row[token].logprob, row) for row, token in zip(rows, request.continuation, strict=True)]
    is_greedy = all(logprob >= max(each.logprob for each in row.values()) for logprob, row in found)
    return Score(_checked(sum(logprob for logprob, _ in found)), is_greedy)


def _checked(logprob: float) -> float:
    if math.isnan(logprob):
        raise EngineError(
            "vLLM returned a log-probability that is not a number; the checkpoint or its kernel is broken"
        )
    return float(logprob)


def generation(output: Any) -> Generation:
    answer = output.outputs[0]
    if answer.finish_reason not in (FINISHED, CUT_OFF):
        raise EngineError(f"vLLM broke off an answer (finish reason {answer.finish_reason!r})")
    return Generation(answer.text, len(answer.token_ids), answer.finish_reason)
