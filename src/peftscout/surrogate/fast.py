"""Posterior of millions of points in single precision: matrix products and in-place elementwise passes."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import solve_triangular

from peftscout.surrogate.gp import SQRT5, FloatArray, GaussianProcess

Float32 = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class FastPosterior:
    """The same posterior as ``gp``, in float32 and in steps: a scan pays for the variance only where it may count.

    Distances are (x - x')^2 = x^2 - 2 x x' + x'^2 in one matrix product; inputs are centred first to lose few digits.
    """

    gp: GaussianProcess

    def covariances(self, X: Float32) -> Float32:
        """Return k(X, observed inputs), (len(X), n). ``X`` is (m, d)."""
        Z = (X - self._centre) / self._lengthscales
        augmented = np.column_stack([Z, np.einsum("ij,ij->i", Z, Z), np.ones(len(Z), dtype=np.float32)])
        s = np.asarray(augmented @ self._observed)
        np.maximum(s, 0.0, out=s)
        np.sqrt(s, out=s)  # sqrt5 |z - z'|: the factor 5 is in the observed side
        polynomial = s * np.float32(1.0 / 3.0)
        polynomial += np.float32(1.0)
        polynomial *= s
        polynomial += np.float32(1.0)
        np.negative(s, out=s)
        np.exp(s, out=s)
        s *= polynomial
        s *= np.float32(self.gp.kernel.variance)
        return s

    def mean(self, X: Float32, covariances: Float32) -> Float32:
        """Return the posterior means, (len(X),)."""
        mean = covariances @ self._weights + np.float32(self.gp.mean)
        if self.gp.trend is not None:
            source = self._source
            mean += np.float32(self.gp.trend.slope) * source.mean(X, source.covariances(X))
        return np.asarray(mean)

    def std(self, covariances: Float32) -> Float32:
        """Return the posterior standard deviations, (len(X),)."""
        whitened = covariances @ self._whitening
        variance = np.float32(self.gp.kernel.variance) - np.einsum("ij,ij->i", whitened, whitened)
        return np.asarray(np.sqrt(np.maximum(variance, np.float32(self._floor))))

    def std_bound(self, covariances: Float32) -> Float32:
        """Return an upper bound of `std` without the matrix product: what the nearest observation alone explains."""
        nearest = covariances.max(axis=1)
        variance = np.float32(self.gp.kernel.variance)
        explained = nearest * nearest / (variance + np.float32(self.gp.noise))
        return np.asarray(np.sqrt(np.maximum(variance - explained, np.float32(self._floor))))

    @property
    def _floor(self) -> float:
        """Least variance: below it, single precision has only rounding left."""
        return 1e-6 * self.gp.kernel.variance

    @cached_property
    def _centre(self) -> Float32:
        return np.asarray(self.gp.X.mean(axis=0), dtype=np.float32)

    @cached_property
    def _lengthscales(self) -> Float32:
        return self.gp.kernel.lengthscales.astype(np.float32)

    @cached_property
    def _observed(self) -> Float32:
        """(d + 2, n): the observed side of the product that gives 5 |z - z'|^2."""
        Z: FloatArray = (self.gp.X - self._centre) / self._lengthscales
        rows = np.vstack([-2.0 * Z.T, np.ones(len(Z)), np.sum(Z * Z, axis=1)])
        return np.asarray(SQRT5**2 * rows, dtype=np.float32)

    @cached_property
    def _weights(self) -> Float32:
        return self.gp.weights.astype(np.float32)

    @cached_property
    def _whitening(self) -> Float32:
        """The transposed inverse of the Cholesky factor: k W has the squared length that observations explain."""
        L = self.gp.cholesky
        return np.asarray(solve_triangular(L, np.eye(len(L)), lower=True).T, dtype=np.float32)

    @cached_property
    def _source(self) -> FastPosterior:
        assert self.gp.trend is not None
        return FastPosterior(self.gp.trend.source)
