"""The plan: from trials and facts to the DAG of steps.  Pure: no file, clock, environment or network."""

from dataclasses import dataclass, field

from pipeline.config.sweep import Trial
from pipeline.planning.published import Published
from pipeline.planning.task_facts import TaskFacts
from pipeline.steps.fingerprint import fingerprint
from pipeline.steps.roles import shards, slots
from pipeline.steps.step import Step, StepRef
from stages.checkpoints.kernels import Answer
from stages.checkpoints.sizes import ModelSizes
from stages.quantize import weight_format
from stages.units import GIB


@dataclass(slots=True)
class TrialPlan:
    """The steps of one trial by their role (``pipeline.steps.roles``), in the plan's order, and its tasks by slot.

    ``sizes`` of its model's layers are None where they are not known, ``published`` where the checkpoint is made here,
    ``computed`` where vLLM computes no format.
    """

    trial: Trial
    sizes: ModelSizes | None = None
    published: Published | None = None
    computed: Answer | None = None  # what its format is computed with
    steps: dict[str, StepRef] = field(default_factory=dict)
    tasks: dict[str, TaskFacts] = field(default_factory=dict)

    @property
    def checkpoint(self) -> StepRef:
        """What is evaluated and served."""
        return self.steps["checkpoint"]

    @property
    def model(self) -> StepRef:
        """What the checkpoint was made of; itself where nothing was quantized."""
        return self.steps.get("model", self.checkpoint)

    @property
    def model_gib(self) -> float | None:
        """Weights of its model: by its layers, or as its file declares them."""
        return self.trial.config.model.size_gib if self.sizes is None else self.sizes.weight_gib()

    @property
    def checkpoint_gib(self) -> float | None:
        """Weights of what is evaluated: as it was published, or as its recipe stores the model's."""
        recipe = self.trial.config.recipe
        if self.published is not None:
            return self.published.size_gib
        if recipe.is_base:
            return self.model_gib
        return None if self.sizes is None else self.sizes.weight_gib(weight_format(recipe))

    @property
    def num_parameters(self) -> int | None:
        """Of its model; by its declared size as if all were in 16 bits."""
        if self.sizes is not None:
            return self.sizes.num_parameters
        return None if (gib := self.model_gib) is None else int(gib * GIB / 2)

    @property
    def num_bits(self) -> int | None:
        """Of a quantized weight; None where nothing is quantized, or it is not known."""
        if self.published is not None:
            return self.published.num_bits
        made = weight_format(self.trial.config.recipe)
        return None if made is None else made.weights.num_bits

    @property
    def shards(self) -> list[StepRef]:
        """Every evaluation, those of reruns as well, in the order of tasks and documents."""
        return [ref for slot in slots(self.steps) for ref in shards(self.steps, slot)]


@dataclass(slots=True)
class Plan:
    """A sweep's steps, each before its dependants, and its trials by name."""

    name: str
    trials: dict[str, TrialPlan] = field(default_factory=dict)
    steps: dict[StepRef, Step] = field(default_factory=dict)

    @property
    def fingerprint(self) -> str:
        """Identity of the whole plan: the steps of every trial."""
        return fingerprint([self.name, sorted(ref.fingerprint for ref in self.steps)])

    @property
    def num_evaluations(self) -> int:
        """Documents to be answered and scored, over all trials."""
        return sum(step.num_documents for step in self.steps.values())

    def add(self, step: Step) -> StepRef:
        """Put a step into the plan; steps that are the same thing become one, under the first trial that needs them."""
        self.steps.setdefault(step.ref, step)
        return step.ref
