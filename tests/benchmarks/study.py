"""Which claims of the study stand: its printed scores (arXiv 2411.02355) through comparison and report.

    python -m tests.benchmarks.study

The study printed scores, not how many documents flipped between a base and its format, so that is assumed: documents
are made that have the printed scores and so many flips, and are judged as a sweep's own.  Writes ``study.json`` and
prints the tables.
"""

import json
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from stages.compare.config import CompareConfig
from stages.compare.stage import compare
from stages.compare.verdict import MARKS
from stages.documents import read_json, write_json, write_table
from stages.evaluate.digests import digest
from stages.report.artifact import SUMMARY_DOCUMENT, Summary
from stages.report.config import ReportConfig, SuiteRow, TrialRow
from stages.report.stage import report
from stages.statistics import Floats, generator
from tests.benchmarks.grids import TASKS, V1, V2

KEPT = Path(__file__).parent / "study.json"
PUBLISHED = Path(__file__).parents[1] / "data" / "published_suites.json"
FLIPS = (0.01, 0.03, 0.05, 0.10)
SUITES = [SuiteRow(name="V1", tasks=list(V1)), SuiteRow(name="V2", tasks=list(V2), normalized=True)]
# What is said of single cells, by the study or by who reads its tables.
CELLS = (
    ("8B/w8a8_fp", "mmlu_cot", "FP8 loses nothing"),
    ("8B/w8a8_fp", "gpqa", "recovery 156 %"),
    ("8B/w8a8_int", "gpqa", "recovery 146 %"),
    ("8B/w8a8_int", "gsm8k", "recovery 102.4 %"),
    ("8B/w8a8_fp", "math_hard", "recovery 105.4 %"),
    ("70B/w8a8_fp", "math_hard", "recovery 107.5 %"),
    ("8B/w4a16_int", "truthfulqa", "worst of V1, recovery 96.9 %"),
    ("8B/w4a16_int", "arc_challenge", "recovery 98.5 %"),
    ("8B/w4a16_int", "mmlu", "recovery 98.0 %"),
    ("8B/w4a16_int", "mmlu_pro", "recovery 93.6 %"),
    ("8B/w4a16_int", "musr", "recovery 83.2 %"),
    ("70B/w8a8_int", "math_hard", "recovery 91.8 %"),
    ("70B/w8a8_fp", "bbh", "worst of FP8, recovery 98.4 %"),
    ("405B/w8a8_int", "mmlu_pro", "worst of INT8, recovery 97.8 %"),
    ("405B/w8a8_int", "math_hard", "recovery 92.0 %"),
    ("8B/w4a16_int", "ifeval", "worst of INT4, recovery 98.0 %"),
)


def main() -> None:
    """Judge, keep and print."""
    content = {f"{flips:g}": judged(flips) for flips in FLIPS}
    KEPT.write_text(json.dumps(content, indent=1) + "\n")
    print(trials_table(content), cells_table(content), sep="\n\n")


def judged(flips: float) -> dict[str, Any]:
    """Of every trial its suites and what is decided, and of every cell its verdict, at so many flips."""
    with tempfile.TemporaryDirectory() as folder:
        summary = _summary(Path(folder), flips)
    trials = {
        each.trial: {
            "decision": each.decision,
            "reasons": each.reasons,
            "equivalent": each.num_equivalent,
            "degraded": each.num_degraded,
            "confirmed": each.num_confirmed_degraded,
        }
        for each in summary.trials
        if not each.is_base
    }
    for mean in summary.suites:
        if mean.trial in trials:
            ends = mean.difference, mean.difference_low, mean.difference_high
            scale = 1 if mean.normalized else 100
            trials[mean.trial][mean.suite] = {
                "verdict": mean.verdict,
                "points": [None if end is None else round(scale * end, 2) for end in ends],
            }
    cells: dict[str, dict[str, Any]] = {}
    names = ("verdict", "reason", "is_confirmed", "adjusted_p", "num_base_only_right", "num_trial_only_right")
    for row in summary.rows:
        if row["trial"] in trials:
            cells.setdefault(row["trial"], {})[row["task"]] = {name: row[name] for name in names}
    return {"trials": trials, "cells": cells}


def _summary(folder: Path, flips: float) -> Summary:
    published = json.loads(PUBLISHED.read_text())
    bases = {row["model"]: row for row in published if row["recipe"] == "bf16"}
    trials, inputs = [], {}
    for row in published:
        name, base = f"{row['model']}/{row['recipe']}", bases[row["model"]]
        is_base = row is base
        trials.append(TrialRow(name=name, model=row["model"], recipe=row["recipe"], is_base=is_base))
        for task in TASKS:
            out = folder / f"compare-{name.replace('/', '-')}-{task}"
            sides = _sides(task, _score(row, task), _score(base, task), flips)
            roles = {"trial": sides[0]} if is_base else {"trial": sides[0], "base": sides[1]}
            shards = {f"{role}/{task}": _shard(out / role, task, side) for role, side in roles.items()}
            config = CompareConfig(task=task, leaves=[task], random_baseline=_baseline(task))
            compare(config, shards, out)
            inputs[f"compare/{name}/{task}"] = out
    out = folder / "report"
    out.mkdir()
    report(ReportConfig(title="the study", trials=trials, tasks=list(TASKS), suites=SUITES), inputs, out)
    return read_json(out / SUMMARY_DOCUMENT, Summary)


