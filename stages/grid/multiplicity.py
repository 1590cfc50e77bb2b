"""What many tests leave standing: p-values adjusted for the number of them."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from stages.statistics import Floats

FALSE_SHARE = 0.05  # of the cells that are confirmed, expected at most


def benjamini_hochberg(ps: Sequence[float]) -> Floats:
    """Adjusted p: those of at most q have an expected share of at most q false ones among them (1995)."""
    order = np.argsort(ps, kind="stable")
    steps = np.array(ps, dtype=float)[order] * len(ps) / np.arange(1, len(ps) + 1)
    return _back(np.minimum.accumulate(steps[::-1])[::-1], order)


def holm(ps: Sequence[float]) -> Floats:
    """Adjusted p: the chance that any of those of at most alpha is false is at most alpha (1979)."""
    order = np.argsort(ps, kind="stable")
    steps = np.array(ps, dtype=float)[order] * np.arange(len(ps), 0, -1)
    return _back(np.maximum.accumulate(steps), order)


def _back(adjusted: Floats, order: NDArray[np.int64]) -> Floats:
    found = np.empty(len(adjusted))
    found[order] = np.minimum(adjusted, 1.0)
    return found
