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

_KEPT = 256
"""Candidates that a maximisation returns: enough to skip those that were used and to serve a batch."""

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
        costs = self.encoder.costs(points)
        return self.encoder(points, costs), self.axis(costs)

    def evaluate(self, acquisition: Acquisition, points: Points) -> FloatArray:
        """Return the log acquisition of canonical ``points`` in double precision, -inf where they are not feasible."""
        return self._chunked(acquisition, points)

    def screen(self, acquisition: Acquisition, points: Points, threshold: float) -> FloatArray:
        """Return the same in single precision, and -inf also where it cannot exceed ``threshold``."""

        def screened(X: FloatArray, costs: FloatArray) -> FloatArray:
            return acquisition.screened(X.astype(np.float32), costs, threshold)

        return self._chunked(screened, points)

    def _chunked(self, value: Callable[[FloatArray, FloatArray], FloatArray], points: Points) -> FloatArray:
        values = np.full(len(points), -np.inf)
        costs = self.encoder.costs(points)
        possible = np.flatnonzero((costs > 0) & (costs <= self.limit))
        for start in range(0, len(possible), self.chunk):
            part = possible[start : start + self.chunk]
            values[part] = value(self.encoder(points[part], costs[part]), self.axis(costs[part]))
        return values


def scan(acquisition: Acquisition, candidates: Candidates, head_start: Ranking, keep: int = _KEPT) -> Ranking:
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


@dataclass(frozen=True)
class _Climber:
    """A point of a local search and its log acquisition."""

    point: Points
    value: float


def local_search(
    acquisition: Acquisition, candidates: Candidates, seeds: Points, starts: int = 12, steps: int = 60
) -> Ranking:
    """Return local maxima of the acquisition under exchanges of one variable, from the best ``starts`` of ``seeds``.

    Each climber looks at every value of every variable (a true one-exchange neighbourhood) and moves to the best, or
    to several of the better exchanges at once where that is better still; it stops where no exchange is better.

    Args:
        seeds: (n, variables + 1) feasible points: random ones, and the front with its neighbours.
    """
    seeds = seeds[distinct(seeds)[0]]
    values = candidates.evaluate(acquisition, seeds)
    top = np.argsort(-values, kind="stable")[:starts]
    climbers = [_Climber(seeds[i], float(values[i])) for i in top if np.isfinite(values[i])]
    seen = [(seeds, values)]

    def look(points: Points, lowest: float) -> FloatArray:
        """Return the log acquisition of ``points`` that may exceed ``lowest``, and remember the best."""
        first, where = distinct(points)
        reached = candidates.screen(acquisition, points[first], lowest)
        highest = np.argsort(-reached, kind="stable")[:_KEPT]
        seen.append((points[first[highest]], reached[highest]))
        return np.asarray(reached[where])

    for _ in range(steps):
        if not climbers:
            break
        lowest = min(climber.value for climber in climbers)
        around = [exchanges(candidates.encoder, climber.point) for climber in climbers]
        reached = _split_like(around, look(np.concatenate(around), lowest))
        jumps = [_jumps(candidates.encoder, c, a, r) for c, a, r in zip(climbers, around, reached, strict=True)]
        landed = _split_like(jumps, look(np.concatenate(jumps), lowest))
        moved = [
            _Climber(j[r.argmax()], float(r.max()))
            for j, r, c in zip(jumps, landed, climbers, strict=True)
            if len(j) and r.max() > c.value + _ROUNDING
        ]
        climbers = list({climber.point.tobytes(): climber for climber in moved}.values())
    points, values = (np.concatenate(part) for part in zip(*seen, strict=True))
    first, _ = distinct(points)
    top = first[np.argsort(-values[first], kind="stable")][:_KEPT]
    return _ranked(points[top], candidates.evaluate(acquisition, points[top]))


def _jumps(encoder: Encoder, climber: _Climber, around: Points, reached: FloatArray) -> Points:
    """Return where the 1, 2, 4, ... best exchanges of different variables lead when made together, (jumps, ...)."""
    better = np.flatnonzero(reached > climber.value + _ROUNDING)
    better = better[np.argsort(-reached[better], kind="stable")]
    changed = around[better] != climber.point
    _, first_of_variable = np.unique(changed.argmax(axis=1), return_index=True)
    best_first = np.sort(first_of_variable)
    jumps, point = [], climber.point.copy()
    for rank, row in enumerate(best_first, start=1):
        point = np.where(changed[row], around[better[row]], point)
        if rank & (rank - 1) == 0 or rank == len(best_first):
            jumps.append(point)
    return encoder.canonical(np.stack(jumps)) if jumps else around[:0]


def _split_like(groups: list[Points], values: FloatArray) -> list[FloatArray]:
    """Cut ``values`` into pieces of the lengths of ``groups``."""
    return np.split(values, np.cumsum([len(group) for group in groups])[:-1])


def distinct(points: Points) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the rows at which each distinct point first occurs, and for every row which of those it equals.

    By a 64-bit fingerprint of the rows: sorting whole rows takes fifty times as long.
    """
    factors = np.random.default_rng(64).integers(1, 2**62, size=points.shape[1], dtype=np.int64) * 2 + 1
    _, first, where = np.unique(points @ factors, return_index=True, return_inverse=True)
    return first, where.reshape(-1)


def exchanges(encoder: Encoder, point: Points) -> Points:
    """Return every canonical point that differs from ``point`` in one variable, (at least the sum of levels - 1, ...).

    A size variable and a switch that would each be idle without the other wake together, at every size: else neither
    could ever be reached.
    """
    columns, levels = encoder.settings
    other = np.flatnonzero(levels != point[columns])
    around = np.repeat(point[None], len(other), axis=0)
    around[np.arange(len(other)), columns[other]] = levels[other]
    return encoder.canonical(np.concatenate([around, *_wakes(encoder, point)]))


def _wakes(encoder: Encoder, point: Points) -> list[Points]:
    """Return, for each (size variable, switch) of which neither can be woken alone, the points with both awake."""
    awake_sizes = {size for size, switch in encoder.pairs if switch < 0 or point[switch] > 0}
    awake_switches = {switch for size, switch in encoder.pairs if point[size] > 0}
    wakes = []
    for size, switch in encoder.pairs:
        if switch >= 0 and size not in awake_sizes and switch not in awake_switches:
            woken = np.repeat(point[None], encoder.radix[size] - 1, axis=0)
            woken[:, size], woken[:, switch] = np.arange(1, encoder.radix[size]), 1
            wakes.append(woken)
    return wakes


def _ranked(points: Points, values: FloatArray) -> Ranking:
    """Sort by value, ties by the order of the levels, and drop what may not be proposed."""
    order = np.lexsort((*points.T[::-1], -values))
    order = order[np.isfinite(values[order])]
    return Ranking(points[order], values[order], None)
