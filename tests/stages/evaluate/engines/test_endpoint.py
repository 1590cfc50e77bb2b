"""A server somewhere else: what it is asked, what is tried again, and what every failure says, without the key."""

import json
import socket
import threading
import time
from contextlib import suppress
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from stages.errors import ConfigError, EngineError
from stages.evaluate.config import EngineConfig, EngineKind
from stages.evaluate.engines.endpoint import EndpointEngine
from stages.evaluate.engines.protocol import GenerateRequest, Generation, ScoreRequest

KEY = "correct-horse-battery-staple"
MODELS = {"data": [{"id": "served", "owned_by": "vllm", "max_model_len": 512}, {"id": "other"}]}
VERSION = {"version": "0.32.0"}
REQUEST = GenerateRequest((1, 2, 3), 8, ("\n",), text="a b c")


def answer(text="yes", reason="stop", num_tokens=2):
    return {"choices": [{"text": text, "finish_reason": reason}], "usage": {"completion_tokens": num_tokens}}


class FakeServer:
    """Answers ``/v1/completions`` with what ``script`` holds, one after the other, then with ``then``.

    An item is a status, content and headers; ``hang`` never answers, ``reset`` ends the connection.
    """

    def __init__(self, *script, then=None, models=(200, MODELS), version=(200, VERSION)):
        then = then or (200, answer())
        self.script, self.bodies, self.keys, self.times_s = list(script), [], [], []
        self.most_at_once = self._at_once = 0
        lock = self._lock = threading.Lock()
        self.answers_slowly_s, self._over = 0.0, threading.Event()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def log_message(self, *args):
                """Prints nothing."""

            def do_GET(self):
                self.reply({"/v1/models": models, "/version": version}.get(self.path, (404, {"detail": "Not Found"})))

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                with lock:
                    outer.bodies.append(body)
                    outer.keys.append(self.headers.get("authorization"))
                    outer.times_s.append(time.monotonic())
                    outer._at_once += 1
                    outer.most_at_once = max(outer.most_at_once, outer._at_once)
                    item = outer.script.pop(0) if outer.script else then
                time.sleep(outer.answers_slowly_s)
                self.reply(item(body) if callable(item) else item)
                with lock:
                    outer._at_once -= 1

            def reply(self, item):
                if item == "hang":
                    outer._over.wait()
                    return
                if item == "reset":
                    self.connection.shutdown(socket.SHUT_RDWR)
                    self.close_connection = True
                    return
                status, content, *headers = item
                data = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                for name, value in {"content-length": str(len(data)), **(headers[0] if headers else {})}.items():
                    self.send_header(name, value)
                self.end_headers()
                with suppress(OSError):
                    self.wfile.write(data)

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *error):
        self._over.set()
        self._server.shutdown()
        self._server.server_close()


def config_of(url, **changed):
    settings = {"dtype": "served", "max_model_len": 256, "served_model": "served", "retry_for_s": 5.0}
    return EngineConfig(kind=EngineKind.endpoint, url=url, **settings | changed)


def opened(server, **changed):
    return EndpointEngine(None, config_of(server.url, **changed))


def refusal(kind, server, number=1, **changed):
    """What is said of a failure, which is one line and holds no key."""
    with pytest.raises(kind) as caught:
        opened(server, **changed).generate([REQUEST] * number)
    assert type(caught.value) is kind
    assert "\n" not in str(caught.value) and KEY not in str(caught.value)
    return str(caught.value)


@pytest.fixture(autouse=True)
def _short_pauses(monkeypatch):
    monkeypatch.setattr("stages.evaluate.engines.endpoint_client._FIRST_PAUSE_S", 0.02)


@pytest.fixture
def key(monkeypatch):
    monkeypatch.setenv("OWN_SERVER_KEY", KEY)
    return {"api_key_env": "OWN_SERVER_KEY"}


def test_answers_come_in_the_order_of_the_requests_so_many_at_once():
    with FakeServer(then=lambda body: (200, answer(str(body["prompt"][0]), "length"))) as server:
        server.answers_slowly_s = 0.02
        requests = [GenerateRequest((number,), 8) for number in range(20)]
        found = opened(server, max_num_seqs=4).generate(requests)
    assert found == [Generation(str(number), 2, "length") for number in range(20)]
    assert server.most_at_once == 4


