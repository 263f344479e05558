"""The initial design of AutoPEFT: plans spread over the cost axis and apart from each other.

The release draws uniformly over the variables, which puts three draws of four above the median cost and hardly any into
the cheap decades (dossier, section 1.4). Here the n-th plan gets the n-th cost limit of a low-discrepancy sequence on
the log-cost axis, fills it, and is the one of a few draws that lies farthest from the plans before it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial.distance import cdist

from peftscout.plan import Budget
from peftscout.surrogate.features import Encoder, Points
from peftscout.surrogate.gp import FloatArray

GOLDEN = (math.sqrt(5.0) - 1.0) / 2.0
"""Multiples of the golden ratio, modulo 1, fill the unit interval evenly at every length."""

DRAWS = 6
"""Draws of which the farthest is taken."""


def limited_draw(encoder: Encoder, limit: int, rng: np.random.Generator) -> Points:
    """Return a random point whose plan costs at most ``limit`` and uses it up, (variables + 1,)."""
    plan = encoder.space.sample_within(Budget(limit, str(limit)), rng)
    return np.array([*encoder.space.encode(plan), rng.integers(len(encoder.lr_scales))], dtype=np.int64)


def cost_limit(position: float, cheapest: int, budget: int) -> int:
    """Return the cost at ``position`` in [0, 1] of the log-cost axis from ``cheapest`` to ``budget``."""
    return max(cheapest, min(budget, round(cheapest * math.pow(budget / cheapest, position))))


def spread_design(encoder: Encoder, budget: Budget, seed: int, first: Sequence[Points] = ()) -> Iterator[Points]:
    """Yield feasible points without end, ``first`` before all others; repetitions are possible in small spaces.

    Args:
        encoder: what points mean.
        budget: upper bound on the cost; something must fit.
        seed: the n-th point is a function of ``seed`` and n.
        first: points to begin with, such as the front of another study.
    """
    cheapest = encoder.space.cheapest().cost(encoder.space.sites)
    inputs: list[FloatArray] = []
    for point in first:
        inputs.append(encoder(point[None])[0])
        yield point
    n = 0
    while True:
        rng = np.random.default_rng([seed, 1, n])
        limit = cost_limit(1.0 - (n * GOLDEN) % 1.0, cheapest, budget.parameters)  # the first uses the whole budget
        draws = np.stack([limited_draw(encoder, limit, rng) for _ in range(DRAWS)])
        X = encoder(draws)
        apart = cdist(X, np.stack(inputs)).min(axis=1) if inputs else np.zeros(len(X))
        chosen = int(np.argmax(apart))
        inputs.append(X[chosen])
        n += 1
        yield draws[chosen]
