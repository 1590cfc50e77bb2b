"""How often the intervals of a comparison hold the truth, and how often its verdicts are wrong, by simulation.

    python -m tests.benchmarks.statistics [--replicates 20000] [--part cells|grids|serving]

simulates designs whose true difference is known, whole sweeps (``grids.py``) and servers (``starts.py``), gives them
to the product's own functions, writes ``statistics.json`` and prints the tables.  Every design has a random stream
of its own, so a run repeats to the digit.
"""

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stages.compare.design import Part, estimate
from stages.compare.evidence import Evidence, Pairs, Scorer, Side
from stages.compare.intervals import difference_intervals
from stages.compare.verdict import DEGRADED, EQUIVALENT, IMPROVED, verdict_of
from stages.inference import critical_value, ratio_interval, tango_interval
from stages.statistics import generator
from tests.benchmarks import grids, starts

KEPT = Path(__file__).parent / "statistics.json"
MARGIN = 0.02
ACCURACY = 0.65  # of the base
SIZES = (12, 50, 100, 250, 541, 1319, 12032)
FLIPS = (0.001, 0.01, 0.05, 0.2)
EFFECTS = (-0.5, 0.0)  # true difference as a share of the flips
LEAST = {"binary": 93.5, "recovery": 93.5, "graded": 93.0, "clustered": 94.0, "leaves": 93.5}
MOST_FALSE, MOST_FALSE_EQUIVALENT = 5.5, 3.0


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A design, and of its replicates the per cents whose interval holds the truth and whose verdict is wrong."""

    kind: str
    design: str
    difference: float
    replicates: int
    covers: float
    covers_recovery: float | None = None
    false_verdicts: float | None = None  # degraded or improved, where nothing differs
    false_equivalent: float | None = None  # where the difference is the margin


def evidence_of(
    trial: Any, base: Any, is_right_or_wrong: bool, clusters: Any = None, lower_is_better: bool = False
) -> Evidence:
    """A leaf of which every document is known."""
    scorer = Scorer(None, is_right_or_wrong, lower_is_better)
    members = np.arange(len(trial)) if clusters is None else clusters
    parts = [scorer.part([trial], members), scorer.part([base], members)]
    sides = [
        Side(n=len(trial), score=scorer.score(each), part=part) for each, part in zip((trial, base), parts, strict=True)
    ]
    pairs = Pairs(
        n=len(trial),
        trial_score=sides[0].score,
        base_score=sides[1].score,
        part=scorer.part([trial, base], members),
    )
    return Evidence(trial=sides[0], base=sides[1], pairs=pairs)


def binary(n: int, flips: float, effect: float, replicates: int) -> Measured:
    """Independent right or wrong documents, all replicates at once."""
    rng = generator(0, "binary", str(n), str(flips), str(effect))
    difference = effect * flips
    lost_p, won_p = (flips - difference) / 2, (flips + difference) / 2
    shares = [ACCURACY - lost_p, lost_p, won_p, 1 - ACCURACY - won_p]
    both, lost, won, _ = rng.multinomial(n, shares, size=replicates).T
    low, high = tango_interval(lost, won, n, critical_value(0.95))
    holds = (low <= difference + 1e-12) & (difference - 1e-12 <= high)
    recovered = list(_recoveries(both + lost, lost, won, n, low, high))
    truth = (ACCURACY + difference) / ACCURACY
    known = [truth >= ends[0] and truth <= ends[1] for ends in recovered if ends[0] is not None]
    is_null = effect == 0
    return Measured(
        kind="binary",
        design=f"{n:,} documents, {100 * flips:g} % flips",
        difference=difference,
        replicates=replicates,
        covers=_percent(holds),
        covers_recovery=_percent(known) if len(known) > replicates / 2 else None,
        false_verdicts=_percent((high < 0) | (low > 0)) if is_null else None,
    )


def _recoveries(base_right: Any, lost: Any, won: Any, n: int, low: Any, high: Any) -> Iterator[tuple[Any, Any]]:
    for right, each_lost, each_won, *ends in zip(base_right, lost, won, low, high, strict=True):
        base, difference = right / n, (each_won - each_lost) / n
        base_variance = base * (1 - base) / (n - 1)
        covariance = (-each_lost / n - difference * base) / (n - 1)
        yield ratio_interval(base, difference, (ends[0], ends[1]), covariance, base_variance, critical_value(0.95))


def at_the_margin(n: int, flips: float, replicates: int) -> Measured:
    """The trial is worse by just the margin: who calls it equivalent is wrong."""
    rng = generator(0, "margin", str(n), str(flips))
    shares = [(flips + MARGIN) / 2, (flips - MARGIN) / 2, 1 - flips]
    lost, won, _ = rng.multinomial(n, shares, size=replicates).T
    low, high = tango_interval(lost, won, n, critical_value(0.95))
    return Measured(
        kind="margin",
        design=f"{n:,} documents, {100 * flips:g} % flips",
        difference=-MARGIN,
        replicates=replicates,
        covers=_percent((low <= -MARGIN) & (high >= -MARGIN)),
        false_equivalent=_percent((low > -MARGIN) & (high < MARGIN)),
    )


Draw = Callable[[np.random.Generator], tuple[list[Any], list[Any], list[Any]]]


def drawn(
    kind: str, design: str, draw: Draw, difference: float, weights: Sequence[float], is_binary: bool, replicates: int
) -> Measured:
    """Documents as ``draw`` makes them, of each leaf: trial, base, clusters."""
    rng, verdicts, hits, chunk = generator(0, kind, design), [], 0, 500
    scorer = Scorer(None, is_binary)
    for start in range(0, replicates, chunk):
        estimates = []
        for _ in range(min(chunk, replicates - start)):
            parts = [_part(scorer, *leaf) for leaf in zip(*draw(rng), strict=True)]
            value = math.fsum(weight * part.scores[0] for weight, part in zip(weights, parts, strict=True))
            estimates.append(estimate(parts, weights, [1.0] * len(parts), value))
        for low, high in difference_intervals(estimates, 0.95):
            hits += low is None or high is None or low - 1e-12 <= difference <= high + 1e-12
            verdicts.append(verdict_of((low, high), MARGIN))
    false = [each in (DEGRADED, IMPROVED) for each in verdicts]
    return Measured(
        kind=kind,
        design=design,
        difference=difference,
        replicates=replicates,
        covers=100 * hits / replicates,
        false_verdicts=_percent(false) if difference == 0 else None,
        false_equivalent=_percent([each == EQUIVALENT for each in verdicts]) if difference == -MARGIN else None,
    )


def _part(scorer: Scorer, trial: Any, base: Any, clusters: Any) -> Part:
    found = scorer.part([trial, base], clusters)
    assert found is not None
    return found


def copies(rng: np.random.Generator, shared: float) -> tuple[list[Any], list[Any], list[Any]]:
    """GPQA: 546 questions, of which 448 and 198 are in other leaves, too; a copy has its first outcome or its own."""
    sizes = (546, 448, 198)
    change = rng.choice([-1.0, 1.0, 0.0], size=546, p=[0.075, 0.075, 0.85])
    trials, bases = [], []
    for size in sizes:
        own = rng.choice([-1.0, 1.0, 0.0], size=size, p=[0.075, 0.075, 0.85])
        found = np.where(rng.random(size) < shared, change[:size], own)
        base = np.where(found == 0, rng.random(size) < 0.3, found < 0).astype(float)
        trials.append(base + found)
        bases.append(base)
    return trials, bases, [np.arange(size) for size in sizes]


def stories(
    rng: np.random.Generator, num: int, size: int, sd: float, flips: float, effect: float
) -> tuple[list[Any], list[Any], list[Any]]:
    """Clusters whose difference shifts as a whole."""
    shift = np.clip(rng.normal(effect, sd, num), -0.9 * flips, 0.9 * flips).repeat(size)
    draw = rng.random(num * size)
    change = np.where(draw < (flips - shift) / 2, -1.0, np.where(draw < flips, 1.0, 0.0))
    base = np.where(change == 0, rng.random(num * size) < 0.5, change < 0).astype(float)
    return [base + change], [base], [np.arange(num).repeat(size)]


def leaves(
    rng: np.random.Generator, sizes: Sequence[int], flips: Sequence[float], effect: float
) -> tuple[list[Any], list[Any], list[Any]]:
    """Independent leaves of unlike sizes and flips."""
    trials, bases, start, members = [], [], 0, []
    for size, share in zip(sizes, flips, strict=True):
        change = rng.choice(
            [-1.0, 1.0, 0.0], size=size, p=[share * (1 - effect) / 2, share * (1 + effect) / 2, 1 - share]
        )
        base = np.where(change == 0, rng.random(size) < 0.6, change < 0).astype(float)
        trials.append(base + change)
        bases.append(base)
        members.append(np.arange(start, start + size))
        start += size
    return trials, bases, members


def graded(rng: np.random.Generator, n: int, effect: float) -> tuple[list[Any], list[Any], list[Any]]:
    """Partial credit from 0 to 1, mostly at the ends, that moves a little where it moves at all."""
    base = rng.beta(0.5, 0.3, n)
    moves = rng.random(n) < 0.6
    return [base + moves * (effect / 0.6 + 0.1 * rng.standard_normal(n))], [base], [np.arange(n)]


def heavy(rng: np.random.Generator, n: int) -> tuple[list[Any], list[Any], list[Any]]:
    """Scores with heavy tails, sigma 2 on the scale of logarithms, and no difference."""
    trial, base = np.exp(2 * rng.standard_normal((2, n)))
    return [trial], [base], [np.arange(n)]


def designs(replicates: int) -> Iterator[Callable[[], Measured]]:
    """What is simulated; documents that are drawn one by one have fewer replicates."""
    for n in SIZES:
        for flips in FLIPS:
            for effect in EFFECTS:
                yield partial(binary, n, flips, effect, replicates)
    for n in (250, 1319, 5761, 14042):
        for flips in (0.03, 0.1):
            yield partial(at_the_margin, n, flips, replicates)
    several = replicates // 2
    many = partial(drawn, is_binary=True, replicates=several)
    for shared in (0.0, 0.5, 0.9, 1.0):
        questions = partial(copies, shared=shared)
        weights = [size / 1192 for size in (546, 448, 198)]
        name = f"GPQA, copies share {100 * shared:g} % of outcomes"
        yield partial(many, "clustered", name, questions, 0.0, weights)
    for num, size, sd in ((57, 246, 0.017), (91, 132, 0.02), (64, 4, 0.1), (12, 30, 0.05)):
        for effect in (0.0, -MARGIN):
            told = partial(stories, num=num, size=size, sd=sd, flips=0.35, effect=effect)
            yield partial(many, "clustered", f"{num} × {size} documents, sd {100 * sd:g} points", told, effect, [1.0])
    for sizes, flips, plain in _LEAVES:
        for effect in EFFECTS:
            truth = float(np.mean(np.array(flips) * effect))
            name = f"plain mean of {len(sizes)} leaves, {100 * min(flips):g} to {100 * max(flips):g} % flips"
            asked = partial(leaves, sizes=sizes, flips=flips, effect=effect)
            yield partial(many, "leaves", name, asked, truth, plain)
    few = partial(drawn, is_binary=False, replicates=replicates // 5)
    for n in (12, 50, 250, 1000):
        for effect in (0.0, -MARGIN):
            yield partial(
                few, "graded", f"{n:,} documents of partial credit", partial(graded, n=n, effect=effect), effect, [1.0]
            )
    for n in (50, 250):
        yield partial(few, "graded", f"{n} documents of heavy tails", partial(heavy, n=n), 0.0, [1.0])


_MUSR = (250, 256, 250)
_LEAVES = (
    (_MUSR, (0.1, 0.1, 0.1), [1 / 3] * 3),
    (_MUSR, (0.002, 0.01, 0.004), [1 / 3] * 3),
    ((40, 250, 1000), (0.3, 0.02, 0.05), [1 / 3] * 3),
    ((250,) * 10, tuple(np.linspace(0.002, 0.02, 10).round(4).tolist()), [0.1] * 10),
)


def table(found: Sequence[Measured]) -> str:
    """A row for each design."""
    lines = [
        "| design | true difference | replicates | interval holds it | recovery's | called different "
        "| called equivalent |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for each in found:
        shares = (each.covers, each.covers_recovery, each.false_verdicts, each.false_equivalent)
        cells = ["–" if share is None else f"{share:.1f} %" for share in shares]
        lines.append(
            f"| {each.design} | {100 * each.difference:+.3g} points | {each.replicates:,} | {' | '.join(cells)} |"
        )
    return "\n".join(lines)


def read(path: Path = KEPT) -> list[Measured]:
    """What was kept."""
    return [Measured(**each) for each in json.loads(path.read_text())["rows"]]


def read_grids(path: Path = KEPT) -> list[grids.Simulated]:
    """What was kept of whole sweeps."""
    return [grids.Simulated(**each) for each in json.loads(path.read_text())["grids"]]


def read_serving(path: Path = KEPT) -> list[grids.Simulated]:
    """What was kept of servers."""
    return [grids.Simulated(**each) for each in json.loads(path.read_text())["serving"]]


def wrong(found: Sequence[Measured], slack: float = 0.0) -> list[Measured]:
    """Those that miss what is promised by more than ``slack`` standard errors of the simulation."""

    def misses(each: Measured) -> bool:
        error = slack * 100 * math.sqrt(0.05 * 0.95 / each.replicates)
        return (
            each.covers < LEAST.get(each.kind, 93.5) - error
            or (each.covers_recovery is not None and each.covers_recovery < LEAST["recovery"] - error)
            or (each.false_verdicts is not None and each.false_verdicts > MOST_FALSE + error)
            or (each.false_equivalent is not None and each.false_equivalent > MOST_FALSE_EQUIVALENT + error)
        )

    return [each for each in found if misses(each)]


def _percent(hits: Any) -> float:
    return float(100 * np.mean(hits))


def main() -> None:
    """Simulate, keep and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--replicates", type=int, default=20_000)
    parser.add_argument("--part", choices=("cells", "grids", "serving"))
    options = parser.parse_args()
    if options.part in (None, "cells"):
        found = [measure() for measure in designs(options.replicates)]
        _keep("rows", found)
        print(table(found))
        for each in wrong(found):
            print("misses:", each)
    asked = {
        "grids": partial(grids.simulations, options.replicates // 2, options.replicates // 20),
        "serving": partial(starts.simulations, options.replicates // 2),
    }
    for part, simulations in asked.items():
        if options.part in (None, part):
            _simulate(part, simulations())


def _simulate(part: str, simulations: Iterator[Callable[[], list[grids.Simulated]]]) -> None:
    found = [each for ask in simulations for each in ask()]
    _keep(part, found)
    print(grids.table(found))
    for one in grids.wrong(found):
        print("misses:", one)


def _keep(part: str, found: Sequence[Any]) -> None:
    content = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    KEPT.write_text(json.dumps(content | {part: [asdict(each) for each in found]}, indent=1) + "\n")


if __name__ == "__main__":
    main()
