"""What answers at a cluster's address, before Ray asks: Ray goes on for a minute, and then ends with a traceback.

One question to the head says all that must agree: the token, Ray's version and Python's.
"""

import json
import os
import platform
import re
import socket
from typing import Any

from pipeline.errors import UserError
from stages.errors import one_line

ANSWERS_WITHIN_S = 20.0
_HOST_AND_PORT = re.compile(r"(?P<host>[^\s:/]+|\[[0-9a-fA-F:.]+\]):(?P<port>\d{1,5})")
_AUTH_MODE = "RAY_AUTH_MODE"
_QUESTION = "/ray.rpc.InternalKVGcsService/InternalKVGet"


def shake_hands(address: str) -> str:
    """HOST:PORT of the head at ``address``, where a cluster that fits this process answers.  Raises UserError."""
    head, named = _resolved(address)
    if not answers(head, ANSWERS_WITHIN_S):
        raise UserError(
            f"{named}: no Ray cluster there (nobody answers at {head}): start one, or give the head's HOST:PORT"
        )
    if os.environ.get("RAY_USE_TLS", "0") in ("1", "true"):  # with certificates that Ray alone knows: it asks itself
        return head
    versions = json.loads(_metadata(head, named) or "{}")
    here = {"ray_version": _ray_version(), "python_version": platform.python_version()}
    if differing := [name for name, value in here.items() if versions.get(name, value) != value]:
        what = " and ".join(
            f"{name.partition('_')[0].capitalize()} {versions[name]} there, {here[name]} here" for name in differing
        )
        raise UserError(f"{named}: other versions ({what}): install the same on every machine")
    return head


def answers(head: str, within_s: float) -> bool:
    """Whether anybody listens at HOST:PORT."""
    host, _, port = head.rpartition(":")
    try:
        socket.create_connection((host.strip("[]"), int(port)), within_s).close()
    except OSError:
        return False
    return True


def _resolved(address: str) -> tuple[str, str]:
    """HOST:PORT, and what to call it in a message; ``auto`` is the cluster that this machine is a part of."""
    named = f"cluster.address={address}"
    if address == "auto":
        said = os.environ.get("RAY_ADDRESS", "auto")
        if said != "auto":
            address, named = said, f"{named} (RAY_ADDRESS={said})"
        else:
            address = _found(named)
    matched = _HOST_AND_PORT.fullmatch(address)
    if not matched or not 0 < int(matched["port"]) < 2**16:
        raise UserError(f"{named} is no HOST:PORT: give what `ray start --head` prints (port 6379), no URL")
    return address, named


def _found(named: str) -> str:
    from ray._private.services import canonicalize_bootstrap_address_or_die

    try:
        return str(canonicalize_bootstrap_address_or_die("auto"))
    except Exception as error:
        raise UserError(
            f"{named}: no Ray cluster runs on this machine: `ray start`, or "
            f"cluster.address=HOST:PORT ({one_line(error)})"
        ) from None


def _metadata(head: str, named: str) -> str | None:
    """What the head says of itself.  Where it asks for a token, this process has and uses one from now on."""
    import grpc

    try:
        return _ask(head, None)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.UNAUTHENTICATED:
            raise UserError(f"{named}: what answers there is no Ray cluster ({one_line(error.details())})") from None
    token = _token(named)
    try:
        found = _ask(head, token)
    except grpc.RpcError:
        raise UserError(
            f"{named}: the cluster does not take this machine's token: give it the ~/.ray/auth_token of the head"
        ) from None
    _use_tokens()
    return found


def _ask(head: str, token: str | None) -> str | None:
    import grpc
    from ray.core.generated import gcs_service_pb2 as messages

    question = messages.InternalKVGetRequest(namespace=b"cluster", key=b"CLUSTER_METADATA")
    with grpc.insecure_channel(head, options=[("grpc.enable_http_proxy", 0)]) as channel:
        ask: Any = channel.unary_unary(
            _QUESTION,
            request_serializer=messages.InternalKVGetRequest.SerializeToString,
            response_deserializer=messages.InternalKVGetReply.FromString,
        )
        carried = [("authorization", f"Bearer {token}")] if token else []
        reply = ask(question, timeout=ANSWERS_WITHIN_S, metadata=carried)
    return reply.value.decode() or None


def _token(named: str) -> str:
    """The token of this machine, wherever Ray looks for it."""
    import ray

    if os.environ.get(_AUTH_MODE, "token").lower() != "token":
        raise UserError(f"{named}: the cluster asks for a token, but {_AUTH_MODE}={os.environ[_AUTH_MODE]}: unset it")
    try:
        token = ray._raylet.AuthenticationTokenLoader.instance().get_raw_token(ignore_auth_mode=True)
    except Exception:
        token = ""
    if not token:
        raise UserError(
            f"{named}: the cluster asks for a token and this machine has none: copy ~/.ray/auth_token of its head"
        )
    return str(token)


def _use_tokens() -> None:
    """As Ray does where it finds a cluster by itself; given an address it does not."""
    import ray

    os.environ[_AUTH_MODE] = "token"
    ray._raylet.Config.initialize("")


def _ray_version() -> str:
    import ray

    return str(ray.__version__)
