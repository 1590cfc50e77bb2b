"""A server that somebody else runs, behind OpenAI's completions API: it writes texts, and nothing is loaded here.

What it computes with, and what else it does meanwhile, only its owner knows.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.documents import encodable
from stages.errors import ConfigError, EngineError, StageError, one_line
from stages.evaluate.answers import CUT_OFF, FINISHED
from stages.evaluate.endpoint_config import BEYOND_OPENAI, SERVED
from stages.evaluate.engines.endpoint_client import EndpointClient
from stages.evaluate.engines.protocol import GenerateRequest, Generation, Score, ScoreRequest

if TYPE_CHECKING:
    from stages.evaluate.config import EngineConfig

# Said in every request: a server takes what is not said from the model's own generation_config.
_OPENAI_DEFAULTS = {"temperature": 0.0, "top_p": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
_WHOLE_ANSWER = {"skip_special_tokens": False, "spaces_between_special_tokens": False, "return_token_ids": True}
_MAX_LISTED, _MAX_SAID = 10, 200  # models that a server is said to have; characters of an answer that is none


class EndpointEngine:
    """The server that ``config`` names; ``checkpoint`` holds the tokenizer of what it serves."""

    scoring: Mapping[str, str] = {}

    def __init__(self, checkpoint: Path, config: "EngineConfig") -> None:
        if (lacking := config.lacking) is not None:
            raise ConfigError(lacking)
        self._config = config
        self._client = EndpointClient(config)
        served = self._find_model(self._client.get("models"))
        _check_window(served, config)
        self._version = _version(served, self._client.find("version"))
        self._own_bos = _own_bos(checkpoint) if _must_strip_bos(config) else ""

    @property
    def facts(self) -> Mapping[str, Any]:
        """Engine, and the server's version where it says one; where it runs nobody here knows."""
        return {"engine": "endpoint", "engine_version": self._version, "platform": "endpoint"}

    @property
    def arithmetic(self) -> Mapping[str, Any]:
        """Not known; what was said of the server stands for it."""
        return {"method": SERVED, "model": self._config.served_model, "flags": dict(self._config.server_flags)}

    def loglikelihood(self, requests: Sequence[ScoreRequest]) -> list[Score]:
        """Nothing: texts are all that such servers give."""
        if requests:
            raise ConfigError("engine=endpoint scores no log-likelihoods: take the task out, or choose engine=vllm_gpu")
        return []

    def generate(self, requests: Sequence[GenerateRequest]) -> list[Generation]:
        """Answer every request; so many of them wait for the server at once."""
        bodies = [self._body(request) for request in requests]
        return [self._generation(answer) for answer in self._client.post("completions", bodies)]

    def reset(self) -> None:
        """What a server keeps between requests is its own affair."""

    def close(self) -> None:
        """Nothing is kept open between calls."""

    def _find_model(self, listed: Any) -> Mapping[str, Any]:
        config, models = self._config, _by_id(listed)
        if models is None:
            raise self._nonsense("a list of models", listed)
        if config.served_model not in models:
            names = ", ".join(list(models)[:_MAX_LISTED]) or "nothing"
            raise ConfigError(
                f"the server at {config.url} has no model {config.served_model!r}; it has {names}: correct "
                "engine.served_model, or start the server with this model"
            )
        return models[config.served_model]

    def _generation(self, answer: Any) -> Generation:
        found = _completion(answer)
        if found is None:
            raise self._nonsense("a completion", answer)
        if found.finish_reason not in (FINISHED, CUT_OFF):
            raise EngineError(f"the server broke off an answer (finish reason {found.finish_reason!r})")
        return found

    def _nonsense(self, wanted: str, answer: Any) -> StageError:
        said = one_line(repr(answer), _MAX_SAID)
        return self._client.error(EngineError, f"what the server at {self._client.url} answers is not {wanted}: {said}")

    def _body(self, request: GenerateRequest) -> dict[str, Any]:
        sampling = dict(request.sampling)
        body: dict[str, Any] = {
            "model": self._config.served_model,
            "max_tokens": request.max_tokens,
            "stream": False,
            **_OPENAI_DEFAULTS,
            **self._prompt(request),
        }
        if (refused := self._config.refused_sampling(sampling)) is not None:
            raise ConfigError(refused)
        if self._config.dialect == "vllm":
            body |= BEYOND_OPENAI | _WHOLE_ANSWER
        body |= sampling
        return body | _given(stop=list(request.stop) or None, seed=request.seed)

    def _prompt(self, request: GenerateRequest) -> dict[str, Any]:
        """Token ids; or the text, with one BOS where a tokenizer puts one."""
        if self._config.prompt_format == "tokens":
            return {"prompt": list(request.prompt)}
        if self._config.dialect == "vllm":
            return {"prompt": request.text, "add_special_tokens": not request.is_complete}
        return {"prompt": request.text.removeprefix(self._own_bos)}


def _given(**fields: Any) -> dict[str, Any]:
    return {name: value for name, value in fields.items() if value is not None}


def _by_id(listed: Any) -> dict[str, Mapping[str, Any]] | None:
    try:
        return {str(model["id"]): model for model in listed["data"]}
    except (TypeError, KeyError):
        return None


def _completion(answer: Any) -> Generation | None:
    """The one choice of an answer, whatever ended it."""
    try:
        (choice,) = answer["choices"]
        text, num_tokens, stop = choice["text"], answer["usage"]["completion_tokens"], choice.get("stop_reason")
        if not isinstance(text, str) or not isinstance(num_tokens, int):
            return None
        return Generation(
            text=encodable(text),
            num_tokens=num_tokens,
            finish_reason=choice["finish_reason"],
            token_ids=None if choice.get("token_ids") is None else tuple(map(int, choice["token_ids"])),
            stopped_by=encodable(stop) if isinstance(stop, str) else None,  # else the number of an end token
        )
    except (TypeError, KeyError, ValueError, AttributeError):
        return None


def _check_window(served: Mapping[str, Any], config: "EngineConfig") -> None:
    """vLLM and SGLang say how long a text may be."""
    limit = served.get("max_model_len")
    if isinstance(limit, int) and limit < config.max_model_len:
        raise ConfigError(
            f"engine.max_model_len={config.max_model_len} is more than the server's {limit} tokens; lower it, or start "
            "the server with more"
        )


def _version(served: Mapping[str, Any], said: Any) -> str | None:
    """As vLLM and TensorRT-LLM say it, with whose it is."""
    version = said.get("version") if isinstance(said, dict) else None
    return None if version is None else f"{served.get('owned_by', 'unknown')} {version}"


def _must_strip_bos(config: "EngineConfig") -> bool:
    """OpenAI's API has no word against the special tokens that a server's tokenizer puts before a text."""
    return config.prompt_format == "text" and config.dialect == "openai"


def _own_bos(checkpoint: Path) -> str:
    """The text of the BOS that the tokenizer puts before every text; empty where it puts none."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    first = tokenizer.encode("a")[:1]
    return str(tokenizer.bos_token) if first == [tokenizer.bos_token_id] else ""
