"""Statistics for choosing between options: paired, clustered, corrected for the number of comparisons. Numpy, scipy.

Scores are arrays ``[options, models, tasks]``: the same base models (clusters) under every option, one score a task.
Higher is better.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Array = NDArray[np.float64]

EXACT_FLIPS = 12
"""Up to this many pairs, a sign-flip test goes through all 2^n flips."""


def standardise(scores: Array) -> Array:
    """Average the tasks on one scale: ``[options, models, tasks]`` -> ``[options, models]``.

    Each task is centred and divided by its pooled standard deviation within options, so that no task dominates by its
    spread (dossier 6.4). A task in which all models score the same contributes 0.
    """
    residuals = scores - scores.mean(axis=1, keepdims=True)
    freedom = max(1, scores.shape[0] * (scores.shape[1] - 1))
    spread = np.sqrt((residuals**2).sum(axis=(0, 1)) / freedom)
    centred = scores - scores.mean(axis=(0, 1))
    scaled = np.where(spread > 1e-12, centred / np.where(spread > 1e-12, spread, 1), 0)
    return np.asarray(scaled.mean(axis=2))


def pairs_of(options: int) -> list[tuple[int, int]]:
    """Return all pairs of option positions, in order."""
    return list(combinations(range(options), 2))


def paired_differences(scores: Array) -> Array:
    """Return the difference of every pair of options on every model: ``[options, models]`` -> ``[models, pairs]``."""
    first, second = zip(*pairs_of(len(scores)), strict=True)
    return (scores[list(first)] - scores[list(second)]).T


def holm(p_values: Array) -> Array:
    """Return Holm's adjusted p-values ``[tests]`` (Holm 1979): family-wise error under any dependence."""
    order = np.argsort(p_values)
    stepped = p_values[order] * np.arange(len(p_values), 0, -1)
    adjusted = np.empty_like(p_values)
    adjusted[order] = np.minimum(1, np.maximum.accumulate(stepped))
    return adjusted


def sign_flip(differences: Array, flips: int, rng: np.random.Generator) -> Array:
    """Two-sided p-values of the hypothesis that differences are symmetric around 0: ``[models, tests]`` -> ``[tests]``.

    Randomisation test on the sum under random signs (Fisher 1935). Every model is one cluster. With at most
    `EXACT_FLIPS` models all flips are taken, otherwise ``flips`` random ones and the observed one.
    """
    n = len(differences)
    observed = np.abs(differences.sum(axis=0))
    if n <= EXACT_FLIPS:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.vstack([np.ones(n), rng.choice([-1.0, 1.0], size=(flips, n))])
    flipped = np.abs(signs @ differences)
    return np.asarray((flipped >= observed * (1 - 1e-12) - 1e-12).mean(axis=0))


@dataclass(frozen=True)
class Resamples:
    """A cluster bootstrap: the share of each resample that each model makes up ``[resamples, models]``."""

    weights: Array

    @classmethod
    def draw(cls, models: int, resamples: int, rng: np.random.Generator) -> Resamples:
        """Draw ``resamples`` resamples of ``models`` models with replacement (Efron 1979)."""
        return cls(rng.multinomial(models, np.full(models, 1 / models), size=resamples) / models)

    def means(self, values: Array) -> Array:
        """Return the mean in each resample: ``[models, k]`` -> ``[resamples, k]``. A model's values stay together."""
        return self.weights @ values

    def student(self, values: Array) -> Array:
        """Return the studentised means ``[resamples, k]`` (bootstrap-t, Efron and Tibshirani 1993, section 12.5).

        Resamples in which a value does not vary are NaN. With few models these quantiles keep their level where
        percentiles of the mean do not.
        """
        n = len(values)
        means = self.means(values)
        spread = np.sqrt(np.maximum(self.means(values**2) - means**2, 0) / (n - 1))
        with np.errstate(divide="ignore", invalid="ignore"):
            t = (means - values.mean(axis=0)) / spread
        return np.where(spread > 1e-12, t, np.nan)


