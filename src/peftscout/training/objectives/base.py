"""What a kind of task computes: the one thing that the loop, the scoring and the supernet do not know themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from peftscout.training.trial import DivergedError

Batch = Mapping[str, Tensor]
"""What `BatchMaker` makes, on the device: the inputs of the model, and ``labels``."""

Pass = tuple[Tensor, Tensor]
"""Outputs and targets of a batch, the rows first in both: stacks and supernets divide them."""


class Objective(Protocol):
    """The training loss and the predictions of one kind of task.

    Every kind is a small file of its own here; `peftscout.training.objectives.objective_for` chooses.
    """

    @property
    def metrics(self) -> tuple[str, ...]:
        """The metrics of the task, the main one first."""
        ...

    @property
    def no_shortcuts(self) -> str:
        """Why nothing may be left out of its passes, in words; empty when `Shortcuts` may test what may."""
        ...

    @property
    def no_stacks(self) -> str:
        """Why several plans must not share a pass, in words; empty when they may."""
        ...

    @property
    def packs(self) -> bool:
        """Whether rows may share a sequence in `train`: labels are next tokens, and the loss is one of all of them."""
        ...

    def inputs(self, batch: Batch) -> dict[str, Tensor]:
        """Return what the model itself takes of ``batch``, labels included: for checks of built models."""
        ...

    def train(self, model: Any, batch: Batch) -> Pass:
        """Pass ``batch`` through ``model``, for the loss."""
        ...

    def score(self, model: Any, batch: Batch) -> Pass:
        """Pass ``batch`` through ``model``, for the predictions."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the training loss in fp32 of what `train` returned, or of some of its rows."""
        ...

    def weight(self, outputs: Tensor, targets: Tensor) -> float:
        """Return what `loss` divides its sum by, of what `train` returned: rows, or tokens.

        The losses of the parts of a batch, weighted so, make the loss of the whole batch.
        """
        ...

    def total(self, outputs: Tensor, targets: Tensor) -> tuple[float, float]:
        """Return the sum of the loss over what `score` returned, and what it is to be divided by in the end."""
        ...

    def predictions(self, outputs: Tensor, targets: Tensor) -> np.ndarray:
        """Return what metrics are computed from, rows first, of what `score` returned.

        Raises:
            DivergedError: when the outputs are NaN or infinite.
        """
        ...


def plain_pass(model: Any, batch: Batch) -> Pass:
    """Return the logits of ``model`` and the labels of ``batch``."""
    logits: Tensor = model(**{name: tensor for name, tensor in batch.items() if name != "labels"}).logits
    return logits, batch["labels"]


def finite(outputs: Tensor) -> Tensor:
    """Return ``outputs`` in fp32.

    Raises:
        DivergedError: when they are NaN or infinite.
    """
    outputs = outputs.float()
    if not torch.isfinite(outputs).all():
        raise DivergedError("the model's outputs are NaN or infinite")
    return outputs
