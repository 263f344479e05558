"""The training loss of a task from logits, the same for one plan and for many at once."""

from __future__ import annotations

import torch.nn.functional as F  # noqa: N812
from torch import Tensor


def task_loss(logits: Tensor, labels: Tensor, regression: bool) -> Tensor:
    """Return the mean loss over rows in fp32, as transformers' heads compute it.

    Args:
        logits: ``[B, labels]``, ``[B, choices]``, or ``[B, 1]`` for regression.
        labels: ``[B]``: class ids, or floats for regression.
        regression: squared error instead of cross-entropy.
    """
    logits = logits.float()
    return F.mse_loss(logits.view(-1), labels) if regression else F.cross_entropy(logits, labels)
