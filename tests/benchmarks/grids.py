"""How often a whole sweep is wrong, by simulation: part of ``tests.benchmarks.statistics``.

Grids of the study's size, three models in three formats on thirteen tasks, of which the true differences are known, are
judged by the product's own functions: cells, what the grid confirms of them, suites, and which trials may be shipped.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from stages.compare.artifact import Error
from stages.grid.joint import Influences, Member
from stages.grid.multiplicity import FALSE_SHARE, benjamini_hochberg
from stages.grid.shipping import SHIP, Case, Requirement, decide
from stages.grid.suites import MeanDifference, mean_difference
from stages.inference import critical_value, tango_interval, tango_statistic, two_sided_p, upper_p
from stages.statistics import generator

# Documents, share of those that flip, and points of the normalized scale that one raw point is.
V1 = {
    "mmlu": (14042, 0.06, 1.0),
    "mmlu_cot": (14042, 0.10, 1.0),
    "arc_challenge": (1172, 0.05, 1.0),
    "gsm8k": (1319, 0.07, 1.0),
    "hellaswag": (10042, 0.03, 1.0),
    "winogrande": (1267, 0.05, 1.0),
    "truthfulqa": (817, 0.06, 1.0),
}
V2 = {
    "ifeval": (541, 0.10, 1.0),
    "bbh": (5761, 0.09, 1 / 0.7),
    "math_hard": (1324, 0.12, 1.0),
    "gpqa": (546, 0.15, 1 / 0.75),
    "musr": (756, 0.10, 1 / 0.655),
    "mmlu_pro": (12032, 0.12, 1 / 0.9),
}
TASKS = V1 | V2
NUM_TRIALS = 9
CONFIDENCE = 0.95
N = np.array([n for n, _, _ in TASKS.values()])
FLIPS = np.array([flips for _, flips, _ in TASKS.values()])
UNITS = np.array([unit for _, _, unit in TASKS.values()])
MARGINS, WIDE = 0.02 / UNITS, 0.05 / UNITS  # raw
IN_V1 = np.arange(len(TASKS)) < len(V1)


@dataclass(frozen=True, kw_only=True)
class Simulated:
    """What was asked of how many grids, cells or suites, and of how many per cent it was so; ``most`` is promised."""

    design: str
    question: str
    replicates: int
    percent: float
    most: float | None = None
    least: float | None = None


@dataclass(frozen=True)
class Grids:
    """Lost and won documents of G grids, (G, trials, tasks), and their intervals."""

    lost: Any
    won: Any
    low: Any
    high: Any

    @property
    def ps(self) -> Any:
        """Two-sided, of no difference."""
        found = tango_statistic(self.lost, self.won, N, 0.0)
        return np.array([two_sided_p(each) for each in found.ravel()]).reshape(found.shape)


def draw(name: str, num: int, flips: Any, differences: Any) -> Grids:
    """``differences``, raw, of each task."""
    rng = generator(0, "grids", name)
    differences = np.broadcast_to(differences, FLIPS.shape)
    shape = (num, NUM_TRIALS, len(N))
    both = rng.binomial(N, np.maximum(flips, np.abs(differences)), size=shape)
    lost = rng.binomial(both, np.clip(0.5 - differences / 2 / np.maximum(flips, np.abs(differences)), 0, 1))
    won = both - lost
    low, high = tango_interval(lost, won, N, critical_value(CONFIDENCE))
    return Grids(lost, won, low, high)


def without_loss(num: int, share: float) -> list[Simulated]:
    """No cell differs."""
    name = f"no differences, {100 * share * FLIPS.min():.2g} to {100 * share * FLIPS.max():.2g} % flips"
    grids = draw(name, num, share * FLIPS, 0.0)
    is_lower = (grids.high < 0) & ~((grids.low > -MARGINS) & (grids.high < MARGINS))
    adjusted = np.array([benjamini_hochberg(ps.ravel()) for ps in grids.ps]).reshape(is_lower.shape)
    confirmed = is_lower & (adjusted <= FALSE_SHARE)
    return [
        Simulated(
            design=name,
            question="grids with a cell confirmed as degraded",
            replicates=num,
            percent=_percent(confirmed.any(axis=(1, 2))),
            most=5.0,
        ),
        Simulated(
            design=name,
            question="cells degraded by their own interval alone",
            replicates=num * NUM_TRIALS * len(N),
            percent=_percent(is_lower),
            most=3.0,
        ),
    ]


def at_the_margin(num: int, share: float) -> list[Simulated]:
    """Every cell is worse by just its margin."""
    flips = np.maximum(share * FLIPS, MARGINS)
    name = f"every task worse by its margin, {100 * flips.min():.2g} to {100 * flips.max():.2g} % flips"
    grids = draw(name, num, flips, -MARGINS)
    is_equivalent = (grids.low > -MARGINS) & (grids.high < MARGINS)
    cells = num * NUM_TRIALS * len(N)
    return [
        Simulated(design=name, question="cells equivalent", replicates=cells, percent=_percent(is_equivalent), most=3.0)
    ]


def suites(num: int, normalized: bool, loss: float) -> list[Simulated]:
    """The mean of a suite is worse by ``loss`` points, all of it in its tasks alike."""
    kind = "V2, normalized" if normalized else "V1"
    margin = 2.0 if normalized else 0.01
    name = f"{kind}, mean worse by {loss:g} points"
    grids = draw(name, num, FLIPS, -loss / 100 / UNITS)
    truth = -loss if normalized else -loss / 100
    found = [_mean(grids, grid, trial, normalized) for grid in range(num) for trial in range(NUM_TRIALS)]
    covers = [low <= truth <= high for low, high in (each.interval(CONFIDENCE) for each in found)]
    rows = [
        Simulated(
            design=name,
            question="intervals of the mean that hold it",
            replicates=len(found),
            percent=_percent(covers),
            least=94.0,
        )
    ]
    if loss:
        shown = [each.loss_p(margin) <= (1 - CONFIDENCE) / 2 for each in found]
        question = "means not inferior"
        rows.append(Simulated(design=name, question=question, replicates=len(found), percent=_percent(shown), most=3.0))
    return rows


def shared(num: int, correlation: float, flips: float) -> list[Simulated]:
    """Two tasks of the same 1,000 documents, whose changes are alike in a share of them, and one of its own."""
    rng = generator(0, "shared", str(correlation), str(flips))
    ids, covers = np.arange(1000), 0
    for _ in range(num):
        first, second, third = rng.choice([-1.0, 1.0, 0.0], (3, 1000), p=[flips / 2, flips / 2, 1 - flips])
        second = np.where(rng.random(1000) < correlation, first, second)
        tasks = [_task(first, ids), _task(second, ids), _task(third, 1000 + ids)]
        mean = mean_difference(tasks, lower_is_better=False)
        assert mean is not None
        low, high = mean.interval(CONFIDENCE)
        covers += low is not None and high is not None and low <= 0 <= high
    name = f"three tasks of 1,000 documents, {100 * flips:g} % flips, two share them with {100 * correlation:g} % alike"
    question = "intervals of the mean that hold it"
    return [Simulated(design=name, question=question, replicates=num, percent=100 * covers / num, least=94.0)]


def shipped(num: int, worse: str | None) -> list[Simulated]:
    """All nine trials lose just what is not allowed, in the tasks of ``worse``; or none loses anything."""
    losses = np.zeros(len(N))
    if worse == "V1":
        losses[IN_V1] = 0.01
    elif worse is not None:
        losses[list(TASKS).index(worse)] = WIDE[list(TASKS).index(worse)]
    name = f"nine trials, {worse} worse by all that is allowed" if worse else "nine trials without any loss"
    grids = draw(name, num, 0.5 * FLIPS, -losses)
    decided = [decide([_case(grids, grid, trial) for trial in range(NUM_TRIALS)], CONFIDENCE) for grid in range(num)]
    ships = np.array([[each.word == SHIP for each in grid] for grid in decided])
    if worse is None:
        return [Simulated(design=name, question="trials shipped", replicates=ships.size, percent=_percent(ships))]
    question = "sweeps that ship any"
    return [Simulated(design=name, question=question, replicates=num, percent=_percent(ships.any(axis=1)), most=3.0)]


def simulations(num: int, few: int) -> Iterator[Callable[[], list[Simulated]]]:
    """Of so many grids; where suites are put together trial by trial, of fewer."""
    for share in (1.0, 0.3, 0.1):
        yield partial(without_loss, num, share)
    for share in (1.0, 0.3):
        yield partial(at_the_margin, num, share)
    for normalized, loss in ((False, 0.0), (False, 1.0), (True, 0.0), (True, 2.0)):
        yield partial(suites, few, normalized, loss)
    for correlation, flips in ((0.0, 0.05), (0.5, 0.05), (1.0, 0.05), (0.5, 0.005), (1.0, 0.001)):
        yield partial(shared, 9 * few, correlation, flips)
    for worse in (None, "V1", "gsm8k", "gpqa"):
        yield partial(shipped, few, worse)


def wrong(found: Sequence[Simulated], slack: float = 0.0) -> list[Simulated]:
    """Those that miss what is promised by more than ``slack`` standard errors of the simulation."""

    def misses(each: Simulated) -> bool:
        bound = each.most if each.most is not None else each.least
        if bound is None:
            return False
        error = slack * 100 * (bound / 100 * (1 - bound / 100) / each.replicates) ** 0.5
        return each.percent > bound + error if each.most is not None else each.percent < bound - error

    return [each for each in found if misses(each)]


def table(found: Sequence[Simulated]) -> str:
    """A row for each question."""
    lines = ["| what is so | what is asked | of | is so | promised |", "|---|---|--:|--:|--:|"]
    for each in found:
        bound = f"≤ {each.most:g} %" if each.most is not None else f"≥ {each.least:g} %" if each.least else "–"
        lines.append(f"| {each.design} | {each.question} | {each.replicates:,} | {each.percent:.1f} % | {bound} |")
    return "\n".join(lines)


def _mean(grids: Grids, grid: int, trial: int, normalized: bool) -> MeanDifference:
    members = []
    for place in np.flatnonzero(~IN_V1 if normalized else IN_V1):
        scale = 100 * UNITS[place] if normalized else 1.0
        ends = scale * grids.low[grid, trial, place], scale * grids.high[grid, trial, place]
        difference = scale * (grids.won[grid, trial, place] - grids.lost[grid, trial, place]) / N[place]
        error = Error(difference=((ends[1] - ends[0]) / 2 / critical_value(CONFIDENCE)) ** 2, base=0.0, covariance=0.0)
        own = np.array([place])
        influences = Influences(own, own, np.ones((1, 2)))
        members.append(
            Member(task=str(place), difference=difference, base=0.7 * scale, error=error, influences=influences)
        )
    found = mean_difference(members, lower_is_better=False)
    assert found is not None
    return found


def _task(values: Any, ids: Any) -> Member:
    lost, won, n = (values < 0).sum(), (values > 0).sum(), len(values)
    low, high = tango_interval(lost, won, n, critical_value(CONFIDENCE))
    error = Error(difference=(float(high - low) / 2 / critical_value(CONFIDENCE)) ** 2, base=0.0, covariance=0.0)
    centred = (values - values.mean()) / n
    influences = Influences(ids, ids, np.column_stack([centred, 0 * centred]))
    return Member(task="", difference=float(values.mean()), base=0.7, error=error, influences=influences)


def _case(grids: Grids, grid: int, trial: int) -> Case:
    requirements = []
    for normalized, margin in ((False, 0.01), (True, 2.0)):
        mean = _mean(grids, grid, trial, normalized)
        requirements.append(Requirement(name="", margin=margin, p=mean.loss_p(margin), gain=mean.interval(CONFIDENCE)))
    statistics = tango_statistic(grids.lost[grid, trial], grids.won[grid, trial], N, -WIDE)
    for place, each in enumerate(statistics):
        gain = float(grids.low[grid, trial, place]), float(grids.high[grid, trial, place])
        requirements.append(Requirement(name="", margin=WIDE[place], p=upper_p(float(each)), gain=gain))
    return Case(requirements=requirements)


def _percent(hits: Any) -> float:
    return float(100 * np.mean(hits))
