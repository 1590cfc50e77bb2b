"""What a sweep can see, in words: a line a task, and the chance that a format without any loss passes the gate."""

from collections.abc import Iterator, Sequence

from rich.console import Console

from pipeline.planning.power import GUESSED_FLIPS, LONG_ANSWER_TOKENS, Change, GatePower, TaskPower
from pipeline.results.console import add_row, new_table, say

NOTHING = "–"


def say_power(console: Console, tasks: Sequence[TaskPower], gates: Sequence[GatePower]) -> None:
    """Nothing where nothing is compared."""
    if not tasks:
        return
    kinds = sorted({each.bits for each in tasks}, reverse=True)
    of_kind = [(f"{bits} bits: flips", "sees", "equivalent from") for bits in kinds]
    table = new_table("task", "documents", "margin", *(heading for three in of_kind for heading in three))
    by_task: dict[str, dict[int, TaskPower]] = {}
    for each in tasks:
        by_task.setdefault(each.task, {})[each.bits] = each
    for name, found in by_task.items():
        first = next(iter(found.values()))
        cells = [cell for bits in kinds for cell in _cells(found.get(bits))]
        add_row(table, (name, f"{first.num_documents:,}", f"{first.margin:g}", *cells))
    console.print(table)
    for line in _lines(tasks, gates):
        say(console, line)


def _cells(found: TaskPower | None) -> tuple[str, str, str]:
    if found is None or found.change is None:
        return NOTHING, NOTHING, NOTHING
    seen = NOTHING if found.detectable is None else f"{found.detectable:.2f}"
    return _flips(found.change), seen, _equivalent(found)


def _flips(change: Change) -> str:
    share = f"{100 * change.flips:.1f} %" if change.flips is not None else f"sd {change.variance**0.5:.2f}"
    return f"{share}*" if change.is_measured else share


def _equivalent(found: TaskPower) -> str:
    if found.num_needed is None or found.can_be_equivalent:
        return NOTHING if found.num_needed is None else f"{found.num_needed:,}"
    return f"{'never' if found.never_equivalent else 'not so'} ({found.num_needed:,})"


def _lines(tasks: Sequence[TaskPower], gates: Sequence[GatePower]) -> Iterator[str]:
    yield (
        "sees: the smallest loss that is called degraded four times of five, in points from guessing (0) to perfect "
        "(100), if so many documents flip; equivalent from: so many documents show nine times of ten that a format "
        "without any loss is within the margin (never: the task has fewer; not so: fewer are asked)."
    )
    yield _grounds(tasks)
    yield from map(_gate, gates)


def _grounds(tasks: Sequence[TaskPower]) -> str:
    measured = (
        "" if not any(each.change and each.change.is_measured for each in tasks) else " (* measured in this store)"
    )
    clustered = dict.fromkeys(each.task for each in tasks if each.has_clusters)
    of_clusters = f"; documents that belong together ({', '.join(clustered)}) as if they did not" if clustered else ""
    return (
        f"flips are guessed, {100 * GUESSED_FLIPS[8]:g} % at 8 bits, {100 * GUESSED_FLIPS[4]:g} % at 4, twice that in "
        f"answers of more than {LONG_ANSWER_TOKENS} tokens{measured}, and graded tasks taken as right or "
        f"wrong{of_clusters}."
    )


def _gate(gate: GatePower) -> str:
    """The chance of all of it, and the two parts that weigh most."""
    weakest = sorted(gate.parts.items(), key=lambda part: part[1])[:2]
    shown = ", ".join(f"{name} {100 * chance:.0f} %" for name, chance in weakest)
    return (
        f"to ship, {gate.bits} bits: a format without any loss is shown to have lost less than the margins of all "
        f"{len(gate.parts)} suites and tasks that are asked of it with a chance of {100 * gate.chance:.0f} % "
        f"(weakest: {shown})"
    )
