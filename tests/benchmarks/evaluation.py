"""Six tasks for four formats, from checkpoints to tables: this pipeline beside lm-eval with its own vLLM adapter.

    python -m tests.benchmarks.evaluation --data MIRROR [--share 500] [--root DIR] [--out FILE] [OVERRIDE ...]

The checkpoints are made first and are in neither time.  Then one command of the pipeline evaluates them all, and
lm-eval is started once for each of them with all six tasks.  Both answer one of every ``share`` documents of each
task, with the same prompts and the same engine settings, and their scores are compared.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import mean
from tempfile import TemporaryDirectory
from typing import Any

import yaml

RECIPES = ["bf16", "w8a8_fp", "w8a8_int", "w4a16_int"]
MMLU = "mmlu"
TASKS = {  # documents in all, examples, metric
    MMLU: (14042, 5, "acc,none"),
    "hellaswag": (10042, 10, "acc_norm,none"),
    "arc_challenge": (1172, 0, "acc_norm,none"),
    "truthfulqa_mc2": (817, 0, "acc,none"),
    "gsm8k_cot_llama": (1319, 8, "exact_match,strict-match"),
    "leaderboard_ifeval": (541, 0, "prompt_level_strict_acc,none"),
}
MAX_GEN_TOKS, MAX_MODEL_LEN = 128, 4096
SAME = 1e-9


def main() -> None:
    """Make the checkpoints, time both sides, compare their scores, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--share", type=int, default=500)
    parser.add_argument("--root", type=Path, default=Path("results/benchmark_evaluation"))
    parser.add_argument("--out", type=Path)
    parser.add_argument("--recipes", default=",".join(RECIPES), help="those that lm-eval is started for")
    parser.add_argument("--adapter", type=Path, help="only lm-eval, on this checkpoint; the last line is its scores")
    parser.add_argument("overrides", nargs="*", help="of the timed command, such as engine=vllm_gpu")
    options = parser.parse_args()
    if options.adapter:
        print(json.dumps(with_adapter(options.adapter, options.data.resolve(), options.share)))
        return
    for found in measured(options):
        print(json.dumps(found, indent=1), flush=True)
        if options.out:
            options.out.write_text(json.dumps(found, indent=1) + "\n")


