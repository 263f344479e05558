"""A tag for every word."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from peftscout.tasks.sequences import IGNORED
from peftscout.training.objectives.base import Batch, Pass, plain_pass
from peftscout.training.objectives.likelihood import SCORED, SequenceLoss, scored, sums


@dataclass(frozen=True, kw_only=True)
class Tags(SequenceLoss):
    """Tags of words, ``labels [B, S]``, ignored at all tokens but the first of a word.

    Attributes:
        outside: id of the tag of words that are in no entity; it does not count for ``token_f1``. ``None``: no tag is.
    """

    outside: int | None

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of a scoring pass are."""
        return (*SCORED, "hits", "found", "wanted")

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return the sums of the rows, twice."""
        outputs = sums(*plain_pass(model, batch))
        return outputs, outputs

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return statistics of the rows, twice."""
        logits, labels = plain_pass(model, batch)
        predicted, counts = logits.argmax(-1), labels != IGNORED
        outside = IGNORED if self.outside is None else self.outside
        found, wanted = counts & (predicted != outside), counts & (labels != outside)
        marked = torch.stack([(found & (predicted == labels)).sum(1), found.sum(1), wanted.sum(1)], 1)
        outputs = torch.cat([scored(logits, labels), marked.float()], 1)
        return outputs, outputs
