"""Batches of similar length: few padded positions, deterministic by seed."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftscout.tasks.sequences import IGNORED

MEGA_BUCKET = 50
"""Batches that are sorted by length together: large enough for little padding, small enough to stay random."""

PAD_TO_MULTIPLE = 2
"""Of positions: SST-2's mean text has 13 tokens, and multiples of 8 would be 30 % padding. Every width costs a prepared
kernel for every product, of which oneDNN keeps 1,024."""

WORTH_A_BATCH = 64
"""Positions whose computation takes about as long as starting a batch more."""


class BatchMaker:
    """Turns encoded rows into padded tensors.

    Attributes:
        left_padded: on which side.

    Args:
        pad_token_id: id that fills ``input_ids``; ``labels`` are filled with `IGNORED`, every other feature with 0.
        padding_side: ``right`` or ``left``, as the tokenizer says.
        regression: whether references are floats (shape [B], float32) or class ids (int64).
    """

    def __init__(self, pad_token_id: int, padding_side: str, regression: bool) -> None:
        self._fill = {"input_ids": pad_token_id, "labels": IGNORED}
        self.left_padded = padding_side == "left"
        self._dtype = torch.float32 if regression else torch.int64

    def __call__(self, features: Sequence[dict[str, Any]], references: np.ndarray) -> dict[str, Tensor]:
        """Return ``input_ids``, ``attention_mask``, ... of shape [B, S] ([B, C, S] with choices) and ``labels`` [B].

        Where rows bring labels of their own, these are ``labels`` [B, S] or [B, T], and ``reference`` [B] is what else
        there is to predict, given with choices.
        """
        first = features[0]["input_ids"]
        choices = len(first) if first and isinstance(first[0], list) else 0
        batch: dict[str, Tensor] = {}
        for name in features[0]:
            rows = [ids for row in features for ids in row[name]] if choices else [row[name] for row in features]
            padded = self._pad(rows, self._fill.get(name, 0))
            batch[name] = padded.view(len(features), choices, -1) if choices else padded
        if choices or "labels" not in batch:
            batch["reference" if "labels" in batch else "labels"] = torch.as_tensor(references).to(self._dtype)
        return batch

    def _pad(self, rows: Sequence[Sequence[int]], fill: int) -> Tensor:
        width = padded_width(max(map(len, rows)))
        out = torch.full((len(rows), width), fill, dtype=torch.int64)
        for i, row in enumerate(rows):
            if self.left_padded:
                out[i, width - len(row) :] = torch.as_tensor(row)
            else:
                out[i, : len(row)] = torch.as_tensor(row)
        return out


def padded_width(longest: Any) -> Any:
    """Return the width of a batch whose longest row has so many tokens (an integer, or an array of them)."""
    return longest + -longest % PAD_TO_MULTIPLE


def training_order(lengths: np.ndarray, batch_size: int, seed: int) -> Iterator[np.ndarray]:
    """Yield row indices of batches, for ever: every pass over the data is reshuffled and sees every row once.

    Rows are shuffled, sorted by length inside mega-buckets of ``MEGA_BUCKET`` batches, cut into batches, and these
    are shuffled. The last batch of a pass may be smaller.
    """
    rng = np.random.default_rng(seed)
    bucket = batch_size * MEGA_BUCKET
    while True:
        order = rng.permutation(len(lengths))
        batches: list[np.ndarray] = []
        for start in range(0, len(order), bucket):
            rows = order[start : start + bucket]
            rows = rows[np.argsort(lengths[rows], kind="stable")]
            batches += [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        for i in rng.permutation(len(batches)):
            yield batches[i]


def evaluation_order(lengths: np.ndarray, batch_size: int) -> Iterator[np.ndarray]:
    """Yield row indices of batches that cover every row once, shortest first.

    A batch ends at ``batch_size`` rows, or where one more row would cost the batch more than ``WORTH_A_BATCH``
    positions of padding.
    """
    order = np.argsort(lengths, kind="stable")
    widths = padded_width(lengths[order])
    start = 0
    for end in range(1, len(order)):
        if end - start == batch_size or (end - start) * (widths[end] - widths[start]) > WORTH_A_BATCH:
            yield order[start:end]
            start = end
    yield order[start:]
