"""The pipeline as a user runs it: one command, the same again, after a deletion, after a kill, with a failure."""

import json
import math
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from pipeline.results.results import load

ROOT = Path(__file__).parents[1]
OWN_SWEEP = """\
# @package _global_
defaults:
  - override /model: tiny
  - override /suite: none
  - override /engine: transformers
sweep:
  name: tiny
  axes:
    recipe: [bf16, w8a8_fp, w8a8_int, w4a16_int]
  adjust:
    - {when: {recipe: w4a16_int}, set: [recipe.group_size=32]}
calibration: {num_calibration_samples: 8, max_seq_length: 64}
gate: {num_probe_tokens: 4}
engine: {dtype: float32, max_model_len: 512, batch_size: 4}
tasks:
  iris: {task: tabular_iris, num_docs: {tabular_iris: 120}, limit: 10, num_fewshot: 0, shard_size: 4}
  game: {task: mathador, num_docs: {mathador: 1000}, limit: 3, num_fewshot: 0, gen_kwargs: {max_gen_toks: 8}}
suites: {both: {tasks: [iris, game]}, one: {tasks: [game]}}
"""


def configure(directory: Path, model: Path) -> Path:
    """With a config directory for a sweep over a tiny model."""
    for folder in ("model", "sweep"):
        (directory / "own" / folder).mkdir(parents=True)
    (directory / "own" / "model" / "tiny.yaml").write_text(
        f"defaults: [model_schema, _self_]\nname: tiny\nsource: {{path: {model}}}\n"
    )
    (directory / "own" / "sweep" / "tiny.yaml").write_text(OWN_SWEEP)
    return directory


@pytest.fixture
def tiny(tmp_path: Path, tiny_model: Path) -> Path:
    """A directory where nothing was run yet."""
    return configure(tmp_path, tiny_model)


@dataclass(frozen=True, slots=True)
class Swept:
    """A directory where the sweep was run once, a copy of it as it was then, and what was printed."""

    directory: Path
    copy: Path
    printed: str


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Swept:
    directory = configure(tmp_path_factory.mktemp("swept"), tiny_model)
    first = run(directory)
    assert first.returncode == 0, first.stdout + first.stderr
    copy = tmp_path_factory.mktemp("copied") / "swept"
    shutil.copytree(directory, copy)
    return Swept(directory, copy, first.stdout)


def command(*arguments: str, sweep: str = "tiny") -> list[str]:
    own = ["--config-dir=own", f"+sweep={sweep}", "cluster=inline"]
    return [sys.executable, "-m", "pipeline", *own, *arguments]


def environment() -> dict[str, str]:
    return {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "2",
        "GOMP_SPINCOUNT": "1000",
    }


def run(directory: Path, *arguments: str, sweep: str = "tiny") -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*arguments, sweep=sweep),
        cwd=directory,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def table(directory: Path) -> dict[str, bytes]:
    """The bytes of every comparison, and of the report's summary; a report also says times."""
    store = directory / "results" / "store"
    sweep = json.loads((store / "sweeps" / "tiny.json").read_text())
    summary = next((store / "report").glob(f"*-{sweep['report'][1][:12]}")) / "summary.parquet"
    comparisons = {path.parent.name: path.read_bytes() for path in (store / "compare").glob("*/comparison.parquet")}
    return comparisons | {"summary": summary.read_bytes()}


@pytest.mark.e2e
def test_one_command_then_again_then_with_holes(swept: Swept) -> None:
    tiny = swept.directory
    for expected in ("tiny/bf16", "tiny/w8a8_fp", "tiny/w8a8_int", "tiny/w4a16_int", "iris", "game", "report.html"):
        assert expected in swept.printed
    scored = scores(tiny)
    for name, of_tasks in scored.items():
        assert re.search(rf"{name}\s+both\s+{fmean(of_tasks.values()):.4f}", swept.printed)
    (page,) = (tiny / "results" / "store" / "report").glob("*/report.md")
    assert re.search(r"^\| answer \| \d+ \| [\d:.]+(?: s)? \| 0\.000 \|", page.read_text(), re.MULTILINE)
    before = table(tiny)
    assert mlflow_runs(tiny) == {"parents": 1, "trials": 4}

    other = run(tiny, "suites.both.tasks=[iris]", "~suites.one")
    assert "0 steps run" in other.stdout, other.stderr
    assert mlflow_means(tiny, "both") == pytest.approx({name: each["iris"] for name, each in scored.items()})
    assert all(map(math.isnan, mlflow_means(tiny, "one").values())), "a mean that is no longer asked for"

    again = run(tiny)
    assert again.returncode == 0
    assert "0 steps run" in again.stdout
    assert rows(again.stdout) == rows(swept.printed)
    assert mlflow_runs(tiny) == {"parents": 1, "trials": 4}
    assert mlflow_means(tiny, "one") == pytest.approx({name: each["game"] for name, each in scored.items()})

    shard = next((tiny / "results" / "store" / "answer").glob("tiny-w4a16_int-tabular_iris-000003-*"))
    shutil.rmtree(shard)
    healed = run(tiny)
    assert "1 steps run" in healed.stdout
    assert shard.exists()
    assert table(tiny) == before

    reasons = run(tiny, "mode=why", "engine.max_model_len=500")
    assert "engine.max_model_len: 512 -> 500" in reasons.stdout
    sweeping = run(tiny, "mode=plan", "calibration.seed=1")
    to_run = dict(re.findall(r"^(\w+)\s+([\d,]+)\s+[\d,]+ ", sweeping.stdout, re.MULTILINE))
    # Two of the three quantized recipes look at calibration data.
    assert (to_run["calibrate"], to_run["quantize"], to_run["fetch_model"]) == ("1", "2", "0")


