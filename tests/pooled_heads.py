"""What tests of `one_row` share: batches padded on either side, heads that read what they are told."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import BertForSequenceClassification, LlamaForSequenceClassification, PreTrainedModel
from transformers.modeling_outputs import SequenceClassifierOutput

from peftscout.architecture import ModelMap
from peftscout.training.one_row import Position, one_row
from tiny_models import EOS, PAD, VOCABULARY, tiny_config

POOLED: dict[str, Position] = {
    "bert": "first",
    "roberta": "first",
    "gpt2": "last_not_pad",
    "llama": "last_not_pad",
    "qwen3": "last_not_pad",
}
"""Families with a head for texts, and what it reads according to their modelling code in transformers."""

LENGTHS = (9, 4, 7)

Pool = Callable[[Tensor, Tensor, Tensor], Tensor]
"""(hidden states [B, S, H], token ids [B, S], mask [B, S]) -> what the head sees [B, H]."""


def ragged(side: str = "right", lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> dict[str, Tensor]:
    """Texts of different lengths that end with EOS, padded on ``side``."""
    longest = max(lengths)
    ids, mask = torch.full((len(lengths), longest), PAD), torch.zeros(len(lengths), longest, dtype=torch.long)
    generator = torch.Generator().manual_seed(seed)
    for row, length in enumerate(lengths):
        own = slice(0, length) if side == "right" else slice(longest - length, longest)
        ids[row, own] = torch.randint(3, VOCABULARY, (length,), generator=generator)
        ids[row, own.stop - 1] = EOS
        mask[row, own] = 1
    return {"input_ids": ids, "attention_mask": mask}


def pooling(pool: Pool, family: str = "bert") -> PreTrainedModel:
    """A tiny model of ``family`` (bert or llama) whose head sees what ``pool`` gives it."""
    base: Any = {"bert": BertForSequenceClassification, "llama": LlamaForSequenceClassification}[family]

    class Pooling(base):  # type: ignore[misc, valid-type]
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> SequenceClassifierOutput:
            backbone = getattr(self, self.base_model_prefix)
            hidden = backbone(input_ids, attention_mask=attention_mask).last_hidden_state
            head = self.score if family == "llama" else self.classifier
            return SequenceClassifierOutput(logits=head(pool(hidden, input_ids, attention_mask)))

    torch.manual_seed(0)
    return Pooling(tiny_config(family)).eval()


def last_attended(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    places = torch.arange(mask.shape[1])
    return hidden[torch.arange(len(hidden)), (places * mask).argmax(-1)]


def outcome(model: Any, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
    """Logits, and the gradient of a loss on them by parameter."""
    model.zero_grad()
    logits = model(**batch).logits
    logits.float().logsumexp(-1).sum().backward()
    return logits.detach(), {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def both(
    model: Any, model_map: ModelMap, position: Position, batch: Mapping[str, Tensor]
) -> tuple[tuple[Tensor, dict[str, Tensor]], tuple[Tensor, dict[str, Tensor]]]:
    """The outcome without and with the cut, from the same random state."""
    outcomes = []
    for context in (contextlib.nullcontext(), one_row(model, model_map, position)):
        torch.manual_seed(0)
        with context:
            outcomes.append(outcome(model, batch))
    return outcomes[0], outcomes[1]
