"""Stages that write what the real ones write, without a model: for the engine's tests and benchmarks at full size.

Everything is drawn from the step's own identity, so the same step gives the same bytes wherever and whenever it runs.
Fingerprints stay those of the real steps.  As a program it is the pipeline's own command line over such stages:

    python -m tests.synthetic --config-dir=DIR +sweep=NAME ...
"""

import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.planning.plan import Plan
from pipeline.steps.roles import kind_of, slot_of
from pipeline.steps.stages import Stage
from pipeline.steps.step import Resources
from stages import drift
from stages.documents import write_json
from stages.evaluate import answer as answering
from stages.evaluate.answers import ANSWERS
from stages.evaluate.artifact import SAMPLES, TASK
from stages.evaluate.config import AnswerConfig, ScoreConfig
from stages.fields import execution
from stages.gate.artifact import write_checks

NUM_SENTENCES = 2048
QUESTION = "Which of the four answers below is the one that a person who knows it would give? A, B, C or D"
SENTENCES_A_RESPONSE = 10  # of 100 characters
SLEEP_VARIABLE = "SYNTHETIC_SLEEP_S"
DISK_VARIABLE = "SYNTHETIC_NEEDS_DISK"  # set: as much must be free as the real steps need

DRIFT = {
    **dict.fromkeys(("mean_kl", "mean_kl_low", "mean_kl_high", "loss", "base_loss"), 1.0),
    **dict.fromkeys(("top1_agreement", "top1_agreement_low", "top1_agreement_high"), 0.5),
    **dict.fromkeys(("num_documents", "num_tokens"), 2),
}

MODULE = "tests.synthetic"


@dataclass(frozen=True, slots=True, kw_only=True)
class SyntheticStage(Stage):
    """A stage whose code is here and whose version, and so the fingerprints of its steps, is the real one's."""

    real: Stage

    @property
    def version(self) -> int:
        return self.real.version


@dataclass(kw_only=True, slots=True)
class SyntheticConfig(ScoreConfig):
    """Scoring that also knows the metric its comparison will ask for; the same identity."""

    metric: str = execution()


FUNCTIONS = {"answer": "answer", "score": "score"}


def synthetic(plan: Plan, resources: Resources | None = None) -> Plan:
    """The same plan, whose steps are made here, with ``resources`` if given; comparisons and reports stay real."""
    metrics = {
        ref: plan.steps[trial.steps[f"compare/{slot_of(role)}"]].config.metric or "acc,none"
        for trial in plan.trials.values()
        for role, ref in trial.steps.items()
        if kind_of(role) in ("score", "score_again")
    }
    steps = {}
    for ref, step in plan.steps.items():
        known = {field.name: getattr(step.stage, field.name) for field in fields(Stage)}
        made_here = {"module": MODULE, "function": FUNCTIONS.get(ref.stage, "write_small")}
        stage = SyntheticStage(**known | made_here, real=step.stage)
        config = step.config
        if ref in metrics:
            asked = {field.name: getattr(config, field.name) for field in fields(config)}
            config = SyntheticConfig(**asked, metric=metrics[ref])
        step = step if ref.stage == "compare" else replace(step, stage=stage, config=config)
        steps[ref] = replace(step, resources=resources or step.resources)
        assert steps[ref].ref == ref
    return Plan(plan.name, plan.trials, steps)


