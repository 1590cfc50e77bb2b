"""In which order trials are read: what may be shipped, what is not decided, what is not to be, what has no decision."""

from collections import Counter
from collections.abc import Mapping, Sequence

from stages.grid.shipping import DO_NOT_SHIP, NOT_DECIDED, SHIP
from stages.report.artifact import TrialVerdict
from stages.report.config import TrialRow
from stages.report.sentence import nearness
from stages.report.serving.relative import Cost

_ORDER = (SHIP, NOT_DECIDED, DO_NOT_SHIP, None)
_SAID = {SHIP: "may be shipped", NOT_DECIDED: "not decided", DO_NOT_SHIP: "not to be shipped"}


def in_order(
    trials: Sequence[TrialRow], verdicts: Sequence[TrialVerdict], costs: Mapping[str, Cost]
) -> list[TrialVerdict]:
    """By decision, of what is not decided that last which leans to no, bases at the end, then by model; of what may be
    shipped the cheapest, else the smallest, comes first, of the rest what is nearest to it.
    """
    models = list(dict.fromkeys(trial.model for trial in trials))
    sizes = {trial.name: trial.size_gib for trial in trials}

    def place(verdict: TrialVerdict) -> tuple[bool, int, bool, int, float, float]:
        cost, size = costs.get(verdict.trial), sizes.get(verdict.trial)
        value = None if cost is None else cost.value
        within = (0.0 if value is None else -value, float("inf") if size is None else size)
        if verdict.decision != SHIP:
            within = (nearness(verdict)[1], 0.0)
        decided = _ORDER.index(verdict.decision) if verdict.decision in _ORDER else len(_ORDER)
        return verdict.is_base, decided, nearness(verdict)[0], models.index(verdict.model), *within

    return sorted(verdicts, key=place)


def headline(verdicts: Sequence[TrialVerdict]) -> str:
    """How many formats may be shipped, and how many not; empty where none is compared."""
    decisions = Counter(each.decision for each in verdicts if not each.is_base)
    if not decisions:
        return ""
    total = sum(decisions.values())
    shipped = f"{decisions[SHIP]:,} of {total:,} format{'s' * (total != 1)} {_SAID[SHIP]}"
    return ", ".join(filter(None, [shipped, counted([each for each in verdicts if _is_other(each)])]))


def counted(verdicts: Sequence[TrialVerdict]) -> str:
    """``3 not decided, 2 not to be shipped, 1 base``: of some trials how many were decided how."""
    found = Counter("base" if each.is_base else _SAID.get(str(each.decision), "not compared yet") for each in verdicts)
    return ", ".join(f"{number:,} {words}{'s' * (words == 'base' and number > 1)}" for words, number in found.items())


def _is_other(verdict: TrialVerdict) -> bool:
    return not verdict.is_base and verdict.decision != SHIP
