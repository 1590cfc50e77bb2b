"""What a sweep has taken, by what its published steps say of when and where they ran."""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence

from pipeline.planning.plan import Plan
from pipeline.steps.step import StepRef
from pipeline.store.store import Store
from pipeline.store.timing import Timing
from stages.report.config import CostRow, CostsConfig, GpuRow

Span = tuple[float, float]  # Unix seconds
Place = tuple[str, str]  # host, and GPU as ``INDEX UUID``


def costs_of(plan: Plan, store: Store) -> CostsConfig | None:
    """By stage and by GPU, of the steps that ``store.missing`` found to be there; None where none says anything."""
    timings = store.timings(plan.steps)
    if not timings:
        return None
    stages = dict.fromkeys(ref.stage for ref in timings)
    return CostsConfig(stages=[_cost_row(stage, timings) for stage in stages], gpus=_gpu_rows(timings.values()))


def _cost_row(stage: str, timings: Mapping[StepRef, Timing]) -> CostRow:
    own = [timing for ref, timing in timings.items() if ref.stage == stage]
    expected = [(timing.seconds, timing.expected_s) for timing in own if timing.expected_s is not None]
    gpu_s = [None if timing.num_gpus is None else timing.num_gpus * timing.seconds for timing in own]
    return CostRow(
        stage=stage,
        num_steps=len(own),
        seconds=_total(timing.seconds for timing in own),
        gpu_hours=None if None in gpu_s else _total(each / 3600 for each in gpu_s if each is not None),
        num_expected=len(expected),
        expected_s=_total(seconds for _, seconds in expected) if expected else None,
        expected_took_s=_total(seconds for seconds, _ in expected) if expected else None,
    )


def _gpu_rows(timings: Iterable[Timing]) -> list[GpuRow]:
    on_gpus = [timing for timing in timings if timing.gpus]
    runs: dict[str, list[Timing]] = defaultdict(list)
    for timing in on_gpus:
        runs[timing.run_id].append(timing)
    run_s = {run_id: _ends(own)[1] - _ends(own)[0] for run_id, own in runs.items()}
    places: dict[Place, list[Timing]] = defaultdict(list)
    for timing in on_gpus:
        for gpu in timing.gpus or ():
            places[timing.host, gpu].append(timing)
    return [_gpu_row(place, places[place], run_s) for place in sorted(places)]


def _gpu_row(place: Place, own: Sequence[Timing], run_s: Mapping[str, float]) -> GpuRow:
    index = int(place[1].partition(" ")[0])
    total_s = sum(run_s[run_id] for run_id in sorted({timing.run_id for timing in own}))
    return GpuRow(
        host=place[0],
        gpu=str(index),
        product=own[0].products[index] if index < len(own[0].products) else None,
        num_steps=len(own),
        run_s=round(total_s, 3),
        held=_share([(timing.started, timing.ended) for timing in own], total_s),
        computing=_share([(timing.ended - timing.stage_s, timing.ended) for timing in own], total_s),
    )


def _ends(timings: Sequence[Timing]) -> Span:
    return min(timing.started for timing in timings), max(timing.ended for timing in timings)


def _share(spans: Sequence[Span], total_s: float) -> float:
    """Of ``total_s`` what the spans cover; where two overlap, it counts once."""
    covered_s, until = 0.0, float("-inf")
    for start, end in sorted(spans):
        covered_s += max(0.0, end - max(start, until))
        until = max(until, end)
    return round(covered_s / total_s, 4) if total_s else 0.0


def _total(seconds: Iterable[float]) -> float:
    return round(sum(seconds), 4)
