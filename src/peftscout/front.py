"""Fronts: plans that no other plan beats on both cost and score. Pure."""

from __future__ import annotations

from collections.abc import Sequence


def front_of(costs: Sequence[float], scores: Sequence[float]) -> list[int]:
    """Return the indices of the non-dominated points, cheapest first.

    A point is beaten by one that costs no more and scores no less, and is better in one of the two; of equal points the
    first stays.
    """
    order = sorted(range(len(costs)), key=lambda i: (costs[i], -scores[i], i))
    front: list[int] = []
    for i in order:
        if not front or scores[i] > scores[front[-1]]:
            front.append(i)
    return front
