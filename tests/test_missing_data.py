"""A sweep names the data that its mirror lacks and scores the rest; too many examples are refused before it starts."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.results.results import load

ROOT = Path(__file__).parents[1]
TASK = """
dataset_path: lab/{data}
test_split: {split}
fewshot_split: train
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: ["yes", "no"]
doc_to_target: answer
metric_list: [{{metric: acc}}]
"""
SWEEP = """
# @package _global_
defaults:
  - override /model: tiny
  - override /suite: none
  - override /engine: transformers
sweep: {name: tiny, axes: {recipe: [bf16]}}
engine: {dtype: float32, max_model_len: 512}
tasks:
  whole: {task: lab_whole, num_fewshot: 1}
  declared: {task: lab_away, num_docs: {lab_away: 30}, datasets: {lab/away: null}}
  by_name: {task: lab_away_too}
  parts: {task: lab_parts}
suites:
  both: {tasks: [whole, parts]}
  rest: {tasks: [whole]}
"""


@pytest.fixture
def lab(tmp_path: Path, tiny_model: Path) -> Path:
    """A mirror with one of two data sets, tasks that read them, and a sweep over a tiny model."""
    folder = tmp_path / "hub" / "lab" / "here"
    folder.mkdir(parents=True)
    for split, num_rows in (("train", 3), ("test", 6)):
        rows = [{"question": f"Is {number} even?", "answer": number % 2} for number in range(num_rows)]
        pq.write_table(pa.Table.from_pylist(rows), folder / f"{split}.parquet")
    files = "\n".join(f"  - {{split: {split}, path: {split}.parquet}}" for split in ("train", "test"))
    (folder / "README.md").write_text(f"---\nconfigs:\n- config_name: default\n  data_files:\n{files}\n---\n")
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    sources = {"whole": "here", "away": "away", "away_too": "away", "part_one": "here", "part_two": "here"}
    for name, data in sources.items():
        text = TASK.format(data=data, split="exam" if name == "part_two" else "test")
        (tasks / f"{name}.yaml").write_text(f"task: lab_{name}\n{text}")
    (tasks / "parts.yaml").write_text("group: lab_parts\ntask: [lab_part_one, lab_part_two]\n")
    for group, text in (
        ("model", f"defaults: [model_schema, _self_]\nname: tiny\nsource: {{path: {tiny_model}}}\n"),
        ("sweep", SWEEP),
    ):
        (tmp_path / "own" / group).mkdir(parents=True)
        (tmp_path / "own" / group / "tiny.yaml").write_text(text)
    return tmp_path


def run(directory: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pipeline", "--config-dir=own", "+sweep=tiny", "cluster=inline", "tracking=off"]
    data = ["data.mirror=hub", "data.task_paths=[tasks]"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "2"}
    return subprocess.run(
        [*command, *data, *arguments], cwd=directory, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.e2e
def test_missing_data_costs_only_the_tasks_that_read_it_a_line_each(lab: Path) -> None:
    planned = run(lab, "mode=plan")
    assert "missing data set lab/away: no results for declared, by_name" in planned.stdout, planned.stderr
    part = run(lab, "only=[whole]")
    assert part.returncode == 0, part.stderr
    assert "steps were not asked for and have no result yet" in part.stdout
    assert not re.search("^(failed|skipped|missing)", part.stdout, re.MULTILINE)
    ended = run(lab)
    assert ended.returncode == 1, ended.stderr
    assert "was another plan" not in ended.stdout
    failed = [line for line in ended.stdout.splitlines() if line.startswith("failed (data)")]
    assert len(failed) == 2
    assert "the mirror lacks the data set lab/away: put it at" in failed[0]
    assert "data set lab/here has no split 'exam'; it has train, test" in failed[1]
    rows = {row["task"]: row for row in load(lab / "results" / "store", "tiny").summary().to_pylist()}
    assert (rows["whole"]["n"], rows["whole"]["status"]) == (6, "measured")
    assert [rows[task]["score"] for task in ("declared", "by_name", "parts")] == [None] * 3
    assert re.search(r"^tiny/bf16 +rest +\d\.\d{4} ", ended.stdout, re.MULTILINE)
    assert re.search(r"^tiny/bf16 +both +– ", ended.stdout, re.MULTILINE)
    other = run(lab, "only=[whole]", "tasks.whole.limit=2")
    assert re.search(r"the sweep 'tiny' was another plan; \d+ results of it", other.stdout), other.stderr


def test_more_examples_than_there_are_is_bad_input(lab: Path) -> None:
    ended = run(lab, "tasks.whole.num_fewshot=4")
    assert ended.returncode == 2
    assert ended.stderr == "error: task lab_whole has 3 examples to draw from, fewer than num_fewshot=4: lower it\n"
    assert not (lab / "results" / "store" / "answer").exists()
