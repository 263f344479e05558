"""What each kind of task computes, behind one protocol; see `base.Objective`."""

from __future__ import annotations

from typing import Any

from peftscout.tasks import Task
from peftscout.training.objectives.base import Batch, Objective, Pass
from peftscout.training.objectives.pooled import Classes, Numbers

__all__ = ["Batch", "Classes", "Numbers", "Objective", "Pass", "objective_for"]


def objective_for(task: Task, tokenizer: Any, model: Any) -> Objective:
    """Return the objective of ``task`` for a bare model and its tokenizer."""
    match task.kind:
        case "regression":
            return Numbers(task.metrics)
        case _:
            return Classes(task.metrics)
