"""Descriptions in tracking, in Markdown: of an experiment, of a plan's run, and of a trial's.

Each has the way back to all trials in its first line: from a run's page MLflow's own links lead elsewhere.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from pipeline.results.mlflow_points import Points, points_of_mean, points_of_row
from pipeline.results.mlflow_table import TABLE
from pipeline.results.mlflow_view import address, run_address, run_name
from stages.compare.artifact import verdict_shown
from stages.errors import redacted
from stages.report.artifact import HTML, MOST_SENTENCES, SuiteMean, Summary, TrialVerdict

MAX_NOTE = 7500  # characters; MLflow takes 8,000
MOST_SUITES = 2  # that a description has room for beside the other columns
_HEADINGS = ["asked of", "n", "base", "score", "difference", "margin", "limit", "verdict"]
_LEGEND = (
    "Scores are of 100; differences, with their interval, in points of them, or, normalized, of the scale from 0 for "
    "guessing to 100. A verdict is of the margin; what is shipped loses less than the limit in every suite's mean and "
    "every task of a gate."
)
_COUNTED = "degraded / improved / equivalent / inconclusive (?: not confirmed)"
_NOTHING = "–"


def experiment_note(document: Summary, experiment_id: str, run_id: str) -> str:
    """How many formats may be shipped and where to read of it, in the one line that MLflow's pages show of it, then the
    sentences.
    """
    run, report = run_address(experiment_id, run_id), _report(experiment_id, run_id)
    where = f"[All trials]({address(experiment_id)}) · [verdicts]({run}) · [report]({report})"
    first = f"{document.headline}. {where}" if document.headline else where
    return redacted("\n\n".join([first, *_said(document)]))


def parent_note(document: Summary, experiment_id: str, run_id: str, runs: Mapping[str, str]) -> str:
    """The sentences, then a line for each trial that leads to its run; ``runs`` are ids by trial."""
    links = f"[All trials]({address(experiment_id)}) · [report]({_report(experiment_id, run_id)})"
    headline = [f"**{document.headline}.**"] if document.headline else []
    addresses = {trial: run_address(experiment_id, run) for trial, run in runs.items()}
    table = list(_verdict_table(document, addresses)) if document.trials else []
    return shortened([links, *headline, *_said(document)], table, MAX_NOTE)


def trial_note(document: Summary, verdict: TrialVerdict, rows: Sequence[Mapping[str, Any]], links: str) -> str:
    """What was decided of a trial and why, its suites and tasks, and what is to be known of its answers."""
    decided = "Base of its model" if verdict.is_base else (verdict.decided or "not judged").capitalize()
    reasons = "\n".join(f"- {_cell(reason)}" for reason in verdict.reasons)
    notes = "\n".join(f"- {_cell(row['task'])}: {_cell(row['note'])}" for row in rows if row.get("note"))
    means = [mean for mean in document.suites if mean.trial == verdict.trial and mean.mean is not None]
    lines = [*map(_suite_line, means), *map(_task_line, rows)]
    table = [*_head(_HEADINGS, "lrrrrrrl"), *lines]
    explained = [*([f"To bear in mind:\n{notes}"] if notes else []), _LEGEND]
    return shortened([f"**{decided}** · {links}", reasons], table, MAX_NOTE, "\n\n".join(explained))


def shortened(before: Sequence[str], table: Sequence[str], most: int, legend: str = "") -> str:
    """The paragraphs, as many lines of a table as there is room for, and what explains it."""
    kept, head = list(table), "\n\n".join(filter(None, before))
    while kept and len(head) + len(legend) + sum(len(line) + 1 for line in kept) > most - 60:
        kept.pop()
    num_left_out = len(table) - len(kept)
    rest = [_more(num_left_out, "line")] if num_left_out else []
    return redacted("\n\n".join(filter(None, [head, "\n".join(kept), *rest, legend])))[:most]


def trial_links(verdict: TrialVerdict, experiment_id: str, parent_id: str, run_id: str) -> str:
    """Back to all trials, and to what is said of this one elsewhere."""
    links = f"[All trials]({address(experiment_id)}) · [verdicts]({run_address(experiment_id, parent_id)})"
    links += f" · [report]({_report(experiment_id, parent_id)})"
    otherwise = f" · [what it answers otherwise]({run_address(experiment_id, run_id, TABLE)})"
    return links if verdict.is_base else f"{links}{otherwise}"


def _said(document: Summary) -> list[str]:
    """The first sentences, no more than a description has room for beside other things, and how many more there are."""
    several = len(document.sentences) > 1
    said = [f"{f'**{_cell(model)}:** ' * several}{_cell(text)}" for model, text in document.sentences.items()]
    kept = said[:MOST_SENTENCES]
    while kept and sum(map(len, kept)) > MAX_NOTE // 2:
        kept.pop()
    rest = len(said) - len(kept)
    return [*kept, *([_more(rest, "model")] if rest else [])]


def _more(number: int, name: str) -> str:
    return f"1 {name} more is in the report." if number == 1 else f"{number} {name}s more are in the report."


def _report(experiment_id: str, run_id: str) -> str:
    return run_address(experiment_id, run_id, f"report/{HTML}")


def _verdict_table(document: Summary, addresses: Mapping[str, str]) -> Iterator[str]:
    """A line for each trial, in the order in which they are read."""
    suites = list(dict.fromkeys(mean.suite for mean in document.suites))
    shown = suites if len(suites) <= MOST_SUITES else []
    means = {(mean.trial, mean.suite): mean for mean in document.suites}
    headings = ["format", "ship it?", *(f"{suite}, points" for suite in shown), _COUNTED, "worst task", "why"]
    yield from _head(headings, f"ll{'r' * len(shown)}rll")
    for each in document.trials:
        name = _cell(run_name(each.trial))
        worst = [each.worst_task, f"{_number(each.worst_points, '+.2f')} {each.worst_unit or ''}"]
        yield _line(
            [
                f"[{name}]({addresses[each.trial]})" if each.trial in addresses else name,
                "base" if each.is_base else each.decided or "not judged",
                *(_mean_shown(means.get((each.trial, suite))) for suite in shown),
                "" if each.is_base else _counts_shown(each),
                "" if each.worst_task is None else _cell(" ".join(filter(None, worst))),
                _cell(_first(each.reasons)),
            ]
        )


def _counts_shown(verdict: TrialVerdict) -> str:
    confirmed = (
        (verdict.num_confirmed_degraded, verdict.num_degraded),
        (verdict.num_confirmed_improved, verdict.num_improved),
    )
    others = (_number(count, "d") for count in (verdict.num_equivalent, verdict.num_inconclusive))
    return " / ".join([*(_confirmed(*each) for each in confirmed), *others])


def _confirmed(confirmed: int | None, by_itself: int | None) -> str:
    """``2 + 1?``: cells that the grid confirms, and those by their own interval alone."""
    rest = (by_itself or 0) - (confirmed or 0)
    return f"{_number(confirmed, 'd')}{f' + {rest}?' if rest else ''}"


def _first(reasons: Sequence[str]) -> str:
    """What the first says before it goes into details: all that a line among many has room for."""
    if not reasons:
        return ""
    said, more, _ = reasons[0].partition("; ")
    return f"{said}; …" if more or len(reasons) > 1 else said


def _mean_shown(mean: SuiteMean | None) -> str:
    if mean is None or mean.difference is None:
        return _NOTHING
    word = "" if mean.verdict in (None, "equivalent") else f" {mean.verdict}"
    return f"{_number(points_of_mean(mean).difference, '+.2f')}{word}"


def _suite_line(mean: SuiteMean) -> str:
    scale = 1 if mean.normalized else 100
    scores = [_number(None if each is None else scale * each, ".2f") for each in (mean.base_mean, mean.mean)]
    word = f"{mean.verdict or _NOTHING}{f' ({mean.reason})' if mean.reason else ''}"
    return _line([f"**{_cell(mean.suite)}**, mean", "", *scores, *_points_shown(points_of_mean(mean)), _cell(word)])


def _task_line(row: Mapping[str, Any]) -> str:
    scale = 1 if row.get("higher_is_better") is False else 100
    both = (row["base_score"], row["score"])
    scores = [_number(None if each is None else scale * each, ".2f") for each in both]
    word = verdict_word(row) if row["verdict"] else row["status"]
    return _line([_cell(row["task"]), _number(row["n"], ",d"), *scores, *_points_shown(points_of_row(row)), word])


def verdict_word(row: Mapping[str, Any]) -> str:
    """A cell's verdict, whether the grid confirms it, and why it is inconclusive or what would decide."""
    confirmed = {True: ", confirmed", False: ", not confirmed", None: ""}[row["is_confirmed"]]
    return f"{verdict_shown(row)}{confirmed}"


def _points_shown(points: Points) -> list[str]:
    """Of the difference, the margin and the limit."""
    ends = "" if points.low is None or points.high is None else f"[{points.low:+.2f}, {points.high:+.2f}]"
    difference = " ".join(filter(None, [_number(points.difference, "+.2f"), ends, points.scale]))
    return [difference, *(_number(each, ".3g") for each in (points.margin, points.limit))]


def _head(names: Sequence[str], sides: str) -> list[str]:
    """``sides`` has a letter for each column: l or r."""
    return [_line(names), f"|{'|'.join('--:' if side == 'r' else '---' for side in sides)}|"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None, pattern: str) -> str:
    return _NOTHING if value is None else format(value, pattern)


def _cell(text: str) -> str:
    escaped = "".join(f"\\{character}" if character in "\\|*`<>[]" else character for character in text)
    return " ".join(escaped.split())
