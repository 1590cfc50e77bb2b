"""Look up what a plan must know of the world before it can be pure: digests of local bytes, sizes of tasks."""

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from importlib import metadata
from pathlib import Path

from pipeline.config.schema import Config, DataConfig, ModelConfig, Weights
from pipeline.config.sweep import Trial
from pipeline.errors import UserError
from pipeline.planning.data_sources import Sources
from pipeline.planning.devices import Device, check_workloads, device_of
from pipeline.planning.kernels_asked import versions
from pipeline.planning.local_models import check_positions, describe_local, sizes_of
from pipeline.planning.published import Published, published_of
from pipeline.planning.recipe_layers import check_recipe_layers
from pipeline.planning.remembered import cached, stamps
from pipeline.planning.task_catalog import ask_catalog
from pipeline.planning.task_facts import TaskFacts, task_facts, task_key
from stages.checkpoints.chat import stored_template, template_variables
from stages.checkpoints.description import ModelDescription
from stages.checkpoints.sizes import ModelSizes
from stages.evaluate.config import EngineConfig
from stages.fetch import DatasetSource
from stages.local_files import digest_files, digest_tree


@dataclass(frozen=True, slots=True)
class Facts:
    """Everything the plan knows beyond the configs."""

    tasks: Mapping[str, TaskFacts]  # by ``task_key``
    models: Mapping[str, ModelConfig]  # by name, with digests filled in
    datasets: Mapping[str, DatasetSource] = field(default_factory=dict)  # by hub id: those read as text
    devices: Mapping[str, Device] = field(default_factory=dict)  # by the name of their gpu config
    samples: Mapping[str, str] = field(default_factory=dict)  # digests of recorded answers, by directory
    sizes: Mapping[str, ModelSizes] = field(default_factory=dict)  # by name of the model; those that are not known lack
    published: Mapping[str, Published] = field(default_factory=dict)  # by ``published_key``
    vllm: Mapping[bool, str] = field(default_factory=versions)  # its version on CPUs, and on GPUs

    def engine(self, config: EngineConfig) -> EngineConfig:
        """``config`` with what makes its recorded answers those and no others."""
        if not config.is_recorded:
            return config
        directory = str(Path(str(config.samples)).resolve())
        return replace(config, samples=directory, samples_digest=self.samples[directory])


def resolve(trials: Iterable[Trial], cache_dir: Path | None) -> Facts:
    """Facts of all trials, remembered in ``cache_dir``.  Local files only; raises UserError for what is not there."""
    configs = [trial.config for trial in trials]
    for config in configs:
        _check_has_work(config)
        _check_suites(config)
        if config.tasks and (unknown := config.engine.unknown_argument) is not None:  # a server alone may take more
            raise UserError(unknown)
    data = configs[0].data
    _check_data(data)
    tasks = {task_key(task): task for config in configs for task in config.tasks.values()}
    sources = Sources(data)
    with ThreadPoolExecutor(1) as beside:
        catalog = beside.submit(ask_catalog, tasks, data, cache_dir)  # answers while bytes are digested here
        named = {model.name: model for config in configs for model in config.models}
        loaded = _loaded(configs)
        for config in configs:
            _check_template_kwargs(config, config.model)
        described = {name: describe_local(model, cache_dir, name in loaded) for name, model in named.items()}
        check_positions(configs, described)
        published = published_of(configs, described, cache_dir)
        models = {name: _model(model, cache_dir, described[name]) for name, model in named.items()}
        check_recipe_layers(configs)
        datasets = _texts(configs, sources)
        for task in tasks.values():
            for repo_id, revision in task.datasets.items():
                sources.get(repo_id, revision)
        devices = {config.gpu.name: device_of(config) for config in configs if config.workloads}
        samples = _samples(configs, cache_dir)
        sizes = {name: found for name, model in models.items() if (found := sizes_of(model, described[name]))}
        asked = task_facts(tasks, sources, catalog.result(), cache_dir)
        return Facts(asked, models, datasets, devices, samples, sizes, published)


