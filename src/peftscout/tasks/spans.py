"""Questions about a context whose answer is a part of it: rows, tokens, and the scores of SQuAD.

The labels of a row are token positions: first and last of the context, then first and last of each accepted answer. An
answer that was cut away with the end of the context is `IGNORED` twice; a question without an answer has 0 twice, the
position of the first token.
"""

from __future__ import annotations

import re
import string
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from peftscout.errors import DataError
from peftscout.tasks.encoded import Encoded, Feature
from peftscout.tasks.recipes import Layout
from peftscout.tasks.sequences import IGNORED, Rows
from peftscout.tasks.splits import Target
from peftscout.tasks.table import Table

QUESTION, CONTEXT, ANSWERS = "question", "context", "answers"
"""Names of the columns, as in SQuAD."""


def find_span_layout(table: Table, text: str | None, text_pair: str | None, label: str | None) -> Layout:
    """Return the columns: question, context, and answers with the places where they begin.

    Raises:
        DataError: when one is absent; names the option that decides.
    """
    names = []
    for given, usual, flag in (
        (text, QUESTION, "--text"),
        (text_pair, CONTEXT, "--text-pair"),
        (label, ANSWERS, "--label"),
    ):
        table.column(given or usual, flag=flag)
        names.append(given or usual)
    return Layout(((names[0],), (names[1],)), names[2])


def answers_problem(column: str, texts: Sequence[str], target: Any, labels: Sequence[str]) -> str | None:
    """Say what is wrong with the answers of a row: ``{"text": [...], "answer_start": [...]}``; both may be empty."""
    if not isinstance(target, dict) or {"text", "answer_start"} - set(target):
        return f"{column!r} must have a text and an answer_start, lists of equal length"
    found, starts = target["text"], target["answer_start"]
    if not isinstance(found, list) or not isinstance(starts, list) or len(found) != len(starts):
        return f"{column!r} must have a text and an answer_start, lists of equal length"
    for answer, start in zip(found, starts, strict=True):
        if not isinstance(answer, str) or not isinstance(start, int) or not answer:
            return f"{column!r} must hold texts and whole numbers"
        if start < 0 or texts[1][start : start + len(answer)] != answer:
            return f"{column!r}: {answer!r:.60} does not stand at character {start} of the context"
    return None


def read_answers(target: Any) -> Target:
    """Return answers as ``[first, end]`` characters of the context."""
    return [[start, start + len(answer)] for answer, start in zip(target["text"], target["answer_start"], strict=True)]


def encode_spans(split: Rows, tokenizer: Any, limit: int) -> Encoded:
    """Encode question and context; what is too long loses the end of the context.

    Raises:
        DataError: when the tokenizer does not tell which characters a token stands for, or a question fills the limit.
    """
    if not tokenizer.is_fast:
        raise DataError(
            f"{type(tokenizer).__name__}: does not tell where tokens stand; answers in contexts need a fast one"
        )
    features, cut = list[Feature](), 0
    for n, ((question, context), spans) in enumerate(zip(split.texts, split.targets, strict=True)):
        try:
            row = tokenizer(question, context, truncation="only_second", max_length=limit, return_offsets_mapping=True)
        except Exception as error:  # tokenizers raises a bare Exception
            raise DataError(f"{split.name}[{n}]: the question leaves no room for its context: {error}") from None
        offsets, own = row.pop("offset_mapping"), [i for i, which in enumerate(row.sequence_ids()) if which == 1]
        if not own:
            raise DataError(f"{split.name}[{n}]: the question leaves no room for its context within {limit} tokens")
        cut += bool(context[offsets[own[-1]][1] :].strip())
        places = [place for span in spans for place in _tokens(span, offsets, own)] or [0, 0]
        labels = [own[0], own[-1], *places]
        features.append({name: list(values) for name, values in row.items()} | {"labels": labels})
    lengths = np.array([len(feature["input_ids"]) for feature in features], dtype=np.int64)
    return Encoded(features, split.references, lengths, cut)


def _tokens(span: Any, offsets: Sequence[tuple[int, int]], own: Sequence[int]) -> tuple[int, int]:
    """Return the first and the last token that hold characters of an answer; `IGNORED` when it was cut away."""
    first, end = span
    inside = [i for i in own if offsets[i][0] < end and offsets[i][1] > first]
    if not inside or offsets[inside[-1]][1] < end:
        return IGNORED, IGNORED
    return inside[0], inside[-1]


def normalised(text: str) -> list[str]:
    """Return the words of an answer as SQuAD compares them: no case, no punctuation, no articles."""
    kept = "".join(c for c in text.lower() if c not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def exact_and_f1(predicted: str, accepted: Sequence[str]) -> tuple[float, float]:
    """Return exact match and the F1 of words, each the best over the accepted answers (Rajpurkar et al. 2016)."""
    pairs = [_pair(normalised(predicted), normalised(answer)) for answer in accepted]
    return max((e for e, _ in pairs), default=0.0), max((f for _, f in pairs), default=0.0)


def _pair(one: list[str], other: list[str]) -> tuple[float, float]:
    if not one or not other:
        return float(one == other), float(one == other)
    shared = sum((Counter(one) & Counter(other)).values())
    return float(one == other), 2 * shared / (len(one) + len(other))
