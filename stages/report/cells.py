"""What a table of a report is made of, as text; the templates only print it."""

from typing import NamedTuple


class Heading(NamedTuple):
    """Above a column: its name, what is to be known of it, and whether its cells stand to the left."""

    text: str
    notes: tuple[str, ...] = ()
    is_left: bool = False


class Cell(NamedTuple):
    """A text, what stands small beside it, its look (score, better, worse, same, open, absent, or a decision's), and a
    file that it leads to.
    """

    text: str
    note: str = ""
    look: str = ""
    href: str = ""
