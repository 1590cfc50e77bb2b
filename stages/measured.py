"""Numbers with their intervals, and what follows from them: errors of independent measurements add in quadrature."""

import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple, Self


class Measured(NamedTuple):
    """A positive number between ``low`` and ``high``; without an interval all three are the same."""

    value: float
    low: float
    high: float

    @classmethod
    def exactly(cls, value: float) -> Self:
        """A number without an interval."""
        return cls(value, value, value)

    @classmethod
    def rounded(cls, value: float, digit: float) -> Self:
        """A number of which print shows multiples of ``digit`` only."""
        return cls(value, max(value - digit / 2, 0.0), value + digit / 2)

    def times(self, factor: float) -> "Measured":
        """Multiplied by a positive number that is known exactly."""
        return Measured(self.value * factor, self.low * factor, self.high * factor)

    def reciprocal(self) -> "Measured":
        """1 / number; without an upper bound where the number may be 0."""
        return Measured(1 / self.value, 1 / self.high, 1 / self.low if self.low > 0 else math.inf)

    def over(self, other: "Measured") -> "Measured":
        """The ratio to an independent measurement."""
        value = self.value / other.value
        below = math.hypot(1 - self.low / self.value, 1 - other.value / other.high)
        above = math.hypot(self.high / self.value - 1, other.value / other.low - 1 if other.low > 0 else math.inf)
        return Measured(value, value * max(1 - below, 0.0), value * (1 + above))

    def is_below(self, other: "Measured") -> bool:
        """Whether the evidence says so: the intervals do not overlap."""
        return self.high < other.low


def weighted_sum(terms: Iterable[tuple[float, Measured]]) -> Measured:
    """Sum of weight times independent measurement."""
    known = list(terms)
    value = sum(weight * term.value for weight, term in known)
    below = math.hypot(*(weight * (term.value - term.low) for weight, term in known))
    above = math.hypot(*(weight * (term.high - term.value) for weight, term in known))
    return Measured(value, max(value - below, 0.0), value + above)


def mean_ratio(numerators: Mapping[str, Measured], denominators: Mapping[str, Measured]) -> Measured | None:
    """Arithmetic mean of the ratios of what both have; None if they share nothing."""
    ratios = [number.over(denominators[name]) for name, number in numerators.items() if name in denominators]
    return weighted_sum((1 / len(ratios), ratio) for ratio in ratios) if ratios else None
