"""The columns of a report's tables: of every task what a trial's row shows, and how.  A column more is a line here."""

from collections.abc import Callable, Iterable
from typing import NamedTuple

from stages.compare.artifact import NORMALIZED, verdict_shown
from stages.compare.verdict import LOOKS, MARKS
from stages.report.artifact import Row, points_of
from stages.report.asked import points_gained
from stages.report.cells import Cell
from stages.report.numbers import MISSING, count, decimals, interval, number, p_value, percent, percent_interval

_LEAST_FLOORED = 0.005  # points: what no table shows


class Places(NamedTuple):
    """Decimals of the scores, recoveries in per cent and differences that stand in one column."""

    score: int
    recovery: int
    difference: int


class Column(NamedTuple):
    """A column of a table: its name, and its cell of a row."""

    name: str
    cell: Callable[[Row, Places], Cell]
    is_left: bool = False
    is_bound: bool = False  # to the column before it


def score_with_recovery(row: Row, places: Places) -> Cell:
    """Beneath the score by how much it is better than the base, with the verdict's mark, its recovery and interval."""
    if row["score"] is None:
        return Cell(MISSING, row["status"], "absent")
    compared = ["base"] if _is_known_base(row) else [_gained(row), percent(row["recovery"], places.recovery)]
    ends = interval(row["score_low"], row["score_high"], places.score)
    note = "\n".join(filter(None, [*compared, ends, _floored(row, places)]))
    return Cell(number(row["score"], places.score), note, f"score {_look(row)}".strip())


def as_normalized(row: Row) -> Row:
    """The row with its normalized numbers in the places of the raw ones, its gain in the same points as before."""
    gained = row | {"gained": _gained(row)}
    return gained | {raw: row[name] for name, raw in NORMALIZED.items()} | {"unfloored": row["normalized_unfloored"]}


def is_floored(row: Row) -> bool:
    """Whether its normalized score is less below guessing than what it was found to be."""
    score, unfloored = row["normalized"], row["normalized_unfloored"]
    return score is not None and unfloored is not None and score - unfloored > _LEAST_FLOORED


def _gained(row: Row) -> str:
    """In points, or per cent of the base's where lower is better."""
    if "gained" in row:
        return str(row["gained"])
    if row["difference"] is None:
        return MISSING
    unit = points_of(row).name[:1].replace("p", "")
    return f"{number(points_gained(row), 2, signed=True)} {unit} {_mark(row)}".replace("  ", " ").strip()


def _floored(row: Row, places: Places) -> str:
    known = "unfloored" in row and is_floored(row)
    return f"unfloored {number(row['unfloored'], places.score)}" if known else ""


def _score(row: Row, places: Places) -> Cell:
    return Cell(number(row["score"], places.score), _floored(row, places), look="score")


def _score_interval(row: Row, places: Places) -> Cell:
    return Cell(interval(row["score_low"], row["score_high"], places.score))


def _base_score(row: Row, places: Places) -> Cell:
    return Cell(number(row["base_score"], places.score))


def _recovery(row: Row, places: Places) -> Cell:
    return Cell(percent(row["recovery"], places.recovery))


def _recovery_interval(row: Row, places: Places) -> Cell:
    return Cell(percent_interval(row["recovery_low"], row["recovery_high"], places.recovery))


def _difference(row: Row, places: Places) -> Cell:
    return Cell(number(row["difference"], places.difference, signed=True), look=_look(row))


def _difference_interval(row: Row, places: Places) -> Cell:
    return Cell(interval(row["difference_low"], row["difference_high"], places.difference, signed=True))


def _mark(row: Row) -> str:
    """With a question mark where the whole grid does not confirm it."""
    return MARKS.get(row["verdict"], "") + ("?" if row["is_confirmed"] is False else "")


def _look(row: Row) -> str:
    return "open" if row["is_confirmed"] is False else LOOKS.get(row["verdict"], "")


def _verdict(row: Row, places: Places) -> Cell:
    unconfirmed = ", not confirmed" if row["is_confirmed"] is False else ""
    return Cell(f"{verdict_shown(row) or MISSING}{unconfirmed}", look=_look(row))


