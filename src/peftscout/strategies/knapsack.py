"""Exact multiple-choice knapsack: at most one size of every module, the largest total value within the budget.

Dynamic programming over costs (Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, section 11.5), one row a module,
all costs of a row at once. Costs are divided by their greatest common divisor first, which in transformers is large.
Only where the table would still not fit into memory are they rounded up to a coarser unit: then the result is within
the budget, but best only up to the rounding.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike, NDArray

MOST_CELLS = 1_000_000_000
"""Cells (modules times distinct costs) of the table of decisions, a byte each. Beyond it costs are rounded up."""


def knapsack(costs: ArrayLike, values: ArrayLike, budget: int) -> dict[int, int]:
    """Return the level of every chosen module: ``sum(costs)`` is at most ``budget`` and ``sum(values)`` is largest.

    Levels of value zero or less are never chosen. Among equal values the cheaper selection is taken.

    Args:
        costs: ``[modules, levels]``, whole numbers above 0.
        values: ``[modules, levels]``; ``-inf`` (or any value that is not positive) where there is no such level.
        budget: upper bound on the total cost.

    Raises:
        ValueError: on arrays of different shapes, costs below 1 at a level of positive value, NaN or infinity.
    """
    (chosen,) = ladder(costs, values, [budget])
    return chosen


def ladder(
    costs: ArrayLike, values: ArrayLike, budgets: Sequence[int], most_cells: int | None = None
) -> list[dict[int, int]]:
    """Return what `knapsack` returns for each of ``budgets``, all from one table.

    The selection of a larger budget costs no less and is worth no less. Where costs have to be rounded up
    (`MOST_CELLS`), the unit is that of the largest budget.

    Args:
        costs: as of `knapsack`.
        values: as of `knapsack`.
        budgets: in any order.
        most_cells: in the place of `MOST_CELLS`, for an answer that is quick and only nearly best.
    """
    cost, value = np.asarray(costs, dtype=np.int64), np.asarray(values, dtype=np.float64)
    _check(cost, value)
    useful = (value > 0) & (cost <= max(budgets, default=0))
    modules = np.flatnonzero(useful.any(1))
    if not len(modules):
        return [{} for _ in budgets]
    if not np.isfinite(value[useful]).all():
        raise ValueError("values hold infinity")
    unit = math.gcd(*map(int, cost[useful]))
    most = min(max(budgets), int(np.where(useful, cost, 0).max(1).sum()))
    unit = max(unit, -(-len(modules) * most // (MOST_CELLS if most_cells is None else most_cells)))
    cost, room = -(-cost // unit), most // unit
    best, taken = _table(cost, value, useful, modules, room)
    return [_selected(cost, best, taken, modules, min(room, max(0, budget) // unit)) for budget in budgets]


def _check(cost: NDArray[np.int64], value: NDArray[np.float64]) -> None:
    if cost.shape != value.shape or cost.ndim != 2:
        raise ValueError(f"costs {cost.shape} and values {value.shape} must both be [modules, levels]")
    if np.isnan(value).any():
        raise ValueError("values hold NaN")
    if (cost[value > 0] < 1).any():
        raise ValueError("a level of positive value costs nothing; costs are whole numbers from 1")


def _table(
    cost: NDArray[np.int64],
    value: NDArray[np.float64],
    useful: NDArray[np.bool_],
    modules: NDArray[np.int64],
    room: int,
) -> tuple[NDArray[np.float64], NDArray[np.unsignedinteger]]:
    """``best[c]`` is the largest value at a cost of exactly c; ``taken[n, c]`` the level + 1 of module n there."""
    best = np.full(room + 1, -np.inf)
    best[0] = 0.0
    taken = np.zeros((len(modules), room + 1), dtype=np.uint8 if cost.shape[1] < 255 else np.uint16)
    for row, m in zip(taken, modules, strict=True):
        before = best.copy()
        for k in np.flatnonzero(useful[m] & (cost[m] <= room)):
            c = int(cost[m, k])
            with_it = before[: room + 1 - c] + value[m, k]
            better = with_it > best[c:]
            best[c:][better] = with_it[better]
            row[c:][better] = k + 1
    return best, taken


def _selected(
    cost: NDArray[np.int64],
    best: NDArray[np.float64],
    taken: NDArray[np.unsignedinteger],
    modules: NDArray[np.int64],
    room: int,
) -> dict[int, int]:
    """Walk back through the table from the best cost within ``room``."""
    chosen: dict[int, int] = {}
    left = int(best[: room + 1].argmax())  # the first, and so the cheapest, among equals
    for row, m in zip(taken[::-1], modules[::-1], strict=True):
        if level := int(row[left]):
            chosen[int(m)] = level - 1
            left -= int(cost[m, level - 1])
    return dict(sorted(chosen.items()))


def greedy(costs: ArrayLike, scores: ArrayLike, budget: int) -> NDArray[np.bool_]:
    """Return which modules are taken when they are tried by descending score and taken while they fit, ``[modules]``.

    A module that does not fit is skipped and the scan goes on; ties go to the earlier module. Modules of score ``-inf``
    are never taken. This is S3Delta's selection (section 5.5 of its release) and BIPEFT's indicator.

    Args:
        costs: ``[modules]``.
        scores: ``[modules]``.
        budget: upper bound on the total cost.
    """
    cost, score = np.asarray(costs, dtype=np.float64), np.asarray(scores, dtype=np.float64)
    taken = np.zeros(len(cost), dtype=np.bool_)
    left = float(budget)
    for m in np.argsort(-score, kind="stable"):
        if score[m] > -np.inf and cost[m] <= left:
            taken[m] = True
            left -= float(cost[m])
    return taken
