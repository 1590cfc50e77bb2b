"""What a sweep took, as a report shows it: by stage beside what was expected, and how busy each GPU was."""

from collections.abc import Sequence

from stages.report.cells import Cell, Heading, Line, Table
from stages.report.config import CostRow, CostsConfig, GpuRow
from stages.report.numbers import MISSING, count, number, percent

STAGE_HEADINGS = (
    Heading("stage"),
    Heading("steps"),
    Heading("took"),
    Heading("GPU-hours"),
    Heading("expected", ("before they ran",)),
    Heading("took", ("of those",)),
    Heading("took / expected"),
)
GPU_HEADINGS = (
    Heading("GPU"),
    Heading("product", is_left=True),
    Heading("steps"),
    Heading("run"),
    Heading("held"),
    Heading("computing"),
)


def costs_view(costs: CostsConfig | None) -> dict[str, object] | None:
    """The two tables; None where nothing is known."""
    if costs is None:
        return None
    return {
        "stages": Table(STAGE_HEADINGS, [Line(_cost_cells(row)) for row in (*costs.stages, _whole(costs.stages))]),
        "gpus": Table(GPU_HEADINGS, [Line(_gpu_cells(row)) for row in costs.gpus]),
    }


def _cost_cells(row: CostRow) -> list[Cell]:
    ratio = row.expected_took_s / row.expected_s if row.expected_s and row.expected_took_s is not None else None
    beside = f"{count(row.num_expected)} steps" if 0 < row.num_expected < row.num_steps else ""
    return [
        Cell(row.stage),
        Cell(count(row.num_steps)),
        Cell(_time(row.seconds)),
        Cell(number(row.gpu_hours, 3)),
        Cell(_time(row.expected_s), beside),
        Cell(_time(row.expected_took_s)),
        Cell(number(ratio, 2)),
    ]


def _gpu_cells(row: GpuRow) -> list[Cell]:
    return [
        Cell(f"{row.host}, {row.gpu}"),
        Cell(row.product or MISSING),
        Cell(count(row.num_steps)),
        Cell(_time(row.run_s)),
        Cell(percent(row.held, 0)),
        Cell(percent(row.computing, 0)),
    ]


def _whole(rows: Sequence[CostRow]) -> CostRow:
    """The sum; of GPU-hours only if all are known."""
    gpu_hours = [row.gpu_hours for row in rows]
    return CostRow(
        stage="all",
        num_steps=sum(row.num_steps for row in rows),
        seconds=_sum([row.seconds for row in rows]),
        gpu_hours=None if None in gpu_hours else _sum(gpu_hours),
        num_expected=sum(row.num_expected for row in rows),
        expected_s=_sum([row.expected_s for row in rows]),
        expected_took_s=_sum([row.expected_took_s for row in rows]),
    )


def _sum(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) if known else None


def _time(seconds: float | None) -> str:
    """Hours, minutes and seconds; of less than a minute tenths of a second."""
    if seconds is None:
        return MISSING
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{rest:02d}"
