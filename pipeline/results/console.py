"""Lines and tables on a terminal: what stands in them is text, whatever it looks like, and without secrets."""

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from stages.errors import redacted


def say(console: Console, *parts: str | tuple[str, str]) -> None:
    """One line of texts, each with a style if it is a pair; a narrow terminal folds it."""
    styled = [(part, "") if isinstance(part, str) else part for part in parts]
    console.print(Text.assemble(*((redacted(text), style) for text, style in styled)), soft_wrap=True)


def new_table(*headings: str) -> Table:
    """A table without lines, its first column flush left."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="left" if index == 0 else "right", no_wrap=True)
    return table


def add_row(table: Table, cells: Iterable[str]) -> None:
    """A row of texts."""
    table.add_row(*map(Text, cells))
