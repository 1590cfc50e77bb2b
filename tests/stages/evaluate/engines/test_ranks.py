"""An engine of two ranks, on a CPU: one that is killed voids the engine, and none outlives what opened it."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from tests.sweeping import ROOT, wait_for

SCRIPT = """
import os, signal, sys
from pathlib import Path

import psutil
from stages.errors import EngineError
from stages.evaluate.config import EngineConfig
from stages.evaluate.engines.protocol import ScoreRequest
from stages.evaluate.engines.vllm_engine import VllmEngine


def opened():
    limits = {"max_model_len": 256, "kv_cache_gib": 0.25, "max_num_seqs": 8}
    return VllmEngine(Path(sys.argv[1]), EngineConfig(dtype="float32", tensor_parallel_size=2, **limits))


def ranks():
    return [child for child in psutil.Process().children(recursive=True) if "Worker_TP" in " ".join(child.cmdline())]


if __name__ == "__main__":
    asked = [ScoreRequest((5, 6, 7, 8), (9, 10))]
    engine = opened()
    before = engine.loglikelihood(asked)
    first = ranks()
    first[-1].kill()
    try:
        engine.loglikelihood([ScoreRequest((15, 6, 7, 8), (9, 10))])
        sys.exit("it answered with one rank")
    except EngineError:
        engine.close()
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in first)
    engine = opened()
    assert engine.loglikelihood(asked) == before
    Path("pids").write_text(" ".join(str(each.pid) for each in ranks()))
    os.kill(os.getpid(), signal.SIGKILL)
"""


def write_model(out: Path, tokens: int = 384) -> None:
    """Heads of a size that vLLM's attention on a CPU takes, in two halves."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 256, "intermediate_size": 512}
    config = LlamaConfig(vocab_size=tokens, num_hidden_layers=2, max_position_embeddings=512, **heads)
    LlamaForCausalLM(config).to(torch.bfloat16).save_pretrained(out)


@pytest.mark.vllm
@pytest.mark.full
def test_a_killed_rank_voids_its_engine_and_none_outlives_its_process(tmp_path: Path, tiny_model: Path) -> None:
    model = tmp_path / "model"
    write_model(model)
    for file in tiny_model.glob("*token*"):
        (model / file.name).write_bytes(file.read_bytes())
    (tmp_path / "script.py").write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "VLLM_CPU_OMP_THREADS_BIND": "0|1"}
    command = [sys.executable, "script.py", str(model)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr[-2000:]
    left = [psutil.Process(int(pid)) for pid in (tmp_path / "pids").read_text().split() if psutil.pid_exists(int(pid))]
    wait_for(lambda: all(not each.is_running() or each.status() == psutil.STATUS_ZOMBIE for each in left))
