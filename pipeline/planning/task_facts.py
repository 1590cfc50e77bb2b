"""What a plan must know of its tasks: leaves, sizes, data sets, and what makes their prompts."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from pipeline.config.schema import DataConfig, TaskConfig
from pipeline.errors import UserError
from pipeline.planning.data_sources import Sources
from pipeline.planning.remembered import cached, stamps
from pipeline.steps.fingerprint import canonical_json, fingerprint
from stages.fetch import DatasetSource

_TASK_NAME = re.compile(r"^(?:task|group):\s*[\"']?([^\s\"'#]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a plan needs of a task slot."""

    leaves: Mapping[str, int]  # leaf task -> number of documents; 0: its data is missing or does not fit it
    datasets: tuple[DatasetSource, ...]
    weight_by_size: bool
    overrides: Mapping[str, Mapping[str, Any]]  # leaf task -> settings that the group lays over it
    harness: Mapping[str, str]  # leaf task -> what makes its prompts and metrics
    output_tokens: Mapping[str, int | None]  # leaf task -> the most an answer may have by the task itself, 0: choices
    metric: str | None = None  # that the group averages


def task_key(task: TaskConfig) -> str:
    """Of slots with the same key the same facts hold."""
    declared = [task.num_docs, task.datasets, task.weight_by_size, task.output_tokens]
    return canonical_json([task.task, task.leaves, declared, task.overrides, task.num_fewshot, task.metric])


def task_facts(
    tasks: Mapping[str, TaskConfig], data: DataConfig, sources: Sources, catalog: Mapping[str, Any]
) -> dict[str, TaskFacts]:
    """Facts by ``task_key``.  Raises UserError for tasks that do not exist or cannot be asked that way."""
    for known in catalog.values():
        if "error" in known:
            raise UserError(known["error"])
    harness = _Harness(data)
    facts = {key: _facts_of(task, catalog.get(key, {}), sources, harness) for key, task in tasks.items()}
    sources.check_some_at_hand([task.datasets for task in facts.values()])
    return facts


def _facts_of(task: TaskConfig, known: Mapping[str, Any], sources: Sources, harness: "_Harness") -> TaskFacts:
    num_docs: Mapping[str, int | None] = task.num_docs or known["num_docs"]
    leaves = task.leaves or list(num_docs)
    if strange := [leaf for leaf in leaves if leaf not in num_docs]:
        raise UserError(f"task {task.task} has no member {strange[0]!r}; its members: {', '.join(num_docs)[:300]}")
    _check_num_fewshot(task, leaves, known.get("num_examples", {}), known.get("num_fewshot", {}))
    _check_metric(task, leaves, known)
    uncounted = [leaf for leaf in leaves if num_docs[leaf] is None]
    if uncounted and not sources.is_mirrored:
        raise UserError(
            f"task {uncounted[0]}: its data is not at hand, so its documents cannot be counted: give data.mirror=DIR, "
            f"or declare num_docs and datasets in the task's config"
        )
    repo_ids: Mapping[str, str | None] = task.datasets or {
        repo_id: None for leaf in leaves for repo_id in known.get("datasets", {}).get(leaf, [])
    }
    weight = task.weight_by_size if task.weight_by_size is not None else known.get("weight_by_size")
    return TaskFacts(
        leaves={leaf: num_docs[leaf] or 0 for leaf in leaves},
        datasets=tuple(sources.get(repo_id, revision) for repo_id, revision in sorted(repo_ids.items())),
        weight_by_size=weight is not False,
        overrides={leaf: known.get("overrides", {}).get(leaf, task.overrides) for leaf in leaves},
        harness={leaf: harness.of(leaf) for leaf in leaves},
        metric=known.get("group_metric"),
        output_tokens={leaf: _output_tokens(task, known, leaf) for leaf in leaves},
    )


def _output_tokens(task: TaskConfig, known: Mapping[str, Any], leaf: str) -> int | None:
    looked_up: int | None = known.get("output_tokens", {}).get(leaf)
    return looked_up if task.output_tokens is None else task.output_tokens


