"""Rows of encoded data through an adapted model."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from peftscout.tasks import Encoded
from peftscout.training.batches import BatchMaker
from peftscout.training.device import Device


class Forward:
    """Passes batches of rows through one adapted model and counts the tokens.

    Attributes:
        model: the adapted model.
        tokens: positions computed so far, padding included.
        real_tokens: those that hold a token.
    """

    def __init__(self, model: Any, make_batch: BatchMaker, device: Device) -> None:
        self.model = model
        self.device = device
        self._make_batch = make_batch
        self.tokens = 0
        self.real_tokens = 0

    def __call__(self, rows: Encoded, indices: np.ndarray) -> tuple[Tensor, Tensor]:
        """Return logits ``[B, ...]`` and labels ``[B]`` of the rows at ``indices``."""
        batch = self.device.put(self._make_batch([rows.features[i] for i in indices], rows.references[indices]))
        labels = batch.pop("labels")
        self.tokens += batch["input_ids"].numel()
        self.real_tokens += sum(map(_tokens, (rows.features[i]["input_ids"] for i in indices)))
        with self.device.autocast():
            logits: Tensor = self.model(**batch).logits
        return logits, labels


def _tokens(ids: list[Any]) -> int:
    return sum(map(len, ids)) if ids and isinstance(ids[0], list) else len(ids)
