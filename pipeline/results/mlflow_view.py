"""A view of an experiment's runs in MLflow's pages: the columns that matter, the trials in order, recoveries as bars.

MLflow keeps a view that is shared as a tag of the experiment, and its addresses name one.
"""

import json
from collections.abc import Sequence

VIEW = "verdicts"
VIEW_TAG = f"mlflow.sharedViewState.{VIEW}"
DECISION, WHY = "decision", "why"
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
WORST = "verdict/worst_recovery"
_WIDE, _NARROW = 300, 150  # pixels of a column
_MAX_VIEW = 19_000  # characters; MLflow takes 20,000


def address(experiment_id: str) -> str:
    """Of an experiment's runs, behind MLflow's host: without these words it opens on the usage of agents."""
    return f"#/experiments/{experiment_id}/runs?workflowType=machine_learning&viewStateShareKey={VIEW}"


def view_of(suites: Sequence[str], tasks: Sequence[str]) -> str:
    """The state of MLflow's page of runs; of very many tasks the first."""
    state = _state(suites, tasks)
    return state if len(state) <= _MAX_VIEW else view_of(suites[: len(suites) // 2], tasks[: len(tasks) // 2])


def _state(suites: Sequence[str], tasks: Sequence[str]) -> str:
    tags = [f"tags.`{name}`" for name in ("recipe", DECISION, WHY)]
    counted = [f"verdict/{name}" for name in COUNTS if name != "cells"]
    of_suites = [f"suite/{suite}/difference" for suite in suites]
    metrics = [f"metrics.`{name}`" for name in (WORST, *of_suites, *counted, *(f"recovery/{task}" for task in tasks))]
    charts = [
        *(_chart("verdicts", name) for name in (WORST, *counted[:1])),
        *(_chart("suites", f"suite/{suite}/{number}") for suite in suites for number in ("recovery", "difference")),
        *(_chart("recovery", f"recovery/{task}") for task in tasks),
    ]
    state = {
        "selectedColumns": [*tags, *metrics],
        "columnOrder": ["runName", *tags, *metrics],
        "columnWidths": {**dict.fromkeys([*tags, *metrics], _NARROW), tags[-1]: _WIDE},
        "orderByKey": f"metrics.`{WORST}`",
        "orderByAsc": False,
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
