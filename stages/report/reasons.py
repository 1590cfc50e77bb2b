"""Why a trial is decided as it is: what was shown, speaks against it, or is missing; a line each, for a person."""

from collections.abc import Iterator, Sequence
from statistics import NormalDist
from typing import NamedTuple

from stages.compare.verdict import IMPROVED, UNSTEADY
from stages.grid.shipping import (
    DO_NOT_SHIP,
    LEANS_TO_NO,
    MORE_DOCUMENTS,
    NOT_DECIDED,
    NOT_WITH_THESE,
    PASSES_ALONE,
    SHIP,
    Decision,
    documents_needed,
)
from stages.inference import POWER, critical_value
from stages.report.artifact import Row, SuiteMean, points_of
from stages.report.asked import Asked, gain_of, is_bad
from stages.report.endings import many_cut
from stages.report.numbers import count, p_value


class Outlook(NamedTuple):
    """Of what is not shown: to which side it leans, and what would show it."""

    leaning: str | None
    words: str


MOST_TIMES = 20  # the documents that there are: more are not worth a number
_LESS = "would show that it lost less"


def reasons(
    decision: Decision, asked: Sequence[Asked], rows: Sequence[Row], num_trials: int, confidence: float
) -> list[str]:
    """Of ``ship`` what is shown, of ``not decided`` what is not, of ``do not ship`` what is shown against it; then what
    else to know.
    """
    alpha = (1 - confidence) / 2
    lines: list[str] = []
    said: set[str] = set()  # tasks that have a line
    if decision.word == SHIP:
        lines += [_shown(asked)]
    elif decision.word == DO_NOT_SHIP:
        broken = [each for each in asked if each.requirement.is_broken]
        lines += [_line(each, confidence) for each in broken]
        said = _tasks_of(broken)
        lines += [_bad_cell(row) for row in rows if is_bad(row) and row["task"] not in said]
        said |= {row["task"] for row in rows if is_bad(row)}
    elif decision.word == NOT_DECIDED:
        open_ones = [each for each in asked if not each.requirement.holds(alpha)]
        open_ones.sort(key=lambda each: _outlook(each, confidence).leaning != LEANS_TO_NO)
        lines += [_line(each, confidence) for each in open_ones]
        lines += [] if lines or decision.p is None else [_among_trials(decision, asked, num_trials, alpha)]
        said = _tasks_of(open_ones)
    cut = [f"{row['task']}: {words}" for row in rows if row["task"] not in said and (words := many_cut(row))]
    return [*lines, *cut, *_to_know(rows, decision.word == SHIP)]


def leaning(decision: Decision, asked: Sequence[Asked], is_lacking: bool, confidence: float) -> str | None:
    """To which side a trial that is not decided leans, in a word of ``stages.grid.shipping``; None where nothing was
    measured that says so.
    """
    if decision.word != NOT_DECIDED:
        return None
    open_ones = [each for each in asked if not each.requirement.holds((1 - confidence) / 2)]
    found = [_outlook(each, confidence).leaning for each in open_ones]
    if LEANS_TO_NO in found:
        return LEANS_TO_NO
    if is_lacking or None in found:
        return None
    if not found:
        return PASSES_ALONE
    return NOT_WITH_THESE if NOT_WITH_THESE in found else MORE_DOCUMENTS


def _tasks_of(asked: Sequence[Asked]) -> set[str]:
    return {each.requirement.name for each in asked if not isinstance(each.numbers, SuiteMean)}


def _shown(asked: Sequence[Asked]) -> str:
    """The most that each mean may have lost, and of the tasks the one that is nearest to its limit."""
    means = [each for each in asked if isinstance(each.numbers, SuiteMean)]
    tasks = sorted((each for each in asked if each not in means), key=_share_of_limit, reverse=True)
    parts = [f"{each.requirement.name}: the mean {_lost_at_most(each)}" for each in means]
    if len(tasks) > 1:
        nearest = tasks[0].requirement.name
        parts.append(f"each of {len(tasks)} tasks {_lost_at_most(tasks[0])} ({nearest} is nearest to it)")
    parts += [f"{each.requirement.name} {_lost_at_most(each)}" for each in tasks if len(tasks) == 1]
    return "; ".join(parts) or "nothing is asked of it"


def _share_of_limit(asked: Asked) -> float:
    return (asked.most_lost or 0.0) / asked.requirement.margin


def _lost_at_most(asked: Asked) -> str:
    lost, limit = asked.most_lost or 0.0, asked.points.limit(asked.requirement.margin)
    return f"lost {f'at most {asked.points.of(lost)}' if lost > 0 else 'nothing'}, the limit is {limit}"


def _line(asked: Asked, confidence: float) -> str:
    found, points = asked.requirement, asked.points
    is_mean, row = isinstance(asked.numbers, SuiteMean), asked.numbers if isinstance(asked.numbers, dict) else None
    name = f"{found.name}, mean" if is_mean else found.name
    cut = "" if row is None or not (words := many_cut(row)) else f"; {words}"
    low, high = found.gain
    if found.p is None or low is None or high is None:
        return f"{name}: nothing can be said of it ({asked.why or 'it has no interval'}){_asked_of_all(asked)}{cut}"
    limit = f"the limit of {'the mean' if is_mean else 'a task'} is {points.limit(found.margin)}"
    if found.is_broken:
        return f"{name}: lost at least {points.of(high)}, {limit}{cut}"
    if low > -found.margin:
        return f"{name}: if all that is missing had gone against it, it may have lost more; {limit}{cut}"
    return f"{name}: may have lost {points.of(low)}, {limit}; {_outlook(asked, confidence).words}{cut}"


