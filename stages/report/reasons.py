"""What speaks against a trial, or is missing to say whether to ship it: a line each, for a person."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from stages.compare.verdict import IMPROVED
from stages.grid.shipping import DO_NOT_SHIP, NOT_DECIDED, Decision, documents_needed
from stages.inference import POWER, critical_value
from stages.report.artifact import Row, SuiteMean
from stages.report.asked import Asked, gain_of, is_bad
from stages.report.numbers import count, number, p_value


@dataclass(frozen=True, slots=True)
class _Unit:
    """How a size is said: points of 100, or the metric's own unit where lower is better."""

    scale: float
    name: str

    def of(self, value: float) -> str:
        size = abs(self.scale * value)
        return f"{number(size, 2)} {self.name}" if self.name else f"{size:.3g}"

    def limit(self, value: float) -> str:
        size = f"{abs(self.scale * value):.3g}"
        return f"the limit is {size} {self.name.removesuffix('s') if size == '1' else self.name}".strip()


MOST_TIMES = 20  # the documents that there are: more are not worth a number
_OVER = "what was measured is a larger loss: more documents would rather confirm it"
_POINTS, _NORMALIZED, _OWN = _Unit(100, "points"), _Unit(1, "normalized points"), _Unit(1, "")


def reasons(
    decision: Decision, asked: Sequence[Asked], rows: Sequence[Row], num_trials: int, confidence: float
) -> list[str]:
    """Of ``not decided`` what is not shown, of ``do not ship`` what is shown against it; then what else to know."""
    alpha = (1 - confidence) / 2
    lines: list[str] = []
    if decision.word == DO_NOT_SHIP:
        broken = [each for each in asked if each.requirement.is_broken]
        lines += [_line(each, confidence) for each in broken]
        said = {each.requirement.name for each in broken if not isinstance(each.numbers, SuiteMean)}
        lines += [_bad_cell(row) for row in rows if is_bad(row) and row["task"] not in said]
    elif decision.word == NOT_DECIDED:
        lines += [_line(each, confidence) for each in asked if not each.requirement.holds(alpha)]
        lines += [] if lines or decision.p is None else [_among_trials(decision, num_trials, alpha)]
    return [*lines, *_to_know(rows)]


def _line(asked: Asked, confidence: float) -> str:
    found, mean = asked.requirement, asked.numbers if isinstance(asked.numbers, SuiteMean) else None
    name = found.name if mean is None else f"{found.name}, mean"
    low, high = found.gain
    if found.p is None or low is None or high is None:
        return f"{name}: nothing can be said of it ({asked.why or 'it has no interval'})"
    unit = _unit_of_mean(mean) if mean is not None else _unit_of_row(asked.numbers)
    if found.is_broken:
        return f"{name}: lost at least {unit.of(high)}, {unit.limit(found.margin)}"
    if low > -found.margin:
        return f"{name}: if all that is missing had gone against it, it may have lost more; {unit.limit(found.margin)}"
    return f"{name}: may have lost {unit.of(low)}, {unit.limit(found.margin)}; {_needed(asked, confidence)}"


def _needed(asked: Asked, confidence: float) -> str:
    """What would show that it lost less, or that more documents would rather show the reverse."""
    found, row = asked.requirement, asked.numbers
    low, high = found.gain
    assert low is not None and high is not None
    if not isinstance(row, dict):
        return _needed_of_mean((low + high) / 2, found.margin, (high - low) / 2, confidence)
    gain, variance = _of_one_document(row, (low, high), confidence)
    needed = documents_needed(gain, variance, found.margin, confidence)
    if needed is None:
        return _OVER
    if asked.size is None or needed <= asked.size:
        return f"about {count(needed)} documents would show that it lost less"
    would = f"about {count(needed)} would show that it lost less" if needed < MOST_TIMES * asked.size else "far too few"
    return f"the task has {count(asked.size)} documents, {would}"


def _needed_of_mean(gain: float, margin: float, half: float, confidence: float) -> str:
    if gain + margin <= 0:
        return _OVER
    z = critical_value(confidence)
    share = ((z + NormalDist().inv_cdf(POWER)) * half / z / (gain + margin)) ** 2
    if share >= MOST_TIMES:
        return "its tasks have far too few documents to show that it lost less"
    return f"about {share:.2g} times the documents would show that it lost less"


def _of_one_document(row: Row, gain: tuple[float, float], confidence: float) -> tuple[float, float]:
    """How much better the trial is, and the variance of one document: by what flipped where documents are right or
    wrong and stand for themselves, since of few flips an interval says more than they vary.
    """
    lost, won, n = row["num_base_only_right"], row["num_trial_only_right"], row["num_pairs"]
    if lost is not None and won is not None and not row["is_verdict_normalized"] and row["num_clusters"] is None:
        difference = (won - lost) / n
        return difference, (lost + won) / n - difference**2
    half = (gain[1] - gain[0]) / 2 / critical_value(confidence)
    return sum(gain) / 2, half**2 * n


def _bad_cell(row: Row) -> str:
    unit = _unit_of_row(row)
    lost, limit = unit.of(gain_of(row)[1] or 0), unit.limit(row["margin"])
    return f"{row['task']}: lost at least {lost}, confirmed; {limit.replace('limit', 'margin')}"


def _among_trials(decision: Decision, num_trials: int, alpha: float) -> str:
    return (
        f"by itself it would pass, but the best of {num_trials} trials may do so by chance: its p of "
        f"{p_value(decision.p)} counts as {p_value(decision.adjusted_p)} among them, the limit is {alpha:g}; more "
        "documents would show it, or a sweep of fewer trials that are chosen before"
    )


def _to_know(rows: Sequence[Row]) -> Iterator[str]:
    """Confirmed differences that decide nothing."""
    for row in rows:
        if not row["is_confirmed"] or is_bad(row):
            continue
        unit = _unit_of_row(row)
        least, most = sorted(abs(end or 0) for end in gain_of(row))
        size = f"{row['verdict']} by {unit.of(least)} to {unit.of(most)}, confirmed"
        yield f"{row['task']}: {size}{': look for its cause' if row['verdict'] == IMPROVED else ''}"


def _unit_of_row(row: object) -> _Unit:
    assert isinstance(row, dict)
    return _OWN if row["higher_is_better"] is False else _NORMALIZED if row["is_verdict_normalized"] else _POINTS


def _unit_of_mean(mean: SuiteMean) -> _Unit:
    return _NORMALIZED if mean.normalized else _POINTS
