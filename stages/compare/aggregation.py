"""How a metric's values become one score: a mean here, anything else through lm-eval's own aggregation functions."""

import importlib.util
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from stages.errors import ConfigError

Aggregate = Callable[[list[Any]], float]


def is_mean(aggregation: Mapping[str, str]) -> bool:
    """Whether NumPy's mean is the aggregation; only then are values plain numbers for certain."""
    return aggregation.get("name") == "mean"


def aggregation_label(aggregation: Mapping[str, str]) -> str:
    """One word for tables: lm-eval's registered name, or ``<file>:<function>`` of the task."""
    return aggregation.get("name") or f"{aggregation['file']}:{aggregation['function']}"


def load_aggregation(aggregation: Mapping[str, str], include_paths: Iterable[str]) -> Aggregate:
    """lm-eval's function of that name, or the task's own function from its file. Raises ConfigError if there is none.

    A file is looked for in ``include_paths`` first, as lm-eval itself does, then in lm-eval's and our tasks.
    """
    if "name" in aggregation:
        return _registered(aggregation["name"])
    folders = [*map(Path, include_paths), *_packaged_task_folders()]
    for path in (folder / aggregation["file"] for folder in folders):
        if path.is_file():
            return _function_of(path, aggregation["function"])
    raise ConfigError(f"aggregation {aggregation_label(aggregation)} is not found; add its folder to include_paths")


def _registered(name: str) -> Aggregate:
    import lm_eval.api.metrics  # noqa: F401  (fills the registry)
    from lm_eval.api.registry import get_aggregation

    function: Aggregate | None = get_aggregation(name)
    if function is None:
        raise ConfigError(f"lm-eval has no aggregation {name!r}; use a registered name in the task's metric_list")
    return function


def _packaged_task_folders() -> list[Path]:
    spec = importlib.util.find_spec("lm_eval")
    lm_eval = [Path(location) / "tasks" for location in (spec and spec.submodule_search_locations) or []]
    return [*lm_eval, Path(__file__).parents[1] / "tasks"]


def _function_of(path: Path, function: str) -> Aggregate:
    spec = importlib.util.spec_from_file_location(f"aggregation_of_{path.parent.name}_{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    with _no_downloads():
        spec.loader.exec_module(module)
    loaded: Aggregate = getattr(module, function)
    return loaded


@contextmanager
def _no_downloads() -> Iterator[None]:
    """Import a task's file as lm-eval does on all ranks but the first.

    On the first, IFEval's fetches a tokenizer from the network (25 s until it gives up), which no aggregation needs.
    """
    rank = os.environ.get("LOCAL_RANK")
    os.environ["LOCAL_RANK"] = "1"
    try:
        yield
    finally:
        del os.environ["LOCAL_RANK"]
        os.environ |= {} if rank is None else {"LOCAL_RANK": rank}