def _check_num_fewshot(
    task: TaskConfig, leaves: Iterable[str], num_examples: Mapping[str, int | None], own: Mapping[str, int | None]
) -> None:
    for leaf in leaves:
        if task.num_fewshot and own.get(leaf) == 0:
            raise UserError(f"task {leaf} is fixed at 0 examples by lm-eval: leave num_fewshot={task.num_fewshot} out")
        pool = num_examples.get(leaf)
        if pool is not None and pool < (task.num_fewshot or 0):
            raise UserError(
                f"task {leaf} has {pool} examples to draw from, fewer than num_fewshot={task.num_fewshot}: lower it"
            )


def _check_metric(task: TaskConfig, leaves: Iterable[str], known: Mapping[str, Any]) -> None:
    """Of a task that may report more than it lists, the comparison alone can say that a metric is not there."""
    others = known.get("reports_others", {})
    for metrics in (known["metrics"][leaf] for leaf in leaves if not others.get(leaf, True)):
        if task.metric is not None and task.metric not in metrics:
            raise UserError(
                f"task {task.task} has no metric {task.metric!r}; it has {' and '.join(map(repr, metrics))}"
            )


def ask_catalog(tasks: Mapping[str, TaskConfig], data: DataConfig, cache_dir: Path | None) -> dict[str, Any]:
    """What lm-eval says of those tasks, by ``task_key``, that do not say enough themselves.

    A process of its own is asked: lm-eval's import takes seconds, and this process stays free of torch.
    """
    tasks = {key: task for key, task in tasks.items() if not task.num_docs or (data.mirror and task.num_fewshot)}
    if not tasks:
        return {}
    mirror = str(Path(data.mirror).resolve()) if data.mirror else None
    asked = {key: [task.task, task.overrides, not task.num_docs] for key, task in sorted(tasks.items())}
    request = {"tasks": asked, "include_paths": task_paths(data), "mirror": mirror}
    mirrorstamps = stamps(Path(mirror)) if mirror else []
    key = ["catalog 2", metadata.version("lm_eval"), request, mirrorstamps, [stamps(Path(p)) for p in task_paths(data)]]
    facts: dict[str, Any] = cached(cache_dir, key, lambda: answered_by_catalog(request))
    return facts


def answered_by_catalog(request: Mapping[str, Any]) -> dict[str, Any]:
    """What ``stages.evaluate.catalog`` writes, by label."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.evaluate.catalog"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        names = ", ".join(name for name, *_ in request["tasks"].values())
        raise UserError(f"lm-eval could not describe the tasks {names}: {last}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


def own_tasks_dir() -> Path:
    """The folder of the lm-eval tasks that this project brings."""
    return Path(str(resources.files("stages"))) / "tasks"


def task_paths(data: DataConfig) -> list[str]:
    """Folders of lm-eval tasks beside lm-eval's own."""
    return [str(own_tasks_dir()), *(str(Path(path).resolve()) for path in data.task_paths)]


class _Harness:
    """Names the code that makes prompts and metrics: lm-eval's version, and the digest of a task folder of our own."""

    def __init__(self, data: DataConfig) -> None:
        self._lm_eval = f"lm_eval-{metadata.version('lm_eval')}"
        self._folders = {
            name: yaml.parent
            for root in task_paths(data)
            for yaml in sorted(Path(root).rglob("*.yaml"))
            for name in _TASK_NAME.findall(yaml.read_text(encoding="utf-8"))
        }

    def of(self, leaf: str) -> str:
        folder = self._folders.get(leaf)
        return self._lm_eval if folder is None else f"{self._lm_eval}+{folder.name}-{_digest_sources(folder)[:12]}"


def _digest_sources(folder: Path) -> str:
    files = sorted(path for path in folder.iterdir() if path.is_file() and path.suffix != ".pyc")
    return fingerprint([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])
