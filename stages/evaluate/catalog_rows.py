"""How many documents and few-shot examples a task has: from the mirror's Parquet footers, or by loading the task."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from stages.errors import DataError
from stages.evaluate.declared_files import Splits, declared_files
from stages.evaluate.task_files import FILE_FORMATS, dataset_path
from stages.evaluate.task_index import task_roots

_MAKES_ROWS = ("process_docs", "class", "custom_dataset", "dataset_kwargs")  # what files hold is not what a task has


class Rows:
    """Counts rows; lm-eval is imported for the first task whose rows it must make itself."""

    def __init__(self, include_paths: Sequence[str], mirror: Path | None, rows_dir: Path) -> None:
        self._include_paths = include_paths
        self._mirror = mirror
        self._rows_dir = rows_dir
        self._declared: dict[Path, Mapping[str | None, Splits] | None] = {}
        self._files: dict[tuple[Path, str | None], Mapping[str, Any]] = {}
        self._num_examples: dict[str, int | None] = {}  # of loaded tasks

    def num_docs(
        self, leaf: str, config: Mapping[str, Any], overrides: Mapping[str, Any], reads: Sequence[str]
    ) -> int | None:
        """Documents of a leaf task; None without its data at hand.

        Raises DataError for data that does not fit it, ConfigError for a task that cannot run here.
        """
        folders = self._folders(config)
        if folders is None:
            return None
        rows = self._num_rows(config, folders, config.get("test_split") or config.get("validation_split"))
        return self._load(leaf, overrides, folders, reads) if rows is None else rows

    def num_examples(self, leaf: str, config: Mapping[str, Any], overrides: Mapping[str, Any]) -> int | None:
        """What few-shot examples of a document are drawn from; None where only a task that is not loaded could say."""
        if (key := _key(leaf, overrides)) in self._num_examples:
            return self._num_examples[key]
        folders = self._folders(config)
        chosen = config.get("fewshot_config") or {}
        split = chosen.get("split") or config.get("fewshot_split")
        if split is None and (samples := chosen.get("samples")) is not None:
            return len(samples) if isinstance(samples, list) else None
        split = split or config.get("training_split") or config.get("validation_split")
        if folders is None or split is None or chosen.get("fewshot_indices"):
            return None
        try:
            rows = self._num_rows(config, folders, split)
        except DataError:
            return None  # the evaluation will say so
        return None if rows is None else rows - (split == config.get("test_split"))  # without the document itself

    def _folders(self, config: Mapping[str, Any]) -> dict[str, Path] | None:
        folders = {name: self._mirror / name for name in hub_ids(config)} if self._mirror else {}
        is_whole = all(name in folders and folders[name].is_dir() for name in hub_ids(config))
        return folders if is_whole else None

    def _load(self, leaf: str, overrides: Mapping[str, Any], folders: Mapping[str, Path], reads: Sequence[str]) -> int:
        from stages.evaluate.harness import load_task, num_examples
        from stages.evaluate.metrics import metric_facts

        task = load_task(leaf, overrides, self._include_paths, folders, self._rows_dir, reads)
        metric_facts(task, task_roots(self._include_paths), ())
        self._num_examples[_key(leaf, overrides)] = num_examples(task)
        return len(task.eval_docs)

    def _num_rows(self, config: Mapping[str, Any], folders: Mapping[str, Path], split: str | None) -> int | None:
        """By the footers of the split's Parquet files (57 subjects of MMLU: 1 s); None if it is not that."""
        folder = next(iter(folders.values()), None)
        if folder is None or any(key in config for key in _MAKES_ROWS):
            return None
        import pyarrow.parquet as pq

        try:
            files = self._data_files(folder, config.get("dataset_name"))[str(split)]
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise DataError(f"task {config['task']}: its data in {folder.name} has no such part: {error}") from error
        if not all(str(file).endswith(".parquet") for file in files):
            return None
        num_rows: int = sum(pq.read_metadata(file).num_rows for file in files)
        return num_rows

    def _data_files(self, folder: Path, part: str | None) -> Mapping[str, Any]:
        if folder not in self._declared:
            self._declared[folder] = declared_files(folder)
        declared = self._declared[folder]
        if declared is not None and part in declared:
            return declared[part]
        import datasets

        if (folder, part) not in self._files:
            builder = datasets.load_dataset_builder(str(folder), part, cache_dir=str(self._rows_dir))
            self._files[folder, part] = builder.config.data_files
        return self._files[folder, part]


def _key(leaf: str, overrides: Mapping[str, Any]) -> str:
    return json.dumps([leaf, overrides], sort_keys=True, default=str)


def hub_ids(config: Mapping[str, Any]) -> list[str]:
    """The data sets that a leaf task reads."""
    path = dataset_path(config)
    if path is None or path in FILE_FORMATS or "custom_dataset" in config or Path(path).exists():
        return []
    return [path]
