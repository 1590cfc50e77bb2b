"""Asking a server: so many requests at once, again where it may help, and every failure as one line without the key."""

import asyncio
import os
import random
import time
from collections.abc import Iterator, Sequence
from email.utils import parsedate_to_datetime
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

from stages.errors import HIDDEN, ConfigError, EngineError, StageError, one_line

if TYPE_CHECKING:
    import ssl

    import httpx

    from stages.evaluate.config import EngineConfig

_CONNECT_TIMEOUT_S = 10.0
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.5, 8.0
_TRANSIENT = (HTTPStatus.REQUEST_TIMEOUT, HTTPStatus.TOO_EARLY, HTTPStatus.TOO_MANY_REQUESTS)
_NEVER_BETTER = (HTTPStatus.NOT_IMPLEMENTED, HTTPStatus.HTTP_VERSION_NOT_SUPPORTED)
_MAX_SAID = 200  # characters of what a server says


class Failure(NamedTuple):
    """What may be otherwise the next time, and how long the server asks to wait for that."""

    what: str
    wait_s: float | None = None


class Asked(NamedTuple):
    """One request."""

    method: str
    place: str
    body: dict[str, Any] | None = None


class EndpointClient:
    """The server at ``engine.url``.  Raises EngineError for one that is dead, ConfigError for one that refuses."""

    def __init__(self, config: "EngineConfig") -> None:
        assert config.url is not None
        self.url = config.url.rstrip("/")
        self._key = _read_key(config.api_key_env)
        self._config = config
        self._certificates = _certificates() if self.url.startswith("https:") else False  # 50 ms to read

    def get(self, path: str) -> Any:
        """The JSON at ``path`` below the base URL."""
        return self._run([Asked("GET", f"{self.url}/{path}")])[0]

    def find(self, path: str) -> Any | None:
        """The JSON at ``path`` of the server itself; None where it has nothing there."""
        try:
            return self._run([Asked("GET", f"{self.url.removesuffix('/v1')}/{path}")])[0]
        except StageError:
            return None

    def post(self, path: str, bodies: Sequence[dict[str, Any]]) -> list[Any]:
        """What the server answers to each body, in order; the first failure ends what is under way."""
        return self._run([Asked("POST", f"{self.url}/{path}", body) for body in bodies])

    def error(self, kind: type[StageError], message: str) -> StageError:
        """An error with nothing of the key in its message, whoever repeats that."""
        return kind(message if self._key is None else message.replace(self._key, HIDDEN))

    def _run(self, asked: Sequence[Asked]) -> list[Any]:
        return asyncio.run(self._all(asked))  # which cancels what still runs when one has failed

    async def _all(self, asked: Sequence[Asked]) -> list[Any]:
        places = asyncio.Semaphore(self._config.num_at_once)
        async with self._opened() as http:

            async def in_turn(one: Asked) -> Any:
                async with places:
                    return await self._answer(http, one)

            return await asyncio.gather(*map(in_turn, asked))

    def _opened(self) -> "httpx.AsyncClient":
        import httpx

        timeout = httpx.Timeout(self._config.request_timeout_s, connect=_CONNECT_TIMEOUT_S, pool=None)
        headers = {} if self._key is None else {"Authorization": f"Bearer {self._key}"}
        return httpx.AsyncClient(
            headers=headers, timeout=timeout, limits=httpx.Limits(), verify=self._certificates, follow_redirects=False
        )

    async def _answer(self, http: "httpx.AsyncClient", asked: Asked) -> Any:
        """The JSON of one answer, however often it has to be asked for."""
        first_failure_s: float | None = None
        for pause_s in _pauses_s():
            found = await self._tried(http, asked)
            if not isinstance(found, Failure):
                return self._read(found, asked.place)
            wait_s, now_s = pause_s if found.wait_s is None else found.wait_s, time.monotonic()
            first_failure_s = now_s if first_failure_s is None else first_failure_s
            if now_s + wait_s - first_failure_s > self._config.retry_for_s:
                raise self._gave_up(asked.place, found.what)
            await asyncio.sleep(wait_s)
        raise AssertionError("there is always another pause")

    def _gave_up(self, place: str, what: str) -> StageError:
        limit = f"engine.retry_for_s={self._config.retry_for_s:g}"
        return self.error(
            EngineError,
            f"the server at {place} does not answer ({what}; {limit}): start it again, or correct engine.url",
        )

    async def _tried(self, http: "httpx.AsyncClient", asked: Asked) -> "httpx.Response | Failure":
        import httpx

        place = asked.place
        try:
            response = await http.request(asked.method, place, json=asked.body)
        except httpx.ReadTimeout:
            limit_s = self._config.request_timeout_s
            message = f"the server at {place} had no answer after {limit_s:g} s (engine.request_timeout_s)"
            raise self.error(EngineError, message) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            return Failure(one_line(error, _MAX_SAID))
        except (httpx.HTTPError, httpx.InvalidURL) as error:
            raise self.error(ConfigError, f"{place} cannot be asked ({one_line(error, _MAX_SAID)})") from None
        return Failure(_said(response), _retry_after_s(response)) if _is_transient(response.status_code) else response

    def _read(self, response: "httpx.Response", place: str) -> Any:
        status, key = response.status_code, self._config.api_key_env
        if status == HTTPStatus.OK:
            return self._json(response, place)
        if status in (HTTPStatus.UNAUTHORIZED, HTTPStatus.FORBIDDEN):
            advice = "name the variable that holds its key in engine.api_key_env" if key is None else f"correct ${key}"
        elif status == HTTPStatus.NOT_FOUND or status < HTTPStatus.BAD_REQUEST:
            advice = "correct engine.url, which usually ends in /v1, or engine.served_model"
        else:
            advice = (
                "change what it names: the task's gen_kwargs, engine.max_model_len, or what the server takes at all, "
                "engine.dialect and engine.prompt_format"
            )
        raise self.error(ConfigError, f"the server at {place} refuses ({_said(response)}): {advice}")

    def _json(self, response: "httpx.Response", place: str) -> Any:
        try:
            return response.json()
        except ValueError:
            said = one_line(response.text, _MAX_SAID)
            raise self.error(EngineError, f"the server at {place} answered no JSON: {said!r}") from None


