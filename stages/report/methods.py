"""How the numbers were obtained: settings that all evaluations share, those that differ, sizes and notes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from stages.checkpoints.kernels import shown
from stages.compare.artifact import ComparisonFacts
from stages.evaluate.endpoint_config import SERVED
from stages.evaluate.recorded.artifact import IMPORTED
from stages.report.artifact import Row
from stages.report.cells import Table, plain
from stages.report.config import TrialRow
from stages.report.numbers import MISSING, count
from stages.report.rows import Comparisons, arithmetic_of


def statistics_facts(comparisons: Comparisons) -> dict[str, str]:
    """How the comparisons were made: confidence and verdicts; several values are listed."""
    known = [comparison.facts for comparison in comparisons.values()]
    return {
        "confidence": _listed(f"{100 * facts.confidence:g} %" for facts in known),
        "verdict_rule": " ".join(dict.fromkeys(facts.verdict_rule for facts in known)),
        "num_comparisons": count(sum(facts.headline.verdict is not None for facts in known)),
        "num_evaluations": count(sum(_num_documents(facts) for facts in known)),
    }


def settings(trials: Sequence[TrialRow], comparisons: Comparisons) -> dict[str, Table]:
    """Evaluation settings: of each task, and those ``common`` to all or to a model; none where nothing is compared."""
    models = {trial.name: trial.model for trial in trials}
    values: dict[str, dict[tuple[str, str], str]] = {}
    for (trial, task), comparison in comparisons.items():
        for field, text in _settings_of(comparison.facts).items():
            values.setdefault(field, {})[models[trial], task] = text
    common = {field: next(iter(cells.values())) for field, cells in values.items() if len(set(cells.values())) == 1}
    by_task = {field: _by(1, cells) for field, cells in values.items() if field not in common}
    columns = {field: found for field, found in by_task.items() if found is not None}
    rest = [field for field in by_task if field not in columns]
    names = ["task", "lm-eval task", "version", "documents", "of", "metric", "aggregation", *columns]
    by_model = [line for field in rest for line in _lines_by_model(field, values[field])]
    return {
        "tasks": plain(names, list(_tasks(comparisons, columns)), left={*names} - {"documents", "of"}),
        "common": plain(["setting", "value"], [*common.items(), *by_model], left=["value"]),
    }


def notes(trials: Sequence[TrialRow], comparisons: Comparisons, rows: Sequence[Row]) -> list[str]:
    """What the models' configs and the comparisons ask a reader to know."""
    of_models = [f"{trial.model}: {trial.notes}" for trial in trials if trial.notes]
    of_models += [f"{trial.name}: {caution}" for trial in trials for caution in trial.cautions]
    of_comparisons = [
        f"{trial}, {note}" for (trial, _), comparison in comparisons.items() for note in comparison.facts.notes
    ]
    of_ends = [f"{row['trial']}, {row['task']}: {row['note']}" for row in rows if row["note"]]
    of_engines = [
        *_arithmetics(comparisons),
        *_servers(comparisons),
        *_runs(comparisons),
        *_two_arithmetics(comparisons),
    ]
    return list(dict.fromkeys([*of_models, *of_engines, *of_ends, *of_comparisons]))


def _two_arithmetics(comparisons: Comparisons) -> Iterator[str]:
    """Of trials whose tasks were not all computed alike, which were how."""
    found: dict[str, dict[str, list[str]]] = {}
    for (trial, task), comparison in comparisons.items():
        if (arithmetic := arithmetic_of(comparison)) is not None:
            found.setdefault(trial, {}).setdefault(arithmetic, []).append(task)
    for trial, tasks in found.items():
        if len(tasks) > 1:
            parts = "; ".join(f"{_in_words(arithmetic)} for {', '.join(names)}" for arithmetic, names in tasks.items())
            yield f"{trial}: two arithmetics ({parts}), so its suites that hold both have no mean"


def _in_words(arithmetic: str) -> str:
    facts = json.loads(arithmetic)
    if facts["method"] == SERVED:
        return _server(facts)
    if facts["method"] == IMPORTED:
        return _run(facts)
    details = [shown(facts["kernels"], facts.get("effective"))] if facts.get("kernels") else [facts.get("weights")]
    return " ".join([facts["method"], *filter(None, details)])


def _server(arithmetic: Mapping[str, Any]) -> str:
    flags = ", ".join(f"{name}={_text(value)}" for name, value in sorted(arithmetic["flags"].items()))
    return f"{arithmetic['model']} ({flags or 'nothing was said of its flags'})"


def _run(arithmetic: Mapping[str, Any]) -> str:
    arguments = ", ".join(f"{name}={value}" for name, value in arithmetic["model_args"].items())
    return f"{arithmetic['model']} ({arguments or 'nothing is said of its arguments'})"


def _servers(comparisons: Comparisons) -> Iterator[str]:
    """Which trials were answered by servers that somebody else runs, and what was said of each."""
    for server, names in _trials_by(comparisons, SERVED, _server):
        yield f"{names}: answered by a server, {server}; what that computes with is not known here"


