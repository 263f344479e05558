"""Batches of the two halves of the training rows: one for the weights of a supernet, one for its gates.

They are drawn from one half at a time, or together: rows of both halves in one batch, the training rows first.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import islice

import numpy as np
from torch import Tensor

from peftscout.tasks import Encoded
from peftscout.training.batches import MEGA_BUCKET, BatchMaker, training_order
from peftscout.training.device import Device


class RowsInHalves:
    """Endless batches of ``train`` and of ``validation``: half of the rows each or as asked for, at random, disjoint.

    Args:
        rows: at least two.
        batch_size: rows of a batch.
        seed: of halves and order.
        make_batch: pads them.
        device: where they go.
        share: of validation rows among those of a batch of both; there is at least one row of either half.
        held_out: share of ``validation`` in all rows.
    """

    def __init__(
        self,
        rows: Encoded,
        batch_size: int,
        seed: int,
        make_batch: BatchMaker,
        device: Device,
        share: float = 0.25,
        held_out: float = 0.5,
    ) -> None:
        order = np.random.default_rng([seed, 0]).permutation(len(rows))
        half = max(1, min(len(rows) - 1, int(held_out * len(rows))))
        self.halves = {
            "train": rows.subset(np.sort(order[half:])),
            "validation": rows.subset(np.sort(order[:half])),
        }
        self._batch_size, self._seed = batch_size, seed
        self._make_batch, self._device = make_batch, device
        for_gates = max(1, min(batch_size - 1, round(share * batch_size)))
        self._each = (max(1, batch_size - for_gates), for_gates)
        self.skip({"train": 0, "validation": 0, "both": 0})

    def skip(self, drawn: Mapping[str, int]) -> None:
        """Go to where so many batches of each half were drawn since the beginning."""
        self.drawn = dict(drawn)
        self._next: dict[str, np.ndarray] = {}
        self._orders = {
            split: islice(training_order(half.lengths, self._batch_size, self._seed + n), self.drawn[split], None)
            for n, (split, half) in enumerate(self.halves.items())
        }
        lengths = [half.lengths for half in self.halves.values()]
        self._pairs = islice(paired_order(lengths, self._each, self._seed), self.drawn["both"], None)

    def peek(self, split: str) -> dict[str, Tensor]:
        """Return the batch that `draw` returns next."""
        if split not in self._next:
            self._next[split] = next(self._orders[split])
        rows, half = self._next[split], self.halves[split]
        return self._device.put(self._make_batch([half.features[i] for i in rows], half.references[rows]))

    def draw(self, split: str) -> dict[str, Tensor]:
        """Return the next batch of ``split``."""
        batch = self.peek(split)
        del self._next[split]
        self.drawn[split] += 1
        return batch

    def draw_both(self) -> tuple[dict[str, Tensor], int]:
        """Return a batch of training rows and then validation rows, and how many are training rows."""
        pair = next(self._pairs)
        self.drawn["both"] += 1
        parts = list(zip(self.halves.values(), pair, strict=True))
        features = [half.features[i] for half, rows in parts for i in rows]
        references = np.concatenate([half.references[rows] for half, rows in parts])
        return self._device.put(self._make_batch(features, references)), len(pair[0])


def paired_order(lengths: Sequence[np.ndarray], each: Sequence[int], seed: int) -> Iterator[list[np.ndarray]]:
    """Yield for ever ``each[h]`` row indices of every half h, all of about the same length: little is padded.

    Each half is gone through pass by pass, shuffled. What the next batches take of each, at most `MEGA_BUCKET` and no
    more than a pass, is sorted by length and cut into them, and they are shuffled.
    """
    rng = np.random.default_rng(seed)
    streams = [_shuffled(len(half), seed + 1 + h) for h, half in enumerate(lengths)]
    batches = max(1, min(MEGA_BUCKET, *(len(half) // count for half, count in zip(lengths, each, strict=True))))
    while True:
        cut = []
        for half, stream, count in zip(lengths, streams, each, strict=True):
            rows = np.fromiter(stream, np.int64, count * batches)
            cut.append(rows[np.argsort(half[rows], kind="stable")].reshape(batches, count))
        for i in rng.permutation(batches):
            yield [rows[i] for rows in cut]


def _shuffled(rows: int, seed: int) -> Iterator[int]:
    rng = np.random.default_rng(seed)
    while True:
        yield from rng.permutation(rows).tolist()
