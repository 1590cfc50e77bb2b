"""The templates of a report, filled in; what stands in HTML and SVG is escaped."""

import re
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from stages.report.cells import Table
from stages.report.widths import fitted, is_broken


def render(name: str, view: Mapping[str, Any]) -> str:
    """The template of that name with ``view``."""
    return str(_environment(name.endswith((".html.j2", ".svg.j2"))).get_template(name).render(view))


@lru_cache(maxsize=2)  # hundreds of pages are of one template
def _environment(is_escaped: bool) -> Any:
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=is_escaped,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= {"cell": markdown_cell, "breakable": breakable, "fitted": _fitted}
    environment.tests["broken"] = is_broken
    return environment


def _fitted(table: Table, is_dense: bool) -> list[Table]:
    return fitted(table, is_dense=is_dense)


def breakable(text: str) -> Any:
    """In HTML, where a long name may go on in the next line."""
    from markupsafe import Markup, escape

    return Markup(re.sub(r"(?<=[_/-])(?=.)", "<wbr>", str(escape(text))))


def markdown_cell(text: object) -> str:
    """One cell of a Markdown table: no line break, no column break, no emphasis."""
    escaped = "".join(f"\\{character}" if character in "\\|*`<>" else character for character in str(text))
    return " ".join(escaped.split())
