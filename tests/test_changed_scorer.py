"""Who changes how a task's answers are scored asks no model again; who changes what it asks does."""

import re
from pathlib import Path

import pytest

from pipeline.results.results import load
from tests.test_missing_data import lab, run

__all__ = ["lab"]  # a fixture

CODE = """
def text(doc):
    return doc["question"]
def judge(doc, results):
    return {"acc": 0.25}
"""


@pytest.mark.full
@pytest.mark.e2e
def test_a_changed_scorer_scores_the_stored_answers(lab: Path) -> None:
    (lab / "tasks" / "code.py").write_text(CODE)
    leaf = lab / "tasks" / "whole.yaml"
    said = leaf.read_text().replace('"{{question}}"', "!function code.text")
    leaf.write_text(said + "process_results: !function code.judge\n")
    first = run(lab, "only=[whole]")
    assert first.returncode == 0, first.stderr
    (lab / "tasks" / "code.py").write_text(CODE.replace("0.25", "0.75"))
    leaf.write_text(leaf.read_text().replace("{metric: acc}", "{metric: acc, aggregation: mean}"))
    planned = run(lab, "only=[whole]", "mode=plan")
    assert re.search(r"^ *answer +0 +1 ", planned.stdout, re.MULTILINE), planned.stdout
    why = run(lab, "only=[whole]", "mode=why")
    assert re.search(
        r"^score-\w+ tiny/bf16-whole\n +leaves: .*'harness': .* -> .*'harness': ", why.stdout, re.MULTILINE
    )
    again = run(lab, "only=[whole]")
    assert "\n2 steps run" in again.stdout, "the scores and what they are compared to"
    rows = {row["task"]: row for row in load(lab / "results" / "store", "tiny").summary().to_pylist()}
    assert rows["whole"]["score"] == 0.75
    (lab / "tasks" / "code.py").write_text(CODE.replace('doc["question"]', 'doc["question"] + " "'))
    planned = run(lab, "only=[whole]", "mode=plan")
    assert re.search(r"^ *answer +1 +0 ", planned.stdout, re.MULTILINE), planned.stdout
