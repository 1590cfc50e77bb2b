"""The door to a cluster: whatever answers at an address, a line says what is wrong before Ray is asked."""

import json
import platform
import socket
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import UserError
from pipeline.running import handshake
from pipeline.running.handshake import shake_hands

pytestmark = pytest.mark.dear  # one import of Ray, two seconds
TOKEN = "0123456789abcdef" * 4
HERE = {"ray_version": version("ray"), "python_version": platform.python_version()}


@contextmanager
def head(metadata: Mapping[str, str], token: str | None = None) -> Iterator[str]:
    """What a cluster's head answers to the one question, and to whom."""
    import grpc
    from ray.core.generated import gcs_service_pb2 as messages

    def answer(question: Any, context: Any) -> Any:
        assert (question.namespace, question.key) == (b"cluster", b"CLUSTER_METADATA")
        if token and ("authorization", f"Bearer {token}") not in context.invocation_metadata():
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "InvalidAuthToken")
        return messages.InternalKVGetReply(value=json.dumps(dict(metadata)).encode())

    handler = grpc.unary_unary_rpc_method_handler(
        answer,
        request_deserializer=messages.InternalKVGetRequest.FromString,
        response_serializer=messages.InternalKVGetReply.SerializeToString,
    )
    server = grpc.server(ThreadPoolExecutor(2))
    service = grpc.method_handlers_generic_handler("ray.rpc.InternalKVGcsService", {"InternalKVGet": handler})
    server.add_generic_rpc_handlers((service,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(0)


@pytest.fixture
def own_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where this machine's token is, if it has one; what the process does with it is noted, not done."""
    import ray

    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    monkeypatch.delenv("RAY_AUTH_TOKEN", raising=False)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.setattr(handshake, "_use_tokens", (tmp_path / "used").touch)
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()
    yield tmp_path / "token"
    ray._raylet.AuthenticationTokenLoader.instance().reset_cache()


def refused(address: str) -> str:
    with pytest.raises(UserError) as caught:
        shake_hands(address)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_cluster_that_asks_for_no_token_is_given_none(own_token: Path) -> None:
    own_token.write_text(TOKEN)
    with head(HERE) as address:
        assert shake_hands(address) == address
    assert not (own_token.parent / "used").exists()


def test_a_token_is_used_where_the_head_asks_for_it(own_token: Path) -> None:
    own_token.write_text(f"{TOKEN}\n")
    with head(HERE, TOKEN) as address:
        assert shake_hands(address) == address
    assert (own_token.parent / "used").exists()


def test_a_wrong_token_is_named(own_token: Path) -> None:
    own_token.write_text("fedcba9876543210" * 4)
    with head(HERE, TOKEN) as address:
        assert "the cluster does not take this machine's token" in refused(address)


def test_a_missing_token_is_named(own_token: Path) -> None:
    with head(HERE, TOKEN) as address:
        assert "asks for a token and this machine has none: copy ~/.ray/auth_token" in refused(address)


def test_a_token_that_is_switched_off_is_named(own_token: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    own_token.write_text(TOKEN)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with head(HERE, TOKEN) as address:
        assert "but RAY_AUTH_MODE=disabled: unset it" in refused(address)


@pytest.mark.parametrize(
    ("there", "said"),
    [
        ({"ray_version": "2.48.0"}, f"other versions (Ray 2.48.0 there, {version('ray')} here): install the same"),
        ({"python_version": "3.12.1"}, f"(Python 3.12.1 there, {HERE['python_version']} here)"),
        (
            {"ray_version": "2.48.0", "python_version": "3.12.1"},
            f"(Ray 2.48.0 there, {version('ray')} here and Python 3.12.1 there",
        ),
    ],
)
def test_other_versions_are_named(there: dict[str, str], said: str) -> None:
    with head(HERE | there) as address:
        assert said in refused(address)


@pytest.mark.parametrize(
    "address",
    [
        "http://127.0.0.1:8265",
        "https://head",
        "ray://127.0.0.1:10001",
        "127.0.0.1",
        "127.0.0.1:",
        ":6379",
        "a b:1",
        "h:99999",
        "h:0",
    ],
)
def test_what_is_no_host_and_port_is_refused(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert f"cluster.address={address} is no HOST:PORT: give what `ray start --head` prints" in refused(address)
    monkeypatch.setenv("RAY_ADDRESS", address)
    assert f"cluster.address=auto (RAY_ADDRESS={address}) is no HOST:PORT" in refused("auto")


def test_nobody_there_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        assert "no Ray cluster there (nobody answers" in refused(f"127.0.0.1:{free.getsockname()[1]}")
    assert "no Ray cluster there" in refused("no-such-host.invalid:6379")


def test_something_else_there_is_said() -> None:
    server = HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert "what answers there is no Ray cluster" in refused(f"127.0.0.1:{server.server_port}")
    finally:
        server.shutdown()
        server.server_close()
