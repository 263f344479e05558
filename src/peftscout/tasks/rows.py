"""Raw tables to texts and references; every row that cannot be used is named."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from peftscout.errors import DataError
from peftscout.tasks.labels import canonical, choice_vocabulary, class_id, number, vocabulary
from peftscout.tasks.recipes import Kind, Layout
from peftscout.tasks.splits import Split, Texts
from peftscout.tasks.table import MISSING, BadRows, Table


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows with good texts, labels still raw."""

    table: Table
    texts: Sequence[Texts]
    labels: Sequence[Any]
    lines: Sequence[int]


def num_choices(table: Table, layout: Layout) -> int | None:
    """Return how many choices a row has; for lists of choices the most common length."""
    if not layout.multiple_choice:
        return None
    if layout.choices is None:
        return len(layout.texts) - 1
    lengths = Counter(len(value) for value in table.columns[layout.choices] if isinstance(value, list))
    return max(lengths.items(), key=lambda item: (item[1], item[0]))[0]


def extract_rows(table: Table, layout: Layout, choices: int | None, bad: BadRows) -> Rows:
    """Put the texts of each row together; what cannot be is added to ``bad``.

    Raises:
        DataError: when a column is missing.
    """
    for unreadable in table.bad:
        bad.add(table, unreadable.line, unreadable.what)
    needed = {name: table.column(name) for name in layout.columns}
    texts: list[Texts] = []
    labels: list[Any] = []
    lines: list[int] = []
    for i, line in enumerate(table.lines):
        row = {name: values[i] for name, values in needed.items()}
        wrong = _wrong_text(row, layout, choices)
        if wrong is not None:
            bad.add(table, line, wrong)
            continue
        texts.append(_texts(row, layout))
        labels.append(row[layout.label])
        lines.append(line)
    return Rows(table, texts, labels, lines)


def _texts(row: Mapping[str, Any], layout: Layout) -> Texts:
    worded = {name: layout.wording[name][value] if name in layout.wording else value for name, value in row.items()}
    texts = tuple(layout.joiner.join(worded[column] for column in columns) for columns in layout.texts)
    return (*texts, *row[layout.choices]) if layout.choices else texts


def _wrong_text(row: Mapping[str, Any], layout: Layout, choices: int | None) -> str | None:
    for columns in layout.texts:
        for column in columns:
            if (wrong := text_problem(column, row[column])) is not None:
                return wrong
            if column in layout.wording and row[column] not in layout.wording[column]:
                allowed = " or ".join(map(repr, layout.wording[column]))
                return f"{column!r} is {row[column]!r}; it must be {allowed}"
    if layout.choices is None:
        return None
    listed = row[layout.choices]
    if not isinstance(listed, list):
        return f"{layout.choices!r} is {_kind_of(listed)}, a list of texts was expected"
    if choices is not None and len(listed) != choices:
        return f"{layout.choices!r} has {len(listed)} choices where most rows have {choices}"
    problems = (text_problem(f"{layout.choices}[{i}]", value) for i, value in enumerate(listed))
    return next((wrong for wrong in problems if wrong is not None), None)


def text_problem(column: str, value: Any) -> str | None:
    """Say what is wrong with a text, or return ``None`` when nothing is."""
    if not isinstance(value, str):
        return f"{column!r} is {_kind_of(value)}" + ("" if value in (None, MISSING) else ", a text was expected")
    if not value.strip():
        return f"{column!r} is empty"
    if "\0" in value:
        return f"{column!r} has a NUL character at position {value.index(chr(0))}"
    try:
        value.encode()
    except UnicodeEncodeError as error:
        return f"{column!r} has half a surrogate pair at position {error.start}"
    return None


def _kind_of(value: Any) -> str:
    if value is None:
        return "null"
    return "missing" if value is MISSING else f"{str(value)[:40]} ({type(value).__name__})"


LabelReader = Callable[[Any], int | float | str]
"""Turns a raw label into a class id or a number, or says what is wrong with it."""


def label_reader(kind: Kind, labels: tuple[str, ...], layout: Layout, seen: Sequence[Any]) -> LabelReader:
    """Return how labels of this task are read.

    Args:
        kind: what is predicted.
        labels: class names in id order; for multiple choice the names of the choices.
        layout: the columns.
        seen: raw labels of the training rows.
    """
    if kind == "regression":
        return number
    known = vocabulary(labels)
    if kind == "multiple_choice":
        known = choice_vocabulary(labels, {found for value in seen if (found := canonical(value)) is not None})
    return lambda value: class_id(value, known, labels)


def choice_names(layout: Layout, choices: int) -> tuple[str, ...]:
    """Return the names of the choices: those of their columns, or their numbers from 0."""
    if layout.choices is not None:
        return tuple(map(str, range(choices)))
    return tuple(columns[0] for columns in layout.texts[1:])


def read_split(name: str, rows: Rows, layout: Layout, reader: LabelReader, kind: Kind, bad: BadRows) -> Split:
    """Read the labels of all rows; the rows whose label cannot be read are added to ``bad`` and left out."""
    texts: list[Texts] = []
    references: list[int | float] = []
    for text, raw, line in zip(rows.texts, rows.labels, rows.lines, strict=True):
        found = reader(raw)
        if isinstance(found, str):
            bad.add(rows.table, line, f"{layout.label!r} is {found}")
        else:
            texts.append(text)
            references.append(found)
    if kind == "regression":
        return Split(name, tuple(texts), np.asarray(references, dtype=np.float32), kind)
    return Split(name, tuple(texts), np.asarray(references, dtype=np.int64), kind)


def require_variety(place: str, split: Split) -> None:
    """Raise when there is nothing to learn or to score: fewer than two different references."""
    if len(np.unique(split.references)) < 2:
        only = split.references[0] if len(split) else "nothing"
        raise DataError(f"{place} is {only} in all {len(split)} rows; at least two values are needed")
