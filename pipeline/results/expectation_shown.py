"""What a run is expected to take, in words: hours, money, disk, and what all that rests on."""

from collections.abc import Iterable, Iterator

from pipeline.planning.estimate import Grounds
from pipeline.running.expectation import Expectation, StageCost
from stages.units import GIB

NOTHING = "–"


def stage_cost_cells(cost: StageCost | None) -> tuple[str, str]:
    """How long a stage's steps take one after the other, and their GPU-hours."""
    if cost is None:
        return NOTHING, NOTHING
    more = "not known" if not cost.seconds and cost.num_unknown else f"{duration(cost.seconds)}"
    unknown = f" + {cost.num_unknown:,} steps" if cost.num_unknown and cost.seconds else ""
    return f"{more}{unknown}", f"{cost.gpu_hours:.3g}" if cost.gpu_hours else NOTHING


def expectation_lines(expected: Expectation, num_bytes: int) -> Iterator[str]:
    """The whole in a line; then what is not known, and what the rest was taken from."""
    if not expected.batches:
        return
    least = "at least " if expected.num_unknown else ""
    known = ", ".join(f"{least}{part}" if part[0].isdigit() else part for part in _parts(expected))
    yield f"expected: {known}, {num_bytes / GIB:.1f} GiB of weights to write"
    yield from grounds_lines(expected.grounds)


def grounds_lines(grounds: Grounds) -> Iterator[str]:
    """What is not known, and what the rest was taken from."""
    for (stage, device), number in grounds.unknown.items():
        where = "" if device == "" else f" on {device}" if device else " on a GPU that nobody named (gpu=NAME)"
        steps = f"{number:,} step{'s' if number > 1 else ''}"
        yield f"not known: {steps} of {stage}{where}; nothing like that was measured, and no number above holds it"
    if grounds.corrected:
        yield f"corrected by what this store has measured: {', '.join(grounds.corrected)}"
    for then, (sizes, stages) in _alike(grounds.scaled).items():
        to = "–".join(_billions(size) for size in sorted({min(sizes), max(sizes)}))
        many = f" ({len(sizes)} sizes)" if len(sizes) > 2 else ""
        yield f"scaled from {_billions(then)} to {to}{many} billion parameters: {', '.join(stages)}"
    if grounds.shared:
        yield f"assumed, not measured: ranks share the work of {', '.join(grounds.shared)} without loss"
    if grounds.sources:
        yield f"measured: {'; '.join(grounds.sources)}"


def duration(seconds: float) -> str:
    """In the unit that fits."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 100 * 60 else f"{seconds / 3600:.1f} h"


def _parts(expected: Expectation) -> Iterator[str]:
    if any(batch.resources.num_gpus for batch in expected.batches):
        yield f"{expected.gpu_hours:.3g} GPU-hours" if expected.gpu_hours else "GPU-hours not known"
    yield _wall(expected)
    if (usd := expected.usd) is not None:
        rented = expected.usd_rented
        whole = "" if rented is None else f" ({rented:,.2f} for {expected.num_gpus:g} all the time)"
        yield f"{usd:,.2f} $ for GPUs while steps hold them{whole}"
    elif expected.gpu_hours:
        yield "dollars not known (say which GPU, gpu=h100)"


def _wall(expected: Expectation) -> str:
    needed = max(batch.resources.num_gpus for batch in expected.batches)
    if (wall_s := expected.wall_s) is not None:
        gpus = f"{expected.num_gpus:g} GPU{'' if expected.num_gpus == 1 else 's'}"
        return duration(wall_s) + (f" on {gpus}" if needed else "")
    if expected.num_gpus is None:
        return "duration not known before the cluster is (say how many GPUs it has, cluster.num_gpus=N)"
    return f"duration not known: a step needs {needed:g} GPUs and there are {expected.num_gpus:g} (cluster.num_gpus=N)"


def _alike(scaled: Iterable[tuple[str, float, int]]) -> dict[float, tuple[set[int], dict[str, None]]]:
    """By the size that was measured: the sizes it is scaled to, and the stages, in the plan's order."""
    found: dict[float, tuple[set[int], dict[str, None]]] = {}
    for stage, then, now in scaled:
        sizes, stages = found.setdefault(then, (set(), {}))
        sizes.add(now)
        stages[stage] = None
    return found


def _billions(number: float) -> str:
    return f"{number / 1e9:.3g}"
