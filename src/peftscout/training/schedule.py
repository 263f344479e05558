"""Learning rates: of each op family, and over the steps of a run."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from peftscout.cost import ops_at
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan, Sites
from peftscout.training.settings import TrainingSettings

MATRIX_RATE, AT_WIDTH = 3e-3, 384
"""Learning rate of matrices between layers, and the width of the model (MiniLM) that it was measured on."""

HIGHEST_MATRIX_RATE = 1e-2

VECTORS = ("bias", "scale", "norm")
"""Op families that train one or two vectors at a place."""


def rates_at(width: int, rates: Mapping[str, float | None]) -> dict[str, float]:
    """Fill in the learning rates that are ``None``: `MATRIX_RATE` at `AT_WIDTH`, and inversely to the model's width.

    So it goes with Adam for matrices between layers, whose products sum over a width (Yang et al. 2022, Tensor Programs
    V, table 3): 3e-3 at 384, 1.5e-3 at 768, 2.8e-4 at 4,096.
    """
    of_matrices = min(HIGHEST_MATRIX_RATE, MATRIX_RATE * AT_WIDTH / width)
    return {op: of_matrices if rate is None else rate for op, rate in rates.items()}


def rate_factors(request: Evaluate, sites: Sites) -> Callable[[str], float]:
    """Return op family, or ``head``, -> factor on its learning rate in this evaluation."""
    of_vectors = vectors_among_others(request.plan, sites)
    return lambda op: request.lr_factor(op) * (of_vectors if op in VECTORS else 1.0)


def vectors_among_others(plan: Plan, sites: Sites) -> float:
    """Return the factor on the learning rates of `VECTORS` in a plan: one over the families that it amounts to.

    A family that is on at half of its places counts a half. The rates were measured with each family alone, where the
    vectors need large steps to do all that there is to do. Every step of Adam is as long for them whatever else is
    trained, and what the modules of a plan add to the hidden states adds up: with several whole families the vectors
    overshoot (``docs/training.md``). Below one family's worth nothing changes.
    """
    places = Counter(op for site in sites.values() for op in ops_at(site))
    families = sum(n / places[op] for op, n in Counter(placement.op for placement in plan).items())
    return 1 / max(1.0, families)


def parameter_groups(
    by_op: Mapping[str, Sequence[nn.Parameter]], settings: TrainingSettings, factor: Callable[[str], float]
) -> list[dict[str, Any]]:
    """Return AdamW groups: the learning rate of each op family times its ``factor``; weight decay on matrices only."""
    groups = []
    for op, parameters in by_op.items():
        for matrices in (True, False):
            members = [p for p in parameters if (p.dim() >= 2) is matrices]
            if members:
                decay = settings.weight_decay if matrices else 0.0
                groups.append(
                    {"params": members, "lr": settings.learning_rates[op] * factor(op), "weight_decay": decay}
                )
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
