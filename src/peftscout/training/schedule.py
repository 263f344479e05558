"""Learning rates: of each op family, and over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from peftscout.outcome import Fidelity
from peftscout.training.settings import TrainingSettings


def parameter_groups(
    by_op: Mapping[str, Sequence[nn.Parameter]], settings: TrainingSettings, lr_scale: float
) -> list[dict[str, Any]]:
    """Return AdamW groups: the learning rate of each op family times ``lr_scale``; weight decay on matrices only."""
    groups = []
    for op, parameters in by_op.items():
        for matrices in (True, False):
            members = [p for p in parameters if (p.dim() >= 2) is matrices]
            if members:
                decay = settings.weight_decay if matrices else 0.0
                groups.append({"params": members, "lr": settings.learning_rates[op] * lr_scale, "weight_decay": decay})
    return groups


def learning_rate_factor(fidelity: Fidelity, warmup: float) -> Callable[[int], float]:
    """Return the learning-rate factor at a step (from 0): a linear rise over ``warmup`` of the steps, then linear to 0.

    On a ladder of rungs the rate stays up until the last rung and falls within it, so that a run which is stopped at
    a rung is the beginning of the run that goes on.
    """
    total = fidelity.rungs[-1] if fidelity.rungs else fidelity.steps
    rising = max(1, math.ceil(warmup * total))
    falls_from = max(rising, fidelity.rungs[-2]) if len(fidelity.rungs) > 1 else rising

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 1.0 if step < falls_from else max(0.0, (total - step) / max(1, total - falls_from))

    return factor


def evaluation_steps(fidelity: Fidelity, evaluations: int) -> frozenset[int]:
    """Return the steps after which the model is scored: evenly spaced, or the rungs; the last step is among them."""
    if fidelity.rungs:
        return frozenset(rung for rung in fidelity.rungs if rung <= fidelity.steps)
    return frozenset(math.ceil(fidelity.steps * (i + 1) / evaluations) for i in range(evaluations))
