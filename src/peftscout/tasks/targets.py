"""Rows whose target is a sequence: which columns they are, and what may stand in them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

import numpy as np

from peftscout.errors import DataError
from peftscout.tasks.recipes import Kind, Layout
from peftscout.tasks.rows import Rows, text_problem
from peftscout.tasks.spans import answers_problem, read_answers
from peftscout.tasks.splits import Split, Target
from peftscout.tasks.table import BadRows, Table

SOURCES = ("source", "input", "inputs", "prompt", "question", "document", "article", "text", "sentence")
"""Names of the text that is given."""

TARGETS = ("target", "output", "completion", "response", "answer", "summary", "highlights", "label")
"""Names of the text that is to be written."""

WHOLE = ("text", "content", "story", "document")
"""Names of a text that is to be written from its first token on."""

MESSAGES = ("messages", "conversation", "conversations")
"""Names of a column of chats: lists of ``{"role": ..., "content": ...}``."""

WORDS, TAGS = ("tokens", "words"), ("ner_tags", "tags", "pos_tags", "labels", "label")
"""Names of columns of lists: words, and the tag of each."""

ROLES = ("system", "user", "assistant", "tool")


def find_target_layout(table: Table, kind: Kind, text: str | None, label: str | None) -> Layout:
    """Find the columns of a kind whose target is a sequence; what is given is taken as it is.

    Raises:
        DataError: when a given column does not exist, or names do not settle it; says which option decides.
    """
    for flag, name in (("--label", label), ("--text", text)):
        if name is not None:
            table.column(name, flag=flag)
    if kind == "token_classification":
        tags = label or _only(table, TAGS, "the tags", "label")
        return Layout((), tags, choices=text or _only(table, WORDS, "the words", "text"))
    if kind == "causal_lm" and text is None:
        if label is not None:
            return Layout((), label)
        if chats := _named(table, MESSAGES):
            return Layout((), chats[0])
        if not _named(table, TARGETS):
            return Layout((), _only(table, WHOLE, "the text", "label"))
    target = label or _only(table, [name for name in TARGETS if name != text], "the text to write", "label")
    sources = [name for name in SOURCES if name != target]
    return Layout(((text or _only(table, sources, "the text that is given", "text"),),), target)


def _named(table: Table, names: Sequence[str]) -> list[str]:
    by_name = {column.lower(): column for column in table.columns}
    return [by_name[name] for name in names if name in by_name]


def _only(table: Table, names: Sequence[str], what: str, option: str) -> str:
    found = _named(table, names)
    if len(found) == 1:
        return found[0]
    which = " and ".join(map(repr, found)) + " could each be" if found else "no column is named like"
    raise DataError(
        f"{table.name}: {which} {what}; say which with {option}= (--{option}); "
        f"the columns are {', '.join(map(repr, table.columns))}"
    )


def read_targets(name: str, rows: Rows, layout: Layout, kind: Kind, labels: Sequence[str], bad: BadRows) -> Split:
    """Read the targets of all rows; those that cannot be used are added to ``bad`` and left out."""
    problem = _PROBLEMS.get(kind, text_or_chat_problem)
    kept = [
        (texts, target)
        for texts, target, line in zip(rows.texts, rows.labels, rows.lines, strict=True)
        if not _bad(problem(layout.label, texts, target, labels), rows, line, bad)
    ]
    texts, targets = tuple(texts for texts, _ in kept), tuple(_read(kind, target, labels) for _, target in kept)
    return Split(name, texts, np.zeros(len(kept), dtype=np.int64), kind, targets)


def _read(kind: Kind, target: Any, labels: Sequence[str]) -> Target:
    """Return a target as it is learnt: tags as their numbers, answers as their characters."""
    if kind == "question_answering":
        return read_answers(target)
    if kind != "token_classification":
        return cast("Target", target)
    return [labels.index(spelled(tag, labels)) for tag in target]


def _bad(wrong: str | None, rows: Rows, line: int, bad: BadRows) -> bool:
    if wrong is not None:
        bad.add(rows.table, line, wrong)
    return wrong is not None


def text_or_chat_problem(column: str, texts: Sequence[str], target: Target, labels: Sequence[str]) -> str | None:
    """Say what is wrong with a text to write, or with a chat whose last message is to be written."""
    if not isinstance(target, list):
        return text_problem(column, target)
    if texts:
        return f"{column!r} is a list, a text was expected"
    for n, message in enumerate(target):
        where = f"{column}[{n}]"
        if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
            return f"{where!r} must have a role and a content and nothing else"
        if message["role"] not in ROLES:
            return f"{where!r} has the role {message['role']!r}; there are {', '.join(ROLES)}"
        if (wrong := text_problem(f"{where}.content", message["content"])) is not None:
            return wrong
    if len(target) < 2 or target[-1]["role"] != "assistant":
        return f"{column!r} must end with a message of the assistant, after at least one other"
    return None


def tags_problem(column: str, texts: Sequence[str], target: Target, labels: Sequence[str]) -> str | None:
    """Say what is wrong with the tags of a row; ``texts`` are its words."""
    if not isinstance(target, list) or len(target) != len(texts):
        return f"{column!r} must be a list of {len(texts)} tags, one a word"
    unknown = next((tag for tag in target if spelled(tag, labels) not in labels), None)
    return None if unknown is None else f"{column!r} has the tag {unknown!r}, which is none of train"


def spelled(tag: Any, labels: Sequence[str]) -> str:
    """Return the name of a tag that may be given by number."""
    if isinstance(tag, int) and str(tag) not in labels and 0 <= tag < len(labels):
        return labels[tag]
    return str(tag)


def tag_names(rows: Rows, layout: Layout) -> tuple[str, ...]:
    """Return the names of the tags in training rows, the outside tag ``O`` (or 0) first.

    Raises:
        DataError: when there are fewer than two.
    """
    if declared := rows.table.class_names.get(layout.label):
        return declared
    seen = {tag for tags in rows.labels if isinstance(tags, list) for tag in tags}
    if len(seen) < 2:
        raise DataError(f"{rows.table.name}: {layout.label!r} has fewer than two different tags")
    names = sorted(map(str, seen), key=lambda name: (name != "O", int(name) if name.isdigit() else 0, name))
    return tuple(names)


_PROBLEMS: Mapping[Kind, Callable[[str, Sequence[str], Target, Sequence[str]], str | None]] = {
    "token_classification": tags_problem,
    "question_answering": answers_problem,
}
