"""Tables that fit a page: how wide a column is drawn, and a table that is wider than the page in parts.

Nobody knows a reader's fonts, so widths are those of a wide one.
"""

import re
from collections.abc import Iterator, Sequence
from itertools import groupby

from stages.report.cells import Cell, Heading, Line, Table

PAGE_PX = 1225  # of a window of 1,300, without margins and scroll bar
MOST_CHARACTERS = 26  # of a text in one line; a longer one is broken
WHY_CHARACTERS = 28  # of reasons, which are set small
TEXT_PX, DENSE_PX, NOTE_PX, WHY_PX, HEADING_PX = 15, 13, 12, 12.5, 13
PADDING_PX, DENSE_PADDING_PX = 16, 14
_DIGIT, _LETTER = 0.64, 0.59  # of the size of a font
_BOLD = 1.1


def fitted(table: Table, *, is_dense: bool = False) -> list[Table]:
    """The table, or as many of it as are needed, each with its first columns, no wider than a page."""
    widths = [width_px(table, column, is_dense) for column in range(len(table.headings))]
    keys = range(table.num_keys)
    room = PAGE_PX - sum(widths[column] for column in keys)
    parts: list[list[int]] = [[]]
    for group in _groups(table):
        taken = sum(widths[column] for column in [*parts[-1], *group])
        if taken > room and parts[-1]:
            parts.append([])
        parts[-1] += group
    return [table] if len(parts) == 1 else [_part(table, [*keys, *part]) for part in parts]


def width_px(table: Table, column: int, is_dense: bool) -> float:
    """Of a column that is no wider than it must be."""
    text_px, padding_px = (DENSE_PX, DENSE_PADDING_PX) if is_dense else (TEXT_PX, PADDING_PX)
    heading, cells = table.headings[column], [row.cells[column] for row in table.rows]
    of_cells = _LETTER if heading.is_left or column < table.num_keys else _DIGIT
    ends = [
        _word(heading.text) * HEADING_PX * _BOLD * _LETTER,
        *(_word(note) * NOTE_PX * _LETTER for note in heading.notes),
    ]
    for cell in cells:
        if cell.look == "why":
            ends.append(min(len(cell.text), WHY_CHARACTERS) * WHY_PX * _DIGIT)
        else:
            ends.append(min(len(cell.text), MOST_CHARACTERS) * text_px * of_cells)
            ends.append(min(_line(cell.note), MOST_CHARACTERS) * NOTE_PX * of_cells)
    return max(ends) + padding_px


def is_broken(cell: Cell) -> bool:
    """Whether a cell's text is set in more than one line."""
    return len(cell.text) > MOST_CHARACTERS or _line(cell.note) > MOST_CHARACTERS


def _line(note: str) -> int:
    """Characters of its longest line."""
    return len(note) if "\n" not in note else max(map(len, note.split("\n")))


def _word(text: str) -> int:
    """Characters of what is not broken in a heading."""
    return max((len(word) for word in re.split(r"(?<=[\s_/-])", text)), default=0)


def _groups(table: Table) -> Iterator[list[int]]:
    """Columns that stand together, without the first ones."""
    number, numbered = 0, []
    for column in range(table.num_keys, len(table.headings)):
        number += not table.headings[column].is_bound
        numbered.append((number, column))
    for _, group in groupby(numbered, key=lambda each: each[0]):
        yield [column for _, column in group]


def _part(table: Table, columns: Sequence[int]) -> Table:
    headings: list[Heading] = [table.headings[column] for column in columns]
    rows = [Line([row.cells[column] for column in columns], row.look) for row in table.rows]
    return Table(headings, rows, table.num_keys)