def measured(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Seconds of both sides, their ratio, and every score that is not the same, after each start of lm-eval.

    The ratio is of the mean times of a checkpoint: lm-eval takes longest, and may be started for some of them only.
    """
    from pipeline.results.results import load

    ours_s = run_pipeline(options)
    results = load(options.root / "store", "six_tasks")
    rows = results.summary().to_pylist()
    pairs: list[tuple[str, float, float]] = []
    theirs_s: dict[str, float] = {}
    wanted = options.recipes.split(",")
    for name, trial in results.trials.items():
        if name.rpartition("/")[2] not in wanted:
            continue
        started = time.perf_counter()
        theirs = run_adapter(results.store.path(trial.checkpoint), options)
        theirs_s[name] = round(time.perf_counter() - started, 1)
        pairs += [(f"{name} {row['task']}", row["score"], theirs[row["task"]]) for row in rows if row["trial"] == name]
        yield _found(options, ours_s, theirs_s, pairs)


def _found(
    options: argparse.Namespace, ours_s: float, theirs_s: dict[str, float], pairs: list[tuple[str, float, float]]
) -> dict[str, Any]:
    from stages.gpu import read_gpus
    from tests.benchmarks.grid import machine

    gpus = read_gpus(1)
    return {
        "machine": machine(),
        "gpu": gpus and gpus[0].product,
        "share": options.share,
        "num_documents": sum(number for leaves in documents(options.share).values() for number in leaves.values()),
        "ours_s": round(ours_s, 1),
        "theirs_s": theirs_s,
        "ratio": round(mean(theirs_s.values()) / (ours_s / len(RECIPES)), 2),
        "num_same_scores": sum(abs(ours - other) <= SAME for _, ours, other in pairs),
        "other_scores": {name: [ours, other] for name, ours, other in pairs if abs(ours - other) > SAME},
    }


def run_pipeline(options: argparse.Namespace) -> float:
    """Seconds of one command from four checkpoints to the table."""
    with TemporaryDirectory() as directory:
        write_sweeps(Path(directory), options.share)
        command = [
            sys.executable,
            "-m",
            "pipeline",
            f"--config-dir={directory}",
            f"data.mirror={options.data.resolve()}",
        ]
        command += ["tracking=off", f"store.root={options.root / 'store'}"]
        subprocess.run([*command, "+sweep=checkpoints"], check=True)
        started = time.perf_counter()
        subprocess.run([*command, "+sweep=six_tasks", *options.overrides], check=True)
        return time.perf_counter() - started


def run_adapter(checkpoint: Path, options: argparse.Namespace) -> dict[str, float]:
    """Scores of lm-eval, in a process of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.evaluation", "--adapter", str(checkpoint)]
    command += ["--data", str(options.data), "--share", str(options.share)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def documents(share: int) -> dict[str, dict[str, int]]:
    """By task and leaf, how many documents are answered: the first ones."""
    from stages.evaluate.task_index import build_index, expand

    found = {task: {task: max(1, total // share)} for task, (total, _, _) in TASKS.items() if task != MMLU}
    subjects, wanted = list(expand(build_index(), MMLU)), TASKS[MMLU][0] // share
    chosen = subjects[:: max(1, len(subjects) // wanted)]
    return {MMLU: dict.fromkeys(chosen, max(1, wanted // len(chosen))), **found}


def write_sweeps(directory: Path, share: int) -> None:
    """The sweep with its tasks, and one that makes its checkpoints and asks each for a single token."""
    tasks = {task: _task(task, leaves) for task, leaves in documents(share).items()}
    one = _task("leaderboard_ifeval", {"leaderboard_ifeval": 1}) | {"gen_kwargs": {"max_gen_toks": 1}}
    (directory / "sweep").mkdir()
    for name, engine, asked in (
        ("checkpoints", "transformers", {"leaderboard_ifeval": one}),
        ("six_tasks", "vllm_cpu", tasks),
    ):
        content = {
            "defaults": [
                {"override /model": "smollm2_135m"},
                {"override /calibration": "gsm8k_train"},
                {"override /suite": "none"},
                {"override /engine": engine},
            ],
            "sweep": {
                "name": name,
                "axes": {"recipe": RECIPES},
                "adjust": [{"when": {"recipe": "w4a16_int"}, "set": ["recipe.group_size=64"]}],
            },
            "calibration": {"num_calibration_samples": 16, "max_seq_length": 128},
            "engine": {"max_model_len": MAX_MODEL_LEN},
            "tasks": asked,
        }
        text = yaml.safe_dump(content, sort_keys=False)
        (directory / "sweep" / f"{name}.yaml").write_text(f"# @package _global_\n{text}")


def _task(task: str, leaves: dict[str, int]) -> dict[str, Any]:
    _, num_fewshot, metric = TASKS[task]
    return {
        "task": task,
        "metric": metric,
        "num_fewshot": num_fewshot,
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
        "limit": next(iter(leaves.values())),
        "limit_order": "first",  # as lm-eval
        "gen_kwargs": {"max_gen_toks": MAX_GEN_TOKS},
        "leaves": list(leaves) if task == MMLU else None,
    }


def with_adapter(checkpoint: Path, mirror: Path, share: int) -> dict[str, float]:
    """lm-eval's own evaluation with its own adapter; its data come from the mirror instead of the hub."""
    import datasets
    from lm_eval import evaluator
    from lm_eval.tasks import TaskManager, get_task_dict

    from stages.evaluate.nltk_data import provide_nltk_data

    load_dataset = datasets.load_dataset
    datasets.load_dataset = lambda path, *given, **options: load_dataset(str(mirror / path), *given, **options)
    wanted = documents(share)
    with TemporaryDirectory() as work_dir:
        provide_nltk_data(Path(work_dir))
        model = _adapter(checkpoint, Path(work_dir))
        tasks = get_task_dict([leaf for leaves in wanted.values() for leaf in leaves], TaskManager())
        for task, leaves in wanted.items():
            for leaf in leaves:
                tasks[leaf].set_config("num_fewshot", TASKS[task][1])
                tasks[leaf].set_fewshot_seed(1234)
                if tasks[leaf].OUTPUT_TYPE == "generate_until":
                    tasks[leaf].set_config("generation_kwargs", {"max_gen_toks": MAX_GEN_TOKS}, update=True)
        samples = {leaf: list(range(number)) for leaves in wanted.values() for leaf, number in leaves.items()}
        found = evaluator.evaluate(model, tasks, samples=samples, bootstrap_iters=0)
    scores = {leaf: results[TASKS[_of(leaf)][2]] for leaf, results in found["results"].items() if leaf in samples}
    return {task: sum(scores[leaf] for leaf in leaves) / len(leaves) for task, leaves in wanted.items()}


def _of(leaf: str) -> str:
    return leaf if leaf in TASKS else MMLU


def _adapter(checkpoint: Path, work_dir: Path) -> Any:
    """The adapter with an engine of its own, opened with this pipeline's settings."""
    import os
    from importlib import metadata

    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm.platforms import current_platform

    on_gpu = not current_platform.is_cpu()
    if not on_gpu:  # the adapter asks for the distribution "vllm", which the CPU build is not
        known = metadata.version
        metadata.version = lambda name: known("vllm-cpu" if name == "vllm" else name)
    from lm_eval.models.vllm_causallms import VLLM

    from stages.evaluate.config import EngineConfig
    from stages.evaluate.engines.simulated import is_simulated, register, write_dense_copy
    from stages.evaluate.engines.vllm_start import Start, llm_arguments

    config = (
        EngineConfig(max_model_len=MAX_MODEL_LEN)
        if on_gpu
        else EngineConfig(
            max_model_len=MAX_MODEL_LEN, dtype="float32", kv_cache_gib=2, max_num_seqs=64, enforce_eager=True
        )
    )
    if not on_gpu and is_simulated(checkpoint, config.dtype):
        register()
        write_dense_copy(checkpoint, work_dir, config.dtype)
        checkpoint = work_dir
    arguments = llm_arguments(checkpoint, Start.of(checkpoint, config), not on_gpu)
    return VLLM(pretrained=arguments.pop("model"), batch_size="auto", **arguments)


if __name__ == "__main__":
    main()
