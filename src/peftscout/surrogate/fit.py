"""Hyper-parameters by maximum a posteriori: dimension-scaled priors, or sparse axes (SAAS) over a few fixed tau.

Targets are standardised before and the result is converted back. Gradients are analytic; the optimiser is L-BFGS-B from
fixed starts, so a fit depends on the data alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.linalg import cho_solve, cholesky
from scipy.optimize import minimize
from scipy.spatial.distance import cdist

from peftscout.surrogate.gp import SQRT5, FloatArray, GaussianProcess, Matern52, Trend

LengthscalePrior = Callable[[FloatArray], tuple[float, FloatArray]]
"""log density of the lengthscales, and its gradient, as functions of their logarithms (d,)."""


@dataclass(frozen=True, slots=True)
class LogNormal:
    """log x ~ N(location, scale^2); `log_density` is the density of x, as a function of log x."""

    location: float
    scale: float

    def log_density(self, log_x: FloatArray) -> tuple[float, FloatArray]:
        """Return the summed log density (up to a constant) and its gradient with respect to ``log_x``."""
        z = (log_x - self.location) / self.scale
        return float(-0.5 * np.sum(z * z) - np.sum(log_x)), -z / self.scale - 1.0


def dimension_scaled(dimensions: int) -> LengthscalePrior:
    """Return the prior l_i ~ LogNormal(sqrt2 + log(d)/2, sqrt3) (Hvarfner et al. 2024, section 4.2).

    Typical distances grow with sqrt(d); lengthscales that grow with them keep the prior function equally complex.
    """
    return LogNormal(math.sqrt(2.0) + 0.5 * math.log(dimensions), math.sqrt(3.0)).log_density


def sparse_axes(tau: float) -> LengthscalePrior:
    """Return the SAAS prior for a fixed global shrinkage: 1/l_i^2 = tau rho_i, rho_i ~ HalfCauchy(1).

    Eriksson & Jankowiak 2021, eq. 3. Most rho are pulled to zero (axis off); the heavy tail lets a few be large.
    """

    def log_density(log_l: FloatArray) -> tuple[float, FloatArray]:
        rho = np.exp(-2.0 * log_l) / tau
        return float(-np.sum(np.log1p(rho * rho))), 4.0 * rho * rho / (1.0 + rho * rho)

    return log_density


def half_cauchy_quantiles(scale: float, count: int) -> tuple[float, ...]:
    """Return the ``count`` mid-quantiles of HalfCauchy(scale): a fixed stand-in for draws of tau."""
    return tuple(scale * math.tan(0.5 * math.pi * (k + 0.5) / count) for k in range(count))


@dataclass(frozen=True)
class Priors:
    """Priors of all hyper-parameters, in units of standardised targets; the constant mean has N(0, 1)."""

    lengthscales: LengthscalePrior
    variance: LogNormal = field(default_factory=lambda: LogNormal(0.0, 1.0))
    noise: LogNormal = field(default_factory=lambda: LogNormal(-4.0, 1.5))


_LOG_LENGTHSCALE = (math.log(0.02), math.log(200.0))
_LOG_VARIANCE = (math.log(0.02), math.log(20.0))
_LOG_NOISE = (math.log(1e-5), math.log(2.0))
_MEAN = (-3.0, 3.0)


def log_posterior(theta: FloatArray, X: FloatArray, y: FloatArray, priors: Priors) -> tuple[float, FloatArray]:
    """Return the log marginal likelihood plus log priors, and the gradient, at ``theta``.

    ``theta`` is (log l_1, ..., log l_d, log s^2, log noise, mean). The likelihood and its gradient are
    R&W eqs. 2.30 and 5.9; the sums over axes are written as matrix products: O(n^3 + d n^2) with a small constant.
    """
    n, d = X.shape
    log_l, log_variance, log_noise, mean = theta[:d], theta[d : d + 1], theta[d + 1 : d + 2], theta[d + 2]
    variance, noise = math.exp(log_variance[0]), math.exp(log_noise[0])
    Z = X / np.exp(log_l)
    s = SQRT5 * cdist(Z, Z)
    decay = variance * np.exp(-s)
    K = (1.0 + s + s * s / 3.0) * decay
    L = cholesky(K + (noise + 1e-10) * np.eye(n), lower=True)
    residual = y - mean
    alpha = cho_solve((L, True), residual)
    value = -0.5 * residual @ alpha - np.sum(np.log(np.diag(L)))

    W = np.outer(alpha, alpha) - cho_solve((L, True), np.eye(n))  # d value / d K = W / 2
    # dK / d log l_i = 5/3 (1 + s) decay * (z_ji - z_ki)^2, and sum_jk V_jk (z_j - z_k)^2 = 2 (z^2 . V1 - z' V z)
    V = W * (1.0 + s) * decay * (5.0 / 3.0)
    by_axis = (Z * Z).T @ V.sum(axis=1) - np.einsum("ji,ji->i", Z, V @ Z)
    gradient = np.concatenate([by_axis, [0.5 * np.sum(W * K)], [0.5 * noise * np.trace(W)], [np.sum(alpha)]])

    parts = (priors.lengthscales(log_l), priors.variance.log_density(log_variance), priors.noise.log_density(log_noise))
    value += sum(part[0] for part in parts) - 0.5 * mean * mean
    gradient += np.concatenate([*(part[1] for part in parts), [-mean]])
    return float(value), gradient


def _starts(d: int) -> list[FloatArray]:
    """Return three corners of opinion: long axes and little noise, short axes and little noise, long and noisy."""
    corners = ((math.sqrt(d), 0.02), (0.25 * math.sqrt(d), 0.02), (math.sqrt(d), 0.3))
    return [np.concatenate([np.full(d, math.log(length)), [0.0, math.log(noise), 0.0]]) for length, noise in corners]


def fit_map(
    X: FloatArray, y: FloatArray, priors: Priors, trend: Trend | None = None, restarts: int = 3, iterations: int = 150
) -> GaussianProcess:
    """Return the Gaussian process whose hyper-parameters maximise `log_posterior` on the standardised targets.

    Args:
        X: (n, d), n >= 1.
        y: (n,), finite.
        priors: see `Priors`.
        trend: prior mean; what is modelled are the deviations from it.
        restarts: how many of the fixed starts to try (1 to 3); the best end wins.
        iterations: at most, a start.
    """
    d = X.shape[1]
    deviations = y if trend is None else y - trend(X)
    centre, spread = float(np.mean(deviations)), float(np.std(deviations))
    spread = spread if spread > 1e-12 else 1.0  # all equal: nothing to scale
    target = (deviations - centre) / spread

    def negative(theta: FloatArray) -> tuple[float, FloatArray]:
        try:
            value, gradient = log_posterior(theta, X, target, priors)
        except np.linalg.LinAlgError:  # not positive definite: a wall for the line search
            return 1e25, np.zeros_like(theta)
        return -value, -gradient

    bounds = [_LOG_LENGTHSCALE] * d + [_LOG_VARIANCE, _LOG_NOISE, _MEAN]
    ends = [
        minimize(negative, start, jac=True, method="L-BFGS-B", bounds=bounds, options={"maxiter": iterations})
        for start in _starts(d)[:restarts]
    ]
    theta = min(ends, key=lambda end: float(end.fun)).x
    kernel = Matern52(np.exp(theta[:d]), spread**2 * math.exp(theta[d]))
    return GaussianProcess(
        X, y, kernel, spread**2 * math.exp(theta[d + 1]), centre + spread * float(theta[d + 2]), trend
    )


def fit_dimension_scaled(X: FloatArray, y: FloatArray, trend: Trend | None = None) -> tuple[GaussianProcess, ...]:
    """Fit with lengthscale priors that grow with the dimension; an ensemble of one."""
    return (fit_map(X, y, Priors(dimension_scaled(X.shape[1])), trend),)


def fit_saas(
    X: FloatArray, y: FloatArray, trend: Trend | None = None, taus: Sequence[float] | None = None
) -> tuple[GaussianProcess, ...]:
    """Fit with sparse axes, once for each ``tau`` (default: four quantiles of HalfCauchy(0.1)).

    The members stand for the spread of opinions that full Bayesian inference would sample; acquisitions are averaged.
    """
    taus = half_cauchy_quantiles(0.1, 4) if taus is None else taus
    return tuple(fit_map(X, y, Priors(sparse_axes(tau)), trend, restarts=2) for tau in taus)


def fit_trend(source: GaussianProcess, X: FloatArray, y: FloatArray) -> Trend:
    """Return ``source`` as prior mean, scaled to the scores ``y`` seen here: least squares, shrunk, never negative.

    One pseudo-observation of "no relation" shrinks the slope, so that two or three scores do not decide it.
    """
    if len(y) < 2:
        return Trend(source, 0.0)
    prediction = source.mean_at(X)
    t, deviations = prediction - prediction.mean(), y - y.mean()
    scale = float(np.var(source.mean_at(source.X))) + 1e-12
    return Trend(source, max(0.0, float(t @ deviations) / (float(t @ t) + scale)))
