"""Gaussian process regression with a Matern-5/2 kernel (Rasmussen & Williams 2006, algorithm 2.1).

Everything is in the units of the targets: fitting standardises inside and converts back (see `fit`), so posteriors,
fantasies and front all speak of scores. Pure numpy and scipy.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cho_solve, cholesky, solve_triangular
from scipy.spatial.distance import cdist

FloatArray = NDArray[np.float64]

SQRT5 = math.sqrt(5.0)


@dataclass(frozen=True, eq=False)
class Matern52:
    """The Matern-5/2 kernel with one lengthscale an axis (R&W eq. 4.17): s^2 (1 + sqrt5 r + 5/3 r^2) exp(-sqrt5 r).

    Attributes:
        lengthscales: (d,), positive; an axis with a long one hardly matters.
        variance: s^2, the prior variance of the function.
    """

    lengthscales: FloatArray
    variance: float

    def __call__(self, A: FloatArray, B: FloatArray) -> FloatArray:
        """Return the covariances, (len(A), len(B))."""
        s = SQRT5 * cdist(A / self.lengthscales, B / self.lengthscales)
        return np.asarray(self.variance * (1.0 + s + s * s / 3.0) * np.exp(-s))


@dataclass(frozen=True, eq=False)
class Trend:
    """A prior mean borrowed from another surrogate: ``slope * source.mean(x)`` (transfer from another study)."""

    source: GaussianProcess
    slope: float

    def __call__(self, X: FloatArray) -> FloatArray:
        """Return the prior mean above the constant, (len(X),)."""
        return self.slope * self.source.mean_at(X)


@dataclass(frozen=True, eq=False)
class GaussianProcess:
    """The posterior over a function f after observing y = f(X) + noise.

    Attributes:
        X: (n, d) inputs.
        y: (n,) observations.
        kernel: prior covariance of f.
        noise: variance of an observation around f.
        mean: prior mean of f, a constant.
        trend: what another study says f looks like, added to the constant.
    """

    X: FloatArray
    y: FloatArray
    kernel: Matern52
    noise: float
    mean: float = 0.0
    trend: Trend | None = None

    @cached_property
    def cholesky(self) -> FloatArray:
        """Lower factor L with L L' = K(X, X) + noise I (as much jitter as it takes for doubled inputs)."""
        K = self.kernel(self.X, self.X)
        jitter = 0.0
        while True:
            try:
                return np.asarray(cholesky(K + (self.noise + jitter) * np.eye(len(K)), lower=True))
            except np.linalg.LinAlgError:
                jitter = max(10.0 * jitter, 1e-10 * self.kernel.variance)

    @cached_property
    def weights(self) -> FloatArray:
        """alpha = (K + noise I)^-1 (y - prior mean), so that the posterior mean is prior mean + k(x, X) alpha."""
        return np.asarray(cho_solve((self.cholesky, True), self.y - self.prior_mean(self.X)))

    def prior_mean(self, X: FloatArray) -> FloatArray:
        """Return the mean of f before any observation, (len(X),)."""
        constant = np.full(len(X), self.mean)
        return constant if self.trend is None else constant + self.trend(X)

    def mean_at(self, X: FloatArray) -> FloatArray:
        """Return the posterior mean of f, (len(X),)."""
        return np.asarray(self.prior_mean(X) + self.kernel(X, self.X) @ self.weights)

    def posterior(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return posterior mean and standard deviation of f (noise left out), each (len(X),)."""
        K = self.kernel(X, self.X)
        V = solve_triangular(self.cholesky, K.T, lower=True)
        variance = self.kernel.variance - np.einsum("ij,ij->j", V, V)
        return self.prior_mean(X) + K @ self.weights, np.sqrt(np.maximum(variance, 0.0))

    def joint(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return posterior mean (m,) and covariance (m, m) of f at the m rows of ``X``."""
        K = self.kernel(X, self.X)
        V = solve_triangular(self.cholesky, K.T, lower=True)
        return self.prior_mean(X) + K @ self.weights, self.kernel(X, X) - V.T @ V

    def sample(self, X: FloatArray, count: int, rng: np.random.Generator) -> FloatArray:
        """Draw ``count`` functions from the posterior and return their values at ``X``, (count, len(X))."""
        mean, covariance = self.joint(X)
        values, vectors = np.linalg.eigh(covariance)
        root = vectors * np.sqrt(np.maximum(values, 0.0))
        return np.asarray(mean + rng.standard_normal((count, len(X))) @ root.T)

    def condition(self, X: FloatArray, y: FloatArray) -> Self:
        """Return the posterior after the further observations ``y`` at ``X``, with the same hyper-parameters.

        The Cholesky factor is extended, not recomputed: O(n^2) for one fantasy.
        """
        B = solve_triangular(self.cholesky, self.kernel(self.X, X), lower=True)
        corner = self.kernel(X, X) + self.noise * np.eye(len(X)) - B.T @ B
        bottom = cholesky(corner + 1e-10 * self.kernel.variance * np.eye(len(X)), lower=True)
        factor = np.block([[self.cholesky, np.zeros_like(B)], [B.T, bottom]])
        extended = type(self)(
            np.vstack([self.X, X]), np.concatenate([self.y, y]), self.kernel, self.noise, self.mean, self.trend
        )
        extended.__dict__["cholesky"] = factor
        return extended

    def without_noise_in(self, rows: slice) -> FloatArray:
        """Return the posterior means at the observed inputs ``X[rows]``: the scores with the noise taken out."""
        return self.mean_at(self.X[rows])