def test_everything_that_an_answer_depends_on_is_said_in_the_request():
    """Or a server takes it from the model's own generation_config."""
    sampled = GenerateRequest((4,), 9, (), (("temperature", 0.5), ("top_k", 7)), seed=11)
    with FakeServer() as server:
        opened(server).generate([REQUEST])
        opened(server).generate([sampled])
    assert server.bodies[0] == {
        "model": "served", "prompt": [1, 2, 3], "max_tokens": 8, "stop": ["\n"], "stream": False,
        "temperature": 0.0, "top_p": 1.0, "top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0,
        "presence_penalty": 0.0, "frequency_penalty": 0.0,
        "skip_special_tokens": False, "spaces_between_special_tokens": False, "return_token_ids": True,
    }  # fmt: skip
    assert (server.bodies[1]["temperature"], server.bodies[1]["top_k"]) == (0.5, 7)
    assert server.bodies[1]["seed"] == 11 and "stop" not in server.bodies[1]


def test_a_server_that_knows_openais_fields_only_gets_no_others():
    with FakeServer() as server:
        opened(server, dialect="openai").generate([REQUEST])
        sampled = GenerateRequest((4,), 9, (), (("top_k", 7),), seed=11)
        with pytest.raises(ConfigError, match=r"top_k .*engine\.dialect=vllm"):
            opened(server, dialect="openai").generate([sampled])
    assert set(server.bodies[0]) == {
        "model", "prompt", "max_tokens", "stop", "stream", "temperature", "top_p", "presence_penalty",
        "frequency_penalty",
    }  # fmt: skip


@pytest.fixture(scope="module")
def with_bos(tiny_model, tmp_path_factory):
    """A tokenizer that puts a BOS before every text, as a chat template does that begins with it."""
    from tokenizers.processors import TemplateProcessing
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    bos = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(f"{bos} $A", None, [(bos, tokenizer.bos_token_id)])
    path = tmp_path_factory.mktemp("with_bos")
    tokenizer.save_pretrained(path)
    (path / "config.json").write_bytes((tiny_model / "config.json").read_bytes())
    return path


@pytest.mark.dear
@pytest.mark.parametrize("model", ["with_bos", "tiny_model"])
@pytest.mark.parametrize("dialect", ["vllm", "openai"])
@pytest.mark.parametrize("is_chat", [True, False], ids=["chat", "plain"])
def test_a_text_becomes_the_tokens_that_were_meant_with_one_bos(request, model, dialect, is_chat):
    from lm_eval.api.instance import Instance
    from transformers import AutoTokenizer

    from stages.evaluate.engines.harness_model import HarnessModel

    path = request.getfixturevalue(model)
    tokenizer = AutoTokenizer.from_pretrained(path)
    assert (tokenizer.encode("a")[0] == tokenizer.bos_token_id) is (model == "with_bos")
    harness = HarnessModel(tokenizer, 64)
    for question in ("Which letter comes first?", "one two three " * 40):
        said = harness.apply_chat_template([{"role": "user", "content": question}]) if is_chat else question
        instance = Instance("generate_until", {}, (said, {"until": [], "max_gen_toks": 8}), 0, ("task", 0, 1))
        asked = harness.encode(instance)
        with FakeServer() as server:
            settings = config_of(server.url, prompt_format="text", dialect=dialect, max_model_len=64)
            EndpointEngine(path, settings).generate([asked.generation])
        (body,) = server.bodies
        found = tokenizer.encode(body["prompt"], add_special_tokens=body.get("add_special_tokens", True))
        if asked.truncated and model == "with_bos" and dialect == "openai":
            found = found[1:]  # what was cut begins with no BOS, which such a server puts there all the same
        assert tuple(found) == asked.generation.prompt
        assert asked.truncated is (len(question) > 100)


def test_what_a_server_is_is_in_the_facts_and_what_was_said_of_it_in_the_arithmetic():
    with FakeServer() as server:
        engine = opened(server, server_flags={"quantization": "fp8"})
    assert engine.facts == {"engine": "endpoint", "engine_version": "vllm 0.32.0", "platform": "endpoint"}
    assert engine.arithmetic == {"method": "served", "model": "served", "flags": {"quantization": "fp8"}}
    with FakeServer(version=(404, {})) as server:
        assert opened(server).facts["engine_version"] is None
    with FakeServer(version=(200, b"<html>")) as server:
        assert opened(server).facts["engine_version"] is None


