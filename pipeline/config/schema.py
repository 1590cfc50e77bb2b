"""The typed config: what a composed ``conf/`` tree must fit.  Inert data; nothing here acts."""

import re
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING

from pipeline.config.execution import BudgetConfig, ClusterConfig, GcConfig, StoreConfig, TrackingConfig
from stages.calibrate import CalibrationConfig
from stages.checkpoints.shape import ModelShape
from stages.compare.config import CompareSettings, check_baselines
from stages.evaluate.config import EngineConfig, PromptConfig
from stages.fetch import ModelSource
from stages.fields import command, execution
from stages.gate.config import GateConfig
from stages.published import PublishedSource
from stages.quantize import RecipeConfig
from stages.report.config import GpuConfig, SloConfig, SuiteConfig
from stages.serving.config import ServerConfig, WorkloadConfig

_NAME = re.compile(r"[\w\- ][\w\-. ]*")
MAX_NAME = 150  # MLflow's keys have 250 characters, of which a metric's own name takes some


class Weights(Enum):
    """A model's own weights, or random ones of its shape: enough to measure speed, and nothing is downloaded."""

    stored = "stored"
    dummy = "dummy"


@dataclass(kw_only=True, slots=True)
class ModelConfig:
    """A model of a sweep.

    ``shape``, or ``size_gib`` of its weights where it is no dense decoder, lets a plan reason before any byte is
    fetched; ``note`` is shown with results.  ``published`` says where checkpoints lie that others have made of it, by
    the names that recipes choose them by.
    """

    name: str = MISSING
    source: ModelSource = MISSING
    weights: Weights = Weights.stored
    shape: ModelShape | None = None
    size_gib: float | None = None
    published: dict[str, PublishedSource] = field(default_factory=dict)
    note: str | None = None


class LimitOrder(Enum):
    """Whether ``limit`` takes a random sample of a leaf's documents, or the first of them."""

    random = "random"
    first = "first"


@dataclass(kw_only=True, slots=True)
class TaskConfig(PromptConfig):
    """One task slot: an lm-eval task or group by name, and how it is asked.

    ``num_docs`` (documents of each leaf task) and ``datasets`` (hub ids each leaf reads) may be declared so that a plan
    needs not the data; when absent they are looked up.  ``limit`` counts documents per leaf, as in lm-eval, but takes a
    random sample, drawn with ``limit_seed``, the same for all trials; ``limit_order: first`` takes those that lm-eval
    takes.  ``leaves`` selects some members of a group; ``overrides`` go over lm-eval's settings of each leaf, as
    those of a group do.  ``output_tokens``, for estimates of time: the most that an answer may have where no
    ``gen_kwargs`` say it, 0 for choices that are scored.  ``random_baseline`` (what guessing scores on the whole task)
    or ``leaf_baselines`` (on each leaf, whose normalized scores are then averaged) also give a normalized score.
    ``margin_points``, ``wide_margin_points`` and ``loss_margin_percent`` are the largest difference from the base that
    does not matter in this task; null: those of ``compare``.  ``cluster`` is a field of its documents, such as a story
    or a passage, whose questions belong together; ``num_clusters`` says how many there are, for what a plan foretells.
    ``pass_at`` and ``majority`` are of repeated answers, see ScoringConfig.
    """

    task: str = execution(MISSING)
    limit: int | None = execution(None)
    limit_order: LimitOrder = execution(LimitOrder.random)
    limit_seed: int = execution(0)
    leaves: list[str] | None = execution(None)
    overrides: dict[str, Any] = execution(factory=dict)
    metric: str | None = execution(None)
    num_docs: dict[str, int] = execution(factory=dict)
    datasets: dict[str, str | None] = execution(factory=dict)  # hub id -> revision; None: the newest when fetched
    weight_by_size: bool | None = execution(None)
    output_tokens: int | None = execution(None)
    pass_at: list[int] = execution(factory=list)
    majority: bool = execution(False)
    random_baseline: float | None = execution(None)
    leaf_baselines: dict[str, float] = execution(factory=dict)
    margin_points: float | None = execution(None)
    wide_margin_points: float | None = execution(None)
    loss_margin_percent: float | None = execution(None)
    cluster: str | None = execution(None)
    num_clusters: int | None = execution(None)
    shard_size: int = execution(1000)

    def __post_init__(self) -> None:
        try:
            PromptConfig.__post_init__(self)
        except ValueError as error:
            raise ValueError(f"task {self.task}: {error}") from None
        self._check_repeats()
        check_baselines(str(self.task), self.random_baseline, self.leaf_baselines)
        counted = ("limit", self.limit), ("shard_size", self.shard_size), ("num_clusters", self.num_clusters)
        for name, value in counted:
            if value is not None and value < 1:
                raise ValueError(f"task {self.task}: {name} must be at least 1; got {value}")
        if self.output_tokens is not None and self.output_tokens < 0:
            raise ValueError(f"task {self.task}: output_tokens must be 0 or more; got {self.output_tokens}")

    def _check_repeats(self) -> None:
        """What is asked of repeats must be there; a task's own number of them shows when it is loaded."""
        most = self.num_repeats
        if wrong := [k for k in self.pass_at if k < 1 or (most is not None and k > most)]:
            raise ValueError(
                f"task {self.task}: pass_at={wrong[0]} needs as many answers to a document, at least one; "
                f"num_repeats is {most}"
            )
        asked = "pass_at" if self.pass_at else "majority"
        if (self.pass_at or self.majority) and (self.harness_compat or most == 1):
            why = "harness_compat scores one" if self.harness_compat else "there is one"
            raise ValueError(f"task {self.task}: {asked} needs several answers to a document, and {why}: leave it out")

    @property
    def is_normalized(self) -> bool:
        """Whether it also has a score relative to guessing."""
        return self.random_baseline is not None or bool(self.leaf_baselines)