def mean_bounds(values: Array, resamples: Resamples, level: float) -> tuple[Array, Array]:
    """Return two-sided bounds of the means of ``values`` ``[models, k]`` by the bootstrap-t, each ``[k]``.

    Each side has an error of ``(1 - level) / 2``. With fewer than two models the bounds are infinite; values that do
    not vary are known exactly.
    """
    n, k = values.shape
    mean = values.mean(axis=0)
    if n < 2:
        return np.full(k, -np.inf), np.full(k, np.inf)
    error = values.std(axis=0, ddof=1) / np.sqrt(n)
    tail = (1 - level) / 2
    t = resamples.student(values)
    varies = ~np.isnan(t).all(axis=0)
    low, high = np.zeros(k), np.zeros(k)
    if varies.any():
        low[varies], high[varies] = np.nanquantile(t[:, varies], [tail, 1 - tail], axis=0)
    return mean - high * error, mean - low * error


def probability_best(scores: Array, resamples: Resamples) -> Array:
    """Return for each option ``[options]`` the share of resamples in which its mean is highest; ties are split."""
    means = resamples.means(scores.T)
    best = means >= means.max(axis=1, keepdims=True) - 1e-12
    return np.asarray((best / best.sum(axis=1, keepdims=True)).mean(axis=0))


def edf(scores: Array) -> list[tuple[float, float]]:
    """Return the empirical distribution function as (score, share of the models with at most that score).

    RegNet's EDF (Radosavovic et al. 2020, section 3.2) on scores instead of errors: the better space lies to the right.
    """
    ordered = np.sort(scores)
    return [(float(score), float((ordered <= score).mean())) for score in np.unique(ordered)]


def ks_distance(a: Array, b: Array) -> float:
    """Return the largest vertical distance between the EDFs of two samples (Kolmogorov-Smirnov)."""
    return float(stats.ks_2samp(a, b).statistic)


def upper_mean(scores: Array, share: float = 0.2) -> float:
    """Return the mean of the best ``share`` of the scores (at least one): what a user would deploy."""
    count = max(1, round(share * len(scores)))
    return float(np.sort(scores)[-count:].mean())


def kendall_tau(a: Array, b: Array) -> float:
    """Return Kendall's tau-b of two rankings of the same models; NaN where it is undefined (fewer than 2, all tied)."""
    return float(stats.kendalltau(a, b).statistic) if len(a) > 1 else float("nan")


def power(pairs: int, spread: float, difference: float, alpha: float = 0.05) -> float:
    """Return the power of a two-sided paired t-test.

    Args:
        pairs: number of pairs, at least 2.
        spread: standard deviation of the paired differences.
        difference: true mean difference.
        alpha: level of the test.
    """
    if spread <= 0:
        return 1.0 if difference else alpha
    shift = abs(difference) / spread * np.sqrt(pairs)
    critical = stats.t.ppf(1 - alpha / 2, pairs - 1)
    t = stats.nct(pairs - 1, shift)
    return float(t.sf(critical) + t.cdf(-critical))


def pairs_needed(spread: float, difference: float, wanted: float = 0.8, alpha: float = 0.05) -> int:
    """Return the fewest pairs at which `power` reaches ``wanted``; 31 for a spread of 1.9 and a difference of 1.

    About 7.85 (spread / difference)^2 at 80 % and 5 % (dossier 6.4), a little more since the spread is estimated.

    Raises:
        ValueError: when ``difference`` is 0.
    """
    if difference == 0:
        raise ValueError("no number of pairs shows a difference of 0")
    z = stats.norm.ppf(1 - alpha / 2) + stats.norm.ppf(wanted)
    pairs = max(2, int(np.floor((z * spread / difference) ** 2)))
    while power(pairs, spread, difference, alpha) < wanted:
        pairs += 1
    return pairs


def detectable(pairs: int, spread: float, wanted: float = 0.8, alpha: float = 0.05) -> float:
    """Return the smallest true difference that ``pairs`` pairs show with probability ``wanted`` (approximately)."""
    if pairs < 2:
        return float("inf")
    t = stats.t.ppf(1 - alpha / 2, pairs - 1) + stats.t.ppf(wanted, pairs - 1)
    return float(t * spread / np.sqrt(pairs))
