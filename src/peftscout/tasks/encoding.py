"""Texts to token ids, once; rows stay ragged, padding is left to the batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from peftscout.errors import DataError
from peftscout.tasks.encoded import Encoded, Feature, length_limit
from peftscout.tasks.sequences import ENCODERS
from peftscout.tasks.spans import encode_spans
from peftscout.tasks.splits import LockedSplit, Split, Texts

_CHUNK = 2048


def encode(split: Split | LockedSplit, tokenizer: Any, *, max_length: int | None) -> Encoded:
    """Tokenise every row once.

    Pairs are cut at the longer text first. Tokenizers that put no token between two texts (GPT-2, Qwen) get a line
    break there. For multiple choice every choice becomes one sequence with the prompt before it. For kinds that predict
    sequences see `peftscout.tasks.sequences`.

    Args:
        split: the rows; a report split must be unlocked.
        tokenizer: of transformers.
        max_length: most tokens of a sequence; ``None`` for `length_limit`'s choice.

    Raises:
        DataError: when a row has no token at all, or the limit leaves no room for text.
    """
    limit = length_limit(tokenizer, max_length)
    if split.kind == "question_answering":
        return encode_spans(split, tokenizer, limit)
    if (own := ENCODERS.get(split.kind)) is not None:
        return own(split, tokenizer, limit)
    choose = split.kind == "multiple_choice"
    width = max((len(texts) for texts in split.texts[:1]), default=1) - 1 if choose else 1
    sequences = _sequences(split.texts) if choose else split.texts
    encoded: list[Feature] = []
    cut = np.zeros(len(sequences), dtype=bool)
    for start in range(0, len(sequences), _CHUNK):
        chunk, long = _tokenise(sequences[start : start + _CHUNK], tokenizer, limit)
        encoded += chunk
        cut[start : start + len(chunk)] = long
    lengths = np.array([len(feature["input_ids"]) for feature in encoded], dtype=np.int64)
    if (empty := np.flatnonzero(lengths == 0)).size:
        texts = split.texts[empty[0] // width]
        raise DataError(f"{split.name}: {empty.size} rows have no token with this tokenizer, first {texts!r:.80}")
    if not choose:
        return Encoded(encoded, split.references, lengths, int(cut.sum()))
    rows = [encoded[i : i + width] for i in range(0, len(encoded), width)]
    features = [{name: [choice[name] for choice in row] for name in row[0]} for row in rows]
    by_row = lengths.reshape(-1, width)
    return Encoded(features, split.references, by_row.max(axis=1), int(cut.reshape(-1, width).any(axis=1).sum()))


def _sequences(texts: Sequence[Texts]) -> Sequence[Texts]:
    """Return the (prompt, choice) pairs of all rows, one row after the other."""
    return [(prompt, choice) for prompt, *choices in texts for choice in choices]


def _tokenise(sequences: Sequence[Texts], tokenizer: Any, limit: int) -> tuple[list[Feature], npt.NDArray[np.bool_]]:
    """Return the features of single texts or pairs, and which of them had to be cut."""
    features = _call(sequences, tokenizer)
    long = np.array([len(feature["input_ids"]) > limit for feature in features], dtype=bool)
    if long.any():
        at = np.flatnonzero(long).tolist()
        for i, feature in zip(at, _call([sequences[i] for i in at], tokenizer, limit), strict=True):
            features[i] = feature
    return features, long


def _call(sequences: Sequence[Texts], tokenizer: Any, limit: int | None = None) -> list[Feature]:
    first = [texts[0] for texts in sequences]
    second = None
    if len(sequences[0]) == 2:
        separated = tokenizer.num_special_tokens_to_add(pair=True) > tokenizer.num_special_tokens_to_add(pair=False)
        second = [texts[1] if separated else "\n" + texts[1] for texts in sequences]
    batch = tokenizer(
        first, second, truncation="longest_first" if limit else False, max_length=limit, padding=False, verbose=False
    )
    return [{name: list(values[i]) for name, values in batch.items()} for i in range(len(sequences))]
