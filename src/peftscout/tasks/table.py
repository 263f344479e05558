"""A table of raw rows with true line numbers, and the collection of the rows that cannot be used."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from peftscout.errors import DataError, nearest

OnBadRows = Literal["error", "skip"]
"""What becomes of bad rows: refuse the data, or leave the rows out and count them."""

SHOWN = 5
"""How many bad rows a message spells out."""


class _Missing:
    """The type of `MISSING`."""

    def __repr__(self) -> str:
        return "MISSING"


MISSING: Final = _Missing()
"""Value of a key that a JSON line does not have, unlike ``None``, which is a null."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """One row that cannot be used: its line (or index) and what is wrong."""

    line: int
    what: str


@dataclass(frozen=True, slots=True)
class Table:
    """Raw rows by column.

    Attributes:
        name: path of the file, or name of the split, for messages.
        columns: values by column name; all columns are equally long.
        lines: where each row begins: lines counted from 1 in a text file, else indices counted from 0.
        is_text: whether ``lines`` are lines of a text file.
        bad: rows of the file that could not even be read.
        class_names: names by class id, of the columns that declare them (``ClassLabel`` features).
        sha256: hash of the file's bytes; ``None`` when the rows did not come from one file.
    """

    name: str
    columns: Mapping[str, Sequence[Any]]
    lines: Sequence[int]
    is_text: bool = True
    bad: tuple[BadRow, ...] = ()
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    sha256: str | None = None

    def __len__(self) -> int:
        return len(self.lines)

    @property
    def total(self) -> int:
        """Number of rows, the unreadable ones included."""
        return len(self.lines) + len(self.bad)

    def place(self, line: int) -> str:
        """Return ``file:line``, or ``split[index]`` for rows without lines."""
        return f"{self.name}:{line}" if self.is_text else f"{self.name}[{line}]"

    def column(self, name: str, *, flag: str = "") -> Sequence[Any]:
        """Return the values of one column.

        Args:
            name: the column.
            flag: the option that named it, for the message.

        Raises:
            DataError: when there is no such column; names the nearest one and all there are.
        """
        if name not in self.columns:
            asked = f" (asked for by {flag})" if flag else ""
            raise DataError(
                f"{self.name}: no column {name!r}{asked}{nearest(name, self.columns)}; "
                f"the columns are {', '.join(map(repr, self.columns))}"
            )
        return self.columns[name]


class BadRows:
    """What is wrong with the rows of all tables of a task, and what becomes of it."""

    def __init__(self, policy: OnBadRows) -> None:
        if policy not in ("error", "skip"):
            raise DataError(f"on_bad_rows {policy!r}: must be 'error' or 'skip'{nearest(policy, ('error', 'skip'))}")
        self.policy = policy
        self._found: dict[str, tuple[Table, list[BadRow]]] = {}

    def add(self, table: Table, line: int, what: str) -> None:
        """Record one bad row."""
        self._found.setdefault(table.name, (table, []))[1].append(BadRow(line, what))

    def settle(self) -> None:
        """Raise when rows are bad and the policy is ``error``, or when a table has no good row left.

        Raises:
            DataError: names ``file:line`` and what is wrong for the first rows of each file, and the counts.
        """
        for table, bad in self._found.values():
            if self.policy == "skip" and len(bad) == table.total:
                raise DataError(f"{table.name}: every row is bad, nothing is left\n" + _spell_out(table, bad))
        if self.policy == "error" and self._found:
            counts = [
                f"{table.name}: {len(bad)} bad row{'s' * (len(bad) > 1)} of {table.total}\n{_spell_out(table, bad)}"
                for table, bad in self._found.values()
            ]
            remedy = 'Mend the rows, or leave them out with on_bad_rows="skip".'
            raise DataError("\n".join([*counts, remedy]))

    def notes(self) -> list[str]:
        """Return one line for each table that lost rows."""
        return [
            f"{table.name}: {len(bad)} bad row{'s' * (len(bad) > 1)} of {table.total} left out, "
            f"first {_describe(table, min(bad, key=lambda row: row.line))}"
            for table, bad in self._found.values()
        ]


def _describe(table: Table, row: BadRow) -> str:
    return f"{table.place(row.line)}: {row.what}"


def _spell_out(table: Table, bad: list[BadRow]) -> str:
    shown = [f"  {_describe(table, row)}" for row in sorted(bad, key=lambda row: row.line)[:SHOWN]]
    rest = len(bad) - len(shown)
    return "\n".join([*shown, f"  and {rest} more"] if rest else shown)
