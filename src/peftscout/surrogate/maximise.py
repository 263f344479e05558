"""Where the acquisition is largest: by scanning every plan of a space, or by local search where there are too many."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peftscout.surrogate.acquisition import Acquisition
from peftscout.surrogate.features import Encoder, Points
from peftscout.surrogate.gp import FloatArray

CostAxis = Callable[[NDArray[np.int64]], FloatArray]
"""From parameters to the axis on which hypervolume is measured."""

_ROUNDING = 1e-3
"""Slack for single precision, in logarithms of the acquisition."""


@dataclass(frozen=True)
class Ranking:
    """The best candidates of one maximisation, best first.

    Attributes:
        points: (k, variables + 1).
        values: (k,) their log acquisition.
        bound: no candidate outside ``points`` is above this; ``None`` where that is not known (local search).
    """

    points: Points
    values: FloatArray
    bound: float | None


@dataclass(frozen=True)
class Candidates:
    """The plans that may be proposed: not empty, within the limit, one point each.

    Attributes:
        encoder: what points mean.
        limit: largest cost in parameters.
        axis: the cost axis.
        chunk: points handled at once; the scan's memory is this times the number of observations.
    """

    encoder: Encoder
    limit: int
    axis: CostAxis
    chunk: int = 2048

    def feasible(self, points: Points) -> NDArray[np.bool_]:
        """Return which points may be proposed, (n,)."""
        costs = self.encoder.costs(points)
        return (costs > 0) & (costs <= self.limit) & self.encoder.is_canonical(points)

    @cached_property
    def indices(self) -> NDArray[np.uint32]:
        """The mixed-radix index of every plan that may be proposed: the whole space, 4 bytes a plan.

        Only for spaces with fewer than 2^32 points.
        """
        total, block = self.encoder.combinations, 1 << 16
        kept = []
        for start in range(0, total, block):
            indices = np.arange(start, min(start + block, total), dtype=np.int64)
            kept.append(indices[self.feasible(self.encoder.points_at(indices))].astype(np.uint32))
        return np.concatenate(kept)

    def inputs(self, points: Points) -> tuple[FloatArray, FloatArray]:
        """Return the surrogate's inputs (n, d) and the costs on the axis (n,) of feasible ``points``."""
        return self.encoder(points), self.axis(self.encoder.costs(points))

    def evaluate(self, acquisition: Acquisition, points: Points) -> FloatArray:
        """Return the log acquisition of ``points`` in double precision, -inf where they may not be proposed."""
        values = np.full(len(points), -np.inf)
        possible = np.flatnonzero(self.feasible(points))
        for part in np.array_split(possible, max(1, -(-len(possible) // self.chunk))):
            if len(part):
                values[part] = acquisition(*self.inputs(points[part]))
        return values


def scan(acquisition: Acquisition, candidates: Candidates, head_start: Ranking, keep: int = 256) -> Ranking:
    """Return the ``keep`` best of all candidates: an exact maximisation.

    Chunk by chunk in single precision, with the worst kept value as the threshold below which nothing is computed in
    full; the kept ones are then ranked in double precision. Memory is bounded by the chunk, not by the space.

    Args:
        head_start: some good candidates (from a local search), so that the threshold is high from the first chunk on.
    """
    chunks = np.array_split(candidates.indices, max(1, -(-len(candidates.indices) // candidates.chunk)))
    best_indices, best_values = np.empty(0, dtype=np.int64), np.empty(0)
    threshold = float(head_start.values[keep - 1]) - _ROUNDING if len(head_start.values) >= keep else -np.inf
    for chunk in chunks:
        indices = chunk.astype(np.int64)
        X, costs = candidates.inputs(candidates.encoder.points_at(indices))
        values = acquisition.screened(X.astype(np.float32), costs, threshold)
        better = np.flatnonzero(values > threshold)
        if len(better):
            best_indices = np.concatenate([best_indices, indices[better]])
            best_values = np.concatenate([best_values, values[better]])
            top = np.lexsort((best_indices, -best_values))[:keep]
            best_indices, best_values = best_indices[top], best_values[top]
            threshold = float(best_values[-1]) if len(top) == keep else threshold
    points = candidates.encoder.points_at(best_indices)
    ranking = _ranked(points, candidates.evaluate(acquisition, points))
    return Ranking(ranking.points, ranking.values, threshold)


def local_search(
    acquisition: Acquisition, candidates: Candidates, seeds: Points, starts: int = 12, steps: int = 60
) -> Ranking:
    """Return local maxima of the acquisition under exchanges of one variable, from the best ``starts`` of ``seeds``.

    Each climber looks at every value of every variable (a true one-exchange neighbourhood; a size that is idle because
    its switch is off is reached by the seeds), moves to the best, and stops where none is better.

    Args:
        seeds: (n, variables + 1) feasible points: random ones, and the front with its neighbours.
    """
    seeds = np.unique(seeds, axis=0)
    values = candidates.evaluate(acquisition, seeds)
    top = np.argsort(-values, kind="stable")[:starts]
    climbers, heights = seeds[top], values[top]
    seen_points, seen_values = [seeds], [values]
    moving = np.arange(len(climbers))
    for _ in range(steps):
        if not len(moving):
            break
        around = np.stack([exchanges(candidates.encoder, climbers[i]) for i in moving])
        flat = around.reshape(-1, around.shape[-1])
        unique, where = np.unique(flat, axis=0, return_inverse=True)
        unique_values = candidates.evaluate(acquisition, unique)
        seen_points.append(unique)
        seen_values.append(unique_values)
        reached = unique_values[where.reshape(-1)].reshape(around.shape[:2])
        best = reached.argmax(axis=1)
        climbed = reached[np.arange(len(moving)), best] > heights[moving] + 1e-12
        climbers[moving[climbed]] = around[climbed, best[climbed]]
        heights[moving[climbed]] = reached[climbed, best[climbed]]
        moving = moving[climbed]
    points, first = np.unique(np.concatenate(seen_points), axis=0, return_index=True)
    return _ranked(points, np.concatenate(seen_values)[first], keep=256)


def exchanges(encoder: Encoder, point: Points) -> Points:
    """Return the canonical forms of every point that differs from ``point`` in one variable, (sum of levels - 1, ...)."""
    columns = np.repeat(np.arange(len(encoder.radix)), encoder.radix - 1)
    others = np.concatenate([np.delete(np.arange(n), level) for n, level in zip(encoder.radix, point, strict=True)])
    around = np.repeat(point[None], len(columns), axis=0)
    around[np.arange(len(columns)), columns] = others
    return encoder.canonical(around)


def _ranked(points: Points, values: FloatArray, keep: int | None = None) -> Ranking:
    """Sort by value, ties by the order of the levels, and drop what may not be proposed."""
    order = np.lexsort((*points.T[::-1], -values))
    order = order[np.isfinite(values[order])][:keep]
    return Ranking(points[order], values[order], None)
