"""Short rows share a sequence in training: what would be padding holds other rows, and no row sees another.

The rows of one batch are put into fewer sequences of the same width, so an optimiser step has the rows that it has
without packing, and its loss and gradients are the same up to rounding. Positions start again at every row. From that,
and from the absence of a mask and of a cache, transformers tells the rows apart: its causal masks, sliding windows
included, end where positions do not go on (`transformers.masking_utils.find_packed_sequence_indices`). Not every model
builds its masks there; `peftscout.training.packing_check` tests the one at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from peftscout.tasks.sequences import IGNORED

NO_CACHE: Mapping[str, Any] = {"use_cache": False}
"""What a model must be told besides: with a cache of keys, transformers looks for no second row in a sequence."""


@dataclass(frozen=True, eq=False)
class Packing:
    """Which positions of a padded batch ``[B, S]`` are where in fewer sequences ``[N, S]``.

    Attributes:
        source: ``[N, S]``, the index of each position in the flattened batch; -1: it holds no row.
        positions: ``[N, S]``, counted from 0 in every row; 0 where there is none: such a position sees itself only.
    """

    source: Tensor
    positions: Tensor

    def of(self, padded: Tensor) -> Tensor:
        """Return ``padded [B, S, ...]`` as ``[N, S, ...]``; what is where no row is means nothing."""
        return padded.flatten(0, 1)[self.source]

    def batch(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the inputs of a decoder, and the labels without each row's first: no token of the row predicts it."""
        packed = {"input_ids": self.of(batch["input_ids"]), "position_ids": self.positions}
        if "labels" in batch:
            packed["labels"] = self.of(batch["labels"]).masked_fill(self.positions == 0, IGNORED)
        return packed


def pack(parts: Sequence[Sequence[int]], width: int, rows: int) -> Packing | None:
    """Return where the rows of a batch go, or ``None`` where no two fit together: one sequence less is a gain already.

    Args:
        parts: lengths of the rows of each part of the batch. Every part gets equally many sequences, part after part.
        width: positions S of the batch, which is padded on the right.
        rows: of each part of the batch, with those at its end that only fill it up.
    """
    filled = [first_fit(lengths, width) for lengths in parts]
    count = max(map(len, filled))
    if count >= rows:
        return None
    source = np.full((len(parts), count, width), -1, dtype=np.int64)
    positions = np.zeros_like(source)
    counted = np.arange(width)
    for part, (lengths, sequences) in enumerate(zip(parts, filled, strict=True)):
        for n, sequence in enumerate(sequences):
            start = 0
            for row in sequence:
                here, own = slice(start, start + lengths[row]), counted[: lengths[row]]
                source[part, n, here] = (part * rows + row) * width + own
                positions[part, n, here] = own
                start += lengths[row]
    return Packing(*(torch.from_numpy(found.reshape(-1, width)) for found in (source, positions)))


def first_fit(lengths: Sequence[int], width: int) -> list[list[int]]:
    """Return the rows of each sequence of ``width`` positions: longest first, each into the first with room for it.

    First-fit decreasing, which needs at most 11/9 of the fewest sequences possible, and one more (Johnson, 1973).
    """
    sequences, room = list[list[int]](), list[int]()
    for row in sorted(range(len(lengths)), key=lambda row: -lengths[row]):
        place = next((n for n, left in enumerate(room) if left >= lengths[row]), len(room))
        if place == len(room):
            sequences.append([])
            room.append(width)
        sequences[place].append(row)
        room[place] -= lengths[row]
    return sequences
