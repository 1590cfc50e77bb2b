"""What is said of a server that somebody else runs: where it is, what it serves, and how it is asked."""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any
from urllib.parse import urlsplit

from stages.errors import redacted
from stages.fields import execution, identity

SERVED = "served"  # a dtype, and whatever else a server somewhere else decides
_SERVERS_OWN = ("dtype", "tensor_parallel_size", "pipeline_parallel_size", "on_gpu", "kv_cache_gib", "gpu_memory_gib")
PROMPT_FORMATS = ("tokens", "text")
DIALECTS = ("vllm", "openai")
BEYOND_OPENAI = {
    "top_k": -1,
    "min_p": 0.0,
    "repetition_penalty": 1.0,
}  # sampling that its API lacks, when not asked for
_VARIABLE = re.compile(r"[A-Z_][A-Z0-9_]*")


@dataclass(kw_only=True, slots=True)
class EndpointSettings:
    """A server that speaks OpenAI's completions API; read by the engine ``endpoint`` alone.

    ``url`` is what OpenAI's clients call the base URL, ``served_model`` the id that the server gives its model.
    ``server_flags`` say how it was started, in its own words: nobody can look, so what is said is part of what a result
    is.  ``dialect`` vllm sends the sampling and tokenizer settings that OpenAI's API does not have, too.
    """

    url: str | None = execution(None)
    served_model: str | None = identity(None, neutral=None)
    server_flags: dict[str, Any] = identity(factory=dict, neutral={})
    prompt_format: str = identity("tokens", neutral="tokens")
    dialect: str = identity("vllm", neutral="vllm")
    api_key_env: str | None = execution(None)  # the name of a variable; what is in it is written nowhere
    request_timeout_s: float = execution(600.0)
    retry_for_s: float = execution(120.0)  # of a request what is transient is tried again for so long

    @property
    def lacking(self) -> str | None:
        """What must be said before a server can be asked, in one line; None where all is said."""
        for name, example in (("url", "http://HOST:8000/v1"), ("served_model", "ID")):
            if getattr(self, name) is None:
                return f"engine=endpoint asks a server that runs: say which, engine.{name}={example}"
        return None

    @staticmethod
    def refusal(task: str) -> str:
        """Why a task that is no generation cannot be asked there."""
        return (
            f"task {task} is scored by log-likelihoods, and engine=endpoint answers with texts only: take it out, "
            "choose a generative variant of it, or evaluate the checkpoint with engine=vllm_gpu or vllm_cpu"
        )

    def refused_sampling(self, names: Iterable[str]) -> str | None:
        """Why sampling with these arguments cannot be asked for, in one line; None where it can."""
        strange = sorted(set(names) & BEYOND_OPENAI.keys()) if self.dialect == "openai" else []
        if not strange:
            return None
        return f"gen_kwargs.{strange[0]} is not of OpenAI's API: leave it out, or set engine.dialect=vllm"

    def said_of_endpoint(self) -> Iterator[str]:
        """The settings above that were given another value than their own."""
        neutral = EndpointSettings()
        own = (each.name for each in fields(EndpointSettings))
        yield from (name for name in own if getattr(self, name) != getattr(neutral, name))

    def check_endpoint(self) -> None:
        """Raise ValueError for what cannot be; no value that may hold a secret is repeated."""
        _check_url(self.url)
        for name, choices in (("prompt_format", PROMPT_FORMATS), ("dialect", DIALECTS)):
            if (value := getattr(self, name)) not in choices:
                raise ValueError(f"engine.{name} must be {' or '.join(choices)}; got {value!r}")
        for name in ("request_timeout_s", "retry_for_s"):
            if not (value := getattr(self, name)) >= 0 or (name == "request_timeout_s" and not value):
                raise ValueError(f"engine.{name} must be a number of seconds; got {value}")
        if self.api_key_env is not None and not _VARIABLE.fullmatch(self.api_key_env):
            raise ValueError(
                "engine.api_key_env must be the name of an environment variable, in capitals, never the key itself"
            )
        _check_flags(self.server_flags)
        self.check_others_own("endpoint", SERVED, "say in engine.server_flags how the server was started")

    def check_others_own(self, kind: str, dtype: str, instead: str) -> None:
        """What an engine in this process is told, others were told elsewhere: the record may not say otherwise."""
        usual = {each.name: each.default for each in fields(self)} | {"dtype": dtype}
        if said := [name for name in _SERVERS_OWN if getattr(self, name) != usual[name]]:
            raise ValueError(
                f"engine.{said[0]} is not for engine={kind} to set: leave it {usual[said[0]]}, and {instead}"
            )


def _check_url(url: str | None) -> None:
    if url is None:
        return
    parts = urlsplit(url)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise ValueError(
            "engine.url must hold neither a user nor a query, which may be secrets: give the key in an environment "
            "variable, and its name in engine.api_key_env"
        )
    if parts.scheme not in ("http", "https") or not parts.netloc:
        raise ValueError(f"engine.url must be like http://HOST:8000/v1; got {url!r}")


def _check_flags(flags: Mapping[str, Any]) -> None:
    for name, value in flags.items():
        if redacted(said := f"{name}={value}") != said:
            raise ValueError(
                f"engine.server_flags.{name} looks like a secret, on which no answer depends: leave it out"
            )
        if not isinstance(value, str | int | float | bool | list | None):
            raise ValueError(f"engine.server_flags.{name} must be a text, a number, true, false, null or a list")
