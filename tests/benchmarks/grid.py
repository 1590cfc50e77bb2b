"""The engine at the size of the study's grid: what orchestration costs when the stages cost nothing.

    python -m tests.benchmarks.grid [--seeds 10] [--root DIR] [--out FILE]

Plans ``llama31`` (half a million evaluations and more; ``--seeds N``: under N seeds), runs it on Ray with stages that
write realistic Parquet shards, and measures each part in a process of its own, as a user would meet it.
"""

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

SHARD_SIZE = 200  # of the long tasks: more than 3,000 steps
LONG_TASKS = ("mmlu", "mmlu_cot", "hellaswag", "mmlu_pro")
GOALS = {
    "plan_s": 3.0,
    "overhead_ms_a_step": 30.0,
    "noop_rerun_s": 5.0,
    "mirror_s": 60.0,
    "compare_s": 20.0,
    "statistics_s": 1.0,
    "peak_memory_gib": 1.5 * 1e9 / 2**30,
}

SHOWN = {
    "num_evaluations": ("evaluations", "{:,}"),
    "num_steps": ("steps", "{:,}"),
    "plan_s": ("planning", "{:.3g} s"),
    "overhead_ms_a_step": ("orchestration of a step, beyond the stage's own work", "{:.3g} ms"),
    "noop_rerun_s": ("rerun with nothing to do", "{:.3g} s"),
    "mirror_s": ("the whole MLflow mirror", "{:.3g} s"),
    "compare_s": ("every row read, every paired comparison computed", "{:.3g} s"),
    "statistics_s": ("statistics and verdicts of it alone, by each of two processes", "{:.3g} s"),
    "peak_memory_gib": ("the driver's peak memory", "{:.3g} GiB"),
}


def main() -> None:
    """Run every part and print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, default=Path("results/benchmark_grid"))
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--part", choices=PARTS)
    options = parser.parse_args()
    if options.part:
        print(json.dumps(PARTS[options.part](options.root, options.seeds)))
        return
    shutil.rmtree(options.root, ignore_errors=True)
    found: dict[str, Any] = {"machine": machine(), "seeds": options.seeds}
    for part in PARTS:
        measured = measure(part, options.root, options.seeds)
        found |= measured
        print(f"{part}: {measured}", flush=True)
    found["met"] = {name: found[name] <= goal * options.seeds for name, goal in GOALS.items() if name in found}
    print(json.dumps(found, indent=1))
    if options.out:
        options.out.write_text(json.dumps(found, indent=1) + "\n")


def table(once: Path, under_seeds: Path) -> str:
    """What ``--out`` wrote of two runs, in Markdown, with the ratio of the second to the first."""
    small, large = (json.loads(path.read_text()) for path in (once, under_seeds))
    lines = [f"| | once | under {large['seeds']} seeds | ratio |", "|---|--:|--:|--:|"]
    for name, (label, pattern) in SHOWN.items():
        cells = (pattern.format(small[name]), pattern.format(large[name]), f"{large[name] / small[name]:.1f}")
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def measure(part: str, root: Path, seeds: int) -> dict[str, Any]:
    """One part in a process of its own."""
    command = [
        sys.executable,
        "-m",
        "tests.benchmarks.grid",
        "--part",
        part,
        "--root",
        str(root),
        "--seeds",
        str(seeds),
    ]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def planned(root: Path, seeds: int) -> Any:
    """The grid as a sweep, with synthetic stages; returns it and the seconds that composing and planning took."""
    from hydra import compose, initialize_config_module
    from omegaconf import OmegaConf
    from rich.console import Console

    from pipeline.config.schema import register
    from pipeline.config.sweep import expand
    from pipeline.context import PlannedSweep
    from pipeline.planning.facts import resolve
    from pipeline.planning.make_plan import make_plan
    from pipeline.steps.step import Resources
    from pipeline.store.store import Store
    from tests.synthetic import synthetic

    register()
    overrides = ["+sweep=llama31", "base_reruns=0", *(f"tasks.{name}.shard_size={SHARD_SIZE}" for name in LONG_TASKS)]
    if seeds > 1:
        overrides.append(f"+sweep.axes.seed={list(range(seeds))}".replace(" ", ""))
    with initialize_config_module("conf", version_base="1.3"):
        started = time.perf_counter()
        tasks = compose("config", overrides=overrides).tasks
        overrides += [f"tasks.{name}.shard_size={SHARD_SIZE}" for name in LONG_TASKS if name in tasks]
        started = time.perf_counter()
        config = OmegaConf.to_object(compose("config", overrides=overrides))
        store = Store(root / "store")
        trials = expand(overrides, config)
        plan = make_plan(config.sweep.name, trials, resolve(trials, store.local / "cache"))
        plan_s = time.perf_counter() - started
    config.store.root, config.cluster.num_cpus = str(store.local), 2
    plan = synthetic(plan, Resources())
    for trial in plan.trials.values():  # its weights would not fit this disk, and are not written
        trial.sizes = None
    console = Console(file=sys.stderr, width=200)
    return PlannedSweep(lambda: plan, config, store, console, overrides), plan_s


def plan(root: Path, seeds: int) -> dict[str, Any]:
    """Compose, expand and plan, three times."""
    sweep, first_s = planned(root, seeds)
    plan_s = statistics.median([first_s, *(planned(root, seeds)[1] for _ in range(2))])
    return {"plan_s": plan_s, "num_steps": len(sweep.plan.steps), "num_evaluations": sweep.plan.num_evaluations}


def run(root: Path, seeds: int) -> dict[str, Any]:
    """Everything on two workers; the overhead is the wall time beyond what the stages themselves took, each core's."""
    from pipeline.modes import MODES

    sweep, _ = planned(root, seeds)
    sweep.config.tracking.enabled = False
    started = time.perf_counter()
    code = MODES[sweep.config.mode](sweep)
    wall_s = time.perf_counter() - started
    assert code == 0, "the sweep did not finish"
    manifests = [sweep.store.manifest(ref) for ref in sweep.plan.steps]
    own_s = sum(manifest["provenance"]["stage_s"] for manifest in manifests if manifest)
    return {
        "run_s": wall_s,
        "stages_own_s": own_s,
        "overhead_ms_a_step": 1000 * (2 * wall_s - own_s) / len(sweep.plan.steps),
        "peak_memory_gib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        "store_gib": sum(path.stat().st_size for path in root.rglob("*") if path.is_file()) / 2**30,
    }


