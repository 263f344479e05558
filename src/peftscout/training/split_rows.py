"""Batches of the two halves of the training rows: one for the weights of a supernet, one for its gates."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import islice

import numpy as np
from torch import Tensor

from peftscout.tasks import Encoded
from peftscout.training.batches import BatchMaker, training_order
from peftscout.training.device import Device


class RowsInHalves:
    """Endless batches of ``train`` and of ``validation``: half of the rows each, at random, disjoint.

    Args:
        rows: at least two.
        batch_size: rows of a batch.
        seed: of halves and order.
        make_batch: pads them.
        device: where they go.
    """

    def __init__(self, rows: Encoded, batch_size: int, seed: int, make_batch: BatchMaker, device: Device) -> None:
        order = np.random.default_rng([seed, 0]).permutation(len(rows))
        half = len(rows) // 2
        self.halves = {
            "train": rows.subset(np.sort(order[half:])),
            "validation": rows.subset(np.sort(order[:half])),
        }
        self._batch_size, self._seed = batch_size, seed
        self._make_batch, self._device = make_batch, device
        self.skip({"train": 0, "validation": 0})

    def skip(self, drawn: Mapping[str, int]) -> None:
        """Go to where so many batches of each half were drawn since the beginning."""
        self.drawn = dict(drawn)
        self._next: dict[str, np.ndarray] = {}
        self._orders = {
            split: islice(training_order(half.lengths, self._batch_size, self._seed + n), self.drawn[split], None)
            for n, (split, half) in enumerate(self.halves.items())
        }

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