def _texts(configs: Iterable[Config], sources: Sources) -> dict[str, DatasetSource]:
    """The data sets that are read as text, to calibrate on or to compare on."""
    texts = [text for config in configs for text in (config.calibration, config.drift.text) if text is not None]
    return {
        source.repo_id: sources.get(source.repo_id, source.revision)
        for source in (text.dataset for text in texts)
        if source is not None
    }


def _check_template_kwargs(config: Config, model: ModelConfig) -> None:
    """Of a model that lies here: what its chat template does not read would change nothing."""
    asked = {slot: task.chat_template_kwargs for slot, task in config.tasks.items() if task.chat_template_kwargs}
    if not asked or model.source.path is None:
        return
    try:
        template = stored_template(Path(model.source.path))
        read = None if template is None else template_variables(template)
    except Exception:  # the tokenizer itself says that better, when it is loaded
        return
    for slot, given in asked.items():
        if read is not None and (unread := sorted(given.keys() - read)):
            raise UserError(
                f"tasks.{slot}.chat_template_kwargs: the chat template of {model.name} reads no {unread[0]!r}; it "
                f"reads {', '.join(sorted(read))}"
            )


def _check_suites(config: Config) -> None:
    for name, suite in config.suites.items():
        if unknown := [task for task in suite.tasks if task not in config.tasks]:
            raise UserError(
                f"suites.{name} names {', '.join(unknown)}, but the sweep's tasks are {', '.join(config.tasks)}: add "
                f"the task, or take it out of suites.{name}.tasks"
            )
        try:
            suite.check(f"suites.{name}")
        except ValueError as error:
            raise UserError(str(error)) from None
        raw = [task for task in suite.tasks if not config.tasks[task].is_normalized]
        if suite.normalized and raw:
            raise UserError(
                f"suites.{name} averages normalized scores, but {', '.join(raw)} says not what guessing scores: give "
                "the task a random_baseline or leaf_baselines"
            )


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


def _check_data(data: DataConfig) -> None:
    for name, path in [("data.mirror", data.mirror), *(("data.task_paths", path) for path in data.task_paths)]:
        if path is not None and not Path(path).is_dir():
            raise UserError(f"{name}={path} is not a directory: give the path of an existing one")


def _loaded(configs: Iterable[Config]) -> set[str]:
    """The models whose weights are needed here."""
    return {config.model.name for config in configs if config.loads_model}


def _samples(configs: Iterable[Config], cache_dir: Path | None) -> dict[str, str]:
    """Digests of the directories of recorded answers."""
    return {
        str(path): cached(cache_dir, ["samples", str(path), stamps(path)], partial(digest_files, [str(path)]))
        for path in dict.fromkeys(samples_of(config.engine) for config in configs if config.engine.is_recorded)
    }


def samples_of(engine: EngineConfig) -> Path:
    """Where recorded answers lie.  Raises UserError where they do not."""
    if (lacking := engine.lacking_samples) is not None:
        raise UserError(lacking)
    path = Path(str(engine.samples)).resolve()
    if not path.is_dir() or not any(file.is_file() for file in path.rglob("*")):
        raise UserError(f"engine.samples={engine.samples} is no directory with files in it: give lm_eval's output_path")
    return path


def _model(model: ModelConfig, cache_dir: Path | None, described: ModelDescription | None) -> ModelConfig:
    """With the digest of its bytes, and notes of what is unusual about them."""
    source = model.source
    if model.weights is Weights.dummy:
        return model
    if source.package is not None:
        _check_package(model)
    if source.path is None:
        return model
    path = Path(source.path).resolve()
    digest = cached(cache_dir, ["tree", str(path), stamps(path)], lambda: digest_tree(path))
    notes = [*filter(None, [model.note]), *(described.notes if described else [])]
    return replace(model, source=replace(source, path=str(path), digest=digest), note=" ".join(notes) or None)


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