def noop(root: Path, seeds: int) -> dict[str, Any]:
    """The same again, three times: what a rerun with nothing to do costs, planning included."""
    from pipeline.modes import MODES

    def once() -> float:
        sweep, plan_s = planned(root, seeds)
        sweep.config.tracking.enabled = False
        return plan_s + _timed(lambda: MODES[sweep.config.mode](sweep))

    return {"noop_rerun_s": statistics.median(once() for _ in range(3))}


def mirror(root: Path, seeds: int) -> dict[str, Any]:
    """The whole grid into an empty MLflow, and once more when nothing changed."""
    from pipeline.driver import mirror_of, publish_report

    sweep, _ = planned(root, seeds)
    report = sweep.store.path(publish_report(sweep).ref)
    return {
        "mirror_s": _timed(lambda: mirror_of(sweep).write(report, "FINISHED")),
        "mirror_again_s": _timed(lambda: mirror_of(sweep).write(report, "FINISHED")),
    }


def compare(root: Path, seeds: int) -> dict[str, Any]:
    """Read every row and compute every paired comparison again, on as many processes as there are cores."""
    sweep, _ = planned(root, seeds)
    steps = [step for step in sweep.plan.steps.values() if step.ref.stage == "compare"]
    inputs = [{name: sweep.store.path(ref) for name, ref in step.inputs.items()} for step in steps]
    outs = [root / "compared" / step.fingerprint for step in steps]
    with ProcessPoolExecutor() as processes:
        compare_s = _timed(lambda: list(processes.map(_compare_once, steps, inputs, outs)))
    shutil.rmtree(root / "compared")
    return {"compare_s": compare_s, "num_comparisons": len(steps)}


def _compare_once(step: Any, inputs: dict[str, Path], out: Path) -> None:
    out.mkdir(parents=True)
    step.stage.run(step.config, inputs, out)


def statistics_alone(root: Path, seeds: int) -> dict[str, Any]:
    """Statistics and verdicts of as many documents, without reading them: the busier of two processes, three times."""
    from pipeline.steps.roles import under

    sweep, _ = planned(root, seeds)
    halves = [list(sweep.plan.trials.values())[start::2] for start in range(2)]
    asked = [
        [
            {
                slot: (
                    sweep.plan.steps[ref].config,
                    any(name.startswith("base/") for name in sweep.plan.steps[ref].inputs),
                )
                for slot, ref in under(trial.steps, "compare").items()
            }
            for trial in half
        ]
        for half in halves
    ]
    suites = [list(sweep.config.suites.values())] * 2
    with ProcessPoolExecutor(2) as processes:
        taken = [max(processes.map(_statistics_once, asked, suites)) for _ in range(3)]
    return {"statistics_s": statistics.median(taken)}


def _statistics_once(asked: list[Any], suites: list[Any]) -> float:
    from tests.benchmarks.statistics_alone import cpu_s, documents

    trials = [{slot: documents(*each) for slot, each in trial.items()} for trial in asked]
    return cpu_s(trials, suites)


PARTS: dict[str, Callable[[Path, int], dict[str, Any]]] = {
    "plan": plan,
    "run": run,
    "noop": noop,
    "mirror": mirror,
    "compare": compare,
    "statistics": statistics_alone,
}


def _timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def machine() -> str:
    """What the numbers were measured on."""
    from pipeline.store.provenance import cpu_model

    return f"{os.cpu_count()} cores of {cpu_model()}, Python {platform.python_version()}"


if __name__ == "__main__":
    main()
