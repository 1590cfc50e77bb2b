"""May a trial be shipped: if all that is asked of it holds, each at its own level (Berger 1982), and still does among
the trials of which one is chosen (Holm).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

from stages.grid.multiplicity import holm
from stages.inference import POWER, critical_value
from stages.statistics import Interval

SHIP, DO_NOT_SHIP, NOT_DECIDED = "ship", "do not ship", "not decided"
# To which side a trial leans that is not decided: what was measured is beyond a limit; it is within all, and documents
# are left to show it, or none are; or all is shown, but not among as many trials.
LEANS_TO_NO, MORE_DOCUMENTS = "leans to no", "more documents may show it"
NOT_WITH_THESE, PASSES_ALONE = "cannot be decided with these tasks", "passes alone"


@dataclass(frozen=True, kw_only=True, slots=True)
class Requirement:
    """That a suite's mean, or a task of the gate, lost less than ``margin``.

    ``p``: one-sided, that it lost as much or more, had all that is missing gone against the trial; None where nothing
    can be said.  ``gain``: the interval of how much better the trial is.
    """

    name: str
    margin: float
    p: float | None = None
    gain: Interval = (None, None)

    def holds(self, alpha: float) -> bool:
        """By itself."""
        return self.p is not None and self.p <= alpha

    @property
    def is_broken(self) -> bool:
        """Whether even the better end of its interval is beyond the margin."""
        high = self.gain[1]
        return self.p is not None and high is not None and high < -self.margin


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """A trial's requirements, and whether it is shown to be bad beside them."""

    requirements: Sequence[Requirement]
    is_bad: bool = False

    @property
    def p(self) -> float | None:
        """That one of the requirements does not hold: the largest; None where one cannot be said."""
        ps = [each.p for each in self.requirements]
        known = [p for p in ps if p is not None]
        return max(known) if known and len(known) == len(ps) else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Decision:
    """What is decided of a trial; ``adjusted_p`` is among all trials."""

    word: str
    p: float | None
    adjusted_p: float | None


def decide(cases: Sequence[Case], confidence: float) -> list[Decision]:
    """Of all trials at once; one of which something cannot be said counts as p = 1."""
    adjusted = holm([1.0 if case.p is None else case.p for case in cases])
    return [_decision(case, float(p), (1 - confidence) / 2) for case, p in zip(cases, adjusted, strict=True)]


def _decision(case: Case, adjusted_p: float, alpha: float) -> Decision:
    is_bad = case.is_bad or any(each.is_broken for each in case.requirements)
    word = DO_NOT_SHIP if is_bad else SHIP if case.p is not None and adjusted_p <= alpha else NOT_DECIDED
    return Decision(word=word, p=case.p, adjusted_p=None if case.p is None else adjusted_p)


def documents_needed(gain: float, variance: float, margin: float, confidence: float) -> int | None:
    """So many would show, nine times of ten, that the loss is below ``margin``, if the difference is what was found:
    ``variance`` is of one document.  None where what was found is no less than the margin.

    Without any change margin * n > z ** 2 is needed alone, as of ``stages.inference.documents_needed``.
    """
    if (room := gain + margin) <= 0:
        return None
    z = critical_value(confidence)
    fewest = z * z * (1 / margin - 1) if margin < 1 else 1.0
    return max(math.ceil(variance * ((z + NormalDist().inv_cdf(POWER)) / room) ** 2), math.floor(fewest) + 1)