def write_small(config: Any, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """A checkpoint, data set, or what a report reads of a gate and of a drift: small files."""
    (out / "content.json").write_text(json.dumps({"config": repr(config), "inputs": sorted(inputs)}))
    write_checks(out, [])
    write_json(out / drift.FACTS, DRIFT)
    return {"size_gib": 1.0}


def session_key(config: AnswerConfig) -> str:
    return answering.session_key(config)


@contextmanager
def open_session(config: AnswerConfig, inputs: Mapping[str, Path]) -> Iterator[list[str]]:
    """Sentences to answer with."""
    rng = np.random.default_rng(0)
    letters = rng.integers(97, 123, size=(NUM_SENTENCES, 100), dtype=np.uint8)
    letters[:, ::6] = 32
    yield [row.tobytes().decode() for row in letters]


def answer(
    config: AnswerConfig, inputs: Mapping[str, Path], out: Path, session: list[str]
) -> Mapping[str, float | None]:
    """``answers.parquet`` with 1 kB of text per document, and whether it is right."""
    time.sleep(float(os.environ.get(SLEEP_VARIABLE, "0")))
    doc_ids = np.arange(config.start, config.stop)
    rng = _generator(inputs["checkpoint"].name, config.task, config.start)
    difficulty = _generator(config.task, config.start).random(len(doc_ids))
    right = (rng.random(len(doc_ids)) * 0.3 + difficulty * 0.7 < 0.6).astype(float)
    picks = rng.integers(0, NUM_SENTENCES, size=(len(doc_ids), SENTENCES_A_RESPONSE))
    columns = {
        "doc_id": pa.array(doc_ids, pa.int32()),
        "doc_digest": pa.array([hashlib.sha256(f"{config.task} {doc}".encode()).hexdigest() for doc in doc_ids]),
        "text": pa.array([["".join(session[pick] for pick in row)] for row in picks]),
        "right": pa.array(right),
    }
    pq.write_table(pa.table(columns), out / ANSWERS, compression="zstd")
    return {"num_documents": len(doc_ids), "num_missing": 0.0}


def score(config: SyntheticConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """``samples.parquet`` of all answers and ``task.json``, as the real one writes them."""
    tables = []
    for leaf in config.leaves:
        for name in (name for name in sorted(inputs) if name.rpartition("/")[0] == leaf.task):
            answers = pq.read_table(inputs[name] / ANSWERS)
            tables.append(answers.add_column(0, "leaf", pa.array([leaf.task] * answers.num_rows)))
    answers = pa.concat_tables(tables)
    columns = {name: answers[name] for name in ("leaf", "doc_id", "doc_digest")}
    columns |= {"prompt_digest": answers["doc_digest"], "responses": answers["text"], config.metric: answers["right"]}
    columns["question"] = pa.array([QUESTION * (number % 8 + 1) for number in range(answers.num_rows)])
    columns |= {"target": pa.array(["A"] * answers.num_rows), "truncated": pa.array([False] * answers.num_rows)}
    kinds = {
        "error": pa.string(),
        "cut": pa.bool_(),
        "cut_in_thoughts": pa.bool_(),
        "thinking": pa.bool_(),
        "stopped_by": pa.list_(pa.string()),
        "choices": pa.list_(pa.string()),
        "filtered": pa.string(),
        "loglikelihoods": pa.list_(pa.float64()),
    }
    columns |= {name: pa.nulls(answers.num_rows, kind) for name, kind in kinds.items()}
    pq.write_table(pa.table(columns), out / SAMPLES, compression="zstd")
    write_json(out / TASK, {"leaves": {leaf.task: _task_facts(leaf.task, config.metric) for leaf in config.leaves}})
    return {"num_documents": answers.num_rows, "num_missing": 0.0}


def _task_facts(task: str, metric: str) -> dict[str, Any]:
    return {
        "task": task,
        "version": 1,
        "output_type": "multiple_choice",
        "num_docs": 100000,
        "metrics": {metric: {"aggregation": {"name": "mean"}, "higher_is_better": True}},
        "comparable": {"engine": "synthetic"},
    }


def _generator(*labels: object) -> np.random.Generator:
    digest = hashlib.sha256("\0".join(map(str, labels)).encode()).digest()
    return np.random.default_rng(int.from_bytes(digest[:8]))


def main() -> int:
    """The pipeline's command line, with these stages in its plans."""
    import pipeline.__main__ as command_line
    from pipeline import driver

    if DISK_VARIABLE not in os.environ:
        driver.bytes_to_write = lambda *arguments: 0  # the weights of a plan are not written
    real = command_line.make_plan
    command_line.make_plan = lambda *arguments: synthetic(real(*arguments))
    return command_line.main()


if __name__ == "__main__":
    sys.exit(main())
