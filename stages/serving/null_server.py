"""An OpenAI-compatible server behind which there is no engine: what a load client reaches here is its own ceiling.

    python -m stages.serving.null_server PORT NUM_PROCESSES ITL_MS

GuideLLM's mock server is one process of a web framework, which gives way before the client does.
"""

import asyncio
import json
import os
import sys
from typing import Any

_END = b"0\r\n\r\n"


class NullServer:
    """Answers every completion with as many words as were asked for, one every ``itl_ms``."""

    def __init__(self, itl_ms: float) -> None:
        self._itl_s = itl_ms / 1000

    async def serve(self, port: int) -> None:
        """Until the process ends."""
        server = await asyncio.start_server(self._talk, "127.0.0.1", port, reuse_port=True)
        await server.serve_forever()

    async def _talk(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower()
                length = next((line[15:] for line in head.split("\r\n") if line.startswith("content-length:")), "0")
                body = await reader.readexactly(int(length))
                await self._answer(json.loads(body) if body else {}, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    async def _answer(self, request: dict[str, Any], writer: asyncio.StreamWriter) -> None:
        number = request.get("max_tokens", 1)
        if not request.get("stream"):
            await asyncio.sleep(self._itl_s * number)
            writer.write(_whole(_completion(" word" * number, request, number)))
        else:
            writer.write(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n")
            for index in range(number):
                await asyncio.sleep(self._itl_s)
                writer.write(_event(json.dumps(_completion(" word", request, index + 1))))
                await writer.drain()
            writer.write(_event("[DONE]") + _END)
        await writer.drain()


def _completion(text: str, request: dict[str, Any], number: int) -> dict[str, Any]:
    num_prompt = len(str(request.get("prompt", "")).split())
    return {
        "id": "null",
        "object": "text_completion",
        "model": "model",
        "data": [{"id": "model"}],  # what a list of models has
        "choices": [{"index": 0, "text": text, "finish_reason": "length"}],
        "usage": {"prompt_tokens": num_prompt, "completion_tokens": number, "total_tokens": num_prompt + number},
    }


def _whole(answer: dict[str, Any]) -> bytes:
    body = json.dumps(answer).encode()
    return b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body)


def _event(data: str) -> bytes:
    event = f"data: {data}\n\n".encode()
    return b"%x\r\n%b\r\n" % (len(event), event)


def main() -> None:
    """Several processes share the port."""
    import uvloop

    port, num_processes, itl_ms = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3])
    for _ in range(num_processes - 1):
        if os.fork() == 0:
            break
    uvloop.run(NullServer(itl_ms).serve(port))


if __name__ == "__main__":
    main()