def _certificates() -> "ssl.SSLContext":
    import httpx

    return httpx.create_ssl_context()


def _read_key(variable: str | None) -> str | None:
    if variable is None:
        return None
    if not (key := os.environ.get(variable, "").strip()):
        raise ConfigError(
            f"the environment variable {variable}, which engine.api_key_env names, is not set here: set it"
        )
    if not (key.isascii() and key.isprintable()):
        raise ConfigError(f"what the environment variable {variable} holds can be no key: it has other characters")
    return key


def _pauses_s() -> Iterator[float]:
    """Twice as long each time, and not all at the same moment."""
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)
        pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


def _is_transient(status: int) -> bool:
    return status in _TRANSIENT or (status >= HTTPStatus.INTERNAL_SERVER_ERROR and status not in _NEVER_BETTER)


def _retry_after_s(response: "httpx.Response") -> float | None:
    """Seconds, or a date; None where the server does not say."""
    said = response.headers.get("retry-after", "").strip()
    if said.isdecimal():
        return float(said)
    try:
        return max(0.0, parsedate_to_datetime(said).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def _said(response: "httpx.Response") -> str:
    """Status and message of a refusal, in one line."""
    try:
        content = response.json()
    except ValueError:
        content = response.text
    if isinstance(content, dict):
        content = content.get("error") or content.get("message") or content.get("detail") or content
    if isinstance(content, dict):
        content = content.get("message", content)
    message = one_line(str(content), _MAX_SAID)
    return f"{response.status_code}: {message}" if message else str(response.status_code)
