"""What lm-eval's tasks are, before anything runs: members, data sets, sizes, metrics.

    echo '{"tasks": {"one": ["mmlu", {}, true]}, "include_paths": [], "mirror": null}' \\
        | python -m stages.evaluate.catalog

writes ``{"one": facts}`` as JSON; what is asked for stands under a label of its own (see ``describe``).
Facts come from the YAML files; only to count documents is data read, from the mirror or made by the task itself.
Nothing reaches for the network.
"""

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.errors import ConfigError, DataError
from stages.evaluate.catalog_rows import Rows, hub_ids
from stages.evaluate.gen_kwargs import DEFAULT_MAX_TOKENS, LENGTH_NAMES, is_sampled
from stages.evaluate.refusals import refusal
from stages.evaluate.task_files import Lookups, home_of, is_told_by_version, task_files
from stages.evaluate.task_identity import identities
from stages.evaluate.task_index import FunctionRef, Index, build_index, expand, folders_of, task_roots
from stages.local_files import found

_DEFAULT_METRICS = {  # lm-eval's, of tasks without a metric_list
    "loglikelihood": ["perplexity", "acc"],
    "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    "multiple_choice": ["acc", "acc_norm"],
    "generate_until": ["exact_match"],
}


def describe(
    tasks: Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any], bool]],
    include_paths: Sequence[str] = (),
    mirror: Path | None = None,
    leave_out: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Facts of every named task, group or tag, or ``{"error": one line}``.

    ``tasks``: names, or by any label a name, settings to lay over each of its leaves, and whether to count documents.
    ``leaves`` in lm-eval's order and, by leaf, ``num_docs`` (null without the data at hand, or with data that does
    not fit), ``num_examples`` to draw few-shot examples from (null where files do not say), ``datasets`` (hub ids),
    ``versions``, ``output_type``, ``output_tokens`` (the most of an answer), ``is_sampled``, ``repeats``,
    ``num_fewshot``, ``metrics``, whether the task ``reports_others`` than these, ``overrides`` (settings that a group
    lays over its members), ``homes`` (folders of tasks that lm-eval does not bring), ``reads`` (other local files
    that it depends on: ``task_files``, which also says what ``leave_out`` is), ``identities`` (``task_identity``) and
    ``refused``, of those that cannot be evaluated here, why. ``lookups`` and ``place`` are what ``reads`` rests on;
    ``weight_by_size`` of a group's mean and its ``group_metric``, null unless the group names one that each of its
    leaves lists.
    """
    index = build_index(include_paths)
    with TemporaryDirectory(prefix="catalog_") as rows_dir:
        rows = Rows(include_paths, mirror, Path(rows_dir))
        asked = tasks if isinstance(tasks, Mapping) else {name: (name, {}, True) for name in tasks}
        look = _Looker(index, task_roots(include_paths), leave_out)
        return {label: _facts(index, rows, look, *of_task) for label, of_task in asked.items()}


class _Looker:
    """What files a leaf depends on, and what speaks against it."""

    def __init__(self, index: Index, roots: Sequence[Path], leave_out: Path | None) -> None:
        self._index = index
        self._roots = roots
        self._leave_out = leave_out
        self._folders = {folder for folder in folders_of(index) if not is_told_by_version(folder)}

    def homes(self, leaves: Sequence[str]) -> dict[str, str]:
        homes = {leaf: home_of(self._index[leaf]) for leaf in leaves}
        return {leaf: str(home) for leaf, home in homes.items() if home is not None}

    def reads(self, leaf: str, config: Mapping[str, Any], lookups: Lookups) -> list[str]:
        return task_files(self._index[leaf], config, self._roots, self._folders, self._leave_out, lookups)

    def identities(self, leaf: str, overrides: Mapping[str, Any], reads: Sequence[str]) -> dict[str, Any]:
        return asdict(identities(self._index[leaf], overrides, reads))

    def refusal(self, leaf: str, config: Mapping[str, Any], reads: Sequence[str]) -> str | None:
        for name in reads:
            try:
                found(name)
            except DataError as error:
                return f"task {leaf}: {error}: put there what it reads, or correct where its settings look for it"
        return refusal(leaf, config, self._roots)


def _facts(
    index: Index, rows: Rows, look: _Looker, name: str, laid_over: Mapping[str, Any], counted: bool
) -> dict[str, Any]:
    if name not in index:
        near = difflib.get_close_matches(name, index, n=1)
        hint = f"did you mean {near[0]!r}?" if near else "tasks of your own are found with data.task_paths=[DIR]"
        return {"error": f"unknown task {name!r}: {hint}"}
    try:
        overrides = {leaf: {**changed, **laid_over} for leaf, changed in expand(index, name).items()}
        configs = {leaf: {**index[leaf].config, **changed} for leaf, changed in overrides.items()}
        lookups = Lookups()
        reads = {leaf: look.reads(leaf, config, lookups) for leaf, config in configs.items()}
        refused = {leaf: look.refusal(leaf, config, reads[leaf]) for leaf, config in configs.items()}
        num_docs = dict.fromkeys(configs)
        for leaf in (leaf for leaf in configs if counted and refused[leaf] is None):
            try:
                num_docs[leaf] = _num_docs(rows, leaf, configs[leaf], overrides[leaf], reads[leaf])
            except ConfigError as error:
                refused[leaf] = str(error)
    except (ConfigError, DataError) as error:
        return {"error": str(error)}
    metrics = {leaf: _metrics(config) for leaf, config in configs.items()}
    aggregate = _aggregate(index[name].config)
    return {
        "leaves": list(configs),
        "weight_by_size": aggregate.get("weight_by_size", True) if aggregate else None,
        "datasets": {leaf: hub_ids(config) for leaf, config in configs.items()},
        "num_docs": num_docs,
        "num_examples": {leaf: rows.num_examples(leaf, config, overrides[leaf]) for leaf, config in configs.items()},
        "versions": {leaf: (config.get("metadata") or {}).get("version") for leaf, config in configs.items()},
        "output_type": {leaf: _output_type(config) for leaf, config in configs.items()},
        "output_tokens": {leaf: _output_tokens(config) for leaf, config in configs.items()},
        "is_sampled": {leaf: _is_sampled(config) for leaf, config in configs.items()},
        "repeats": {leaf: None if "class" in config else config.get("repeats", 1) for leaf, config in configs.items()},
        "num_fewshot": {leaf: config.get("num_fewshot") for leaf, config in configs.items()},
        "metrics": metrics,
        "reports_others": {leaf: _reports_others(config) for leaf, config in configs.items()},
        "overrides": {leaf: changed for leaf, changed in overrides.items() if changed},
        "group_metric": _group_metric(aggregate, list(metrics.values())),
        "homes": look.homes(list(configs)),
        "reads": {leaf: names for leaf, names in reads.items() if names},
        "identities": {
            leaf: look.identities(leaf, overrides[leaf], reads[leaf]) for leaf in configs if not refused[leaf]
        },
        "lookups": lookups.seen,
        "place": lookups.place,
        "refused": {leaf: line for leaf, line in refused.items() if line is not None},
    }


def _num_docs(
    rows: Rows, leaf: str, config: Mapping[str, Any], overrides: Mapping[str, Any], reads: Sequence[str]
) -> int | None:
    """Data sets that do not fit their task cost a sweep this leaf; a task that fails to make its rows is an error."""
    try:
        return rows.num_docs(leaf, config, overrides, reads)
    except DataError:
        if not hub_ids(config):
            raise
        return None


def _output_type(config: Mapping[str, Any]) -> str | None:
    return None if "class" in config else config.get("output_type", "generate_until")


def _output_tokens(config: Mapping[str, Any]) -> int | None:
    """The most that an answer may have, 0 where choices are scored; None where whole texts are, or a class knows."""
    if (kind := _output_type(config)) != "generate_until":
        return 0 if kind in ("multiple_choice", "loglikelihood") else None
    asked = config.get("generation_kwargs") or {}
    return next((int(asked[name]) for name in LENGTH_NAMES if name in asked), DEFAULT_MAX_TOKENS)


def _is_sampled(config: Mapping[str, Any]) -> bool | None:
    """Whether answers are drawn, by the task's own arguments; None where a class knows."""
    return None if "class" in config else bool(is_sampled(config.get("generation_kwargs") or {}))


