"""A sweep that a server answers, as a user runs it; the server is killed in a shard and started again."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from stages.serving.process import Server, free_port
from tests.test_end_to_end import environment

pytestmark = [pytest.mark.e2e, pytest.mark.vllm, pytest.mark.full]
SWEEP = """\
# @package _global_
defaults:
  - override /model: small
  - override /suite: none
  - override /engine: endpoint
sweep: {name: served}
engine: {max_model_len: 512, served_model: own, retry_for_s: 2, server_flags: {dtype: float32}}
cluster: {max_attempts: 1}
tasks:
  game: {task: mathador, num_docs: {mathador: 1000}, limit: 8, num_fewshot: 0, shard_size: 2,
         gen_kwargs: {max_gen_toks: 24}}
"""
KEY = "correct-horse-battery-staple"


@pytest.fixture
def own(tmp_path: Path, smollm2: Path) -> Path:
    """A directory with a sweep over a model of which only the tokenizer is here."""
    for folder in ("model", "sweep", "tokenizer"):
        (tmp_path / "own" / folder).mkdir(parents=True)
    for file in smollm2.iterdir():
        if file.suffix != ".safetensors":
            (tmp_path / "own" / "tokenizer" / file.name).write_bytes(file.read_bytes())
    source = tmp_path / "own" / "tokenizer"
    (tmp_path / "own" / "model" / "small.yaml").write_text(
        f"defaults: [model_schema, _self_]\nname: small\nsource: {{path: {source}}}\n"
    )
    (tmp_path / "own" / "sweep" / "served.yaml").write_text(SWEEP)
    return tmp_path


@contextmanager
def served(directory: Path, model: Path, port: int) -> Iterator[Server]:
    options = {"model": model, "served-model-name": "own", "port": port, "host": "127.0.0.1", "dtype": "float32"}
    options |= {"max-model-len": 512, "max-num-seqs": 4, "kv-cache-memory-bytes": 2**29, "api-key": KEY}
    arguments = [text for name, value in options.items() for text in (f"--{name}", str(value))]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *arguments, "--enforce-eager"]
    server = Server(command, {"HF_HUB_OFFLINE": "1"}, directory / "server.log", port)
    try:
        server.wait_until_ready(300, "vLLM's server")
        yield server
    finally:
        server.stop()


def sweep(directory: Path, port: int, store: str, *arguments: str) -> subprocess.Popen[str]:
    settings = [f"engine.url=http://127.0.0.1:{port}/v1", "engine.api_key_env=OWN_SERVER_KEY", f"store.root={store}"]
    command = [sys.executable, "-m", "pipeline", "--config-dir=own", "+sweep=served", "cluster=inline", *settings]
    return subprocess.Popen(
        [*command, *arguments],
        cwd=directory,
        env={**environment(), "OWN_SERVER_KEY": KEY},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def answers(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("answer/*/answers.parquet")}


def scores(store: Path) -> dict[str, bytes]:
    return {path.parent.name: path.read_bytes() for path in store.glob("score/*/samples.parquet")}


def test_a_server_killed_in_a_shard_voids_it_and_a_rerun_resumes_to_the_byte(own: Path, smollm2: Path) -> None:
    port = free_port()
    with served(own, smollm2, port) as server:
        whole = sweep(own, port, "whole")
        printed, _ = whole.communicate(timeout=300)
        assert whole.returncode == 0, printed
        broken = sweep(own, port, "broken", "engine.max_num_seqs=1")
        deadline = time.monotonic() + 200
        while not answers(own / "broken"):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        os.killpg(server.pid, 9)
        printed, _ = broken.communicate(timeout=200)
    assert broken.returncode == 1, printed
    assert "does not answer" in printed and "engine" in printed
    before = answers(own / "broken")
    assert 0 < len(before) < 4
    with served(own, smollm2, port):
        again = sweep(own, port, "broken")
        printed, _ = again.communicate(timeout=300)
        assert again.returncode == 0, printed
    assert answers(own / "broken") == answers(own / "whole")
    assert len(answers(own / "whole")) == 4
    assert scores(own / "broken") == scores(own / "whole") != {}
    (page,) = (own / "whole" / "report").glob("*/report.md")
    assert "small/bf16: answered by a server, own (dtype=float32)" in page.read_text()
    (tokenizer,) = (own / "whole").glob("fetch_tokenizer/*/manifest.json")
    assert not any(name.endswith(".safetensors") for name in json.loads(tokenizer.read_text())["files"])
    written = [path for path in own.rglob("*") if path.is_file() and path.name != "server.log"]
    assert not [path for path in written if KEY.encode() in path.read_bytes()], "the key is written nowhere"
