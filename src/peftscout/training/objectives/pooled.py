"""One vector of logits a row, from a task head: classes, numbers, and choices of a multiple-choice head."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from peftscout.training.objectives.base import Batch, Pass, finite, plain_pass


@dataclass(frozen=True)
class Classes:
    """One of some classes, or one of the choices of the row: cross-entropy, and the largest logit.

    Logits are ``[B, labels]`` or ``[B, choices]``, targets class ids ``[B]``.
    """

    metrics: tuple[str, ...]
    no_shortcuts: str = ""
    no_stacks: str = ""
    packs: bool = False

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return the batch as it is."""
        return dict(batch)

    def train(self, model: Any, batch: Batch) -> Pass:
        """Return logits and labels."""
        return plain_pass(model, batch)

    def score(self, model: Any, batch: Batch) -> Pass:
        """Return logits and labels."""
        return plain_pass(model, batch)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean cross-entropy, as transformers' heads compute it."""
        return F.cross_entropy(outputs.float(), targets)

    def weight(self, outputs: Tensor, targets: Tensor) -> float:
        """Return the number of rows."""
        return float(len(outputs))

    def total(self, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return the summed loss and the number of rows."""
        return self.loss(outputs, targets).item() * len(targets), len(targets)

    def predictions(self, outputs: Tensor, targets: Tensor) -> np.ndarray:
        """Return class ids ``[B]``."""
        return np.asarray(finite(outputs).argmax(-1).cpu().numpy())


@dataclass(frozen=True)
class Numbers(Classes):
    """A number: squared error. Logits are ``[B, 1]``, targets floats ``[B]``."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the mean squared error, as transformers' heads compute it."""
        return F.mse_loss(outputs.float().view(-1), targets)

    def predictions(self, outputs: Tensor, targets: Tensor) -> np.ndarray:
        """Return values ``[B]``."""
        return np.asarray(finite(outputs).view(-1).cpu().numpy())
