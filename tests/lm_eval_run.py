"""Runs of lm-eval itself that leave samples, as its command line writes them."""

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.stages.evaluate.test_evaluate import TASKS

NAMES = ("quiz_choice", "quiz_letter", "quiz_write", "quiz_text")  # one of each kind
PROMPT = {"apply_chat_template": True, "fewshot_as_multiturn": True}


def write_tasks(folder: Path, data_set: str) -> Path:
    """The four tasks over that data set, a hub id or a directory."""
    common = f"dataset_path: {data_set}\ndataset_name: main\ntest_split: test\nfewshot_split: train\n"
    for name in NAMES:
        (folder / f"{name}.yaml").write_text(f"task: {name}\n{common}metadata: {{version: 2.0}}\n{TASKS[name]}")
    return folder


def run_lm_eval(model: Path, tasks_dir: Path, out: Path, max_length: int, names: Sequence[str] = NAMES) -> Any:
    """Its samples by task, as they were before they were written below ``out``: there an array has eight digits."""
    from lm_eval.evaluator import simple_evaluate
    from lm_eval.loggers import EvaluationTracker
    from lm_eval.tasks import TaskManager

    tracker = EvaluationTracker(output_path=str(out))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("torch.utils.collect_env.get_pretty_env_info", lambda: "asks every tool on the machine: slow")
        results = simple_evaluate(
            model="hf",
            model_args={"pretrained": str(model), "dtype": "float32", "max_length": max_length},
            tasks=list(names),
            task_manager=TaskManager(include_defaults=False, include_path=str(tasks_dir)),
            device="cpu",
            batch_size=4,
            bootstrap_iters=0,
            log_samples=True,
            evaluation_tracker=tracker,
            **PROMPT,
        )
    samples = results.pop("samples")
    before = copy.deepcopy(samples)
    tracker.save_results_aggregated(results=results, samples=samples)
    for name in names:
        tracker.save_results_samples(task_name=name, samples=samples[name])
    return before
