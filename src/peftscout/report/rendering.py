"""Templates, and text from outside made safe: HTML escapes by itself, Markdown through `escape_markdown`."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from peftscout.report.table import Cell, Table, plain, written


@cache
def environment() -> Environment:
    """Return the templates: in HTML everything is escaped that is not markup of ours; unknown names are errors."""
    loader = PackageLoader("peftscout.report", "templates")
    made = Environment(
        loader=loader, autoescape=_is_html, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    made.filters |= {"written": written, "number": _is_number, "md": escape_markdown, "plain": plain}
    return made


def _is_html(template: str | None) -> bool:
    return template is None or template.endswith(".html.j2")


def _is_number(cell: Cell) -> bool:
    return isinstance(cell, int | float) and not isinstance(cell, bool)


def table_lines(table: Table) -> list[str]:
    """Return a table as lines of Markdown."""
    ruler = [
        "---:" if all(_is_number(c) or c is None for c in column) else "---" for column in zip(*table.rows, strict=True)
    ]
    lines = [table.header, ruler or ["---"] * len(table.header), *([written(c) for c in row] for row in table.rows)]
    return [
        "| " + " | ".join(text if n == 1 else escape_markdown(text) for text in line) + " |"
        for n, line in enumerate(lines)
    ]


def escape_markdown(text: object) -> str:
    """Return ``text`` so that Markdown shows it as it is, in one line."""
    shown = plain(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return "".join(f"\\{c}" if c in "\\`*_[]|#" else c for c in shown)
