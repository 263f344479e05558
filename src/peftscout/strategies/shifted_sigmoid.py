"""S3Delta's gates (Hu et al., NeurIPS 2022, section 3): probabilities whose expected cost is the budget, always.

Pure functions on arrays, with their gradients. Letters as in the paper: alpha, zeta, beta, p, n, B.
"""

from __future__ import annotations

import numpy as np

from peftscout.errors import BudgetError
from peftscout.gates import Floats

EDGE = 1e-9
"""Probabilities are kept this far from 0 and 1, where their odds are finite."""

_ITERATIONS = 100
_TOLERANCE = 1e-12


def sigmoid(x: Floats) -> Floats:
    """Return 1 / (1 + exp(-x)), without overflow."""
    e = np.exp(-np.abs(x))
    return np.asarray(np.where(x >= 0, 1.0, e) / (1.0 + e))


def find_shift(alpha: Floats, n: Floats, B: float, beta: float = 1.0) -> Floats:
    """Return zeta with sum_i n_i sigmoid((alpha_i - zeta) / beta) = B, for each row of ``alpha [..., modules]``.

    The sum falls with zeta, and were all alphas equal, zeta would be alpha - beta logit(B / sum n): the smallest and
    largest alpha thus bracket it. Newton steps inside the bracket, bisection where they leave it.

    Args:
        alpha: ``[..., modules]``.
        n: costs, ``[modules]``, above 0.
        B: what the expected cost shall be.
        beta: scale of the sigmoid.

    Returns:
        zeta, ``[...]``.

    Raises:
        BudgetError: when B is below the cheapest module, or not below all together: no gate then means anything.
    """
    total, cheapest = float(np.sum(n)), float(np.min(n))
    if cheapest > B:
        raise BudgetError(f"budget of {B:,.0f} parameters: the cheapest module alone has {cheapest:,.0f}")
    if total <= B:
        raise BudgetError(
            f"budget of {B:,.0f} parameters: all modules together have {total:,.0f}, there is nothing to choose"
        )
    offset = beta * np.log(B / (total - B))
    low, high = alpha.min(-1) - offset, alpha.max(-1) - offset
    zeta = (low + high) / 2
    for _ in range(_ITERATIONS):
        p = sigmoid((alpha - zeta[..., None]) / beta)
        excess = (n * p).sum(-1) - B
        if np.all((np.abs(excess) <= _TOLERANCE * B) | (high - low <= _TOLERANCE * np.maximum(1.0, np.abs(zeta)))):
            break
        low, high = np.where(excess > 0, zeta, low), np.where(excess > 0, high, zeta)
        slope = (n * p * (1 - p)).sum(-1) / beta
        newton = zeta + excess / np.maximum(slope, np.finfo(float).tiny)
        zeta = np.where((newton > low) & (newton < high), newton, (low + high) / 2)
    return np.asarray(zeta)


def probabilities(alpha: Floats, n: Floats, B: float, beta: float = 1.0) -> Floats:
    """Return p = sigmoid((alpha - zeta) / beta), whose expected cost sum n p is B; raises as `find_shift` does."""
    return sigmoid((alpha - find_shift(alpha, n, B, beta)[..., None]) / beta)


def through_competition(p: Floats, upstream: Floats) -> Floats:
    """Return the gradient at p from that at p stopgrad(sum p) / sum p: raising one gate lowers the others.

    The value of that expression is p; the gradient of its sum is zero.
    """
    return np.asarray(upstream - (upstream * p).sum() / p.sum())


def through_sigmoid(p: Floats, upstream: Floats, beta: float = 1.0) -> Floats:
    """Return the gradient at alpha from that at p; zeta counts as a constant."""
    return np.asarray(upstream * p * (1 - p) / beta)


def concrete(p: Floats, u: Floats) -> Floats:
    """Return binary concrete samples sigmoid(logit u + logit p), from uniform ``u`` of the shape of ``p``."""
    p, u = np.clip(p, EDGE, 1 - EDGE), np.clip(u, EDGE, 1 - EDGE)
    return sigmoid(np.log(u) - np.log1p(-u) + np.log(p) - np.log1p(-p))


def through_concrete(p: Floats, sample: Floats, upstream: Floats) -> Floats:
    """Return the gradient at p from that at `concrete` samples."""
    p = np.clip(p, EDGE, 1 - EDGE)
    return np.asarray(upstream * sample * (1 - sample) / (p * (1 - p)))