@pytest.mark.e2e
def test_a_new_scorer_scores_what_was_answered_where_no_model_could_run(swept: Swept) -> None:
    """All numbers are those of before; the process finds no torch, no transformers and no vLLM."""
    program = [sys.executable, "-m", "tests.new_scorer", *command()[3:], "cluster=inline"]
    done = subprocess.run(
        program, cwd=swept.copy, env=environment(), capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "16 steps run" in done.stdout, "scores and comparisons of four trials on two tasks"
    assert rows(done.stdout) == rows(swept.printed)


@pytest.mark.e2e
def test_a_failure_is_told_and_the_rest_is_done_without_a_tracking_server(tiny: Path) -> None:
    nowhere = "tracking.uri=http://127.0.0.1:9"
    done = run(tiny, "sweep.axes.recipe=[bf16,w8a8_fp]", "gate.max_mean_kl=0.0", nowhere)
    assert "MLflow was not written" in done.stdout
    assert done.returncode == 1, done.stdout + done.stderr
    assert "failed (checkpoint)" in done.stdout
    assert "skipped (upstream)" in done.stdout
    assert re.search(r"tiny/bf16\s+iris\s+10\s+0\.\d+", done.stdout)
    assert re.search(r"tiny/w8a8_fp\s+iris\s+–", done.stdout)
    told = run(tiny, "sweep.axes.recipe=[bf16,w8a8_fp]", "gate.max_mean_kl=0.0", "tracking=off", "mode=status")
    assert told.returncode == 0
    assert "checkpoint" in told.stdout
    log = re.search(r"log: (\S+)", told.stdout)
    assert log is not None
    assert "CheckpointError" in Path(log[1]).read_text()


@pytest.mark.e2e
@pytest.mark.full  # tests/test_kill_anywhere.py kills more, and sooner
def test_a_kill_at_any_moment_and_a_rerun_give_the_same_bytes(tiny: Path) -> None:
    whole = tiny / "whole"
    whole.mkdir()
    shutil.copytree(tiny / "own", whole / "own")
    started = time.monotonic()
    assert run(whole, "tracking=off").returncode == 0
    took_s = time.monotonic() - started
    moments = random.Random(0)
    for _ in range(3):
        killed = subprocess.Popen(
            command("tracking=off"), cwd=tiny, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(moments.uniform(0.1, 0.7) * took_s)
        killed.send_signal(signal.SIGKILL)
        killed.wait()
    assert run(tiny, "tracking=off").returncode == 0
    assert table(tiny) == table(whole)
    assert not list((tiny / "results" / "store").glob("*/.draft-*"))


@pytest.mark.e2e
@pytest.mark.vllm
def test_the_smoke_sweep_in_vllm_on_ray(tmp_path: Path) -> None:
    """SmolLM2, two recipes, a few documents: the README's command, made shorter."""
    arguments = ["+sweep=smoke", "sweep.axes.recipe=[bf16,w8a8_fp]", "tasks.mathador.limit=3", "tasks.tabular.limit=4"]
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", *arguments, "tasks.mathador.gen_kwargs={max_gen_toks: 32}"],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=900,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"smollm2_135m/w8a8_fp\s+tabular\s+8\s+[01]\.\d+", done.stdout)
    made = {
        row["trial"]: row["computed"] for row in load(tmp_path / "results" / "store", "smoke").summary().to_pylist()
    }
    assert made == {"smollm2_135m/bf16": None, "smollm2_135m/w8a8_fp": "simulated"}
    tags = [run.data.tags for run in all_runs(tmp_path, "smoke")]
    assert {each.get("trial"): each.get("computed_by") for each in tags} == {**made, None: None}


def rows(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("tiny/")]


def scores(directory: Path) -> dict[str, dict[str, float]]:
    """By trial and task."""
    found: dict[str, dict[str, float]] = {}
    for row in load(directory / "results" / "store", "tiny").summary().to_pylist():
        found.setdefault(row["trial"], {})[row["task"]] = row["score"]
    return found


def all_runs(directory: Path, sweep: str = "tiny") -> list[Any]:
    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{directory / 'results' / 'mlflow.db'}")
    experiment = client.get_experiment_by_name(sweep)
    assert experiment is not None
    return list(client.search_runs([experiment.experiment_id]))


def mlflow_means(directory: Path, suite: str) -> dict[str, float]:
    """By trial."""
    key = f"suite/{suite}/mean"
    return {run.data.tags["trial"]: run.data.metrics[key] for run in all_runs(directory) if key in run.data.metrics}


def mlflow_runs(directory: Path) -> dict[str, int]:
    runs = all_runs(directory)
    parents = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert all(run.info.status == "FINISHED" for run in runs)
    trials = [run for run in runs if run not in parents]
    compared = [run for run in trials if run.data.params["recipe"] != "bf16"]
    assert all("iris/recovery" in run.data.metrics for run in compared)
    means = {name: fmean(of_tasks.values()) for name, of_tasks in scores(directory).items()}
    assert mlflow_means(directory, "both") == pytest.approx(means)
    return {"parents": len(parents), "trials": len(trials)}
