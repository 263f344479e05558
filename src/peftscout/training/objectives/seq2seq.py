"""Encoder-decoders: texts after texts, and classes by the likelihood of their labels' texts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from peftscout.errors import DataError
from peftscout.tasks.sequences import IGNORED, target_ids
from peftscout.training.objectives.base import Batch, Pass, plain_pass
from peftscout.training.objectives.likelihood import SCORED, SequenceLoss, scored, shift_right, sums, token_nll
from peftscout.training.objectives.pooled import Classes


@dataclass(frozen=True)
class DecoderStart:
    """What the inputs of a decoder begin with, and what fills them."""

    token: int
    padding: int

    def inputs(self, labels: Tensor) -> Tensor:
        """Return the decoder's inputs for ``labels [B, T]``."""
        return shift_right(labels, self.token, self.padding)


@dataclass(frozen=True, kw_only=True)
class TextToText(SequenceLoss):
    """The likelihood of the target, ``labels [B, T]``, given the source; see `scored` for exact matches."""

    start: DecoderStart

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch with the inputs of the decoder."""
        return {**batch, "decoder_input_ids": self.start.inputs(batch["labels"])}

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return the sums of the rows, twice."""
        outputs = sums(*plain_pass(model, self.inputs(batch)))
        return outputs, outputs

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return statistics of the rows, twice."""
        outputs = scored(*plain_pass(model, self.inputs(batch)))
        return outputs, outputs


@dataclass(frozen=True, kw_only=True)
class GeneratedText(TextToText):
    """As `TextToText`, and the texts that greedy generation writes are compared with the targets.

    Attributes:
        longest: most tokens that are generated.
        compare: (predicted texts, true texts) -> columns of row statistics by name, one value a row.
        names: of these columns.
        tokenizer: that turns tokens into texts.
    """

    longest: int
    compare: Callable[[Sequence[str], Sequence[str]], dict[str, list[float]]]
    names: tuple[str, ...]
    tokenizer: Any
    no_shortcuts: str = "every activation is computed: texts are generated for this metric, in many passes"
    no_stacks: str = "plans are evaluated one by one: texts are generated for this metric"

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of a scoring pass are."""
        return (*SCORED, *self.names)

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return statistics of the rows, twice."""
        own, _ = super().score(model, batch)
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        given = {name: batch[name] for name in ("input_ids", "attention_mask")}
        ids = base.generate(**given, max_new_tokens=self.longest, do_sample=False, num_beams=1)
        true = batch["labels"].masked_fill(batch["labels"] == IGNORED, self.start.padding)
        texts = [self.tokenizer.batch_decode(of, skip_special_tokens=True) for of in (ids, true)]
        found = self.compare(*texts)
        added = torch.tensor([found[name] for name in self.names], dtype=own.dtype, device=own.device).T
        outputs = torch.cat([own, added], 1)
        return outputs, outputs


@dataclass(frozen=True, kw_only=True)
class LabelTexts(Classes):
    """Which label's text is the likeliest answer to the source (rank classification; BIPEFT and S3Delta generate it).

    Trained on the text of the right label, as they are: the mean negative log-likelihood of its tokens. Batches have
    class ids as ``labels [B]``.

    Attributes:
        texts: tokens of the labels, ``[L, T]``, filled with `IGNORED`.
    """

    start: DecoderStart
    texts: Tensor = field(compare=False)

    @classmethod
    def of(cls, metrics: tuple[str, ...], labels: Sequence[str], tokenizer: Any, start: DecoderStart) -> LabelTexts:
        """Tokenise the labels.

        Raises:
            DataError: when two labels have the same tokens.
        """
        ids = [target_ids(tokenizer, label) for label in labels]
        same = [label for n, label in enumerate(labels) if ids[n] in ids[:n]]
        if same:
            other = labels[ids.index(ids[labels.index(same[0])])]
            raise DataError(f"labels {other!r} and {same[0]!r}: have the same tokens with this tokenizer; rename one")
        longest = max(map(len, ids))
        texts = torch.tensor([[*row, *[IGNORED] * (longest - len(row))] for row in ids])
        return cls(metrics, start=start, texts=texts)

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch with the text of the right label, and the inputs of the decoder."""
        labels = self.texts.to(batch["labels"].device)[batch["labels"]]
        return {**batch, "labels": labels, "decoder_input_ids": self.start.inputs(labels)}

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return the sums of the rows ``[B, 2]``, and class ids."""
        return sums(*plain_pass(model, self.inputs(batch))), batch["labels"]

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return the log-likelihood of each label ``[B, L]``, and class ids; the encoder runs once."""
        base = model.get_base_model() if hasattr(model, "get_base_model") else model
        given = {name: tensor for name, tensor in batch.items() if name != "labels"}
        hidden = base.get_encoder()(**given).last_hidden_state
        count = len(self.texts)
        labels = self.texts.to(hidden.device).repeat(len(hidden), 1)
        logits = model(
            encoder_outputs=BaseModelOutput(last_hidden_state=hidden.repeat_interleave(count, 0)),
            attention_mask=given["attention_mask"].repeat_interleave(count, 0),
            decoder_input_ids=self.start.inputs(labels),
        ).logits
        return -token_nll(logits, labels).sum(1).view(-1, count), batch["labels"]

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over the tokens of the right labels."""
        summed = outputs.sum(0)
        return summed[0] / summed[1]

    def weight(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the number of tokens of the right labels."""
        return float(outputs[:, 1].sum())

    def total(self, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return the summed negative log-likelihood of the right labels and the number of their tokens."""
        own = outputs.gather(1, targets[:, None])
        return -own.sum().item(), float((self.texts.to(targets.device)[targets] != IGNORED).sum())
