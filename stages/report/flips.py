"""A page for each trial with the documents that it answers otherwise than its base, and a box to search them."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.compare.artifact import FLIPS, LOST, Comparison, Numbers, read_flips
from stages.report.artifact import most_flips
from stages.report.config import ReportConfig, TrialRow
from stages.report.numbers import count, number
from stages.report.rendering import render
from stages.report.rows import Comparisons

FOLDER = "flips"
_MOST_OF_QUESTION, _MOST_OF_ANSWER, _MOST_OF_CHOICE = 1500, 900, 300  # characters
_MOST_ANSWERS = 3


def write_flip_pages(config: ReportConfig, comparisons: Comparisons, out: Path) -> dict[str, str]:
    """A file in ``flips/`` for each trial that is compared; returns the trials' pages, relative to the report."""
    compared = [
        (trial, {task: comparisons[trial.name, task] for task in config.tasks if (trial.name, task) in comparisons})
        for trial in config.trials
        if not trial.is_base
    ]
    most = most_flips(sum(len(own) for _, own in compared))
    pages: dict[str, str] = {}
    for trial, own in compared:
        if sections := [found for task, comparison in own.items() if (found := _section(task, comparison, most))]:
            (out / FOLDER).mkdir(exist_ok=True)
            pages[trial.name] = f"{FOLDER}/{_file_name(trial, pages)}"
            view = {"title": config.title, "trial": trial.name, "base": trial.base or "its base", "file": FLIPS}
            text = render("report_flips.html.j2", view | {"sections": sections})
            (out / pages[trial.name]).write_text(text, encoding="utf-8")
    return pages


def _file_name(trial: TrialRow, taken: Mapping[str, str]) -> str:
    """Whatever a trial is called, a name that every file system and address takes, and no other trial has."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", trial.name).strip(".-")[:100] or "trial"
    used = {page.partition("/")[2] for page in taken.values()}
    return next(
        each for index in range(len(used) + 1) if (each := f"{name}{f'-{index}' * bool(index)}.html") not in used
    )


def _section(task: str, comparison: Comparison, most: int) -> dict[str, Any] | None:
    table, total = read_flips(comparison.directory, most)
    if not total:
        return None
    rows = table.to_pylist()
    return {
        "task": task,
        "shown": count(len(rows)),
        "total": count(total),
        "is_cut": len(rows) < total,
        "place": comparison.directory.name,
        "noise": list(_noise(comparison.facts.headline)),
        "metric": rows[0]["metric"],
        "documents": [_document(row) for row in rows],
    }


def _noise(numbers: Numbers) -> Iterator[str]:
    """How many documents change between two runs of one checkpoint."""
    for whose, n, changed in (
        ("this checkpoint", numbers.rerun_n, numbers.rerun_num_changed),
        ("the base", numbers.base_rerun_n, numbers.base_rerun_num_changed),
    ):
        if n is not None and changed is not None:
            yield f"Between two runs of {whose} {count(changed)} of {count(n)} change."


def _document(row: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "change": row["change"],
        "mark": "▼" if row["change"] == LOST else "▲",
        "name": f"{row['leaf']}, document {row['doc_id']}",
        "scores": f"{_score(row['base_score'])} → {_score(row['trial_score'])}",
        "question": cut(row["question"] or "", _MOST_OF_QUESTION),
        "choices": [cut(choice, _MOST_OF_CHOICE) for choice in row["choices"] or ()],
        "target": cut(row["target"] or "", _MOST_OF_ANSWER),
        "answers": [
            {"of": side, "texts": list(_answers(row[f"{side}_answers"])), "extracted": row[f"{side}_extracted"]}
            for side in ("base", "trial")
        ],
    }


def _answers(texts: Sequence[str] | None) -> Iterator[str]:
    yield from (cut(text, _MOST_OF_ANSWER) for text in (texts or ())[:_MOST_ANSWERS])
    if rest := len(texts or ()) - _MOST_ANSWERS:
        yield from [f"and {rest} more answers"] if rest > 0 else []


def _score(value: float) -> str:
    return number(value, 0 if value == round(value) else 3)


def cut(text: str, most: int) -> str:
    """Without what is in the middle of a long one: an answer's end says what it comes to."""
    if len(text) <= most:
        return text
    head = most * 2 // 3
    return f"{text[:head]} [… {len(text) - most:,} characters …] {text[head - most :]}"