def _baseline(task: str) -> float | None:
    return 1 - 1 / V2[task][2] if task in V2 else None


def _score(row: Mapping[str, Any], task: str) -> float:
    """Raw; of several leaves with the one baseline that weighs as theirs do."""
    suite, names = ("leaderboard_v2", list(V2)) if task in V2 else ("leaderboard_v1", list(V1))
    printed = float(row[suite]["scores"][names.index(task)]) / 100
    baseline = _baseline(task) or 0.0
    return baseline + (1 - baseline) * printed


def _sides(task: str, score: float, base_score: float, flips: float) -> tuple[Floats, Floats]:
    """Documents of trial and base that have the printed scores, in an order of the task's own."""
    n = TASKS[task][0]
    right, base_right = round(n * score), round(n * base_score)
    gain = right - base_right
    both = max(abs(gain), round(n * flips))
    lost = min((both - gain) // 2, base_right, n - base_right - max(gain, 0))
    won = lost + gain
    order = generator(0, task).permutation(n)
    base, trial = np.zeros(n), np.zeros(n)
    base[:base_right] = 1
    trial[lost:base_right] = trial[base_right : base_right + won] = 1
    return trial[order], base[order]


def _shard(folder: Path, task: str, scores: Floats) -> Path:
    """As scoring writes it; MMLU and MMLU-CoT ask the same questions."""
    folder.mkdir(parents=True)
    source = "mmlu" if task == "mmlu_cot" else task
    n = len(scores)
    digests = pa.array([digest(f"{source} {number}") for number in range(n)])
    nothing, no_text, no_list = pa.nulls(n, pa.bool_()), pa.nulls(n, pa.string()), pa.nulls(n, pa.list_(pa.string()))
    columns = {
        "leaf": pa.array([task] * n),
        "doc_id": pa.array(range(n), pa.int32()),
        "doc_digest": digests,
        "prompt_digest": digests,
        "truncated": pa.array([False] * n),
        **dict.fromkeys(("cut", "cut_in_thoughts", "thinking"), nothing),
        **dict.fromkeys(("question", "target", "filtered", "error"), no_text),
        **dict.fromkeys(("stopped_by", "choices", "responses"), no_list),
        "loglikelihoods": pa.nulls(n, pa.list_(pa.float64())),
        "acc,none": pa.array(scores),
    }
    write_table(folder / "samples.parquet", pa.table(columns))
    metric = {"aggregation": {"name": "mean"}, "higher_is_better": True, "kind": "right_or_wrong"}
    facts = {
        "task": task,
        "version": 1,
        "output_type": "multiple_choice",
        "num_docs": n,
        "metrics": {"acc,none": metric},
        "comparable": {},
    }
    write_json(folder / "task.json", {"leaves": {task: facts}})
    return folder


def trials_table(content: Mapping[str, Any]) -> str:
    """Of every trial the means' differences and verdicts, and what is decided at each share of flips."""
    lines = [
        f"| format | V1, points, at 5 % flips | V2, normalized points | {_shares(content)} |",
        "|---|--:|--:|" + "---|" * len(content),
    ]
    for trial in content["0.05"]["trials"]:
        means = [_mean(content["0.05"]["trials"][trial][suite]) for suite in ("V1", "V2")]
        decided = [_decided(at["trials"][trial]) for at in content.values()]
        lines.append(f"| {trial} | {' | '.join([*means, *decided])} |")
    return "\n".join(lines)


def _shares(content: Mapping[str, Any]) -> str:
    return " | ".join(f"{100 * float(flips):g} % flips" for flips in content)


def _mean(mean: Mapping[str, Any]) -> str:
    value, low, high = mean["points"]
    return f"{value:+.2f} [{low:+.2f}, {high:+.2f}]"


def _decided(trial: Mapping[str, Any]) -> str:
    marks = " ".join(f"{suite} {MARKS[trial[suite]['verdict']]}" for suite in ("V1", "V2"))
    cells = f"{trial['equivalent']} of 13 =, {trial['degraded']} ▼ ({trial['confirmed']} confirmed)"
    return f"**{trial['decision']}**: {marks}; {cells}"


def cells_table(content: Mapping[str, Any]) -> str:
    """What stands of single cells."""
    lines = [f"| format, task | what is printed | {_shares(content)} |", "|---|---|" + "---|" * len(content)]
    for trial, task, claim in CELLS:
        found = [_verdict(at["cells"][trial][task]) for at in content.values()]
        lines.append(f"| {trial}, {task} | {claim} | {' | '.join(found)} |")
    return "\n".join(lines)


def _verdict(cell: Mapping[str, Any]) -> str:
    return ", ".join(_words(cell))


def _words(cell: Mapping[str, Any]) -> Iterator[str]:
    yield cell["verdict"]
    if cell["reason"]:
        yield cell["reason"]
    if cell["is_confirmed"] is not None:
        yield "confirmed" if cell["is_confirmed"] else "not confirmed"
    elif cell["adjusted_p"] <= 0.05:
        yield f"and {'lower' if cell['num_base_only_right'] > cell['num_trial_only_right'] else 'higher'} beyond chance"


if __name__ == "__main__":
    main()
