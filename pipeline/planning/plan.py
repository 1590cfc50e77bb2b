"""The plan: from trials and facts to the DAG of steps.  Pure: no file, clock, environment or network."""

from dataclasses import dataclass, field

from pipeline.config.sweep import Trial
from pipeline.planning.task_facts import TaskFacts
from pipeline.steps.fingerprint import fingerprint
from pipeline.steps.roles import shards, slots
from pipeline.steps.step import Step, StepRef
from stages.checkpoints.kernels import Answer
from stages.checkpoints.sizes import ModelSizes


@dataclass(slots=True)
class TrialPlan:
    """The steps of one trial by their role (``pipeline.steps.roles``), in the plan's order, and its tasks by slot.

    ``sizes`` of its model's layers are None where they are not known, ``computed`` where vLLM computes no format.
    """

    trial: Trial
    sizes: ModelSizes | None = None
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
