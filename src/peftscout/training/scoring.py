"""Predictions and metrics of an adapted model on rows."""

from __future__ import annotations

import numpy as np
import torch

from peftscout.tasks import Encoded, compute_metrics
from peftscout.training.batches import evaluation_order
from peftscout.training.forward import Forward
from peftscout.training.objectives import Objective


@torch.inference_mode()
def predict(forward: Forward, rows: Encoded, objective: Objective, batch_size: int) -> tuple[np.ndarray, float]:
    """Return predictions in row order, rows first, and the mean loss."""
    forward.model.eval()
    parts, order = list[np.ndarray](), list[np.ndarray]()
    total = weight = 0.0
    for indices in evaluation_order(rows.lengths, batch_size):
        outputs, targets = forward(rows, indices, objective.score)
        parts.append(objective.predictions(outputs, targets))
        order.append(indices)
        added, counted = objective.total(outputs, targets)
        total, weight = total + added, weight + counted
    return in_order(parts, order), total / weight


def in_order(parts: list[np.ndarray], order: list[np.ndarray]) -> np.ndarray:
    """Return the predictions of batches in the order of the rows; ``order`` has the indices of each batch."""
    joined: np.ndarray = np.concatenate(parts)[np.argsort(np.concatenate(order))]
    return joined


def evaluate(forward: Forward, rows: Encoded, objective: Objective, batch_size: int) -> dict[str, float]:
    """Return the metrics of the task on ``rows``, the main one first, and ``loss`` last."""
    predictions, loss = predict(forward, rows, objective, batch_size)
    return {**compute_metrics(objective.metrics, predictions, rows.references), "loss": loss}
