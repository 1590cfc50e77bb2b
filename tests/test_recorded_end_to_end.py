"""A sweep whose answers lm-eval has recorded, as a user runs it: from its files to the report; nothing is loaded."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.lm_eval_run import run_lm_eval, write_tasks
from tests.stages.evaluate.test_evaluate import DATA_SET, write_data_set
from tests.test_end_to_end import environment

pytestmark = [pytest.mark.e2e, pytest.mark.full]
TASKS = ("quiz_letter", "quiz_write")
SWEEP = """\
# @package _global_
defaults:
  - override /model: small
  - override /suite: none
  - override /engine: recorded
sweep:
  name: brought
  axes: {recipe: [bf16, w8a8_int]}
  adjust:
    - {when: {recipe: bf16}, set: [engine.samples=runs/bf16]}
    - {when: {recipe: w8a8_int}, set: [engine.samples=runs/w8a8_int]}
data: {mirror: mirror, task_paths: [tasks]}
tasks:
  letter: {task: quiz_letter, shard_size: 4}
  write: {task: quiz_write, shard_size: 4}
"""


@pytest.fixture
def own(tmp_path: Path, tiny_model: Path) -> Path:
    """Runs of two checkpoints, which are not here any more when the sweep is run."""
    for folder in ("own/model", "own/sweep", "tasks", "reference", "tokenizer"):
        (tmp_path / folder).mkdir(parents=True)
    data_dir = write_data_set(tmp_path / "mirror" / DATA_SET)
    write_tasks(tmp_path / "tasks", DATA_SET)
    write_tasks(tmp_path / "reference", str(data_dir))
    for recipe in ("bf16", "w8a8_int"):
        checkpoint = Path(shutil.copytree(tiny_model, tmp_path / recipe))
        run_lm_eval(checkpoint, tmp_path / "reference", tmp_path / "runs" / recipe, 318, TASKS)
        shutil.rmtree(checkpoint)
    for file in tiny_model.iterdir():
        if file.suffix != ".safetensors":
            shutil.copy(file, tmp_path / "tokenizer")
    (tmp_path / "own" / "model" / "small.yaml").write_text(
        "defaults: [model_schema, _self_]\nname: small\nsource: {path: tokenizer}\n"
    )
    (tmp_path / "own" / "sweep" / "brought.yaml").write_text(SWEEP)
    return tmp_path


def sweep(directory: Path, *arguments: str) -> str:
    command = [sys.executable, "-m", "pipeline", "--config-dir=own", "+sweep=brought", "cluster=inline"]
    done = subprocess.run(
        [*command, "store.root=store", *arguments],
        cwd=directory, env=environment(), capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_runs_of_lm_eval_are_compared_and_reported_and_are_there_the_next_time(own: Path) -> None:
    sweep(own)
    tables = [pq.read_table(path).to_pylist() for path in (own / "store").glob("score/*/samples.parquet")]
    assert sorted(len(rows) for rows in tables) == [11] * 4
    (page,) = (own / "store" / "report").glob("*/report.md")
    text = page.read_text()
    assert "small/bf16: answers of an earlier run of lm-eval, hf (dtype=float32" in text
    assert "cut to fit" not in text and "cut at the limit" not in text.replace(
        "which of them were cut at the limit", ""
    )
    for path in (own / "store").glob("compare/*/comparison.json"):
        assert json.loads(path.read_text())["leaves"]
    before = {path: path.stat().st_mtime_ns for path in (own / "store").glob("answer/*/answers.parquet")}
    assert len(before) == 2 * 2 * 3
    sweep(own)
    assert {path: path.stat().st_mtime_ns for path in (own / "store").glob("answer/*/answers.parquet")} == before
