"""Evaluate artifacts as the evaluate stage writes them, made from scores that a test chooses."""

import hashlib
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

COMPARABLE = {
    "engine": "vllm",
    "engine_version": "0.32.0",
    "platform": "cpu",
    "dtype": "bfloat16",
    "max_model_len": 4096,
    "chat_template_digest": "c0ffee",
    "apply_chat_template": True,
    "fewshot_as_multiturn": True,
    "system_instruction": None,
    "num_fewshot": 5,
    "gen_kwargs": {"temperature": 0.0},
    "fewshot_seed": 1234,
    "harness": "lm_eval-0.4.13",
}
MEAN = {"aggregation": {"name": "mean"}, "higher_is_better": True}


@pytest.fixture(scope="session")
def write_evaluation(tmp_path_factory):
    """Make one evaluate artifact: documents ``docs`` (default 0, 1, ...) with the columns ``metrics``."""

    def write(
        task, metrics, *, docs=None, doc_ids=None, prompts=None, truncated=(), facts=None, version=1, **comparable
    ):
        if not isinstance(metrics, dict):
            metrics = {"acc,none": metrics}
        num_documents = len(next(iter(metrics.values())))
        docs = list(range(num_documents)) if docs is None else docs
        doc_ids = docs if doc_ids is None else doc_ids
        prompts = [f"prompt {doc}" for doc in docs] if prompts is None else prompts
        columns = {
            "doc_id": pa.array(doc_ids, pa.int32()),
            "doc_digest": pa.array([digest(f"{task} {doc}") for doc in docs], pa.string()),
            "prompt_digest": pa.array([digest(prompt) for prompt in prompts], pa.string()),
            "responses": pa.array([["an answer"]] * num_documents),
            "truncated": pa.array([doc in truncated for doc in docs], pa.bool_()),
        }
        for name, values in metrics.items():
            is_text = any(isinstance(value, str) for value in values)
            columns[name] = pa.array(values, pa.string() if is_text else pa.float64())
        path = tmp_path_factory.mktemp("evaluate")
        pq.write_table(pa.table(columns), path / "samples.parquet")
        info = {
            "task": task,
            "version": version,
            "output_type": "multiple_choice",
            "num_docs": 1000,
            "metrics": {name: (facts or {}).get(name, MEAN) for name in metrics},
            "comparable": COMPARABLE | comparable,
        }
        (path / "task.json").write_text(json.dumps(info))
        return path

    return write


def digest(text):
    return hashlib.sha256(text.encode()).hexdigest()
