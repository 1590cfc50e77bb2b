"""Numbers that were measured at several starts of a server, and what follows from them.

A start is what is repeated: whatever is measured between two starts shares what that start happened to be, so requests
and runs within one say nothing about the next.  Numbers are positive; errors are of their logarithms, to first order.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from stages.inference import critical_value, two_sided_p, upper_p

CONFIDENCE = 0.95
FALSE_SHARE = 1 - CONFIDENCE
ONCE = "measured once"  # what stands where an interval would

Starts = Mapping[int, float]  # by the number of the start


class Measured(NamedTuple):
    """A number between ``low`` and ``high``; without an interval they are None."""

    value: float
    low: float | None = None
    high: float | None = None


class Error(NamedTuple):
    """A standard error with its degrees of freedom; None: it is known as well as a normal one."""

    size: float
    freedom: float | None

    def p_above(self, gap: float) -> float:
        """One-sided, that what was found to be ``gap`` is 0 or less."""
        return upper_p(self._statistic(gap), self.freedom)

    def p_apart(self, gap: float) -> float:
        """Two-sided, that what was found to be ``gap`` is 0."""
        return two_sided_p(self._statistic(gap), self.freedom)

    def _statistic(self, gap: float) -> float:
        return gap / self.size if self.size else math.copysign(math.inf, gap) if gap else 0.0


@dataclass(frozen=True, slots=True)
class Replicated:
    """A number, and by how much its logarithm deviated at each start of each server that it was measured on."""

    value: float
    deviations: Mapping[str, Starts] = field(default_factory=dict)

    @classmethod
    def of(cls, server: str, values: Starts) -> "Replicated":
        """The geometric mean of what one server's starts gave."""
        logs = {start: math.log(value) for start, value in values.items()}
        mean = math.fsum(logs.values()) / len(logs)
        return cls(math.exp(mean), {server: {start: log - mean for start, log in logs.items()}})

    @property
    def is_once(self) -> bool:
        """Whether a server that it rests on was started once: then nobody knows its error."""
        return any(len(starts) < 2 for starts in self.deviations.values())

    @property
    def error(self) -> Error:
        """Of the logarithm, by Welch and Satterthwaite where several servers add to it."""
        parts = [
            (_variance(list(starts.values())) / len(starts), len(starts) - 1) for starts in self.deviations.values()
        ]
        total = math.fsum(part for part, _ in parts)
        if not total:
            return Error(0.0, min((freedom for _, freedom in parts), default=None))
        return Error(math.sqrt(total), total**2 / math.fsum(part**2 / freedom for part, freedom in parts))

    @property
    def measured(self) -> Measured:
        """With Student's interval on the logarithm; without one where a server was started once."""
        if self.is_once:
            return Measured(self.value)
        error = self.error
        factor = math.exp(critical_value(CONFIDENCE, error.freedom) * error.size)
        return Measured(self.value, self.value / factor, self.value * factor)

    def times(self, factor: float) -> "Replicated":
        """Multiplied by a positive number that is known exactly."""
        return Replicated(self.value * factor, self.deviations)

    def reciprocal(self) -> "Replicated":
        """1 / number."""
        return Replicated(1 / self.value, _combined([(-1.0, self)]))

    def over(self, other: "Replicated") -> "Replicated":
        """The ratio; what both have from the same starts of one server is in it together."""
        return Replicated(self.value / other.value, _combined([(1.0, self), (-1.0, other)]))

    def p_below(self, bound: float) -> float:
        """One-sided, that it is ``bound`` or more."""
        return self.error.p_above(math.log(bound / self.value))

    def p_apart(self, other: "Replicated") -> float:
        """Two-sided, that both are the same (Welch's test on the logarithms)."""
        ratio = self.over(other)
        return ratio.error.p_apart(math.log(ratio.value))


def measured(number: Replicated | None) -> Measured | None:
    """With its interval, if there is a number."""
    return None if number is None else number.measured


def num_for_quantile(quantile: float) -> int:
    """So many values that the largest is surely enough above a quantile: 29 for p90, 299 for p99."""
    return math.ceil(math.log(1 - CONFIDENCE) / math.log(quantile))


def weighted_sum(terms: Iterable[tuple[float, Replicated]]) -> Replicated:
    """Sum of weight times number."""
    known = list(terms)
    value = math.fsum(weight * term.value for weight, term in known)
    return Replicated(value, _combined([(weight * term.value / value, term) for weight, term in known]))


def mean_ratio(numerators: Mapping[str, Replicated], denominators: Mapping[str, Replicated]) -> Replicated | None:
    """Arithmetic mean of the ratios of what both have; None if they share nothing."""
    ratios = [number.over(denominators[name]) for name, number in numerators.items() if name in denominators]
    return weighted_sum((1 / len(ratios), ratio) for ratio in ratios) if ratios else None


def _combined(terms: Sequence[tuple[float, Replicated]]) -> dict[str, Starts]:
    """Of a sum of logarithms, server by server, at the starts that all terms from that server have."""
    servers = dict.fromkeys(server for _, term in terms for server in term.deviations)
    return {server: _of_server(server, terms) for server in servers}


def _of_server(server: str, terms: Sequence[tuple[float, Replicated]]) -> Starts:
    own = [(weight, term.deviations[server]) for weight, term in terms if server in term.deviations]
    shared = [start for start in own[0][1] if all(start in starts for _, starts in own)]
    return {start: math.fsum(weight * starts[start] for weight, starts in own) for start in shared}


def _variance(values: Sequence[float]) -> float:
    mean = math.fsum(values) / len(values)
    return math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1)
