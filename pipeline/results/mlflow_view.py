"""A view of an experiment's runs in MLflow's pages: the columns that matter, the trials in order, differences as bars.

MLflow keeps a view that is shared as a tag of the experiment, and its addresses name one.
"""

import json
from collections.abc import Sequence

VIEW = "verdicts"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
DECISION, WHY, LEANING, WORST_TASK = "decision", "why", "leaning", "worst_task"
# Metrics of a run's verdicts, by what of a trial's verdict they are.
COUNTS = {
    "cells": "num_cells",
    "degraded_confirmed": "num_confirmed_degraded",
    "degraded": "num_degraded",
    "improved_confirmed": "num_confirmed_improved",
    "improved": "num_improved",
    "equivalent": "num_equivalent",
    "inconclusive": "num_inconclusive",
}
WORST, WORST_POINTS, RANK = "verdict/worst_recovery", "verdict/worst_points", "verdict/rank"
# Pixels of columns; MLflow heeds those of columns that it finds in the order, too. Beside the menu and the first two a
# window of 1,300 has room for some 775, with its assistant open for 345.
_WIDTHS = {
    "attributes.`Run Name`": 240,
    "runDateAndNestInfo": 45,  # when, of which the mark says enough
    f"tags.`{DECISION}`": 105,
    f"tags.`{WHY}`": 520,
    f"tags.`{LEANING}`": 230,
    f"tags.`{WORST_TASK}`": 110,
}
_NARROW, _OF_A_LETTER, _AROUND = 90, 7, 34  # pixels that a heading needs
_MAX_VIEW = 19_000  # characters; MLflow takes 20,000


# Without these words a page of MLflow's stands in its menu for agents, and an experiment opens on their usage; no tag
# of an experiment says it (in MLflow 3.17), nor does its page remember it.
_OF_RUNS = "workflowType=machine_learning"


def address(experiment_id: str) -> str:
    """Of an experiment's runs, behind MLflow's host."""
    return f"#/experiments/{experiment_id}/runs?{_OF_RUNS}&viewStateShareKey={VIEW}"


def run_address(experiment_id: str, run_id: str, artifact: str = "") -> str:
    """Of a run, or of one of its artifacts."""
    place = f"/artifacts/{artifact}" if artifact else ""
    return f"#/experiments/{experiment_id}/runs/{run_id}{place}?{_OF_RUNS}"


def points_name(task: str) -> str:
    """Of the metric that has a task's difference in points."""
    return f"{task}/points"


def mean_points_name(suite: str) -> str:
    """Of the metric that has a suite's; a task may be called as a suite."""
    return f"{suite}/mean_points"


def run_name(trial: str) -> str:
    """Of a trial's run, as MLflow's narrow columns cut it at the end: the format before the model."""
    model, _, rest = trial.partition("/")
    return f"{rest} · {model}" if rest else model


def view_of(suites: Sequence[str], tasks: Sequence[str]) -> str:
    """The state of MLflow's page of runs; of very many tasks the first."""
    state = _state(suites, tasks)
    return state if len(state) <= _MAX_VIEW else view_of(suites[: len(suites) // 2], tasks[: len(tasks) // 2])


def _state(suites: Sequence[str], tasks: Sequence[str]) -> str:
    first = [f"tags.`{DECISION}`", f"tags.`{WHY}`", f"tags.`{LEANING}`", f"tags.`{WORST_TASK}`"]
    counted = [f"verdict/{name}" for name in COUNTS if name != "cells"]
    of_suites = [mean_points_name(suite) for suite in suites]
    shown = [WORST_POINTS, *of_suites, *counted, *(f"recovery/{task}" for task in tasks)]
    columns = [*first, *(f"metrics.`{name}`" for name in shown)]
    # A title is its metric's name, cut after some fifteen letters: what differs stands first in it.
    charts = [
        *(_chart("suites: points of difference", name) for name in of_suites),
        *(_chart("tasks: confirmed degraded, inconclusive", name) for name in (counted[0], counted[-1])),
        *(_chart("tasks: points of difference", points_name(task)) for task in tasks),
        *(_chart("recovery", name) for name in (WORST, *(f"recovery/{task}" for task in tasks))),
    ]
    state = {
        "selectedColumns": columns,
        "columnOrder": [*list(_WIDTHS)[:2], *columns],
        "columnWidths": {**{f"metrics.`{name}`": _width(name) for name in shown}, **_WIDTHS},
        "orderByKey": f"metrics.`{RANK}`",
        "orderByAsc": True,
        "runsHiddenMode": "FIRST_20_RUNS",  # in charts
        "isAccordionReordered": True,  # or MLflow sorts them among the sections that it makes itself
        "compareRunSections": [_section(name) for name in dict.fromkeys(each["metricSectionId"] for each in charts)],
        "compareRunCharts": charts,
    }
    return json.dumps(state, sort_keys=True)


def _section(name: object) -> dict[str, object]:
    return {"uuid": name, "name": name, "display": True, "isReordered": False, "deleted": False, "isGenerated": False}


def _width(heading: str) -> int:
    return max(_NARROW, _OF_A_LETTER * len(heading) + _AROUND)


def _chart(section: str, metric: str) -> dict[str, object]:
    kept = {"type": "BAR", "runsCountToCompare": 20, "deleted": False, "isGenerated": False}
    return {"uuid": metric, "metricSectionId": section, "metricKey": metric, **kept}
