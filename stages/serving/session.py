"""What the points of one checkpoint share: its server, the load client, and what that client can do at most."""

import json
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stages.errors import EngineError
from stages.serving.artifact import ClientCeiling
from stages.serving.load import Load, LoadClient, Request, answered, requests_per_s
from stages.serving.middleware import DIRECT, RESET
from stages.serving.process import Server, free_port, keep_logs
from stages.units import GIB

if TYPE_CHECKING:
    from stages.evaluate.config import EngineConfig
    from stages.serving.config import ServerConfig

MODEL = "model"  # the name it is served under
SERVER_ENVIRONMENT = {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
LOAD_TIMEOUT_S = 1800.0
_CEILING_TOKENS = 128
_WARM_UP_TOKENS = 32, 8
_WARM_UP_LOADS: list[tuple[dict[str, Any], int]] = [
    ({"kind": "synchronous"}, 3),
    ({"kind": "throughput", "max_concurrency": 32}, 32),
]
_LOWEST_ID = 3  # below lie control tokens


@dataclass(frozen=True, slots=True)
class Session:
    """An open server with one checkpoint, and the client that loads it."""

    server: Server
    client: LoadClient
    tokenizer: Path
    num_ids: int
    was_busy: bool
    ceilings: Mapping[bool, ClientCeiling]  # by whether answers are streamed

    def run(
        self, profile: Mapping[str, Any], tokens: tuple[int, int], num_requests: int, stream: bool, seed: int
    ) -> list[Request]:
        """Load the server; EngineError if it died: what it answered until then is no measurement."""
        load = Load(self.server.url, str(self.tokenizer), profile, *tokens, num_requests, stream, seed)
        try:
            requests = self.client.run(load, LOAD_TIMEOUT_S)
        except EngineError as error:
            self.check_alive()
            raise error
        self.check_alive()
        if not answered(requests):
            reasons = [request["error"] for request in requests] or ["no request was sent"]
            raise EngineError(f"the server answered none of {num_requests} requests: {reasons[0]}")
        return requests

    def check_alive(self) -> None:
        """Raise EngineError with its last words if the server is gone."""
        if not self.server.is_alive:
            raise EngineError(f"the server died: {self.server.last_lines}")

    def reset(self) -> None:
        """Empty the prefix cache."""
        self._post(RESET, {})

    def direct_rate(self, tokens: tuple[int, int], num_requests: int, seed: int) -> float:
        """Requests/s of the engine itself, asked for all of them at once inside its server."""
        asked = {"prompt_tokens": tokens[0], "output_tokens": tokens[1], "num_requests": num_requests, "seed": seed}
        answer = self._post(DIRECT, {**asked, "lowest_id": _LOWEST_ID, "num_ids": self.num_ids})
        return num_requests / float(answer["duration_s"])

    def _post(self, path: str, request: Mapping[str, Any]) -> dict[str, Any]:
        import httpx

        try:
            answer = httpx.post(f"{self.server.url}{path}", json=request, timeout=LOAD_TIMEOUT_S)
            answer.raise_for_status()
        except httpx.HTTPError as error:
            self.check_alive()
            raise EngineError(f"the server failed at {path}: {error}") from error
        found: dict[str, Any] = answer.json()
        return found


@contextmanager
def serve(
    checkpoint: Path,
    engine: "EngineConfig",
    config: "ServerConfig",
    dummy: bool,
    work_dir: Path,
    was_busy: bool = False,
) -> Iterator[Session]:
    """Serve ``checkpoint``; ended with everything it started.  ``was_busy``: somebody else was on the GPUs before.

    While vLLM loads, which takes a minute, the client's ceilings are measured against a null server.
    """
    port = free_port(config.port)
    with ExitStack() as stack:
        stack.push(lambda kind, error, trace: keep_logs(sorted(work_dir.glob("*.log"))) if error else None)
        server = Server(
            vllm_command(checkpoint, engine, config, dummy, port), SERVER_ENVIRONMENT, work_dir / "server.log", port
        )
        stack.callback(server.stop)
        client = LoadClient(config.num_clients, work_dir / "client.log")
        stack.callback(client.close)
        ceilings = client_ceilings(client, checkpoint, config.num_clients, work_dir)
        server.wait_until_ready(config.start_timeout_s, f"vLLM with {checkpoint.name}")
        num_ids = json.loads((checkpoint / "config.json").read_text())["vocab_size"]
        session = Session(server, client, checkpoint, num_ids, was_busy, ceilings)
        # What is made at the first use of a kernel belongs to no point.
        for seed, (profile, num_requests) in enumerate(_WARM_UP_LOADS):
            session.run(profile, _WARM_UP_TOKENS, num_requests, True, seed)
        yield session


def vllm_command(checkpoint: Path, engine: "EngineConfig", config: "ServerConfig", dummy: bool, port: int) -> list[str]:
    """The command of vLLM's OpenAI-compatible server; several API processes exist only in ``vllm serve``."""
    many = config.num_api_servers > 1
    head = ["vllm.entrypoints.cli.main", "serve", str(checkpoint)] if many else [
        "vllm.entrypoints.openai.api_server", "--model", str(checkpoint)]  # fmt: skip
    options: dict[str, Any] = {
        "served-model-name": MODEL,
        "host": "127.0.0.1",
        "port": port,
        "dtype": engine.dtype,
        "max-model-len": engine.max_model_len,
        "tensor-parallel-size": engine.tensor_parallel_size,
        "pipeline-parallel-size": engine.pipeline_parallel_size,
        "data-parallel-size": config.replicas,
        "seed": engine.seed,
        "middleware": "stages.serving.middleware.EngineDirect",
        "load-format": "dummy" if dummy else "auto",
        "api-server-count": config.num_api_servers if many else None,
        "max-num-seqs": engine.max_num_seqs,
        "gpu-memory-utilization": engine.gpu_memory_utilization if engine.on_gpu else None,
        "kv-cache-memory-bytes": int(engine.kv_cache_gib * GIB) if engine.kv_cache_gib is not None else None,
    }
    arguments = [text for name, value in options.items() if value is not None for text in (f"--{name}", str(value))]
    flags = ["--disable-uvicorn-access-log", *(["--enforce-eager"] if engine.enforce_eager else [])]
    return [sys.executable, "-m", *head, *arguments, *flags, *_own_arguments(engine.vllm_args)]


def _own_arguments(given: Mapping[str, Any]) -> Iterator[str]:
    """vLLM's arguments as its command line has them."""
    for name, value in given.items():
        option = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{option}" if value else f"--no-{option}"
        elif value is not None:  # what is none keeps its default
            values = value if isinstance(value, list) else [value]
            yield from (f"--{option}", *(json.dumps(each) if isinstance(each, dict) else str(each) for each in values))


def client_ceilings(client: LoadClient, tokenizer: Path, num_workers: int, work_dir: Path) -> dict[bool, ClientCeiling]:
    """What the load client reaches against a server that answers at once."""
    port = free_port()
    command = [sys.executable, "-m", "stages.serving.null_server", str(port), str(num_workers), "0"]
    null_server = Server(command, {}, work_dir / "null_server.log", port)
    try:
        null_server.wait_until_ready(120, "the null server")
        return {stream: _ceiling(client, null_server, tokenizer, num_workers, stream) for stream in (False, True)}
    finally:
        null_server.stop()


def _ceiling(client: LoadClient, null_server: Server, tokenizer: Path, num_workers: int, stream: bool) -> ClientCeiling:
    num_requests = 200 * num_workers
    profile = {"kind": "throughput", "max_concurrency": 32 * num_workers}
    load = Load(
        null_server.url, str(tokenizer), profile, 64, _CEILING_TOKENS, num_requests, stream, time.time_ns() % 2**31
    )
    rate = requests_per_s(client.run(load, LOAD_TIMEOUT_S))
    return ClientCeiling(rate, rate * _CEILING_TOKENS if stream else None)
