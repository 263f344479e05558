"""Rows as token ids, and how long they may be."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from peftscout.errors import DataError
from peftscout.tasks.splits import References

Feature = dict[str, Any]
"""By input name (``input_ids``, ``attention_mask``, ...) a list, or for multiple choice one list a choice."""

LONGEST = 512
"""Length limit when neither the caller nor the tokenizer has a smaller one."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """Token ids of a split.

    Attributes:
        features: the inputs of each row, see `Feature`.
        references: class ids or numbers, shape (rows,).
        lengths: tokens of each row, for multiple choice of its longest choice, shape (rows,).
        truncated: how many rows lost tokens to the length limit.
    """

    features: list[Feature]
    references: References
    lengths: npt.NDArray[np.int64]
    truncated: int = 0

    def __len__(self) -> int:
        return len(self.features)

    def __getitem__(self, row: int) -> Feature:
        return self.features[row]

    def subset(self, indices: Sequence[int] | npt.NDArray[np.int64]) -> Encoded:
        """Return the rows at ``indices``, in that order; features are shared, ``truncated`` stays that of the whole."""
        chosen = np.asarray(indices, dtype=np.int64)
        features = [self.features[i] for i in chosen]
        return Encoded(features, self.references[chosen], self.lengths[chosen], self.truncated)


def length_limit(tokenizer: Any, max_length: int | None) -> int:
    """Return the most tokens of one sequence: as given, else what the tokenizer says, at most `LONGEST`.

    Raises:
        DataError: when special tokens alone fill the limit.
    """
    limit = min(int(tokenizer.model_max_length), LONGEST) if max_length is None else max_length
    least = tokenizer.num_special_tokens_to_add(pair=True) + 2
    if limit < least:
        raise DataError(f"max_length {limit}: at least {least} tokens are needed with this tokenizer")
    return limit
