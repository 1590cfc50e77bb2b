"""What to ship, in one sentence for each model: verdicts, what serving costs and on what, or what is missing to say it.

Words and numbers in, a sentence out: a number that nobody measured is in none.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from stages.compare.verdict import DEGRADED, EQUIVALENT, IMPROVED
from stages.grid.shipping import DO_NOT_SHIP, LEANS_TO_NO, NOT_DECIDED, SHIP
from stages.measured import ONCE, Measured
from stages.report.artifact import Row, SuiteMean, TrialVerdict
from stages.report.config import TrialRow
from stages.report.numbers import count
from stages.report.serving.relative import Cost

MOST_NAMED = 2  # trials beside the one that is advised
MOST_TASKS = 3
_ON_A_SUITE = {EQUIVALENT: "equivalent", IMPROVED: "better", DEGRADED: "degraded within the margin"}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A trial that might be shipped in the place of its base."""

    verdict: TrialVerdict
    label: str
    base: str
    suites: Sequence[SuiteMean]
    members: Mapping[str, Sequence[str]]  # the tasks of each suite
    degraded: Sequence[str]  # tasks, confirmed
    share: float | None  # of the base's size
    cost: Cost | None

    @property
    def rank(self) -> tuple[float, float]:
        """The first is the cheapest to serve; of those that were not served the smallest."""
        value = None if self.cost is None else self.cost.value
        return (0.0 if value is None else -value), (float("inf") if self.share is None else self.share)


def sentences(
    trials: Sequence[TrialRow],
    verdicts: Sequence[TrialVerdict],
    rows: Sequence[Row],
    suites: Sequence[SuiteMean],
    costs: Mapping[str, Cost],
    members: Mapping[str, Sequence[str]],
) -> dict[str, str]:
    """By model; empty where nothing was judged.  ``members`` are the tasks of each suite."""
    named = {trial.name: trial for trial in trials}
    models = dict.fromkeys(verdict.model for verdict in verdicts)
    of_model = {model: [each for each in verdicts if each.model == model] for model in models}
    return {
        model: _sentence([_candidate(each, named, rows, suites, costs, members) for each in own if not each.is_base])
        if any(not each.is_base for each in own)
        else _bases_alone(own, named)
        for model, own in of_model.items()
    }


def _candidate(
    verdict: TrialVerdict,
    named: Mapping[str, TrialRow],
    rows: Sequence[Row],
    suites: Sequence[SuiteMean],
    costs: Mapping[str, Cost],
    members: Mapping[str, Sequence[str]],
) -> Candidate:
    trial = named[verdict.trial]
    base = named.get(trial.base or "") or next(
        (each for each in named.values() if each.model == trial.model and each.is_base), None
    )
    sizes = trial.size_gib, base and base.size_gib
    own = [row for row in rows if row["trial"] == trial.name]
    return Candidate(
        verdict=verdict,
        label=trial.label,
        base=base.label if base else "its base",
        suites=[each for each in suites if each.trial == trial.name and each.verdict is not None],
        members=members,
        degraded=[row["task"] for row in own if row["verdict"] == DEGRADED and row["is_confirmed"]],
        share=sizes[0] / sizes[1] if sizes[0] and sizes[1] else None,
        cost=costs.get(trial.name),
    )


def _bases_alone(bases: Sequence[TrialVerdict], named: Mapping[str, TrialRow]) -> str:
    names = listed(named[each.trial].label for each in bases)
    one = len(bases) == 1
    said = f"There is only the base, {names}: " if one else f"There are only bases, {names}: "
    lacking = [f"; {named[each.trial].label}: {each.reasons[0]}" for each in bases if each.reasons]
    return f"{said}nothing to compare with {'it' if one else 'them'}{''.join(lacking[:MOST_NAMED])}."


def _sentence(candidates: Sequence[Candidate]) -> str:
    ranked = sorted(candidates, key=lambda each: each.rank)
    shippable = [each for each in ranked if each.verdict.decision == SHIP]
    if shippable:
        return _advice(shippable[0], ranked)
    undecided = [each for each in ranked if each.verdict.decision != DO_NOT_SHIP]
    if undecided:
        refused = [each for each in ranked if each not in undecided]
        end = f"; {_named(refused)} {'is' if len(refused) == 1 else 'are'} not to ship" if refused else ""
        nearest = sorted(undecided, key=lambda each: nearness(each.verdict))
        return f"Nothing may be shipped yet: {_whys(nearest, _reason_of_open)}{end}."
    return f"Ship none of these formats: {_whys(ranked, _loss)}."


def nearness(verdict: TrialVerdict) -> tuple[bool, float]:
    """To being shipped, the nearest first: what leans to no last."""
    return verdict.leaning == LEANS_TO_NO, 1.0 if verdict.p is None else verdict.p


def _whys(some: Sequence[Candidate], why_of: Callable[[Candidate], str]) -> str:
    """Why not, said once for all of whom it is true."""
    found: dict[str, list[Candidate]] = {}
    for each in some:
        found.setdefault(why_of(each), []).append(each)
    named = list(found.items())[:MOST_NAMED]
    parts = [f"{_named(own)} ({'; '.join([*_price_in_short(own), why])})" for why, own in named]
    rest = len(some) - sum(len(own) for _, own in named)
    return "; ".join([*parts, *([f"and {rest} more for other reasons"] if rest else [])])


