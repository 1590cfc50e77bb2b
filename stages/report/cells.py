"""What a table of a report is made of, as text; the templates only print it."""

from collections.abc import Collection, Sequence
from typing import NamedTuple


class Heading(NamedTuple):
    """Above a column: its name, what is to be known of it, whether its cells stand to the left, and whether it means
    nothing without the column before it.
    """

    text: str
    notes: tuple[str, ...] = ()
    is_left: bool = False
    is_bound: bool = False


class Cell(NamedTuple):
    """A text, what stands small beneath it, its look (score, better, worse, same, open, absent, or a decision's), and a
    file that it leads to.
    """

    text: str
    note: str = ""
    look: str = ""
    href: str = ""


class Line(NamedTuple):
    """A row of cells, and its look: of a base, or the first of a group."""

    cells: Sequence[Cell]
    look: str = ""


class Table(NamedTuple):
    """Headings and rows; the first ``num_keys`` columns say what a row is of."""

    headings: Sequence[Heading]
    rows: Sequence[Line]
    num_keys: int = 1


def plain(names: Sequence[str], rows: Sequence[Sequence[str]], left: Collection[str] = ()) -> Table:
    """A table of texts; columns named in ``left`` stand to the left."""
    headings = [Heading(name, is_left=name in left) for name in names]
    return Table(headings, [Line([Cell(text) for text in row]) for row in rows])
