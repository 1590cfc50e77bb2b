"""What lm-eval's tasks are, before anything runs: members, data sets, sizes, metrics.

    echo '{"tasks": {"one": ["mmlu", {}]}, "include_paths": [], "mirror": null}' | python -m stages.catalog

writes ``{"one": facts}`` as JSON; asked for by a label are a name of lm-eval and settings to lay over its leaves.
Facts come from the YAML files; only to count documents is data read, from the mirror or made by the task itself.
Nothing reaches for the network.
"""

import difflib
import json
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from stages.errors import ConfigError, DataError
from stages.task_index import FunctionRef, Index, build_index, expand

_FILE_FORMATS = {"arrow", "csv", "json", "pandas", "parquet", "text", "webdataset", "xml"}  # no hub ids
_DEFAULT_METRICS = {  # lm-eval's, of tasks without a metric_list
    "loglikelihood": ["perplexity", "acc"],
    "loglikelihood_rolling": ["word_perplexity", "byte_perplexity", "bits_per_byte"],
    "multiple_choice": ["acc", "acc_norm"],
    "generate_until": ["exact_match"],
}


def describe(
    tasks: Sequence[str] | Mapping[str, tuple[str, Mapping[str, Any]]],
    include_paths: Sequence[str] = (),
    mirror: Path | None = None,
) -> dict[str, dict[str, Any]]:
    """Facts of every named task, group or tag, or ``{"error": one line}``.

    ``tasks``: names, or by any label a name and the settings to lay over each of its leaves.
    ``leaves`` in lm-eval's order and, by leaf, ``num_docs`` (null without the data at hand), ``datasets`` (hub ids),
    ``versions``, ``output_type``, ``num_fewshot``, ``metrics`` and ``overrides`` (settings that a group lays over its
    members); ``weight_by_size`` of a group's mean and the ``primary_metric``.
    """
    index = build_index(include_paths)
    with TemporaryDirectory(prefix="catalog_") as rows_dir:
        count = _Counter(include_paths, mirror, Path(rows_dir))
        asked = tasks if isinstance(tasks, Mapping) else {name: (name, {}) for name in tasks}
        return {label: _facts(index, name, overrides, count) for label, (name, overrides) in asked.items()}


def _facts(index: Index, name: str, laid_over: Mapping[str, Any], count: "_Counter") -> dict[str, Any]:
    if name not in index:
        near = difflib.get_close_matches(name, index, n=1)
        return {"error": f"unknown task {name!r}" + (f": did you mean {near[0]!r}?" if near else "")}
    try:
        overrides = {leaf: {**changed, **laid_over} for leaf, changed in expand(index, name).items()}
        configs = {leaf: {**index[leaf].config, **changed} for leaf, changed in overrides.items()}
        num_docs = {leaf: count(leaf, configs[leaf], overrides[leaf]) for leaf in configs}
    except (ConfigError, DataError) as error:
        return {"error": str(error)}
    metrics = {leaf: _metrics(config) for leaf, config in configs.items()}
    aggregate = _aggregate(index[name].config)
    return {
        "leaves": list(configs),
        "weight_by_size": aggregate.get("weight_by_size", True) if aggregate else None,
        "datasets": {leaf: _hub_ids(config) for leaf, config in configs.items()},
        "num_docs": num_docs,
        "versions": {leaf: (config.get("metadata") or {}).get("version") for leaf, config in configs.items()},
        "output_type": {leaf: _output_type(config) for leaf, config in configs.items()},
        "num_fewshot": {leaf: config.get("num_fewshot") for leaf, config in configs.items()},
        "metrics": metrics,
        "overrides": {leaf: changed for leaf, changed in overrides.items() if changed},
        "primary_metric": _primary_metric(aggregate, next(iter(metrics.values()), [])),
    }


