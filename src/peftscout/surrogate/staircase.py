"""The observed front as a staircase over the (log) cost axis, and the hypervolume under it.

With one known objective, the front is a non-decreasing step function P(u): the best score among points whose cost is at
most u, floored at the reference score. Hypervolume is the area between P and the floor, up to the reference cost.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from peftscout.surrogate.gp import FloatArray


@dataclass(frozen=True, slots=True)
class Reference:
    """The corner from which hypervolume is measured. Immutable: figures of one study stay comparable.

    Attributes:
        cost: right edge, on the cost axis in use (log10 of parameters, or parameters).
        score: floor.
    """

    cost: float
    score: float


@dataclass(frozen=True, eq=False)
class Staircase:
    """P(u) between the breakpoints: ``levels[k]`` holds on [edges[k], edges[k+1]).

    Attributes:
        edges: (m+2,): -inf, the m costs at which the front rises, the reference cost. Increasing.
        levels: (m+1,): the reference score, then the m scores of the front. Increasing.
    """

    edges: FloatArray
    levels: FloatArray

    @classmethod
    def of(cls, costs: FloatArray, scores: FloatArray, reference: Reference) -> Self:
        """Build the staircase of the points (``costs``, ``scores``), each (n,); n may be 0.

        Points at or beyond the reference cost, or at or below the reference score, change nothing.
        """
        order = np.lexsort((-scores, costs))
        edges, levels = [-np.inf], [reference.score]
        for cost, score in zip(costs[order], scores[order], strict=True):
            if cost < reference.cost and score > levels[-1]:
                edges.append(cost)
                levels.append(score)
        return cls(np.array([*edges, reference.cost]), np.array(levels))

    def __call__(self, costs: FloatArray) -> FloatArray:
        """Return P at ``costs``: the best score that was seen at no more than this cost."""
        return np.asarray(self.levels[np.searchsorted(self.edges[1:-1], costs, side="right")])

    def widths(self, costs: FloatArray) -> FloatArray:
        """Return (n, m+1): how much of each step lies between a point of this cost and the reference cost."""
        return np.maximum(self.edges[1:] - np.maximum(self.edges[:-1], np.asarray(costs)[:, None]), 0.0)

    def area(self) -> float:
        """Return the hypervolume: the area between the staircase and the reference score."""
        return float(np.sum(np.diff(self.edges[1:]) * (self.levels[1:] - self.levels[0])))


def hypervolume(costs: FloatArray, scores: FloatArray, reference: Reference) -> float:
    """Return the area dominated by the points (``costs``, ``scores``) within ``reference``; 0 when there is none."""
    return Staircase.of(costs, scores, reference).area()


def front(costs: FloatArray, scores: FloatArray) -> list[int]:
    """Return the indices of the points that no other beats on both cost and score, by increasing cost.

    Of equal points the first counts.
    """
    best = -np.inf
    chosen = []
    for i in np.lexsort((np.arange(len(costs)), -scores, costs)):
        if scores[i] > best:
            best = scores[i]
            chosen.append(int(i))
    return chosen