def _runs(comparisons: Comparisons) -> Iterator[str]:
    """Which trials' answers were brought in, and what their runs said of themselves."""
    for run, names in _trials_by(comparisons, IMPORTED, _run):
        yield (
            f"{names}: answers of an earlier run of lm-eval, {run}; how many tokens they have, and which of them were "
            "cut at the limit, is not known here"
        )


def _trials_by(
    comparisons: Comparisons, method: str, describe: Callable[[Mapping[str, Any]], str]
) -> Iterator[tuple[str, str]]:
    """Of the trials with an arithmetic of that method its description, and their names."""
    trials: dict[str, dict[str, None]] = {}
    for (trial, _), comparison in comparisons.items():
        for leaf in filter(None, comparison.facts.leaves.values()):
            if leaf.arithmetic is not None and leaf.arithmetic["method"] == method:
                trials.setdefault(describe(leaf.arithmetic), {})[trial] = None
    yield from ((described, ", ".join(names)) for described, names in trials.items())


def _arithmetics(comparisons: Comparisons) -> Iterator[str]:
    """Which trials' formats are simulated, and which beside them are computed by kernels of their own."""
    trials: dict[str, dict[str, None]] = {}
    for (trial, _), comparison in comparisons.items():
        for leaf in filter(None, comparison.facts.leaves.values()):
            arithmetic = leaf.arithmetic or {"method": "unknown"}
            kinds = [each["kind"] for each in arithmetic.get("inputs", ())]
            rounded = f" and inputs rounded to {' and '.join(kinds)}" if kinds else ""
            trials.setdefault(arithmetic["method"] + rounded, {})[trial] = None
    simulated = {method: names for method, names in trials.items() if method.startswith("simulated")}
    native = ", ".join(trials.get("native", ()))
    for method, names in simulated.items():
        rounded = method.removeprefix("simulated")
        yield f"{', '.join(names)}: simulated with dense products of dequantized weights{rounded}"
    if simulated and native:
        yield (
            f"{native}: computed by kernels of the format, beside simulated trials in the same tables; a difference "
            "between the two is of arithmetic as well as of format"
        )


def _settings_of(facts: ComparisonFacts) -> dict[str, str]:
    leaves = [leaf.comparable for leaf in facts.leaves.values() if leaf]
    fields = dict.fromkeys(field for leaf in leaves for field in leaf)
    return {field: _listed(_text(leaf.get(field)) for leaf in leaves) for field in fields}


def _tasks(comparisons: Comparisons, columns: Mapping[str, Mapping[str, str]]) -> Iterator[list[str]]:
    for task in dict.fromkeys(task for _, task in comparisons):
        known = [comparison.facts for (_, name), comparison in comparisons.items() if name == task]
        leaves = [leaf for leaf in known[0].leaves.values() if leaf]
        yield [
            task,
            _leaves(known[0]),
            _listed(_text(leaf.version) for leaf in leaves),
            _listed(count(_num_documents(facts)) for facts in known),
            count(sum(leaf.num_docs for leaf in leaves)),
            _listed(facts.metric or MISSING for facts in known),
            _listed(_aggregation(facts) for facts in known),
            *(found.get(task, MISSING) for found in columns.values()),
        ]


def _leaves(facts: ComparisonFacts) -> str:
    names = list(facts.leaves)
    return names[0] if len(names) == 1 else f"{len(names)} leaves: {names[0]} … {names[-1]}"


def _aggregation(facts: ComparisonFacts) -> str:
    if facts.metric is None:
        return MISSING
    of_leaf = str(facts.headline.aggregation)
    if len(facts.leaves) == 1:
        return of_leaf
    weights = "weighted by size" if facts.weight_by_size else "plain mean of leaves"
    return f"{of_leaf}, {weights}"


def _num_documents(facts: ComparisonFacts) -> int:
    return sum(leaf.num_documents for leaf in facts.leaves.values() if leaf)


def _by(position: int, cells: Mapping[tuple[str, str], str]) -> dict[str, str] | None:
    """The value for each task (position 1) or model (position 0); None if it depends on the other as well."""
    found: dict[str, str] = {}
    for cell, text in cells.items():
        if found.setdefault(cell[position], text) != text:
            return None
    return found


def _lines_by_model(field: str, cells: Mapping[tuple[str, str], str]) -> Iterator[tuple[str, str]]:
    by_model = _by(0, cells)
    if by_model is None:
        by_model = {f"{model}, {task}": text for (model, task), text in cells.items()}
    yield from ((f"{field} ({where})", text) for where, text in by_model.items())


def _listed(texts: Iterator[str]) -> str:
    return ", ".join(dict.fromkeys(texts)) or MISSING


def _text(value: Any) -> str:
    return value if isinstance(value, str) else "none" if value is None else json.dumps(value, sort_keys=True)