@pytest.mark.parametrize(
    "failure",
    [
        (429, {"error": {"message": "slow down"}}),
        (500, {"error": {"message": "EngineDeadError"}}),
        (503, b"<html>no upstream</html>"),
        (529, {}),
        "reset",
    ],
)
def test_what_may_be_otherwise_the_next_time_is_tried_again(failure):
    with FakeServer(failure, failure) as server:
        assert opened(server).generate([REQUEST]) == [Generation("yes", 2, "stop")]
    assert len(server.bodies) == 3


@pytest.mark.parametrize("said", ["1", "date"])
def test_a_server_says_how_long_to_wait(said):
    after = formatdate(time.time() + 2, usegmt=True) if said == "date" else said
    with FakeServer((429, {}, {"retry-after": after})) as server:
        opened(server).generate([REQUEST])
    assert 0.9 < server.times_s[1] - server.times_s[0] < 2.5


def test_a_server_that_goes_on_failing_voids_the_shard():
    with FakeServer(then=(503, {"error": {"message": "out of order"}})) as server:
        said = refusal(EngineError, server, 3, retry_for_s=0.2)
    assert "503: out of order" in said and "engine.retry_for_s=0.2" in said
    with FakeServer((429, {}, {"retry-after": "3600"})) as server:
        began_s = time.monotonic()
        assert "429" in refusal(EngineError, server)
        assert time.monotonic() - began_s < 2, "nobody waits an hour to be told"


def test_a_server_that_is_not_there_is_an_engine_error():
    with FakeServer() as server:
        engine = opened(server, retry_for_s=0.1)
    with pytest.raises(EngineError, match=r"does not answer \(ConnectError.*start it again, or correct engine\.url"):
        engine.generate([REQUEST])
    with pytest.raises(EngineError, match="does not answer"):
        opened(server, retry_for_s=0.0)


def test_a_server_that_hangs_is_given_up_and_the_others_with_it():
    with FakeServer((200, answer()), "hang", "hang", "hang") as server:
        began_s = time.monotonic()
        said = refusal(EngineError, server, 4, request_timeout_s=0.3)
        assert time.monotonic() - began_s < 3
    assert "no answer after 0.3 s (engine.request_timeout_s)" in said


def test_the_first_failure_ends_what_is_under_way():
    """The others would wait ten minutes for a server that hangs."""
    with FakeServer("hang", "hang", (400, {"error": {"message": "no"}})) as server:
        began_s = time.monotonic()
        assert "no" in refusal(ConfigError, server, 3)
        assert time.monotonic() - began_s < 3


@pytest.mark.parametrize(
    ("status", "content", "says"),
    [
        (
            401,
            {"error": {"message": f"Incorrect API key provided: {KEY}"}},
            r"401: Incorrect.*correct \$OWN_SERVER_KEY",
        ),
        (403, {"detail": "Forbidden"}, r"403: Forbidden\): correct \$OWN_SERVER_KEY"),
        (404, {"error": {"message": "The model `served` does not exist."}}, r"404: The model.*engine\.served_model"),
        (404, b"404 page not found\n\nat all", r"404: 404 page not found at all\): correct engine\.url"),
        (400, {"error": {"message": "at most 4 stop sequences"}}, r"400: at most 4 stop.*gen_kwargs"),
        (422, {"detail": [{"loc": ["prompt"], "msg": "must be text"}]}, r"422: .*must be text.*engine\.prompt_format"),
        (302, b"", r"302\): correct engine\.url"),
        (501, b"", "501"),
    ],
)
def test_what_a_server_refuses_is_said_in_one_line_with_the_fix_and_not_tried_again(key, status, content, says):
    import re

    with FakeServer(then=(status, content)) as server:
        said = refusal(ConfigError, server, **key)
    assert re.search(says, said), said
    assert len(server.bodies) == 1
    assert server.keys == [f"Bearer {KEY}"]