@dataclass(kw_only=True, slots=True)
class AdjustmentConfig:
    """``set`` (overrides, as on the command line) applies to the points of the sweep where all of ``when`` holds."""

    when: dict[str, Any] = field(default_factory=dict)
    set: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class SweepConfig:
    """A named grid: the product of ``axes``, with adjustments for some points."""

    name: str = "single"
    axes: dict[str, list[Any]] = field(default_factory=dict)
    adjust: list[AdjustmentConfig] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class DriftSettings:
    """The text on which quantized checkpoints are compared with their base token by token (null: they are not), and
    how often its documents are resampled.
    """

    text: CalibrationConfig | None = None
    num_resamples: int = 10_000
    seed: int = 0


@dataclass(kw_only=True, slots=True)
class DataConfig:
    """Where data sets come from: ``mirror`` maps a hub id to ``mirror/<id>``; ``task_paths`` hold own lm-eval tasks."""

    mirror: str | None = None
    task_paths: list[str] = field(default_factory=list)


@dataclass(kw_only=True, slots=True)
class Config:
    """The whole config, as one composed trial of a sweep sees it."""

    mode: str = command("run")  # one of pipeline.modes.MODES
    only: list[str] = command(factory=list)  # globs of trials or of task slots; empty: everything
    max_parallel: int | None = command(None)  # batches at once; null: as many as the cluster holds
    allow_changed_environment: bool = command(
        False
    )  # resubmit although packages, commit or weights are not those the sweep was run with
    seed: int = 0
    model: ModelConfig = MISSING
    recipe: RecipeConfig = MISSING
    calibration: CalibrationConfig = MISSING
    gate: GateConfig = field(default_factory=GateConfig)
    engine: EngineConfig = MISSING
    gpu: GpuConfig = MISSING
    server: ServerConfig = field(default_factory=ServerConfig)
    workloads: dict[str, WorkloadConfig] = field(default_factory=dict)
    mixes: dict[str, dict[str, Any]] = field(default_factory=dict)  # name -> share of queries of each workload
    slo: SloConfig = field(default_factory=SloConfig)
    tasks: dict[str, TaskConfig] = field(default_factory=dict)
    suites: dict[str, SuiteConfig] = field(default_factory=dict)
    compare: CompareSettings = field(default_factory=CompareSettings)
    base_reruns: int = 0  # evaluations of each base beyond the first, and whether a trial of each format has one
    rerun_documents: int = 1319  # of each task, at most
    drift: DriftSettings = field(default_factory=DriftSettings)
    data: DataConfig = field(default_factory=DataConfig)
    sweep: SweepConfig = field(default_factory=SweepConfig)
    cluster: ClusterConfig = command(factory=ClusterConfig)
    store: StoreConfig = command(factory=StoreConfig)
    tracking: TrackingConfig = command(factory=TrackingConfig)
    # Which failed steps mode=resubmit takes: those of a class, of a step (stage-fp12), or those of a file that
    # ``export`` wrote, here or elsewhere.  A mapping, because two of its names are Python's own words.
    failures: dict[str, str | None] = command(
        factory=lambda: {"class": None, "step": None, "export": None, "from": None}
    )
    budget: BudgetConfig = command(factory=BudgetConfig)
    gc: GcConfig = command(factory=GcConfig)

    @property
    def models(self) -> list[ModelConfig]:
        """Every model that it names; a plan knows each by its bytes."""
        return [self.model]

    @property
    def loads_model(self) -> bool:
        """Whether its weights are needed here: to answer, or to make a checkpoint that a server is given.

        Recorded answers are of a checkpoint that was made before.
        """
        is_made_here = self.engine.is_endpoint and not (self.recipe.is_base or self.recipe.is_published)
        return not self.engine.is_elsewhere or is_made_here

    @property
    def published(self) -> PublishedSource | None:
        """Where the recipe's checkpoint lies; None where it is made here, and where the model does not list it."""
        recipe = self.recipe
        place = recipe.source if recipe.published is None else self.model.published.get(recipe.published)
        return place if place is not None and place.is_somewhere else None

    @property
    def has_price(self) -> bool:
        """Whether ``gpu`` says what its GPU costs; that of a processor is nominal."""
        return self.gpu.name != "none" and bool(self.gpu.prices)

    def __post_init__(self) -> None:
        for place, name in self._names():
            _check_name(place, name)
        for group in ("tasks", "suites", "workloads"):
            for name in getattr(self, group):
                if not _NAME.fullmatch(name):
                    raise ValueError(
                        f"{group}: {name!r} is part of file names and of MLflow's metric names: use letters, digits, "
                        "spaces and _ - . (not first)"
                    )
        for name, mix in self.mixes.items():
            for workload, share in mix.items():
                if isinstance(share, bool) or not isinstance(share, int | float) or share <= 0:
                    raise ValueError(f"mixes.{name}.{workload} must be a positive share of the queries; got {share!r}")
        if unknown := self.failures.keys() - {"class", "step", "export", "from"}:
            raise ValueError(f"failures has no {min(unknown)!r}: there are class, step, export, from")
        if self.budget.usd is not None and not self.has_price:
            raise ValueError(
                f"budget.usd={self.budget.usd:g} needs the price of a GPU, and gpu={self.gpu.name} has none that is "
                "paid: say which GPU, gpu=h100 (conf/gpu/ lists those with prices), or give gpu.prices"
            )
        self._check_reruns()
        if self.max_parallel is not None and self.max_parallel < 1:
            raise ValueError(f"max_parallel must be at least 1, or null for as many as fit; got {self.max_parallel}")

    def _check_reruns(self) -> None:
        for name, least in (("base_reruns", 0), ("rerun_documents", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}; got {getattr(self, name)}")
        if self.base_reruns and self.engine.is_recorded:
            raise ValueError(
                f"base_reruns={self.base_reruns} asks again, and engine=recorded has answers that were given before: "
                "leave it at 0"
            )

    def _names(self) -> Iterator[tuple[str, str]]:
        """Whatever is shown under a name, with the key that says it."""
        for group in ("sweep", "model", "recipe", "gpu"):
            yield f"{group}.name", str(getattr(self, group).name)
        for group in ("tasks", "suites", "workloads", "mixes"):
            yield from ((group, str(name)) for name in getattr(self, group))


def _check_name(place: str, name: str) -> None:
    if not name.strip():
        raise ValueError(f"{place} is empty: give it a name")
    if len(name) > MAX_NAME:
        raise ValueError(f"{place}: {name[:20]}... has {len(name)} characters: use at most {MAX_NAME}")
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in name):
        raise ValueError(f"{place}: {name!r} has control characters: leave them out")


SCHEMAS: dict[str, Any] = {
    "model": ModelConfig,
    "recipe": RecipeConfig,
    "calibration": CalibrationConfig,
    "drift": DriftSettings,
    "task": TaskConfig,
    "engine": EngineConfig,
    "gpu": GpuConfig,
    "workload": WorkloadConfig,
    "cluster": ClusterConfig,
    "store": StoreConfig,
    "tracking": TrackingConfig,
}


def register() -> None:
    """Make the schemas known to Hydra; each group's files start from ``<group>_schema``."""
    store = ConfigStore.instance()
    store.store(name="config_schema", node=Config)
    for group, schema in SCHEMAS.items():
        store.store(group=group, name=f"{group}_schema", node=schema)