def _metrics(config: Mapping[str, Any]) -> list[str]:
    """``<metric>,<filter>`` in the order of ``task.json``; empty for a Python class, whose metrics are its own."""
    if "class" in config:
        return []
    listed = [item["metric"] for item in config.get("metric_list") or []]
    names = [item.name if isinstance(item, FunctionRef) else item for item in listed]
    names = names or _DEFAULT_METRICS.get(str(_output_type(config)), [])
    filters = [item["name"] for item in config.get("filter_list") or []] or ["none"]
    return [f"{name},{chosen}" for chosen in filters for name in names]


def _reports_others(config: Mapping[str, Any]) -> bool:
    """Whether code of the task's, or a metric that gives several numbers, may report what is listed nowhere."""
    return "process_results" in config or _output_type(config) in (None, "generate_until")


def _aggregate(config: Mapping[str, Any]) -> dict[str, Any]:
    listed = config.get("aggregate_metric_list") or [{}]
    first = listed[0] if isinstance(listed, list) else listed
    return dict(first)


def _group_metric(aggregate: Mapping[str, Any], metrics: Sequence[Sequence[str]]) -> str | None:
    """The first that the group averages and every leaf has, under one of the filters it names if it names any."""
    filters = aggregate.get("filter_list") or []
    wanted = [f"{aggregate.get('metric')},{name}" for name in ([filters] if isinstance(filters, str) else filters)]
    fits = (
        name
        for name in next(iter(metrics), [])
        if (name in wanted or (not wanted and name.rpartition(",")[0] == aggregate.get("metric")))
        and all(name in others for others in metrics)
    )
    return next(fits, None)


def main() -> None:
    """Read the request from stdin, write the facts to stdout; what libraries print goes to stderr."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    mirror, leave_out = (Path(place) if place else None for place in (request.get("mirror"), request.get("leave_out")))
    facts = describe(request["tasks"], request.get("include_paths") or (), mirror, leave_out)
    with answers:
        json.dump(facts, answers)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
