"""Which of the missing steps a run takes: all, those that ``only`` names, or those that failed."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from fnmatch import fnmatchcase

from pipeline.errors import FailureClass, UserError
from pipeline.planning.plan import Plan, TrialPlan
from pipeline.steps.roles import kind_of, slot_of, slots
from pipeline.steps.step import Step, StepRef
from pipeline.store.ledger import Failure


def chosen(plan: Plan, missing: Sequence[Step], only: Sequence[str]) -> list[Step]:
    """The missing steps of the trials and task slots that match a glob of ``only``, and what those need.

    Trials are narrowed by the globs that match trials, tasks by those that match tasks.  Raises UserError for a glob
    that matches nothing.
    """
    if not only:
        return list(missing)
    known = slots(role for trial in plan.trials.values() for role in trial.steps)
    for glob in only:
        if not (_matching(plan.trials, [glob]) or _matching(known, [glob])):
            raise UserError(f"only={glob}: no trial or task of the sweep has such a name; mode=plan lists the trials")
    trials = _matching(plan.trials, only) or list(plan.trials)
    tasks = _matching(known, only) or known
    wanted = {ref for name in trials for ref in _steps_of(plan, plan.trials[name], tasks)}
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


def _steps_of(plan: Plan, trial: TrialPlan, wanted: Sequence[str]) -> Iterator[StepRef]:
    """Those of the wanted slots; what is for no slot comes with all of them, or along with what it accompanies."""
    is_whole = set(slots(trial.steps)) <= set(wanted)
    kinds = {kind_of(role) for role in trial.steps if slot_of(role) in wanted}
    for role, ref in trial.steps.items():
        slot = slot_of(role)
        if slot in wanted or (slot is None and (is_whole or plan.steps[ref].stage.accompanies in kinds)):
            yield ref
