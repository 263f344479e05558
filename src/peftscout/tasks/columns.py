"""Which columns are the texts and which is the label: given, known from a recipe, or found by name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from peftscout.errors import DataError
from peftscout.tasks.labels import canonical, number, vocabulary
from peftscout.tasks.recipes import RECIPES, Kind, Layout, Recipe
from peftscout.tasks.table import MISSING, Table

PAIRS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "sentence"),
    ("question", "passage"),
    ("question", "context"),
    ("question1", "question2"),
    ("query", "passage"),
    ("query", "document"),
    ("text1", "text2"),
    ("text_a", "text_b"),
    ("text", "text_pair"),
    ("s1", "s2"),
)
"""Names of two text columns that belong together."""

SINGLES = ("text", "sentence", "content", "review", "comment", "tweet", "document", "body", "utterance", "headline")
"""Names of one text column."""

LABELS = ("label", "labels", "class", "target", "category", "gold_label", "score", "answer", "rating", "sentiment", "y")
"""Names of the label column."""

PROMPTS = ("prompt", "question", "context", "premise", "sentence", "text", "startphrase", "ctx")
"""Names of the text that the choices continue or answer."""

CHOICE_LISTS = ("choices", "endings", "options")
"""Names of a column whose rows are lists of choices."""

IDENTIFIERS = ("", "id", "idx", "guid", "uid", "uuid", "index", "pairid", "promptid")
"""Names of columns that number the rows."""

_NUMBERED_CHOICE = re.compile(r"(?i)(choice|ending|option|answer|alternative|solution|sol|opt)_?(\d+|[a-e])")


def find_layout(
    table: Table,
    *,
    text: str | None = None,
    text_pair: str | None = None,
    label: str | None = None,
    kind: Kind | None = None,
) -> Layout:
    """Find the columns of a table; what is given is taken as it is, the rest is found by name.

    Raises:
        DataError: when a given column does not exist, or when the names do not settle it; lists the columns and says
            which option decides.
    """
    if text_pair is not None and text is None:
        raise DataError(f"{table.name}: text_pair={text_pair!r} needs the first column too: give text (--text) with it")
    for flag, name in (("--label", label), ("--text", text), ("--text-pair", text_pair)):
        if name is not None:
            table.column(name, flag=flag)
    given = [name for name in (text, text_pair, label) if name is not None]
    if len(set(given)) < len(given):
        raise DataError(f"{table.name}: text, text_pair and label must be different columns: "
                        f"{text!r}, {text_pair!r}, {label!r}")  # fmt: skip
    label = label or _find_label(table)
    choices = _choice_columns(table, label) if kind in (None, "multiple_choice") and text_pair is None else ()
    if kind == "multiple_choice" and not choices:
        raise DataError(
            f"{table.name}: no choices found; multiple choice needs columns such as choice1 and choice2, or a column "
            f"of lists named {', '.join(CHOICE_LISTS)}; the columns are {_listed(table)}"
        )
    if choices:
        return _choice_layout(table, text, choices, label)
    if text is not None:
        return Layout(((text,),) if text_pair is None else ((text,), (text_pair,)), label)
    return Layout(_find_texts(table, label), label)


def recipe_for(table: Table, named: Recipe | None) -> tuple[Recipe | None, str]:
    """Decide whether a recipe applies: by name if its columns are there, or by columns that are unmistakable.

    Args:
        table: the training rows.
        named: the recipe that the source is named like.

    Returns:
        The recipe or ``None``, and why, for the notes (``""`` when no recipe came into question).
    """
    if named is not None:
        absent = [column for column in named.layout.columns if column not in table.columns]
        if absent:
            return None, f"named like the recipe {named.name}, which does not apply: no column {absent[0]!r}"
        if not _labels_fit(table, named):
            return None, f"named like the recipe {named.name}, which does not apply: other labels"
        return named, f"recipe {named.name}, by name"
    for recipe in RECIPES.values():
        if recipe.unmistakable and set(recipe.layout.columns) <= set(table.columns) and _labels_fit(table, recipe):
            return recipe, f"recipe {recipe.name}, by its columns"
    return None, ""


def _labels_fit(table: Table, recipe: Recipe) -> bool:
    """Whether most labels are what the recipe has; single strange ones are bad rows then, not another task."""
    values = table.columns[recipe.layout.label]
    if recipe.kind == "regression":
        fitting = sum(isinstance(number(value), float) for value in values)
    else:
        known = vocabulary(recipe.labels)
        fitting = sum(canonical(value) in known for value in values)
    return 2 * fitting > len(values)


def _listed(table: Table) -> str:
    return ", ".join(map(repr, table.columns))


def _named(table: Table, names: Sequence[str]) -> list[str]:
    """Return the columns of the table with one of the names, in the order of the names, whatever their case."""
    actual = {column.lower(): column for column in table.columns}
    return [actual[name] for name in names if name in actual]


def _find_label(table: Table) -> str:
    found = _named(table, LABELS)
    if not found:
        found = list(table.class_names)
    if not found:
        raise DataError(
            f"{table.name}: no label column found by name; say which it is with label= (--label); "
            f"the columns are {_listed(table)}"
        )
    if len(found) > 1 and found[0].lower() not in ("label", "labels"):
        raise DataError(
            f"{table.name}: {' and '.join(map(repr, found))} could each be the label; say which with label= (--label)"
        )
    return found[0]


def _is_textual(values: Sequence[Any]) -> bool:
    """Whether a column holds strings that are not all numbers; looks at the first thousand values."""
    sample = [value for value in values[:1000] if value is not None and value is not MISSING]
    strings = [value for value in sample if isinstance(value, str)]
    return 2 * len(strings) > len(sample) and not all(re.fullmatch(r"\s*[-+.\deE]*\s*", value) for value in strings)


def _find_texts(table: Table, label: str) -> tuple[tuple[str, ...], ...]:
    pairs = [found for pair in PAIRS if len(found := _named(table, pair)) == 2 and label not in found]
    if len(pairs) == 1:
        return tuple((column,) for column in pairs[0])
    singles = [column for column in _named(table, SINGLES) if column != label]
    textual = [
        column
        for column, values in table.columns.items()
        if column != label and column.lower() not in IDENTIFIERS and _is_textual(values)
    ]
    if not pairs and singles and (len(singles) == 1 or singles[0].lower() in ("text", "sentence")):
        return ((singles[0],),)
    if not pairs and not singles and len(textual) == 1:
        return ((textual[0],),)
    if not textual:
        raise DataError(f"{table.name}: no text column among {_listed(table)}; say which it is with text= (--text)")
    raise DataError(
        f"{table.name}: {', '.join(map(repr, textual))} could each be the text; say which with text= (--text), "
        "and for a pair text_pair= (--text-pair)"
    )


def _choice_columns(table: Table, label: str) -> tuple[str, ...]:
    """Return the numbered choice columns in order, or the one column of lists, or nothing."""
    lists = [
        column
        for column in _named(table, CHOICE_LISTS)
        if any(isinstance(value, list) for value in table.columns[column][:100])
    ]
    if lists:
        return (lists[0],)
    by_stem: dict[str, list[tuple[int, str]]] = {}
    for column in table.columns:
        if column != label and (match := _NUMBERED_CHOICE.fullmatch(column)):
            stem, mark = match.group(1).lower(), match.group(2).lower()
            by_stem.setdefault(stem, []).append((int(mark) if mark.isdigit() else ord(mark) - ord("a"), column))
    for numbered in by_stem.values():
        numbered.sort()
        consecutive = [number for number, _ in numbered] == [numbered[0][0] + i for i in range(len(numbered))]
        if len(numbered) > 1 and consecutive and numbered[0][0] in (0, 1):
            return tuple(column for _, column in numbered)
    return ()


def _choice_layout(table: Table, text: str | None, choices: tuple[str, ...], label: str) -> Layout:
    if text is None:
        prompts = [column for column in _named(table, PROMPTS) if column not in choices and column != label]
        if len(prompts) != 1:
            which = " and ".join(map(repr, prompts)) + " could each be" if prompts else "no column is named like"
            raise DataError(
                f"{table.name}: {which} the text that the choices answer; say which with text= (--text); "
                f"the columns are {_listed(table)}"
            )
        text = prompts[0]
    if len(choices) == 1:
        return Layout(((text,),), label, choices=choices[0], multiple_choice=True)
    return Layout(((text,), *((choice,) for choice in choices)), label, multiple_choice=True)