def _asked_of_all(asked: Asked) -> str:
    if asked.size is None or not asked.num_used or UNSTEADY in (asked.why or ""):
        return ""
    if asked.are_all_used:
        return f"; all {count(asked.size)} documents are used already"
    return f"; {count(asked.num_used)} of {count(asked.size)} documents were asked, more may show it"


def _outlook(asked: Asked, confidence: float) -> Outlook:
    """What would show that it lost less, or that more documents would rather show the reverse."""
    found = asked.requirement
    low, high = found.gain
    if found.p is None or low is None or high is None or asked.measured is None:
        is_matter_of_documents = asked.num_used > 0 and asked.size is not None and UNSTEADY not in (asked.why or "")
        return Outlook(_by_documents(asked) if is_matter_of_documents else None, "")
    if asked.measured <= -found.margin:
        lost = asked.points.of(asked.measured)
        more = "all documents are used already" if asked.are_all_used else "more documents would rather confirm it"
        return Outlook(LEANS_TO_NO, f"a loss of {lost} was measured: {more}")
    if low > -found.margin:
        return Outlook(None, "")  # a matter of what is missing
    if isinstance(asked.numbers, SuiteMean):
        return _outlook_of_mean(asked, asked.measured, (high - low) / 2, confidence)
    return _outlook_of_task(asked, asked.measured, (high - low) / 2, confidence)


def _by_documents(asked: Asked) -> str:
    return NOT_WITH_THESE if asked.are_all_used else MORE_DOCUMENTS


def _outlook_of_task(asked: Asked, measured: float, half: float, confidence: float) -> Outlook:
    row = asked.numbers
    assert isinstance(row, dict)
    variance = _of_one_document(row, half, measured, confidence)
    needed = documents_needed(measured, variance, asked.requirement.margin, confidence)
    assert needed is not None
    if not asked.are_all_used and (asked.size is None or needed <= asked.size):
        return Outlook(MORE_DOCUMENTS, f"about {count(needed)} documents {_LESS}")
    size = asked.size or 0
    has = f"all {count(size)} documents are used already" if asked.are_all_used else f"it has {count(size)} documents"
    more = "" if needed <= size else f", about {count(needed)} {_LESS}"
    more = ", far too few" if needed >= MOST_TIMES * size else more
    return Outlook(NOT_WITH_THESE, f"{has}{more}: repeats, another margin or another gate may decide it")


def _outlook_of_mean(asked: Asked, measured: float, half: float, confidence: float) -> Outlook:
    z = critical_value(confidence)
    share = ((z + NormalDist().inv_cdf(POWER)) * half / z / (measured + asked.requirement.margin)) ** 2
    instead = "repeats, another margin or more tasks may decide it"
    if asked.are_all_used:
        return Outlook(NOT_WITH_THESE, f"all documents of its tasks are used already: {instead}")
    if share >= MOST_TIMES or (asked.size is not None and share * asked.num_used > asked.size):
        return Outlook(NOT_WITH_THESE, f"its tasks have too few documents to show that it lost less: {instead}")
    return Outlook(MORE_DOCUMENTS, f"about {share:.2g} times the documents {_LESS}")


def _of_one_document(row: Row, half: float, measured: float, confidence: float) -> float:
    """The variance of one document: by what flipped where documents are right or wrong and stand for themselves, since
    of few flips an interval says more than they vary.
    """
    lost, won, n = row["num_base_only_right"], row["num_trial_only_right"], row["num_pairs"]
    if lost is not None and won is not None and not row["is_verdict_normalized"] and row["num_clusters"] is None:
        return float((lost + won) / n - measured**2)
    return float((half / critical_value(confidence)) ** 2 * n)


def _bad_cell(row: Row) -> str:
    points, cut = points_of(row), many_cut(row)
    lost, margin = points.of(gain_of(row)[1] or 0), points.limit(row["margin"])
    return f"{row['task']}: lost at least {lost}, confirmed; its own margin is {margin}{f'; {cut}' if cut else ''}"


def _among_trials(decision: Decision, asked: Sequence[Asked], num_trials: int, alpha: float) -> str:
    nearest = max(asked, key=lambda each: each.requirement.p or 0.0)
    of_mean = "the mean of " if isinstance(nearest.numbers, SuiteMean) else ""
    name = f"{of_mean}{nearest.requirement.name}"
    return (
        f"passes alone; not after correcting for {num_trials} trials (Holm): nearest to its limit is {name}, which "
        f"{_lost_at_most(nearest)}, and whose p of {p_value(decision.p)} counts as {p_value(decision.adjusted_p)} "
        f"among the trials, more than {alpha:g}; a sweep of fewer trials, chosen before, corrects less"
    )


def _to_know(rows: Sequence[Row], is_shipped: bool) -> Iterator[str]:
    """Confirmed differences that decide nothing."""
    for row in rows:
        if not row["is_confirmed"] or is_bad(row):
            continue
        points = points_of(row)
        least, most = sorted(abs(end or 0) for end in gain_of(row))
        limit = points.limit(row["wide_margin"])
        ends = f"{points.of(least)} to {points.of(most)} is confirmed"
        if row["verdict"] == IMPROVED:
            yield f"{row['task']}: a gain of {ends}, which speaks against nothing: look for its cause"
        elif most < row["wide_margin"]:
            allowed = ": allowed, no reason against it" if is_shipped else ""
            yield f"{row['task']}: a loss of {ends}, within the limit of a task, {limit}{allowed}"
        else:
            yield f"{row['task']}: a loss of {ends}, which may be beyond the limit of a task, {limit}"