def test_a_server_that_wants_a_key_is_not_sent_one_unasked(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with FakeServer(then=(401, {})) as server:
        assert "name the variable that holds its key in engine.api_key_env" in refusal(ConfigError, server)
    assert server.keys == [None]


@pytest.mark.parametrize(
    ("item", "says"),
    [
        ((200, b'{"choices": ['), "answered no JSON"),
        ((200, {"error": f"a bug of {KEY}"}), "is not a completion"),
        ((200, {"choices": [], "usage": {"completion_tokens": 1}}), "is not a completion"),
        ((200, {"choices": [{"text": None, "finish_reason": "stop"}], "usage": {"completion_tokens": 1}}), "is not a"),
        ((200, {"choices": [{"text": "yes", "finish_reason": "stop"}]}), "is not a completion"),
        ((200, answer(reason="content_filter")), "finish reason 'content_filter'"),
        ((200, answer(reason=None)), "finish reason None"),
    ],
)
def test_an_answer_that_is_none_voids_the_shard(key, item, says):
    with FakeServer(item) as server:
        assert says in refusal(EngineError, server, **key)


def test_the_model_must_be_there_and_long_enough():
    with FakeServer() as server:
        with pytest.raises(ConfigError, match=r"no model 'serves'; it has served, other: correct engine\.served_model"):
            opened(server, served_model="serves")
        with pytest.raises(ConfigError, match=r"engine\.max_model_len=4096 is more than the server's 512 tokens"):
            opened(server, max_model_len=4096)
        opened(server, served_model="other", max_model_len=4096)  # says nothing of its length
    with (
        FakeServer(models=(200, {"object": "list"})) as server,
        pytest.raises(EngineError, match="not a list of models"),
    ):
        opened(server)
    with pytest.raises(ConfigError, match=r"say which, engine\.url=http"):
        EndpointEngine(None, config_of(None))


def test_what_a_server_tells_beside_the_text_is_kept():
    said = answer()
    said["choices"][0] |= {"token_ids": [7, 8], "stop_reason": "\n"}
    numbered = answer()
    numbered["choices"][0] |= {"token_ids": None, "stop_reason": 2}
    with FakeServer((200, said), (200, numbered)) as server:
        found = opened(server, max_num_seqs=1).generate([REQUEST, REQUEST])
    assert found == [Generation("yes", 2, "stop", (7, 8), "\n"), Generation("yes", 2, "stop")]


def test_half_a_character_costs_no_shard():
    with FakeServer((200, answer("all \ud83d right 🗼"))) as server:
        (found,) = opened(server).generate([REQUEST])
    assert found.text == "all \ufffd right 🗼"
    found.text.encode()


def test_log_likelihoods_are_refused():
    with FakeServer() as server:
        engine = opened(server)
    assert engine.loglikelihood([]) == []
    with pytest.raises(ConfigError, match="scores no log-likelihoods"):
        engine.loglikelihood([ScoreRequest((1,), (2,))])


def test_a_key_that_is_not_there_is_said_by_the_name_of_its_variable(monkeypatch):
    monkeypatch.delenv("OWN_SERVER_KEY", raising=False)
    with FakeServer() as server, pytest.raises(ConfigError, match=r"OWN_SERVER_KEY.*is not set here: set it"):
        opened(server, api_key_env="OWN_SERVER_KEY")
    monkeypatch.setenv("OWN_SERVER_KEY", "two\nlines")
    with FakeServer() as server, pytest.raises(ConfigError, match=r"OWN_SERVER_KEY.* can be no key"):
        opened(server, api_key_env="OWN_SERVER_KEY")


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"url": f"http://me:{KEY}@host/v1"}, "neither a user nor a query"),
        ({"url": f"https://host/v1?api-key={KEY}"}, "neither a user nor a query"),
        ({"url": "localhost:8000"}, "must be like http://HOST:8000/v1"),
        ({"api_key_env": KEY}, "never the key itself"),
        ({"server_flags": {"api-key": KEY}}, "server_flags.api-key looks like a secret"),
        ({"server_flags": {"rope": {"factor": 2}}}, "server_flags.rope must be"),
        ({"prompt_format": "messages"}, "must be tokens or text"),
        ({"dialect": "sglang"}, "must be vllm or openai"),
        ({"request_timeout_s": 0}, "request_timeout_s must be a number of seconds"),
        ({"dtype": "bfloat16"}, "engine.dtype is not for engine=endpoint to set: leave it served, and say in"),
        ({"tensor_parallel_size": 4}, "engine.tensor_parallel_size is not for engine=endpoint"),
        ({"on_gpu": True}, "engine.on_gpu is not for engine=endpoint"),
    ],
)
def test_what_cannot_be_said_of_a_server_is_refused_and_no_secret_repeated(settings, says):
    with pytest.raises(ValueError) as caught:
        EngineConfig(**{"kind": EngineKind.endpoint, "dtype": "served", "url": "http://host/v1", **settings})
    assert says in str(caught.value) and KEY not in str(caught.value)


def test_settings_of_a_server_are_refused_where_the_engine_is_none():
    with pytest.raises(ValueError, match=r"engine\.served_model is of a server that runs elsewhere"):
        EngineConfig(kind=EngineKind.vllm, served_model="served")
