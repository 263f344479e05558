"""Is the chosen plan better than the baseline? Paired over seeds and over rows of the report split, said honestly."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

LEVEL = 0.95
"""Confidence level of every interval."""

RESAMPLES = 1000
"""Bootstrap resamples of the report rows."""

Metric = Callable[[np.ndarray, np.ndarray], float]
"""(predictions, references) -> score, higher is better."""


@dataclass(frozen=True)
class Scores:
    """Scores of one plan on the report split, one per seed."""

    values: tuple[float, ...]

    @property
    def mean(self) -> float:
        """Mean over seeds."""
        return float(np.mean(self.values))

    @property
    def std(self) -> float | None:
        """Sample standard deviation over seeds; ``None`` for one seed."""
        return float(np.std(self.values, ddof=1)) if len(self.values) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Chosen plan against baseline.

    Attributes:
        best: scores of the chosen plan.
        baseline: scores of the baseline, same seeds in the same order.
        difference: mean paired difference.
        interval: of the difference at ``LEVEL``; ``None`` with a single seed, whose spread nobody knows.
    """

    best: Scores
    baseline: Scores
    difference: float
    interval: tuple[float, float] | None

    @property
    def gain(self) -> bool:
        """Whether the whole interval lies above 0."""
        return self.interval is not None and self.interval[0] > 0

    @property
    def loss(self) -> bool:
        """Whether the whole interval lies below 0."""
        return self.interval is not None and self.interval[1] < 0


def compare(
    best: Sequence[np.ndarray], baseline: Sequence[np.ndarray], references: np.ndarray, metric: Metric, *, seed: int = 0
) -> Comparison:
    """Compare predictions of two plans, trained with the same seeds, on the same rows.

    The variance of the mean difference has two parts: that between seeds (training noise), s^2 / n, and that of drawing
    the report rows, from a paired bootstrap over rows with all seeds in each resample. The interval is Student's t with
    n - 1 degrees of freedom on their sum. The part between seeds already holds a little of the second, so the interval
    is rather too wide than too narrow.

    Args:
        best: predictions per seed, each of shape [rows].
        baseline: likewise, same seeds in the same order.
        references: true values [rows].
        metric: the main metric.
        seed: of the bootstrap.
    """

    def score(predictions: np.ndarray, rows: np.ndarray) -> float:
        return metric(predictions[rows], references[rows])

    everything = np.arange(len(references))
    a = Scores(tuple(score(p, everything) for p in best))
    b = Scores(tuple(score(p, everything) for p in baseline))
    differences = np.subtract(a.values, b.values)
    n = len(differences)
    if n < 2:
        return Comparison(a, b, float(differences.mean()), None)
    rng = np.random.default_rng(seed)
    resampled = np.empty(RESAMPLES)
    for i in range(RESAMPLES):
        rows = rng.integers(len(references), size=len(references))
        resampled[i] = np.mean([score(p, rows) - score(q, rows) for p, q in zip(best, baseline, strict=True)])
    error = float(np.sqrt(differences.var(ddof=1) / n + resampled.var(ddof=1)))
    half = float(stats.t.ppf((1 + LEVEL) / 2, n - 1)) * error
    mean = float(differences.mean())
    return Comparison(a, b, mean, (mean - half, mean + half))
