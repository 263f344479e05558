"""Whether an early rung ranks plans as the next one does, from those that were let through to both."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri
from scipy.stats import rankdata

from peftscout.surrogate.gp import FloatArray


@dataclass(frozen=True, slots=True)
class Band:
    """What a group of plans that are compared with each other had at two consecutive rungs.

    Attributes:
        early: values of all its plans at the lower rung.
        through: indices into ``early`` of the plans that went on.
        late: their values at the higher rung, in the order of ``through``.
    """

    early: Sequence[float]
    through: Sequence[int]
    late: Sequence[float]


@dataclass(frozen=True, slots=True)
class Agreement:
    """How well two rungs agree on the order of plans.

    Attributes:
        correlation: Spearman's rank correlation, as it would be over all plans; ``None`` where nothing can be compared.
        upper: the same, one standard error higher.
        plans: number of plans that it rests on: those seen at both rungs.
    """

    correlation: float | None
    upper: float | None
    plans: int


def rank_agreement(bands: Iterable[Band]) -> Agreement:
    """Return how well two rungs agree on the order of all plans.

    Ranks are taken within bands and pooled. Only the best of the lower rung are seen at the higher one, and the
    correlation among the best is low by itself: with 0.9 over all plans it is about 0.7 within the best third. So the
    correlation ``r`` of those seen is corrected for the restriction of range (Thorndike 1949, case 2):
    ``r u / sqrt(1 + r^2 (u^2 - 1))``, with ``u`` the spread of the early normal scores of all plans over that of those
    seen. The standard error is Fisher's, ``1 / sqrt(n - 3)`` on ``atanh r``. Bands with fewer than two plans that went
    on say nothing.
    """
    early, late, narrowed = [], [], []
    for band in bands:
        if len(band.through) < 2:
            continue
        scores = _normal_scores(band.early)
        seen = scores[list(band.through)]
        early.append(_centred_ranks(seen))
        late.append(_centred_ranks(band.late))
        narrowed += [float(np.var(seen) / np.var(scores)) if np.ptp(scores) else 1.0] * len(seen)
    if not early:
        return Agreement(None, None, 0)
    x, y = np.concatenate(early), np.concatenate(late)
    if not x.any() or not y.any():
        return Agreement(None, None, len(x))
    r = float(np.clip(x @ y / math.sqrt((x @ x) * (y @ y)), -1, 1))
    u2 = max(1.0, 1.0 / float(np.mean(narrowed)))
    return Agreement(_over_all(r, u2), _over_all(_one_error_up(r, len(x)), u2), len(x))


def _over_all(r: float, u2: float) -> float:
    """Return the correlation over everybody for a correlation over those seen (Thorndike's case 2)."""
    return r * math.sqrt(u2) / math.sqrt(1 + r * r * (u2 - 1))


def _one_error_up(r: float, n: int) -> float:
    if n < 4 or abs(r) == 1:
        return 1.0 if n < 4 else r
    return math.tanh(math.atanh(r) + 1 / math.sqrt(n - 3))


def _normal_scores(values: Sequence[float]) -> FloatArray:
    """Return the quantiles of the normal distribution at the ranks of ``values`` (van der Waerden)."""
    return np.asarray(ndtri(rankdata(values) / (len(values) + 1)))


def _centred_ranks(values: Sequence[float] | FloatArray) -> FloatArray:
    ranks = rankdata(values)
    return np.asarray(ranks - ranks.mean())
