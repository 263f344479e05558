"""Where in a context the answer to a question stands."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peftscout.tasks.sequences import IGNORED
from peftscout.tasks.spans import exact_and_f1
from peftscout.training.objectives.base import Batch, Pass
from peftscout.training.objectives.likelihood import SequenceLoss

LONGEST = 30
"""Most tokens of a predicted answer, as in the scripts of SQuAD."""


@dataclass(frozen=True, kw_only=True)
class Spans(SequenceLoss):
    """First and last token of the answer, ``labels`` as `peftscout.tasks.spans` has them.

    Trained on the first accepted answer: the mean of the cross-entropies of its first and its last token.

    Attributes:
        tokenizer: turns predicted and accepted tokens into the texts that are compared.
        unanswerable: whether "no answer" may be predicted.
    """

    tokenizer: Any
    unanswerable: bool

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of a scoring pass are."""
        return ("nll", "tokens", "exact", "f1")

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch without labels: heads for answers take them in another form."""
        return {name: tensor for name, tensor in batch.items() if name != "labels"}

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return the sums of the rows, twice."""
        outputs = self._sums(self._logits(model, batch), batch["labels"])
        return outputs, outputs

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return statistics of the rows, twice."""
        logits, labels = self._logits(model, batch), batch["labels"]
        scores = [
            exact_and_f1(self._text(ids, *self.best(own, *row[:2].tolist())), self._accepted(ids, row[2:].tolist()))
            for own, ids, row in zip(logits.float(), batch["input_ids"], labels, strict=True)
        ]
        found = torch.tensor(scores, device=logits.device)
        outputs = torch.cat([self._sums(logits, labels), found], 1)
        return outputs, outputs

    def best(self, logits: Tensor, first: int, last: int) -> tuple[int, int]:
        """Return the likeliest answer of one row within the context.

        Args:
            logits: of first and last token, ``[S, 2]``.
            first: token of the context.
            last: token of the context.
        """
        starts, ends = logits[first : last + 1].unbind(1)
        pairs = starts[:, None] + ends[None]
        allowed = torch.ones_like(pairs).triu().tril(LONGEST - 1).bool()
        at = int(pairs.masked_fill(~allowed, -torch.inf).argmax())
        start, end = divmod(at, len(starts))
        if self.unanswerable and float(logits[0].sum()) > float(pairs[start, end]):
            return 0, 0
        return first + start, first + end

    def _logits(self, model: Any, batch: Batch) -> Tensor:
        """Return the logits ``[B, S, 2]``; padding counts for nothing, or the loss would depend on its width."""
        out = model(**self.inputs(batch))
        logits = torch.stack([out.start_logits, out.end_logits], -1)
        return logits.masked_fill(batch["attention_mask"][..., None] == 0, torch.finfo(logits.dtype).min)

    def _sums(self, logits: Tensor, labels: Tensor) -> Tensor:
        answer = labels[:, 2:4]
        losses = F.cross_entropy(logits.float(), answer, ignore_index=IGNORED, reduction="none")
        return torch.stack([losses.mean(1), (answer[:, 0] != IGNORED).float()], 1)

    def _text(self, ids: Tensor, first: int, last: int) -> str:
        return "" if last == 0 else str(self.tokenizer.decode(ids[first : last + 1], skip_special_tokens=True))

    def _accepted(self, ids: Tensor, places: list[int]) -> list[str]:
        pairs = zip(places[::2], places[1::2], strict=True)
        return [self._text(ids, first, last) for first, last in pairs if first != IGNORED]