def _advice(best: Candidate, ranked: Sequence[Candidate]) -> str:
    text = f"Ship {best.label}: {'; '.join([*filter(None, [_evidence(best)]), _price(best)])}"
    tempting = [each for each in ranked[: ranked.index(best)] if each.rank < best.rank]
    for each in tempting[:MOST_NAMED]:
        text += f"; {each.label} is {_number_of(each)}{_once(each, ',')} but {_spoken_against(each)}"
    if len(tempting) > MOST_NAMED:
        text += f"; {len(tempting) - MOST_NAMED} more are cheaper or smaller, and may not be shipped yet"
    others = [each for each in ranked if each is not best and each.verdict.decision == SHIP]
    if others:
        text += f". {listed([f'{each.label}{_in_brackets(each)}' for each in others], MOST_NAMED)} may be shipped, too"
    return f"{text}."


def _evidence(best: Candidate) -> str:
    """What was found of it, by suites where there are any; a loss that the grid confirms is never left out."""
    found: dict[str, list[str]] = {}
    for mean in best.suites:
        found.setdefault(_ON_A_SUITE.get(str(mean.verdict), "not worse"), []).append(mean.suite)
    parts = [f"{words} on {listed([_with_tasks(name, best) for name in names])}" for words, names in found.items()]
    if not parts and best.verdict.num_equivalent is not None:
        parts = [f"equivalent on {best.verdict.num_equivalent} of {best.verdict.num_cells} tasks"]
    if best.degraded:
        parts.append(f"though degraded within what is allowed on {_tasks(best.degraded)}")
    return ", ".join(parts)


def _with_tasks(suite: str, of: Candidate) -> str:
    tasks = of.members.get(suite)
    return f"{suite} ({_tasks(tasks)})" if tasks else suite


def _price(each: Candidate) -> str:
    if each.cost is None or each.cost.value is None:
        unknown = "what it costs to serve was not measured"
        return unknown if each.share is None else f"{each.share:.2f} of the size of {each.base}; {unknown}"
    known = (("at saturation", each.cost.saturated), ("one at a time", each.cost.alone))
    (first, when), *others = [(_times(ratio), when) for when, ratio in known if ratio is not None]
    more = "".join(f", {times} {when}" for times, when in others)
    return f"{first} times the queries per dollar of {each.base} {when}{more} ({each.cost.where})"


def _times(ratio: Measured) -> str:
    ends = f"({ONCE})" if ratio.low is None or ratio.high is None else f"[{ratio.low:.2f}, {ratio.high:.2f}]"
    return f"{ratio.value:.2f} {ends}"


def _number_of(each: Candidate) -> str:
    """Its price in as few words as a comparison with another needs; empty where nothing is known of it."""
    if each.cost is not None and each.cost.value is not None:
        return f"{each.cost.value:.2f} times"
    return "" if each.share is None else f"{each.share:.2f} of the size"


def _once(each: Candidate, end: str = "") -> str:
    """What must be known of its price; ``end`` closes it."""
    known = None if each.cost is None else each.cost.ranked_by
    return f", {ONCE}{end}" if known is not None and known.low is None else ""


def _in_brackets(each: Candidate) -> str:
    return f" ({found}{_once(each)})" if (found := _number_of(each)) else ""


def _price_in_short(some: Sequence[Candidate]) -> list[str]:
    """Of one alone, as far as it is known."""
    (each, *others) = some
    if others or not _number_of(each):
        return []
    what = " the queries per dollar" if each.cost is not None and each.cost.value is not None else ""
    return [f"{_number_of(each)}{what} of {each.base}{_once(each)}"]


def _spoken_against(each: Candidate) -> str:
    verdict, reason = each.verdict, _reason(each)
    decision = "not to ship" if verdict.decision == DO_NOT_SHIP else verdict.decided or NOT_DECIDED
    if each.degraded:
        loss = f"degraded on {_tasks(each.degraded)}"
        return loss if each.verdict.decision == DO_NOT_SHIP else f"{loss}, and {decision}"
    is_said = verdict.leaning is not None and reason.startswith(verdict.leaning)
    return f"{NOT_DECIDED if is_said else decision} ({reason})"


def _loss(each: Candidate) -> str:
    return f"degraded on {_tasks(each.degraded)}" if each.degraded else _reason(each)


def _reason(each: Candidate) -> str:
    """The first of its reasons; what is more than why and what would do stands in the table alone."""
    first, *others = each.verdict.reasons or ["nothing was compared yet"]
    said = "; ".join(first.split("; ")[:2])
    return f"{said}; and {count(len(others))} more" if others else said


def _reason_of_open(each: Candidate) -> str:
    """With the side to which it leans."""
    leaning, reason = each.verdict.leaning, _reason(each)
    return reason if leaning is None or reason.startswith(leaning) else f"{leaning}: {reason}"


def _named(some: Sequence[Candidate]) -> str:
    return listed([each.label for each in some], MOST_NAMED + 1)


def _tasks(names: Sequence[str]) -> str:
    return listed(names, MOST_TASKS)


def listed(names: Iterable[str], most: int | None = None) -> str:
    """``a, b and c``; of more than ``most`` the first, and how many others."""
    shown = list(names)
    if most is not None and len(shown) > most:
        shown = [*shown[:most], f"{len(shown) - most} more"]
    return shown[0] if len(shown) == 1 else f"{', '.join(shown[:-1])} and {shown[-1]}"
