"""Which of the missing steps a run takes: all, those that ``only`` names, or those that failed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from pipeline.errors import FailureClass, UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure


def chosen(plan: Plan, missing: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The missing steps of the trials and task slots that match a glob of ``only``, and what those need.

    Trials are narrowed by the globs that match trials, tasks by those that match tasks.  Raises UserError for a glob
    that matches nothing.
    """
    if not only:
        return list(missing)
    slots = dict.fromkeys(slot for trial in plan.trials.values() for slot in _slots(trial))
    for glob in only:
        if not (_matching(plan.trials, [glob]) or _matching(slots, [glob])):
            raise UserError(f"only={glob}: no trial or task of the sweep has such a name; mode=plan lists the trials")
    trials = _matching(plan.trials, only) or list(plan.trials)
    tasks = _matching(slots, only) or list(slots)
    wanted = {ref for name in trials for ref in _steps_of(plan.trials[name], tasks)}
    return with_needs(missing, wanted)


def failed(missing: Sequence[Step], failures: Mapping[StepRef, Failure], of: Mapping[str, str | None]) -> list[Step]:
    """The failed steps of the class and name that ``of`` gives, what was skipped because of them, and their needs.

    Without class or name also what was skipped because of a step that has been mended since.
    """
    known = {each.value for each in FailureClass}
    if (wanted_class := of["class"]) is not None and wanted_class not in known:
        raise UserError(f"failures.class={wanted_class}: there are {', '.join(sorted(known))}")
    if wanted_class is None and of["step"] is None:
        return with_needs(missing, failures)
    wanted = {
        ref
        for ref, failure in failures.items()
        if failure.failure_class is not FailureClass.upstream
        and wanted_class in (None, failure.failure_class.value)
        and (of["step"] is None or ref.short.startswith(of["step"]))
    }
    if of["step"] is not None and not wanted:
        raise UserError(f"failures.step={of['step']}: no such step failed; mode=status lists those that did")
    return with_needs(missing, _with_skipped(missing, failures, wanted))


def with_needs(missing: Sequence[Step], wanted: Iterable[StepRef]) -> list[Step]:
    """The wanted steps among the missing, with every missing step they depend on, in the plan's order."""
    taken = set(wanted)
    for step in reversed(missing):
        if step.ref in taken:
            taken.update(step.upstream)
    return [step for step in missing if step.ref in taken]


def _with_skipped(missing: Sequence[Step], failures: Mapping[StepRef, Failure], wanted: set[StepRef]) -> set[StepRef]:
    taken = set(wanted)
    for step in missing:
        skipped = step.ref in failures and failures[step.ref].failure_class is FailureClass.upstream
        if skipped and taken.intersection(step.upstream):
            taken.add(step.ref)
    return taken


def _matching(names: Iterable[str], globs: Sequence[str]) -> list[str]:
    return [name for name in names if any(fnmatchcase(name, glob) for glob in globs)]


def _slots(trial: TrialPlan) -> Iterator[str]:
    """Tasks, and workloads."""
    yield from trial.evaluations
    yield from (name.split("/")[0] for name in trial.profiles)


def _steps_of(trial: TrialPlan, tasks: Sequence[str]) -> Iterator[StepRef]:
    if trial.drift is not None and trial.evaluations.keys() <= set(tasks):
        yield trial.drift
    for slot in tasks:
        if slot in trial.evaluations:
            yield from (ref for shards in trial.evaluations[slot].values() for ref in shards)
            yield trial.comparisons[slot]
    points = [ref for name, ref in trial.profiles.items() if name.split("/")[0] in tasks]
    yield from points
    if points and trial.ceilings is not None:
        yield trial.ceilings
