"""Rows of encoded data through an adapted model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor

from peftscout.tasks import Encoded
from peftscout.training.activation_file import Entry
from peftscout.training.batches import BatchMaker, padded_width
from peftscout.training.device import Device
from peftscout.training.frozen_prefix import Entrance, entered_at
from peftscout.training.objectives import Batch, Pass
from peftscout.training.packing import NO_CACHE, Packing, first_fit, pack


@dataclass(frozen=True)
class Activations:
    """Stored activations with which a model is entered above its frozen prefix.

    Attributes:
        entrance: where.
        entries: set of rows -> what is stored, and the place in it of each row (-1: not stored).
        left_padded: on which side batches are padded.
    """

    entrance: Entrance
    entries: Mapping[Encoded, tuple[Entry, np.ndarray]]
    left_padded: bool

    def of(self, rows: Encoded, indices: np.ndarray, width: int) -> Tensor:
        """Return the activations of the rows at ``indices``, ``[B, width, H]``."""
        entry, places = self.entries[rows]
        return entry.batch(places[indices], width, left_padded=self.left_padded)


class Forward:
    """Passes batches of rows through one adapted model and counts the tokens.

    Attributes:
        model: the adapted model.
        tokens: positions of the batches so far, padding included.
        real_tokens: those that hold a token.

    Args:
        model: see above.
        make_batch: pads rows.
        device: with its arithmetic.
        activations: stored ones to enter with.
        packs: whether rows may share sequences in passes for the loss.
    """

    def __init__(
        self,
        model: Any,
        make_batch: BatchMaker,
        device: Device,
        activations: Activations | None = None,
        packs: bool = False,
    ) -> None:
        self.model = model
        self.device = device
        self._make_batch = make_batch
        self._activations = activations
        self._packs = packs
        self.tokens = 0
        self.real_tokens = 0

    def __call__(
        self, rows: Encoded, indices: np.ndarray, compute: Callable[[Any, Batch], Pass], *, for_loss: bool = False
    ) -> Pass:
        """Return what ``compute``, a pass of an `Objective`, gives for the rows at ``indices``.

        ``for_loss``: it is the training pass, whose outputs need not be by row.
        """
        batch = self._make_batch([rows.features[i] for i in indices], rows.references[indices])
        width = batch["input_ids"].shape[-1]
        packing = packing_of(rows, indices) if self._packs and for_loss else None
        computed, real = token_count(rows, indices, packing is not None)
        self.tokens += computed
        self.real_tokens += real
        with self.device.autocast(), self._entered(rows, indices, width, packing):
            if packing is None:
                return compute(self.model, self.device.put(batch))
            return compute(self.model, {**self.device.put(packing.batch(batch)), **NO_CACHE})

    def _entered(
        self, rows: Encoded, indices: np.ndarray, width: int, packing: Packing | None
    ) -> AbstractContextManager[None]:
        if self._activations is None:
            return nullcontext()
        hidden = self._activations.of(rows, indices, width)
        hidden = (hidden if packing is None else packing.of(hidden)).to(self.device.torch_device)
        return entered_at(self.model, self._activations.entrance, hidden)


def packing_of(rows: Encoded, indices: np.ndarray) -> Packing | None:
    """Return how the rows at ``indices`` share sequences as long as the longest of them; ``None``: they do not."""
    lengths = rows.lengths[indices].tolist()
    return pack([lengths], padded_width(max(lengths)), len(lengths))


def token_count(rows: Encoded, indices: np.ndarray, packs: bool = False) -> tuple[int, int]:
    """Return the positions of a batch of the rows at ``indices``, padding included, and those that hold a token.

    ``packs``: the rows share sequences.
    """
    lengths = [length for i in indices for length in _lengths(rows.features[i]["input_ids"])]
    width = padded_width(max(lengths))
    sequences = len(first_fit(lengths, width)) if packs else len(lengths)
    return sequences * width, sum(lengths)


def _lengths(ids: list[Any]) -> list[int]:
    """Tokens of a row: of its one sequence, or of each of its choices."""
    return [len(choice) for choice in ids] if ids and isinstance(ids[0], list) else [len(ids)]
