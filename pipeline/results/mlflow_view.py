"""A view of an experiment's runs in MLflow's pages: the columns that matter, the trials in order, recoveries as bars.

MLflow keeps a view that is shared as a tag of the experiment, and its addresses name one.
"""

import json
from collections.abc import Sequence

VIEW = "verdicts"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
DECISION, WHY, WORST_TASK = "decision", "why", "worst_task"
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
WORST, RANK = "verdict/worst_recovery", "verdict/rank"
# Pixels of columns. Beside the menu and MLflow's own first columns a window of 1,300 has room for some 650.
_WIDTHS = {
    "attributes.`Run Name`": 220,
    "runDateAndNestInfo": 90,
    f"tags.`{DECISION}`": 95,
    f"metrics.`{WORST}`": 130,
    f"tags.`{WORST_TASK}`": 110,
    f"tags.`{WHY}`": 300,
}
_NARROW = 150
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


def view_of(suites: Sequence[str], tasks: Sequence[str]) -> str:
    """The state of MLflow's page of runs; of very many tasks the first."""
    state = _state(suites, tasks)
    return state if len(state) <= _MAX_VIEW else view_of(suites[: len(suites) // 2], tasks[: len(tasks) // 2])


def _state(suites: Sequence[str], tasks: Sequence[str]) -> str:
    first = [f"tags.`{DECISION}`", f"metrics.`{WORST}`", f"tags.`{WORST_TASK}`", f"tags.`{WHY}`"]
    counted = [f"verdict/{name}" for name in COUNTS if name != "cells"]
    of_suites = [f"suite/{suite}/difference" for suite in suites]
    columns = [
        *first,
        *(f"metrics.`{name}`" for name in (*of_suites, *counted, *(f"recovery/{task}" for task in tasks))),
    ]
    charts = [
        *(_chart("verdicts", name) for name in (WORST, *counted[:1])),
        *(_chart("suites", f"suite/{suite}/{number}") for suite in suites for number in ("recovery", "difference")),
        *(_chart("recovery", f"recovery/{task}") for task in tasks),
    ]
    state = {
        "selectedColumns": columns,
        "columnOrder": ["runName", *columns],
        "columnWidths": {**dict.fromkeys(columns, _NARROW), **_WIDTHS},
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


def _chart(section: str, metric: str) -> dict[str, object]:
    kept = {"type": "BAR", "runsCountToCompare": 10, "deleted": False, "isGenerated": False}
    return {"uuid": metric, "metricSectionId": section, "metricKey": metric, **kept}
