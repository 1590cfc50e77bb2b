"""Tables that fit a window: no part is wider than a page, and together they hold every column."""

import re

from hypothesis import given
from hypothesis import strategies as st

from stages.report.cells import Cell, Heading, Line, Table, plain
from stages.report.widths import PAGE_PX, fitted, is_broken, width_px


def names(table: Table) -> list[str]:
    return [heading.text for heading in table.headings]


def of_tasks(num_tasks: int, *, bound: bool = False) -> Table:
    columns = [Heading("format"), *(Heading(f"t{n}", is_bound=bound and n % 2 == 1) for n in range(num_tasks))]
    cells = [Cell("w4a16_int", "5.1 GiB"), *(Cell("0.6213", "99.12 %\n[0.6102, 0.6324]") for _ in range(num_tasks))]
    return Table(columns, [Line(cells, "base"), Line(cells)])


def test_a_table_that_fits_stays_whole() -> None:
    assert fitted(of_tasks(7)) == [of_tasks(7)]
    assert fitted(Table([Heading("a")], [])) == [Table([Heading("a")], [])]


@given(num_tasks=st.integers(1, 80), bound=st.booleans(), is_dense=st.booleans())
def test_a_wide_table_is_shown_in_parts_that_fit(num_tasks: int, bound: bool, is_dense: bool) -> None:
    table = of_tasks(num_tasks, bound=bound)
    parts = fitted(table, is_dense=is_dense)
    assert [name for part in parts for name in names(part)[1:]] == names(table)[1:]
    for part in parts:
        assert sum(width_px(part, column, is_dense) for column in range(len(part.headings))) <= PAGE_PX
        assert names(part)[0] == "format" and not part.headings[1].is_bound
        assert [row.look for row in part.rows] == ["base", ""]
        assert all(len(row.cells) == len(part.headings) and row.cells[0].text == "w4a16_int" for row in part.rows)


def test_one_column_that_is_wider_than_a_page_stands_alone_and_long_texts_are_broken() -> None:
    long = plain(["input", "directory"], [["compare/m/w4a16_int/mmlu", "x" * 500]], left=["directory"])
    assert fitted(long) == [long]
    assert is_broken(long.rows[0].cells[1]) and not is_broken(Cell("0.6213", "99.12 %\n[0.6102, 0.6324]"))


def test_names_in_headings_are_broken_at_their_own_seams_alone() -> None:
    from stages.report.rendering import breakable

    shown = str(breakable("leaderboard_math-hard/<b>"))
    assert re.split("<wbr>", shown) == ["leaderboard_", "math-", "hard/", "&lt;b&gt;"]