class _Counter:
    """Counts a leaf task's documents; lm-eval is imported for the first task whose rows it must make itself."""

    def __init__(self, include_paths: Sequence[str], mirror: Path | None, rows_dir: Path) -> None:
        self._include_paths = include_paths
        self._mirror = mirror
        self._rows_dir = rows_dir

    def __call__(self, leaf: str, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> int | None:
        folders = {name: self._mirror / name for name in _hub_ids(config)} if self._mirror else {}
        if any(not (name in folders and folders[name].is_dir()) for name in _hub_ids(config)):
            return None
        rows = _count_rows(config, next(iter(folders.values()), None), self._rows_dir)
        return self._load(leaf, overrides, folders) if rows is None else rows

    def _load(self, leaf: str, overrides: Mapping[str, Any], folders: Mapping[str, Path]) -> int | None:
        from stages.harness import load_task

        try:
            task = load_task(leaf, overrides, self._include_paths, folders, self._rows_dir)
        except ConfigError:
            return None  # a task that cannot run here still has members and metrics
        return len(task.eval_docs)


def _count_rows(config: Mapping[str, Any], folder: Path | None, rows_dir: Path) -> int | None:
    """Rows of the evaluated split by the footers of its Parquet files (57 subjects of MMLU: 1 s); None if not that."""
    if folder is None or any(key in config for key in ("process_docs", "class", "custom_dataset", "dataset_kwargs")):
        return None
    import datasets
    import pyarrow.parquet as pq

    try:
        builder = datasets.load_dataset_builder(str(folder), config.get("dataset_name"), cache_dir=str(rows_dir))
        files = builder.config.data_files[config.get("test_split") or config.get("validation_split")]
    except (ValueError, KeyError, TypeError, OSError) as error:
        raise DataError(f"task {config['task']}: its data in {folder.name} has no such part: {error}") from error
    if not all(str(file).endswith(".parquet") for file in files):
        return None
    num_rows: int = sum(pq.read_metadata(file).num_rows for file in files)
    return num_rows


def _hub_ids(config: Mapping[str, Any]) -> list[str]:
    if "class" in config:
        return _class_hub_ids(config["class"])
    path = config.get("dataset_path")
    if path is None or path in _FILE_FORMATS or "custom_dataset" in config or Path(path).exists():
        return []
    return [path]


def _class_hub_ids(reference: FunctionRef) -> list[str]:
    """``DATASET_PATH`` of a task that is a Python class, without importing it."""
    import ast

    tree = ast.parse(reference.file.read_text(encoding="utf-8"))
    assignments = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
    found = [
        node.value.value
        for node in assignments
        if isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        if any(isinstance(target, ast.Name) and target.id == "DATASET_PATH" for target in node.targets)
    ]
    return found[:1]


def _output_type(config: Mapping[str, Any]) -> str | None:
    return None if "class" in config else config.get("output_type", "generate_until")


def _metrics(config: Mapping[str, Any]) -> list[str]:
    """``<metric>,<filter>`` in the order of ``task.json``; empty for a Python class, whose metrics are its own."""
    if "class" in config:
        return []
    listed = [item["metric"] for item in config.get("metric_list") or []]
    names = [item.name if isinstance(item, FunctionRef) else item for item in listed]
    names = names or _DEFAULT_METRICS[str(_output_type(config))]
    filters = [item["name"] for item in config.get("filter_list") or []] or ["none"]
    return [f"{name},{chosen}" for chosen in filters for name in names]


def _aggregate(config: Mapping[str, Any]) -> dict[str, Any]:
    listed = config.get("aggregate_metric_list") or [{}]
    first = listed[0] if isinstance(listed, list) else listed
    return dict(first)


def _primary_metric(aggregate: Mapping[str, Any], metrics: Sequence[str]) -> str | None:
    """What the group averages, else the first metric of the first leaf."""
    filters = aggregate.get("filter_list") or []
    wanted = [f"{aggregate.get('metric')},{name}" for name in ([filters] if isinstance(filters, str) else filters)]
    fitting = [name for name in metrics if name in wanted or name.rpartition(",")[0] == aggregate.get("metric")]
    return next(iter([*fitting, *metrics]), None)


def main() -> None:
    """Read the request from stdin, write the facts to stdout; what libraries print goes to stderr."""
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    mirror = request.get("mirror")
    facts = describe(request["tasks"], request.get("include_paths") or (), Path(mirror) if mirror else None)
    with answers:
        json.dump(facts, answers)


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
