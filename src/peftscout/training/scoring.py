"""Predictions and metrics of an adapted model on rows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from peftscout.tasks import Encoded, compute_metrics
from peftscout.training.batches import evaluation_order
from peftscout.training.forward import Forward
from peftscout.training.losses import task_loss
from peftscout.training.trial import DivergedError


@dataclass(frozen=True)
class Predictor:
    """How model outputs become predictions, and predictions metrics."""

    metrics: tuple[str, ...]
    regression: bool

    def predictions(self, logits: Tensor) -> np.ndarray:
        """Return class ids [B], or values [B] for regression, from logits [B, labels] ([B, choices])."""
        logits = logits.float()
        if not torch.isfinite(logits).all():
            raise DivergedError("the model's outputs are NaN or infinite")
        out = logits.view(-1) if self.regression else logits.argmax(-1)
        return np.asarray(out.cpu().numpy())


@torch.inference_mode()
def predict(forward: Forward, rows: Encoded, predictor: Predictor, batch_size: int) -> tuple[np.ndarray, float]:
    """Return predictions in row order and the mean loss."""
    forward.model.eval()
    out: np.ndarray | None = None
    total = 0.0
    for indices in evaluation_order(rows.lengths, batch_size):
        logits, labels = forward(rows, indices)
        predictions = predictor.predictions(logits)
        if out is None:
            out = np.empty(len(rows), dtype=predictions.dtype)
        out[indices] = predictions
        total += task_loss(logits, labels, predictor.regression).item() * len(indices)
    assert out is not None
    return out, total / len(rows)


def evaluate(forward: Forward, rows: Encoded, predictor: Predictor, batch_size: int) -> dict[str, float]:
    """Return the metrics of the task on ``rows``, the main one first, and ``loss`` last."""
    predictions, loss = predict(forward, rows, predictor, batch_size)
    return {**compute_metrics(predictor.metrics, predictions, rows.references), "loss": loss}
