"""A table as plain data, which HTML, Markdown and CSV are made from."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

Cell = str | int | float | None


@dataclass(frozen=True)
class Table:
    """A header and rows of as many cells; numbers stay numbers, so that they can be sorted and right-aligned."""

    header: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]

    @classmethod
    def of(cls, header: Sequence[str], rows: Sequence[Sequence[Cell]]) -> Table:
        """Make one.

        Raises:
            ValueError: when a row has not as many cells as the header.
        """
        if wrong := next((row for row in rows if len(row) != len(header)), None):
            raise ValueError(f"a row of {len(wrong)} cells under a header of {len(header)}")
        return cls(tuple(header), tuple(map(tuple, rows)))


def written(cell: Cell) -> str:
    """Return a cell in words: thousands apart, four digits of a score, a dash for what is not known."""
    if cell is None:
        return "-"
    if isinstance(cell, bool | str):
        return str(cell)
    if isinstance(cell, int):
        return f"{cell:,}"
    return f"{cell:.4f}" if abs(cell) < 100 else f"{cell:,.1f}"


def plain(text: object) -> str:
    """Return ``text`` in one line, without control characters and without marks that turn the direction of text."""
    return "".join(
        " " if c in "\n\r\t" else "" if unicodedata.category(c) in ("Cc", "Cf", "Cs") else c for c in str(text)
    )
