"""Expected hypervolume improvement in closed form, for one unknown objective and an exactly known cost.

A point of score f and cost c adds to the hypervolume what lies between f and the staircase P, right of c:

    dHV = integral from c to c_ref of max(0, f - P(u)) du

P is piecewise constant, so with f ~ N(mean, std^2) the expectation is a finite sum over the steps of P:

    EHVI = sum_k w_k(c) EI(mean, std; P_k),    w_k(c) = length of step k right of c

which is exact: no Monte Carlo and no model of the cost (dossier AutoPEFT, section 6.3). It is computed in log space
(Ament et al. 2023): far from the front EHVI underflows although its order still matters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.special import erfcx, log_ndtr, ndtr

from peftscout.surrogate.gp import FloatArray
from peftscout.surrogate.staircase import Staircase

_LOG_SQRT_2PI = 0.5 * math.log(2.0 * math.pi)
_TINY = 1e-150
"""Least standard deviation: its inverse can still be squared."""


def expected_improvement(mean: FloatArray, std: FloatArray, level: FloatArray | float) -> FloatArray:
    """Return E max(0, f - level) for f ~ N(mean, std^2): std (z Phi(z) + phi(z)), z = (mean - level) / std."""
    std = np.maximum(std, _TINY)
    z = (mean - level) / std
    return np.asarray(std * np.maximum(z * ndtr(z) + np.exp(-0.5 * z * z - _LOG_SQRT_2PI), 0.0))


def log_expected_improvement(mean: FloatArray, std: FloatArray, level: FloatArray | float) -> FloatArray:
    """Return the logarithm of `expected_improvement`, accurate however small it is (Ament et al. 2023, eq. 9)."""
    std = np.maximum(std, _TINY)
    z = (mean - level) / std
    return np.asarray(np.log(std) + _log_h(z))


def _log_h(z: FloatArray) -> FloatArray:
    """Return log(phi(z) + z Phi(z)).

    Below -1 the two terms cancel: phi (1 - |z| Phi(-|z|) / phi(z)), where the ratio is sqrt(pi/2) erfcx(|z| / sqrt2);
    far below even that cancels, and the ratio's expansion 1 - 1/z^2 + 3/z^4 leaves 1/z^2 (1 - 3/z^2).
    """
    out = np.empty_like(z)
    near, far = z > -1.0, z < -300.0
    middle = ~near & ~far
    x = z[near]
    out[near] = np.log(np.exp(-0.5 * x * x - _LOG_SQRT_2PI) + x * np.exp(log_ndtr(x)))
    x = -z[middle]
    out[middle] = -0.5 * x * x - _LOG_SQRT_2PI + np.log1p(-x * math.sqrt(math.pi / 2) * erfcx(x / math.sqrt(2.0)))
    x = -z[far]
    out[far] = -0.5 * x * x - _LOG_SQRT_2PI - 2.0 * np.log(x) + np.log1p(-3.0 / (x * x))
    return out


def ehvi(mean: FloatArray, std: FloatArray, costs: FloatArray, staircase: Staircase) -> FloatArray:
    """Return the expected hypervolume improvement of points with f ~ N(mean, std^2) and these costs, (n,).

    Args:
        mean: (n,) posterior means.
        std: (n,) posterior standard deviations of f; 0 means known.
        costs: (n,) on the same axis as the staircase.
        staircase: the front so far.
    """
    improvements = expected_improvement(mean[:, None], std[:, None], staircase.levels[None, :])
    return np.asarray(np.sum(staircase.widths(costs) * improvements, axis=1))


def log_ehvi(mean: FloatArray, std: FloatArray, costs: FloatArray, staircase: Staircase) -> FloatArray:
    """Return the logarithm of `ehvi`, (n,); -inf at or beyond the reference cost."""
    with np.errstate(divide="ignore"):
        log_widths = np.log(staircase.widths(costs))
    improvements = log_expected_improvement(mean[:, None], std[:, None], staircase.levels[None, :])
    return _log_sum(log_widths + improvements, axis=1)


def log_ehvi_bound(mean: FloatArray, std: FloatArray, costs: FloatArray, staircase: Staircase) -> FloatArray:
    """Return an upper bound of `log_ehvi` for one improvement a point instead of one a step.

    Right of c the staircase is nowhere below P(c), so EHVI <= (c_ref - c) EI(mean, std; P(c)). EI grows with std, so
    an upper bound of std still gives a bound.
    """
    with np.errstate(divide="ignore"):
        log_width = np.log(np.maximum(staircase.edges[-1] - costs, 0.0))
    return np.asarray(log_width + log_expected_improvement(mean, std, staircase(costs)))


def mean_log(parts: Sequence[FloatArray]) -> FloatArray:
    """Return the logarithm of the mean of exp(parts): acquisitions averaged over an ensemble or over staircases."""
    return parts[0] if len(parts) == 1 else _log_sum(np.stack(parts), axis=0) - math.log(len(parts))


def _log_sum(logs: FloatArray, axis: int) -> FloatArray:
    """Return log(sum(exp(logs))) along ``axis``; -inf where all are. In half the time of scipy's, which does more."""
    largest = logs.max(axis=axis, keepdims=True)
    largest[~np.isfinite(largest)] = 0.0
    with np.errstate(divide="ignore"):
        return np.asarray(np.log(np.exp(logs - largest).sum(axis=axis)) + np.squeeze(largest, axis))