def _again(prefix: str) -> Callable[[Row, Places], Cell]:
    """Documents that changed between two runs of one checkpoint, and by how much its score did."""

    def cell(row: Row, places: Places) -> Cell:
        n, changed = row[f"{prefix}n"], row[f"{prefix}num_changed"]
        low, high = row[f"{prefix}difference_low"], row[f"{prefix}difference_high"]
        if n is None:
            return Cell(MISSING)
        return Cell(f"{count(changed)} of {count(n)}", interval(low, high, places.difference, signed=True))

    return cell


def _excess_flips(row: Row, places: Places) -> Cell:
    ends = percent_interval(row["excess_flips_low"], row["excess_flips_high"], 1)
    return Cell(percent(row["excess_flips"], 1), "" if row["excess_flips"] is None else ends)


def _of_verdict(name: str) -> Callable[[Row, Places], Cell]:
    """On the scale of the scores; nothing where the verdict is of normalized ones."""
    return lambda row, places: Cell(number(None if row["is_verdict_normalized"] else row[name], places.difference))


def _clusters(row: Row, places: Places) -> Cell:
    effect = row["design_effect"]
    return Cell(count(row["num_clusters"]), "" if effect is None else f"× {number(effect, 2)}")


def _text(name: str) -> Callable[[Row, Places], Cell]:
    return lambda row, _: Cell(row[name] or MISSING)


def _count(name: str) -> Callable[[Row, Places], Cell]:
    return lambda row, _: Cell(count(row[name]))


# What is shown of each number in detail: a column more is a line here.
COLUMNS = (
    Column("task", _text("task")),
    Column("format", lambda row, _: Cell(row["trial"].removeprefix(f"{row['model']}/")), is_left=True),
    Column("metric", _text("metric"), is_left=True),
    Column("n", _count("n")),
    Column("missing", _count("num_missing")),
    Column("truncated", _count("num_truncated")),
    Column("cut", _count("num_cut")),
    Column("stopped", _count("num_stopped")),
    Column("score", _score),
    Column("interval", _score_interval, is_bound=True),
    Column("base", _base_score),
    Column("recovery", _recovery),
    Column("interval", _recovery_interval, is_bound=True),
    Column("difference", _difference),
    Column("interval", _difference_interval, is_bound=True),
    Column("lost", _count("num_base_only_right")),
    Column("won", _count("num_trial_only_right"), is_bound=True),
    Column("p", lambda row, _: Cell(p_value(row["difference_p"]))),
    Column("exact p", lambda row, _: Cell(p_value(row["mcnemar_p"]))),
    Column("clusters", _clusters),
    Column("changed again", _again("rerun_")),  # the same checkpoint, asked twice
    Column("base changed", _again("base_rerun_")),
    Column("excess flips", _excess_flips),
    Column("margin", _of_verdict("margin")),
    Column("sees", _of_verdict("detectable_difference")),
    Column("grid p", lambda row, _: Cell(p_value(row["adjusted_p"]))),
    Column("computed by", _text("computed"), is_left=True),
    Column("verdict", _verdict, is_left=True),
)
NORMALIZED_COLUMNS = (
    Column("normalized", _score),
    Column("interval", _score_interval, is_bound=True),
    Column("base", _base_score),
    Column("recovery", _recovery),
    Column("interval", _recovery_interval, is_bound=True),
)


def places_of(rows: Iterable[Row]) -> Places:
    rows = list(rows)

    def ends(name: str, scale: float = 1) -> list[tuple[float | None, float | None]]:
        pairs = [(row[f"{name}_low"], row[f"{name}_high"]) for row in rows]
        return [(scale * low, scale * high) for low, high in pairs if low is not None and high is not None]

    return Places(decimals(ends("score")), decimals(ends("recovery", 100)), decimals(ends("difference")))


def _is_known_base(row: Row) -> bool:
    return bool(row["is_base"]) and row["score"] is not None
