"""Batches: the steps of a plan that one process runs, because they share a session that is dear to open."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from graphlib import TopologicalSorter

from pipeline.steps.stages import Occupies
from pipeline.steps.step import Resources, Step, StepRef


@dataclass(frozen=True, slots=True)
class Batch:
    """Steps that run in one process, one after the other, sharing a session if their stage has sessions.

    Those of one checkpoint are a leg of it; legs of one family follow each other in the same session.
    """

    steps: tuple[Step, ...]
    upstream: tuple[StepRef, ...]  # steps of other batches

    @property
    def resources(self) -> Resources:
        return self.steps[0].resources

    @property
    def turn(self) -> int:
        return self.steps[0].turn

    @property
    def family(self) -> object:
        """Equal for batches that can be made one; None for a batch that stays alone."""
        first = self.steps[0]
        if not first.family:
            return None
        return first.stage.name, first.stage.session_key(first.config), first.family, first.resources

    def leg(self, step: Step) -> Iterator[Step]:
        """The steps that share the step's checkpoint."""
        checkpoint = step.inputs.get("checkpoint")
        return (each for each in self.steps if each.inputs.get("checkpoint") == checkpoint)

    @property
    def label(self) -> str:
        first = self.steps[0]
        return f"{first.stage.name}:{first.trial}" if first.trial else f"{first.stage.name}:{first.label}"


def batches(steps: Iterable[Step], replicas: int = 1) -> list[Batch]:
    """Group steps into batches, each before its dependants; ``replicas`` engines share the steps of one session."""
    grouped: dict[object, list[Step]] = {}
    for step in steps:
        grouped.setdefault(_session(step), []).append(step)
    shares = [share for group in grouped.values() for share in _shares(group, _num_engines(group[0], replicas))]
    return _in_order([_batch(share) for share in shares])


def in_families(found: Iterable[Batch]) -> list[Batch]:
    """One batch for each family, behind all that its legs need: for where one batch runs at a time.

    The session then opens once.  Nothing waits for nothing: what makes the later legs would have come before or after.
    """
    grouped: dict[object, list[Batch]] = {}
    for batch in found:
        grouped.setdefault(batch.family or batch.steps[0].ref, []).append(batch)
    return _in_order([together(group) for group in grouped.values()])


def together(group: Sequence[Batch]) -> Batch:
    """Batches of one family as one, each checkpoint's steps beside each other."""
    steps = [step for batch in group for step in batch.steps]
    checkpoints = list(dict.fromkeys(step.inputs.get("checkpoint") for step in steps))
    return _batch(sorted(steps, key=lambda step: checkpoints.index(step.inputs.get("checkpoint"))))


def _in_order(found: Sequence[Batch]) -> list[Batch]:
    """Each after those it needs: a session's later steps may need what the plan makes after its first."""
    return [found[index] for index in TopologicalSorter(needs(found)).static_order()]


def needs(found: Sequence[Batch]) -> dict[int, set[int]]:
    """For each batch, by its place, those of the others that make what it needs."""
    owner = {step.ref: index for index, batch in enumerate(found) for step in batch.steps}
    return {index: {owner[ref] for ref in batch.upstream if ref in owner} for index, batch in enumerate(found)}


def _session(step: Step) -> object:
    if not step.stage.sessions:
        return step.ref
    return step.stage.name, step.stage.session_key(step.config), step.inputs["checkpoint"]


def _num_engines(step: Step, replicas: int) -> int:
    """Points of a checkpoint are measured on one server: they are to be compared."""
    return 1 if step.stage.occupies is Occupies.server else replicas


def _shares(steps: list[Step], number: int) -> list[list[Step]]:
    """Deal the steps out, the largest first to whoever has least of their task; each share keeps their order.

    A document of one task can cost a hundred times one of another, so every replica gets its part of each.
    """
    if number == 1 or len(steps) == 1:
        return [steps]
    shares: list[list[int]] = [[] for _ in range(min(number, len(steps)))]
    loads: list[Counter[str]] = [Counter() for _ in shares]
    for index in sorted(range(len(steps)), key=lambda index: -steps[index].num_documents):
        task = getattr(steps[index].config, "task", "")
        least = min(range(len(shares)), key=lambda share: (loads[share][task], loads[share].total()))
        shares[least].append(index)
        loads[least][task] += steps[index].num_documents
    return [[steps[index] for index in sorted(share)] for share in shares if share]


def _batch(steps: list[Step]) -> Batch:
    own = {step.ref for step in steps}
    upstream = dict.fromkeys(ref for step in steps for ref in step.upstream if ref not in own)
    return Batch(tuple(steps), tuple(upstream))
