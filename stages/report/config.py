"""What a report is about: trials, tasks, suites, what failed, and what serving is paid for."""

from dataclasses import dataclass

from stages.fields import execution, identity


@dataclass(kw_only=True, slots=True)
class PriceConfig:
    """What a machine with ``num_gpus`` GPUs costs."""

    num_gpus: int = identity()
    usd_per_hour: float = identity()

    def __post_init__(self) -> None:
        if self.num_gpus < 1 or self.usd_per_hour <= 0:
            raise ValueError(f"gpu.prices: num_gpus and usd_per_hour must be positive; got {self}")


@dataclass(kw_only=True, slots=True)
class GpuConfig:
    """A GPU that is served on, and what it is rented for.

    ``product`` is a part of the name that the driver gives it; ``driver`` null is the one found when the plan is made.
    ``capability`` is NVIDIA's compute capability, which says what it can multiply; null: not known.
    """

    name: str = identity()
    product: str = identity()
    driver: str | None = identity(None)
    capability: float | None = execution(None)
    prices: list[PriceConfig] = identity(factory=list)
    price_source: str | None = identity(None)
    priced_on: str | None = identity(None)  # YYYY-MM-DD


def usd_per_hour(gpu: GpuConfig, num_gpus: float) -> float:
    """The price of ``num_gpus`` GPUs.

    A number that is not listed costs its share of the smallest listed machine that has as many, or of the largest:
    two of an 8-GPU machine a quarter of it, sixteen twice as much.  Raises ValueError without any price.
    """
    if not gpu.prices:
        raise ValueError(
            f"gpu={gpu.name} has no price: add prices: [{{num_gpus: 1, usd_per_hour: ...}}] to conf/gpu/{gpu.name}.yaml"
        )
    listed = sorted(gpu.prices, key=lambda price: price.num_gpus)
    machine = next((price for price in listed if price.num_gpus >= num_gpus), listed[-1])
    return machine.usd_per_hour * num_gpus / machine.num_gpus


@dataclass(kw_only=True, slots=True)
class SloConfig:
    """What an answer's speed must meet at a request rate for that rate to count: p90 of either; null: no objective."""

    itl_ms: float | None = identity(None)
    ttft_ms: float | None = identity(None)

    @property
    def is_set(self) -> bool:
        """Whether there is an objective."""
        return self.itl_ms is not None or self.ttft_ms is not None


@dataclass(kw_only=True, slots=True)
class ServingConfig:
    """What costs are computed from, beside the points: prices, mixes of workloads, and latency objectives."""

    gpus: list[GpuConfig] = identity()
    gpu_of: dict[str, str] = identity()  # trial -> name of its GPU
    mixes: dict[str, dict[str, float]] = identity(factory=dict)
    slo: SloConfig = identity(factory=SloConfig)


@dataclass(kw_only=True, slots=True)
class TrialRow:
    """A trial as the report names it."""

    name: str = identity()
    model: str = identity()
    recipe: str = identity()
    is_base: bool = identity(False)
    base: str | None = identity(None, neutral=None)  # the trial that it is compared with
    notes: str | None = identity(None)  # what a reader must know of the model
    mixed: str | None = identity(None, neutral=None)  # in what the environments differ that its shards were made in
    rounded: str | None = identity(None, neutral=None)  # how many of its layers GPTQ only rounded to nearest
    quantized: str | None = identity(None, neutral=None)  # of somebody else's checkpoint: what is, and how
    computed: str | None = identity(None, neutral=None)  # that its format is computed as another, or emulated
    size_gib: float | None = identity(None)

    @property
    def cautions(self) -> list[str]:
        """What a reader must know of this trial alone."""
        return [each for each in (self.quantized, self.mixed, self.rounded, self.computed) if each]

    @property
    def label(self) -> str:
        """Its name among the trials of its model: the recipe, and the other axes of the sweep."""
        return self.name.removeprefix(f"{self.model}/")


@dataclass(kw_only=True, slots=True)
class SuiteConfig:
    """Tasks whose plain mean is shown: of their scores, or of their ``normalized`` ones.

    ``margin_points``: the largest difference of that mean from the base's that does not matter; null: 1 of plain
    scores, 2 of normalized ones.  ``gate``: its tasks that may each not be worse than their wide margin if a format is
    shipped; null: all.
    """

    tasks: list[str] = identity()
    normalized: bool = identity(False)
    margin_points: float | None = identity(None, neutral=None)
    gate: list[str] | None = identity(None, neutral=None)

    def check(self, place: str) -> None:
        """Raise ValueError for a margin that is no distance, and for a gate of other tasks than its own."""
        if self.margin_points is not None and not 0 < self.margin_points < 100:
            raise ValueError(f"{place}.margin_points must lie between 0 and 100; got {self.margin_points}")
        if unknown := [task for task in self.gate or () if task not in self.tasks]:
            raise ValueError(f"{place}.gate names {', '.join(unknown)}, but the suite is of {', '.join(self.tasks)}")

    @property
    def points(self) -> float:
        """The margin of its mean."""
        return self.margin_points if self.margin_points is not None else 2.0 if self.normalized else 1.0

    @property
    def gate_tasks(self) -> list[str]:
        """Those of the gate."""
        return self.tasks if self.gate is None else self.gate


@dataclass(kw_only=True, slots=True)
class SuiteRow(SuiteConfig):
    """A suite as the report names it."""

    name: str = identity()


@dataclass(kw_only=True, slots=True)
class FailureRow:
    """A step that has no result: it failed, was skipped because another did, or has not run."""

    step: str = identity()
    trial: str | None = identity(None)
    task: str | None = identity(None)
    status: str = identity()  # failed, skipped, missing
    failure_class: str | None = identity(None)
    message: str = identity("")


@dataclass(kw_only=True, slots=True)
class CostRow:
    """What the published steps of a stage took, from the start to the end of each; None where nobody wrote it down.

    The last three are of the steps whose time was expected before they ran.
    """

    stage: str = identity()
    num_steps: int = identity()
    seconds: float | None = identity(None)
    gpu_hours: float | None = identity(None)
    num_expected: int = identity(0)
    expected_s: float | None = identity(None)
    expected_took_s: float | None = identity(None)


@dataclass(kw_only=True, slots=True)
class GpuRow:
    """A GPU in the runs that used it, each from the start of its first step on GPUs to the end of its last.

    ``held``: the share of that time in which a step held it; ``computing``: in which a stage's own function ran there.
    """

    host: str = identity()
    gpu: str = identity()
    product: str | None = identity(None)
    num_steps: int = identity()
    run_s: float = identity()
    held: float = identity()
    computing: float = identity()


@dataclass(kw_only=True, slots=True)
class CostsConfig:
    """What a sweep took."""

    stages: list[CostRow] = identity()
    gpus: list[GpuRow] = identity(factory=list)


@dataclass(kw_only=True, slots=True)
class ReportConfig:
    """What the report shows, in its order."""

    title: str = identity()
    trials: list[TrialRow] = identity()
    tasks: list[str] = identity()
    suites: list[SuiteRow] = identity(factory=list)
    failures: list[FailureRow] = identity(factory=list)
    serving: ServingConfig | None = identity(None, neutral=None)  # prices and mixes of the points among the inputs
    costs: CostsConfig | None = identity(None, neutral=None)
    data: dict[str, list[str]] = identity(factory=dict, neutral={})  # task -> the data sets that it reads

    def __post_init__(self) -> None:
        names = [trial.name for trial in self.trials]
        if len(set(names)) != len(names):
            raise ValueError(f"{self.title}: two trials have the same name: {', '.join(names)}")
