"""Decoders: the likelihood of completions, and choices by their likelihood."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from peftscout.training.objectives.base import Batch, Pass, plain_pass
from peftscout.training.objectives.likelihood import SequenceLoss, scored, shifted, sums, token_nll
from peftscout.training.objectives.pooled import Classes


@dataclass(frozen=True)
class Completions(SequenceLoss):
    """Next tokens of completions: labels ``[B, S]``, ignored where the prompt and the padding are."""

    packs: bool = True

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return the sums of the rows, twice; those of sequences, where rows share them."""
        outputs = sums(*shifted(*plain_pass(model, batch)))
        return outputs, outputs

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return statistics of the rows, twice."""
        outputs = scored(*shifted(*plain_pass(model, batch)))
        return outputs, outputs


@dataclass(frozen=True)
class ChoiceLikelihood(Classes):
    """Which of the choices of a row is the likeliest after its prompt: the log-likelihoods are the logits.

    ``input_ids`` and ``labels`` are ``[B, C, S]``; the right choice is in ``reference [B]``. The loss is the
    cross-entropy over the choices, which is what accuracy judges; log-likelihoods are summed over the tokens of a
    choice and not divided by their number, as lm-evaluation-harness' ``acc``.
    """

    no_shortcuts: str = "every position and activation is computed: a row of choices is several texts to a decoder"

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the texts of all rows one after the other, ``[B * C, S]``."""
        return {name: tensor.flatten(0, 1) for name, tensor in batch.items() if name != "reference"}

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return log-likelihoods ``[B, C]`` and the right choices."""
        logits, labels = shifted(*plain_pass(model, self.inputs(batch)))
        likelihood: Tensor = -token_nll(logits, labels).sum(1)
        return likelihood.view(batch["labels"].shape[:2]), batch["reference"].to(torch.int64)

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return log-likelihoods ``[B, C]`` and the right choices."""
        return self.train(model, batch)
