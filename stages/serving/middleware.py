"""Inside vLLM's API server: the engine asked without HTTP between, and its prefix cache emptied.

Named to the server by ``--middleware``.  What the same engine does for the same requests without a client, a connection
and a body for each is the ceiling that a measurement through HTTP is held against.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable
from typing import Any

DIRECT, RESET = "/direct", "/direct/reset"

Receive = Callable[[], Awaitable[Any]]
Send = Callable[[Any], Awaitable[None]]


class EngineDirect:
    """ASGI middleware that answers two paths of its own and passes everything else on."""

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Any, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] not in (DIRECT, RESET):
            await self._app(scope, receive, send)
            return
        engine = scope["app"].state.engine_client
        request = json.loads(await _body(receive) or b"{}")
        answer = (
            {"reset": await engine.reset_prefix_cache()} if scope["path"] == RESET else await _direct(engine, request)
        )
        await _send_json(send, answer)


async def _direct(engine: Any, request: dict[str, Any]) -> dict[str, Any]:
    """Answer ``num_requests`` prompts of random tokens, all at once; the seconds that took."""
    import numpy as np
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    rng = np.random.default_rng(request["seed"])
    shape = (request["num_requests"], request["prompt_tokens"])
    prompts = rng.integers(request["lowest_id"], request["num_ids"], size=shape).tolist()
    params = SamplingParams(
        temperature=0.0,
        max_tokens=request["output_tokens"],
        ignore_eos=True,
        detokenize=False,
        output_kind=RequestOutputKind.FINAL_ONLY,
    )

    async def answer(index: int, prompt: list[int]) -> int:
        num_tokens = 0
        async for output in engine.generate({"prompt_token_ids": prompt}, params, f"direct-{request['seed']}-{index}"):
            num_tokens = len(output.outputs[0].token_ids)
        return num_tokens

    started = time.perf_counter()
    tokens = await asyncio.gather(*(answer(index, prompt) for index, prompt in enumerate(prompts)))
    return {"duration_s": time.perf_counter() - started, "num_output_tokens": sum(tokens)}


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    return body


async def _send_json(send: Send, answer: dict[str, Any]) -> None:
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})
