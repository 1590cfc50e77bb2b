"""The tables of what serving costs on a page: what the view says, as headings and cells."""

from collections.abc import Mapping, Sequence
from typing import Any

from stages.report.cells import Cell, Heading, Line, Table
from stages.report.numbers import MISSING

_QUANTILES = "median / p90 / p99"
_POINTS = (
    ("workload", Heading("workload")),
    ("mode", Heading("mode", is_left=True)),
    ("recipe", Heading("recipe", is_left=True)),
    ("rate", Heading("requests/s")),
    ("direct", Heading("engine alone", ("requests/s",))),
    ("latency", Heading("latency s", (_QUANTILES,))),
    ("ttft", Heading("first token ms", (_QUANTILES,))),
    ("itl", Heading("between tokens ms", (_QUANTILES,))),
    ("roofline", Heading("of the roofline")),
    ("requests", Heading("requests")),
    ("warm_up", Heading("warm-up")),
    ("spread", Heading("spread")),
    ("client", Heading("client can do")),
    ("gpu", Heading("GPU before → after", is_left=True)),
    ("verdict", Heading("valid", is_left=True)),
)
_ADVICE = (
    ("mix", Heading("mix of queries")),
    ("synchronous", Heading("cheapest, one query at a time", is_left=True)),
    ("asynchronous", Heading("cheapest at saturation", is_left=True)),
    ("flips", Heading("where the fastest changes", is_left=True)),
    ("unbeaten", Heading("beaten by none in recovery, latency and cost", is_left=True)),
)
_WHY = (
    ("recipe", Heading("recipe")),
    ("linear", Heading("kernel of linear layers", is_left=True)),
    ("attention", Heading("attention", is_left=True)),
    ("graphs", Heading("CUDA graphs", is_left=True)),
    ("compile", Heading("compiled", is_left=True)),
    ("kv_cache", Heading("KV cache", ("tokens",))),
)


def section_tables(section: Mapping[str, Any]) -> dict[str, Table]:
    """Of a model on a GPU, by what each shows."""
    advice = [line | {"flips": "; ".join(line["flips"])} for line in section["advice"]]
    return {
        "summary": _summary(section["summary"], section["tasks"]),
        "latency": _ratios(section["latency"], "cost reduction", section["workloads"]),
        "throughput": _ratios(section["throughput"], "speed-up", section["workloads"]),
        "advice": _lines(_ADVICE, advice),
        "goodput": _goodput(section["goodput"], section["workloads"]),
        "why": _lines(_WHY, section["why"]),
        "points": _lines(_POINTS, section["points"], num_keys=3),
    }


def _summary(lines: Sequence[Mapping[str, Any]], tasks: Sequence[str]) -> Table:
    headings = [
        Heading("recipe"),
        Heading("GiB"),
        Heading("first token", ("ms, 64 tokens in",)),
        Heading("first token", ("ms, 1,024 tokens in",)),
        Heading("tokens/s", ("at saturation",)),
        Heading("tokens/$"),
        *map(Heading, tasks),
    ]
    names = ("recipe", "size", "tokens_per_s", "tokens_per_usd")
    rows = []
    for line in lines:
        recipe, size, *speeds = (line[name] for name in names)
        scores = (line["scores"].get(task, MISSING) for task in tasks)
        rows.append(Line([Cell(text) for text in (recipe, size, *line["ttft"], *speeds, *scores)]))
    return Table(headings, rows)


def _ratios(lines: Sequence[Mapping[str, Any]], ratio: str, workloads: Sequence[Mapping[str, str]]) -> Table:
    headings = [Heading("recipe"), Heading("GPUs"), Heading(ratio), *_of_workloads(workloads)]
    rows = [
        Line(
            [
                Cell(line["recipe"]),
                Cell(str(line["gpus"])),
                Cell(line["ratio"], f"{line['interval']} {line['of']}".strip(), "score"),
                *(Cell(cell["value"], cell["per_usd"]) for cell in line["cells"]),
            ]
        )
        for line in lines
    ]
    return Table(headings, rows)


def _goodput(found: Mapping[str, Any] | None, workloads: Sequence[Mapping[str, str]]) -> Table:
    rows = [] if found is None else found["rows"]
    lines = [Line([Cell(text) for text in (row["recipe"], *row["cells"])]) for row in rows]
    return Table([Heading("recipe"), *_of_workloads(workloads)], lines)


def _of_workloads(workloads: Sequence[Mapping[str, str]]) -> list[Heading]:
    return [Heading(each["name"], (f"{each['shape']} tokens",)) for each in workloads]


def _lines(columns: Sequence[tuple[str, Heading]], lines: Sequence[Mapping[str, Any]], num_keys: int = 1) -> Table:
    def cell(name: str, text: str) -> Cell:
        return Cell(text, look="worse" if name == "verdict" and text != "valid" else "")

    rows = [Line([cell(name, str(line[name])) for name, _ in columns]) for line in lines]
    return Table([heading for _, heading in columns], rows, num_keys)
