"""Write a sweep's tables as Markdown, HTML and Parquet, with how every number was obtained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.compare.verdict import LEGEND
from stages.report.appendix import drifts, gates, lacking, sources
from stages.report.artifact import HTML, MARKDOWN, MOST_SENTENCES, VERDICTS, Row, Summary, write_serving, write_summary
from stages.report.chart import forest_chart
from stages.report.config import ReportConfig
from stages.report.costs import costs_view
from stages.report.flips import write_flip_pages
from stages.report.methods import notes, settings, statistics_facts
from stages.report.numbers import MISSING
from stages.report.order import headline, in_order
from stages.report.rendering import render
from stages.report.rows import Comparisons, read_comparisons, summary_rows
from stages.report.sentence import sentences
from stages.report.serving.relative import relative_costs
from stages.report.serving.tables import section_tables
from stages.report.serving.view import serving_points, serving_view
from stages.report.steadiness import held_open
from stages.report.suites import confidence_of, suite_means, suite_notes
from stages.report.tables import model_sections
from stages.report.verdict_table import verdict_table
from stages.report.verdicts import confirmed, explained, planned, trial_verdicts

VERSION = 14


def report(config: ReportConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``report.md`` with its beginning ``verdicts.md``, ``report.html`` (self-contained but for the pages of
    ``flips/`` that it leads to), ``summary.parquet`` and ``summary.json``.

    ``inputs`` are compare artifacts ``compare/<trial>/<task>``, gate artifacts ``gate/<trial>``, drift artifacts
    ``drift/<trial>`` and profile artifacts ``profile/<trial>/<workload>/<mode>``, which add ``serving.parquet`` and
    pictures; whatever is not there is reported as missing.  Returns how many cells of the table have a score.  Raises
    DataError if an artifact is damaged.
    """
    comparisons = read_comparisons(config.trials, config.tasks, inputs)
    cells = list(summary_rows(config.trials, config.tasks, config.failures, comparisons))
    confidence = confidence_of(list(comparisons.values()))
    cells = held_open(config.trials, cells, confidence)
    rows = confirmed(cells, config.failures)
    found = list(suite_means(config.trials, config.suites, rows, comparisons, config.data))
    suites = [mean for mean, _ in found]
    verdicts = trial_verdicts(
        config.trials, config.suites, planned(rows, config.failures), found, comparisons, config.failures
    )
    relative = relative_costs(config.trials, config.serving, inputs)
    verdicts = in_order(config.trials, verdicts, relative)
    members = {suite.name: suite.tasks for suite in config.suites}
    summary = Summary(
        title=config.title,
        rows=rows,
        suites=suites,
        trials=verdicts,
        sentences=sentences(config.trials, verdicts, rows, suites, relative, members),
        headline=headline(verdicts),
    )
    write_summary(out, summary)
    pages = write_flip_pages(config, comparisons, out)
    view = _view(config, inputs, comparisons, summary) | {
        "verdicts": verdict_table(config.trials, verdicts, config.suites, suites, rows, relative, pages),
        "serving": _serving(config, inputs, rows, confidence, out),
        "members": members,
    }
    view["notes"] = list(dict.fromkeys([*view["notes"], *suite_notes(found)]))
    for name in (MARKDOWN, HTML, VERDICTS):
        (out / name).write_text(render(f"{name}.j2", view), encoding="utf-8")
    num_scored = sum(row["score"] is not None for row in rows)
    return {"num_cells": len(rows), "num_scored": num_scored, "num_failures": len(config.failures)}


def _serving(
    config: ReportConfig, inputs: Mapping[str, Path], rows: list[Row], confidence: float, out: Path
) -> dict[str, Any] | None:
    """What the templates show of serving; its pictures and numbers are written beside the report."""
    if config.serving is None:
        return None
    from markupsafe import Markup

    view = serving_view(config.trials, config.serving, inputs, rows, confidence)
    for section in view["sections"]:
        section["tables"] = section_tables(section)
        for picture in section["charts"]:
            picture["file"] = f"{section['name']}-{picture['name']}.svg"
            text = render("report_serving.svg.j2", {"chart": picture["chart"]})
            (out / picture["file"]).write_text(text, encoding="utf-8")
            picture["svg"] = Markup(text)
    write_serving(out, serving_points(config.trials, config.serving, inputs))
    return view


def _view(
    config: ReportConfig, inputs: Mapping[str, Path], comparisons: Comparisons, summary: Summary
) -> dict[str, Any]:
    """Everything the templates show, as text."""
    rows = summary.rows
    sections = model_sections(config.trials, config.tasks, config.suites, rows, summary.suites)
    for section in sections:
        own = [trial for trial in config.trials if trial.model == section["model"]]
        section["chart"] = forest_chart(config.tasks, own, rows)
    return {
        "title": config.title,
        "headline": summary.headline,
        "sentences": summary.sentences,
        "most_sentences": MOST_SENTENCES,
        "sections": sections,
        "failures": lacking(config.failures),
        "gates": gates(config.trials, inputs),
        "drifts": drifts(config.trials, inputs),
        "notes": notes(config.trials, comparisons, rows),
        "statistics": statistics_facts(comparisons)
        | explained(planned(rows, config.failures), config.suites, confidence_of(list(comparisons.values()))),
        "settings": settings(config.trials, comparisons),
        "sources": sources(inputs),
        "costs": costs_view(config.costs),
        "missing": MISSING,
        "legend": LEGEND,
    }
