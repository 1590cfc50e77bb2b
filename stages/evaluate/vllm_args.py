"""vLLM's engine arguments: which there are, and which are not a user's to give, having a place of their own or bearing
the evaluation.
"""

import ast
import re
from collections.abc import Mapping
from difflib import get_close_matches
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stages.evaluate.truths import check_truths

_FIELDS = (
    *("dtype", "max_model_len", "tensor_parallel_size", "pipeline_parallel_size", "seed", "max_num_seqs"),
    *("gpu_memory_utilization", "enforce_eager"),
)
SET_HERE: Mapping[str, str] = {  # by name, what it is instead
    **{name: f"engine.{name}: set that" for name in _FIELDS},
    **dict.fromkeys(("model", "model_weights", "hf_config_path"), "the checkpoint of the trial: leave it out"),
    "tokenizer": "that of the checkpoint: leave it out",
    "kv_cache_memory_bytes": "engine.kv_cache_gib: set that",
    "hf_token": "a secret, which no config keeps: set HF_TOKEN in the environment",
    **dict.fromkeys(
        (
            *("enable_prefix_caching", "disable_log_stats", "distributed_executor_backend", "worker_extension_cls"),
            *("logprobs_mode", "skip_tokenizer_init", "tokens_only"),
        ),
        "what the evaluation rests on: leave it out",
    ),
    **dict.fromkeys(
        (
            *("data_parallel_size", "data_parallel_size_local", "data_parallel_rank", "data_parallel_start_rank"),
            *("prefill_context_parallel_size", "nnodes", "node_rank", "device_ids"),
        ),
        "of GPUs that no plan counts: set engine.tensor_parallel_size or engine.pipeline_parallel_size",
    ),
    **dict.fromkeys(
        ("host", "port", "middleware", "served_model_name", "api_server_count", "disable_uvicorn_access_log"),
        "of the server, which is set under server: leave it out",
    ),
}

_VLLM_NAME = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")


def check_vllm_args(given: Mapping[str, Any]) -> None:
    """Raise ValueError for an argument that is set here, or is spelt as none of vLLM's is."""
    for name in given:
        if (place := SET_HERE.get(name)) is not None:
            raise ValueError(f"engine.vllm_args.{name} is {place}")
        if not _VLLM_NAME.fullmatch(name):  # a command line takes other spellings, past what is looked at here
            raise ValueError(f"engine.vllm_args.{name} is no engine argument of vLLM: write it like max_num_seqs")
    check_truths("engine.vllm_args", given)


def unknown_argument(given: Mapping[str, Any]) -> str | None:
    """What is no argument of the engine of the vLLM that is installed here, in one line; None where all are, or no
    vLLM is.
    """
    known = _known_here() if given else frozenset[str]()
    unknown = sorted(given.keys() - known)
    if not known or not unknown:
        return None
    near = get_close_matches(unknown[0], sorted(known), 1)
    return f"engine.vllm_args.{unknown[0]} is no engine argument of this vLLM" + (
        f"; did you mean {near[0]}?" if near else ": leave it out"
    )


@cache
def _known_here() -> frozenset[str]:
    """Read in vLLM's source, whose import takes seconds and torch; none where it is not there, or is written
    otherwise: vLLM itself refuses what it does not know.
    """
    spec = find_spec("vllm")
    file = None if spec is None or spec.origin is None else Path(spec.origin).parent / "engine" / "arg_utils.py"
    if file is None or not file.is_file():
        return frozenset()
    classes = [node for node in ast.parse(file.read_text(encoding="utf-8")).body if isinstance(node, ast.ClassDef)]
    fields = [node for each in classes if each.name == "EngineArgs" for node in each.body]
    return frozenset(
        node.target.id for node in fields if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
    )
