"""Write a sweep's tables as Markdown, HTML and Parquet, with how every number was obtained."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from stages.compare.verdict import LEGEND, LOOKS
from stages.report.artifact import HTML, MARKDOWN, Row, SuiteMean, Summary, write_serving, write_summary
from stages.report.chart import recovery_chart
from stages.report.config import ReportConfig
from stages.report.costs import costs_view
from stages.report.methods import drifts, gates, notes, settings, sources, statistics_facts
from stages.report.numbers import MISSING
from stages.report.rows import Comparisons, read_comparisons, summary_rows
from stages.report.serving.view import serving_points, serving_view
from stages.report.steadiness import held_open
from stages.report.suites import confidence_of, suite_means, suite_notes
from stages.report.tables import model_sections, overview
from stages.report.verdicts import confirmed, explained, planned, trial_verdicts

VERSION = 10


def report(config: ReportConfig, inputs: Mapping[str, Path], out: Path) -> Mapping[str, float | None]:
    """Write ``report.md``, ``report.html`` (self-contained), ``summary.parquet`` and ``summary.json``.

    ``inputs`` are compare artifacts ``compare/<trial>/<task>``, gate artifacts ``gate/<trial>``, drift artifacts
    ``drift/<trial>`` and profile artifacts ``profile/<trial>/<workload>/<mode>``, which add ``serving.parquet`` and
    pictures; whatever is not there is reported as missing.  Returns how many cells of the table have a score.  Raises
    DataError if an artifact is damaged.
    """
    comparisons = read_comparisons(config.trials, config.tasks, inputs)
    cells = list(summary_rows(config.trials, config.tasks, config.failures, comparisons))
    cells = held_open(config.trials, cells, confidence_of(list(comparisons.values())))
    rows = confirmed(cells, config.failures)
    found = list(suite_means(config.trials, config.suites, rows, comparisons, config.data))
    suites = [mean for mean, _ in found]
    trials = trial_verdicts(config.trials, config.suites, planned(rows, config.failures), found, comparisons)
    write_summary(out, Summary(title=config.title, rows=rows, suites=suites, trials=trials))
    view = _view(config, inputs, comparisons, rows, suites) | {"serving": _serving(config, inputs, rows, out)}
    view["notes"] = list(dict.fromkeys([*view["notes"], *suite_notes(found)]))
    for name in (MARKDOWN, HTML):
        (out / name).write_text(_render(f"{name}.j2", view), encoding="utf-8")
    num_scored = sum(row["score"] is not None for row in rows)
    return {"num_cells": len(rows), "num_scored": num_scored, "num_failures": len(config.failures)}


def _serving(config: ReportConfig, inputs: Mapping[str, Path], rows: list[Row], out: Path) -> dict[str, Any] | None:
    """What the templates show of serving; its pictures and numbers are written beside the report."""
    if config.serving is None:
        return None
    from markupsafe import Markup

    view = serving_view(config.trials, config.serving, inputs, rows)
    for section in view["sections"]:
        for picture in section["charts"]:
            picture["file"] = f"{section['name']}-{picture['name']}.svg"
            text = _render("report_serving.svg.j2", {"chart": picture["chart"]})
            (out / picture["file"]).write_text(text, encoding="utf-8")
            picture["svg"] = Markup(text)
    write_serving(out, serving_points(config.trials, config.serving, inputs))
    return view


def _view(
    config: ReportConfig,
    inputs: Mapping[str, Path],
    comparisons: Comparisons,
    rows: list[Row],
    suites: list[SuiteMean],
) -> dict[str, Any]:
    """Everything the templates show, as text."""
    sections = model_sections(config.trials, config.tasks, config.suites, rows, suites)
    for section in sections:
        recipes = [trial.recipe for trial in config.trials if trial.model == section["model"]]
        of_model = [row for row in rows if row["model"] == section["model"]]
        section["chart"] = recovery_chart(config.tasks, recipes, of_model)
    return {
        "title": config.title,
        "suites": config.suites,
        "overview": overview(config.trials, rows, suites),
        "sections": sections,
        "failures": config.failures,
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
        "looks": LOOKS,
    }


def _render(name: str, view: Mapping[str, Any]) -> str:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=name.endswith((".html.j2", ".svg.j2")),
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters["cell"] = _markdown_cell
    return environment.get_template(name).render(view)


def _markdown_cell(text: object) -> str:
    """One cell of a Markdown table: no line break, no column break, no emphasis."""
    escaped = "".join(f"\\{character}" if character in "\\|*`<>" else character for character in str(text))
    return " ".join(escaped.split())
