"""A plan for people: as a layer x site table (rich, or plain lines) and, with `describe`, in words."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from peftscout.cost import SIZELESS
from peftscout.plan import Plan, Sites
from peftscout.report.plan_words import describe

__all__ = ["column_order", "describe", "place", "plan_lines", "plan_table", "short_names"]

WIDTH = 100
"""Columns of text within which a plan must be legible."""

_PARTS = ("attention", "cross_attention", "mixer", "ffn")
_ROLES = ("q", "qkv", "k", "kv", "v", "o", "gate", "gate_up", "up", "down")
_GAP = 2


@dataclass(frozen=True, slots=True)
class _Row:
    """Consecutive layers of one stack that hold the same: cells by column. No layers: what is outside of them."""

    stack: str
    layers: tuple[int, ...]
    cells: dict[str, str]


@dataclass(frozen=True, slots=True)
class _Block:
    """One table: a header and rows of as many cells."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]


def plan_table(plan: Plan, sites: Sites | None = None, width: int = WIDTH) -> RenderableType:
    """Return ``plan`` as tables of layers x sites.

    Rows are the layers of each stack, consecutive equal ones as ``3-5``; columns are the sites in use; a cell reads
    ``lora 8 + bias``. Columns that go beyond ``width`` begin another table below. With ``sites``, layers that hold
    nothing have a row too; without, they are left out.
    """
    tables = []
    for block in _blocks(plan, sites, width):
        table = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="bold")
        for name in block.header:
            table.add_column(Text(name), no_wrap=True)
        for row in block.rows:
            table.add_row(*map(Text, row))
        tables.append(table)
    return Group(*tables)


def plan_lines(plan: Plan, sites: Sites | None = None, width: int = WIDTH) -> list[str]:
    """Return `plan_table` as lines of plain text."""
    lines: list[str] = []
    for block in _blocks(plan, sites, width):
        widths = [max(map(len, column)) for column in zip(block.header, *block.rows, strict=True)]
        lines += [""] if lines else []
        for row in (block.header, *block.rows):
            lines.append((" " * _GAP).join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip())
    return lines


def _blocks(plan: Plan, sites: Sites | None, width: int) -> list[_Block]:
    """Lay the columns out from left to right, and in a new block where the next one would not fit."""
    rows = _rows(plan, sites)
    columns = sorted({column for row in rows for column in row.cells}, key=column_order)
    if not columns:
        return [_Block(["nothing is trained"], [])]
    names = dict(zip(columns, short_names(columns), strict=True))
    stacks = list(dict.fromkeys(row.stack for row in rows))
    label_width = max(len(stack) for stack in stacks) * (len(stacks) > 1) + len(" 100-100")
    together: list[list[str]] = []
    used = width
    for column in columns:
        needed = _GAP + max(len(names[column]), *(len(row.cells.get(column, "-")) for row in rows))
        if used + needed > width:
            together.append([])
            used = label_width
        together[-1].append(column)
        used += needed
    return [
        _Block(
            ["layers", *(names[column] for column in block)],
            [[_label(row, len(stacks) > 1), *row.cells.values()] for row in _collapse(rows, block)],
        )
        for block in together
    ]


def _rows(plan: Plan, sites: Sites | None) -> list[_Row]:
    """Return a row for each layer: stacks in order, their layers ascending, what is outside the layers last."""
    cells: dict[tuple[str, int | None], dict[str, str]] = {}
    for site in sites or ():
        stack, layer, _ = place(site)
        if layer is not None:
            cells.setdefault((stack, layer), {})
    for p in plan:
        stack, layer, column = place(p.site)
        row = cells.setdefault((stack, layer), {})
        text = p.op if p.op in SIZELESS else f"{p.op} {p.size}"
        row[column] = f"{row[column]} + {text}" if column in row else text

    def order(row: _Row) -> tuple[bool, str, bool, tuple[int, ...]]:
        return row.stack != "encoder", row.stack, not row.layers, row.layers

    return sorted(
        (_Row(stack, () if layer is None else (layer,), own) for (stack, layer), own in cells.items()), key=order
    )


def _collapse(rows: Sequence[_Row], columns: Sequence[str]) -> list[_Row]:
    """Restrict ``rows`` to ``columns`` and bring consecutive layers that are then equal together."""
    collapsed: list[_Row] = []
    for row in rows:
        cells = {column: row.cells.get(column, "-") for column in columns}
        last = collapsed[-1] if collapsed else None
        if (
            last is not None
            and row.layers
            and (last.stack, last.layers[-1:], last.cells) == (row.stack, (row.layers[0] - 1,), cells)
        ):
            collapsed[-1] = _Row(row.stack, last.layers + row.layers, cells)
        else:
            collapsed.append(_Row(row.stack, row.layers, cells))
    return collapsed


def place(site: str) -> tuple[str, int | None, str]:
    """Split an id into stack, layer and the rest: ``layers.7.ffn.down`` is ``layers``, 7, ``ffn.down``."""
    if match := re.fullmatch(r"([^.]+)\.([0-9]{1,9})\.(.+)", site):
        return match[1], int(match[2]), match[3]
    stack, _, rest = site.rpartition(".")
    return stack, None, rest


def _label(row: _Row, several_stacks: bool) -> str:
    first, last = (row.layers[0], row.layers[-1]) if row.layers else ("end", "end")
    layers = f"{first}" if first == last else f"{first}-{last}"
    return f"{row.stack} {layers}" if several_stacks else layers


def column_order(column: str) -> tuple[int, int, int, str]:
    """Sort key: the parts of a block in order; in each its projections, the sublayer itself, then its norms."""
    head, _, role = column.partition(".")
    part = next((n for n, name in enumerate(_PARTS) if re.fullmatch(rf"{name}(_post)?(_norm)?", head)), len(_PARTS))
    kind = 2 if column.endswith("norm") else 0 if role else 1
    return part, kind, _ROLES.index(role) if role in _ROLES else len(_ROLES), column


def short_names(columns: Sequence[str]) -> list[str]:
    """Return the last part of each column (``q`` for ``attention.q``), or all of it where two would be the same."""
    last = [column.rpartition(".")[2] for column in columns]
    return [name if last.count(name) == 1 else column for name, column in zip(last, columns, strict=True)]
