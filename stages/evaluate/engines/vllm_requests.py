"""Texts to be written: the protocol's requests as vLLM's sampling parameters, and vLLM's outputs as answers."""

from typing import TYPE_CHECKING, Any

from stages.errors import ConfigError, EngineError, one_line
from stages.evaluate.answers import CUT_OFF, FINISHED
from stages.evaluate.engines.protocol import GenerateRequest, Generation

if TYPE_CHECKING:
    from vllm import SamplingParams


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
    except Exception as error:  # vLLM's own error is a ValueError in some versions only; a wrong type is a TypeError
        raise ConfigError(f"gen_kwargs {options} are not valid: {one_line(error)}") from error


def generation(output: Any) -> Generation:
    answer = output.outputs[0]
    if answer.finish_reason not in (FINISHED, CUT_OFF):
        raise EngineError(f"vLLM broke off an answer (finish reason {answer.finish_reason!r})")
    stopped_by = answer.stop_reason if isinstance(answer.stop_reason, str) else None  # else the number of an end token
    return Generation(answer.text, len(answer.token_ids), answer.finish_reason, tuple(answer.token_ids), stopped_by)
