"""Raw labels to class ids or numbers: one reading of 0, 0.0 and "0", a stable order, and what does not fit."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from peftscout.errors import DataError, nearest
from peftscout.tasks.recipes import Kind
from peftscout.tasks.table import MISSING

HIDDEN = "-1"
"""What benchmarks write where the labels of a test split are kept back."""

_WHOLE = re.compile(r"-?(0|[1-9][0-9]{0,17})(\.0*)?")
_LARGEST = 3.4e38  # float32
_MANY = 20


def canonical(value: Any) -> str | None:
    """Return the one spelling of a class label, or ``None`` when the value cannot be one.

    0, 0.0, ``"0"`` and ``"0.0"`` are one label, and so are ``True``, ``"True"`` and ``"true"``; other text is stripped.
    """
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        if not math.isfinite(value):
            return None
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, int):
        return str(value)
    if not isinstance(value, str) or not value.strip():
        return None
    text = value.strip()
    if _WHOLE.fullmatch(text):
        return str(int(text.split(".")[0]))
    return text.lower() if text.lower() in ("true", "false") else text


def number(value: Any) -> float | str:
    """Return the target of a regression as a float, or what is wrong with it."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return f"{_quoted(value)}, a number was expected"
    try:
        found = float(value)
    except (ValueError, OverflowError):
        return f"{_quoted(value)}, a number was expected" if str(value).strip() else "empty"
    if not math.isfinite(found):
        return f"{found}, a finite number was expected"
    return found if abs(found) <= _LARGEST else f"{found}, too large for 32-bit floats"


def not_a_class(value: Any) -> str:
    """Say what is wrong with a value that has no `canonical` spelling."""
    if isinstance(value, str):
        return "empty"
    if isinstance(value, float):
        return f"{value}, a class was expected"
    return f"{_quoted(value)}, a class was expected"


def _quoted(value: Any) -> str:
    if value is MISSING:
        return "missing"
    if value is None:
        return "null"
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def is_hidden(values: Sequence[Any], train: Sequence[Any]) -> bool:
    """Whether a held-out split keeps its labels back: all are null, or all are -1 and -1 is no class of train."""
    spelled = {canonical(value) for value in values}
    if spelled == {HIDDEN}:
        return not any(canonical(value) == HIDDEN for value in train)
    return spelled <= {None} and all(value is None or value is MISSING or value == "" for value in values)


def infer_kind(place: str, values: Sequence[Any]) -> Kind:
    """Tell classes from numbers: labels with fractions are numbers, whole numbers and words are classes.

    Args:
        place: the column, for messages.
        values: labels of the training rows.

    Raises:
        DataError: when nearly every row has a label of its own, so that neither reading is safe.
    """
    spelled = [name for value in values if (name := canonical(value)) is not None]
    numbers = [found for value in values if isinstance(found := number(value), float)]
    fractions = sum(not found.is_integer() for found in numbers)
    if fractions and 2 * len(numbers) > len(values):
        return "regression"
    if (distinct := len(set(spelled))) > _MANY and 2 * distinct > len(spelled):
        raise DataError(
            f"{place} has {distinct} different values in {len(spelled)} rows: neither classes nor fractions; "
            'name the right column with label= (--label), or say kind="regression" or kind="classification"'
        )
    return "classification"


def class_labels(place: str, values: Sequence[Any], declared: Sequence[str] = ()) -> tuple[str, ...]:
    """Return the class names in id order: as declared, else whole numbers by value and words by code point.

    Raises:
        DataError: when the training rows have fewer than two classes.
    """
    counts = Counter(found for value in values if (found := canonical(value)) is not None)
    known = vocabulary(declared)
    if len(set(map(canonical, declared))) < len(declared):
        raise DataError(f"{place} declares classes that read alike: {', '.join(map(repr, declared))}; rename them")
    present = {known.get(found, found) for found in counts}
    if len(present) < 2:
        only = next(iter(counts), "nothing")
        raise DataError(f"{place} is {only!r} in all {counts.total()} rows; at least two classes are needed")
    if declared:
        return tuple(declared)
    if all(_WHOLE.fullmatch(found) for found in counts):
        return tuple(sorted(counts, key=int))
    return tuple(sorted(counts))


def vocabulary(labels: Sequence[str]) -> Mapping[str, int]:
    """Return the class id of every accepted spelling: the names, and also the ids unless names are numbers."""
    names = {found: i for i, label in enumerate(labels) if (found := canonical(label)) is not None}
    if any(_WHOLE.fullmatch(name) for name in names):
        return names
    return {str(i): i for i in range(len(labels))} | names


def class_id(value: Any, known: Mapping[str, int], labels: Sequence[str]) -> int | str:
    """Return the class id of a raw label, or what is wrong with it."""
    spelled = canonical(value)
    if spelled is None:
        return not_a_class(value)
    if spelled in known:
        return known[spelled]
    listed = ", ".join(labels[:10]) + (f" and {len(labels) - 10} more" if len(labels) > 10 else "")
    return f"{_quoted(value)}, which is no class of train{nearest(spelled, labels)}; the classes are {listed}"


def choice_vocabulary(columns: Sequence[str], spelled: set[str]) -> Mapping[str, int]:
    """Return which choice every label means: its index from 0, its letter, or the name of its column.

    Labels that run from 1 to the number of choices are read as such: no reading from 0 is possible then.
    """
    count = len(columns)
    first = 1 if str(count) in spelled and "0" not in spelled else 0
    by_number = {str(i + first): i for i in range(count)}
    by_letter = {letter: i for i in range(count) for letter in (chr(ord("A") + i), chr(ord("a") + i))}
    return {**by_letter, **{name: i for i, name in enumerate(columns)}, **by_number}
