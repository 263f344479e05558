"""Negative log-likelihoods of labelled tokens, by row: what every kind that predicts sequences is made of."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peftscout.tasks.row_statistics import statistics
from peftscout.tasks.sequences import IGNORED
from peftscout.training.objectives.base import Batch, finite


def shifted(logits: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return what a decoder predicts beside what follows: logits ``[B, S - 1, V]``, labels ``[B, S - 1]``."""
    return logits[:, :-1], labels[:, 1:]


def token_nll(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the negative log-likelihood of every label in fp32, ``[B, S]``; 0 where it is `IGNORED`.

    Only labelled positions are turned into fp32: a prompt of a large vocabulary would fill the memory for nothing.
    """
    counts = labels != IGNORED
    losses = F.cross_entropy(logits[counts].float(), labels[counts], reduction="none")
    return torch.zeros(labels.shape, device=logits.device).masked_scatter(counts, losses)


def sums(logits: Tensor, labels: Tensor) -> Tensor:
    """Return for each row its summed negative log-likelihood and the number of its labels, ``[B, 2]``."""
    return torch.stack([token_nll(logits, labels).sum(1), (labels != IGNORED).sum(1).float()], 1)


def right_tokens(logits: Tensor, labels: Tensor) -> Tensor:
    """Return how many labels of each row have the largest logit, ``[B]``."""
    return ((logits.argmax(-1) == labels) & (labels != IGNORED)).sum(1)


def shift_right(labels: Tensor, start: int, padding: int) -> Tensor:
    """Return the inputs of a decoder that is to predict ``labels [B, T]``: the start token, then all but the last."""
    inputs = labels.roll(1, 1)
    inputs[:, 0] = start
    return inputs.masked_fill(inputs == IGNORED, padding)


@dataclass(frozen=True)
class SequenceLoss:
    """The mean negative log-likelihood of tokens, from the sums of each row; predictions are row statistics.

    What is shared by the objectives whose training pass returns `sums` and whose scoring pass returns columns of
    `peftscout.tasks.row_statistics`, the columns ``nll`` and ``tokens`` first; targets are not used by either.
    """

    metrics: tuple[str, ...]
    no_shortcuts: str = ""
    no_stacks: str = ""
    packs: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """What the columns of a scoring pass are."""
        return SCORED

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch as it is."""
        return dict(batch)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean over tokens, as transformers' language models compute it."""
        summed = outputs.sum(0)
        return summed[0] / summed[1].clamp(min=1)

    def weight(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the number of tokens that count."""
        return float(outputs[:, 1].sum())

    def total(self, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return the summed negative log-likelihood and the number of tokens."""
        nll, tokens = outputs.detach().sum(0)[:2].tolist()
        return nll, tokens

    def predictions(self, outputs: Tensor, targets: Tensor) -> np.ndarray:
        """Return the statistics of the rows, see `row_statistics.COLUMNS`."""
        values = finite(outputs).double().cpu().numpy()
        return statistics(len(values), **dict(zip(self.columns, values.T, strict=True)))


SCORED = ("nll", "tokens", "right", "exact")
"""What the columns of `scored` are."""


def scored(logits: Tensor, labels: Tensor) -> Tensor:
    """Return the columns of `SequenceLoss`, ``[B, 4]``.

    A row is exact when every label has the largest logit. As each position saw the true text before it, that is so if
    and only if greedy generation writes the very target: no text need be generated to know.
    """
    of_loss, right = sums(logits, labels), right_tokens(logits, labels)
    return torch.cat([of_loss, torch.stack([right, right == of_loss[:, 1]], 1).float()], 1)
