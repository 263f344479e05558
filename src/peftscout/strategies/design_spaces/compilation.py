"""Compile a genotype to a plan that uses up the budget exactly, and never more (dossier 6.3).

1. The budget is shared over the tuned layers in proportion to their weights. A layer that cannot take its share (BitFit
   has one size only) leaves the rest to the others.
2. In a layer, fixed costs come first (biases, the output bias of an adapter); the rest is shared between its methods.
3. Sizes are made whole: largest remainder, then a bounded coin problem, to within the tolerance or as near as can be.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from peftscout.plan import Budget, Plan
from peftscout.strategies.design_spaces.genotype import Genotype, InfeasibleDesignError
from peftscout.strategies.design_spaces.layout import Cell, Layout
from peftscout.strategies.design_spaces.rounding import Dial, proportional, whole_sizes

_GOLDEN = (5**0.5 - 1) / 2


@dataclass(frozen=True, slots=True)
class Compilation:
    """How genotypes become plans.

    Attributes:
        tolerance: share of the budget that may stay unspent without a reason.
        frozen_share: whether the share of frozen groups goes to the tuned ones (a fair comparison), or is forfeited.
        tight: what happens where a layer's methods cost more at size 1 than its share: ``refuse`` the genotype, or
            ``make_room`` by taking from the other layers.
    """

    tolerance: float = 0.005
    frozen_share: Literal["redistribute", "forfeit"] = "redistribute"
    tight: Literal["refuse", "make_room"] = "refuse"


@dataclass(frozen=True, slots=True)
class Compiled:
    """A plan and how well it meets the budget.

    Attributes:
        plan: within the budget.
        cost: its trainable parameters.
        unspent: parameters of the budget that it leaves.
        reason: why it leaves more than the tolerance; ``""`` when it does not.
        notes: where the shares of the design could not be kept, for people.
    """

    plan: Plan
    cost: int
    unspent: int
    reason: str = ""
    notes: tuple[str, ...] = ()


def compile_genotype(
    genotype: Genotype, layout: Layout, budget: Budget, compilation: Compilation | None = None
) -> Compiled:
    """Return the plan of ``genotype`` on the layers of ``layout``: never above ``budget``, near it or with a reason.

    Raises:
        InfeasibleDesignError: when a method cannot be in a layer, two of them claim the same place, a layer's methods
            cost more than its share (see `Compilation.tight`), or all at size 1 cost more than the budget.
    """
    rules = compilation or Compilation()
    chosen = _chosen_cells(genotype, layout)
    weights, all_weights = genotype.weights[list(chosen)], genotype.weights
    available = budget.parameters
    if rules.frozen_share == "forfeit":
        available = int(available * weights.sum() / all_weights.sum())
    layers = _share_over_layers(genotype, layout, chosen, available, rules)
    sizes = _sizes(genotype, layout, chosen, layers, available, rules.tolerance * budget.parameters)
    plan = Plan.of({(site, cell.op): sizes[cell_id] for cell_id, cell in _each(chosen) for site in cell.sites})
    cost = sum(cell.fixed + cell.per_size * sizes[cell_id] for cell_id, cell in _each(chosen))
    assert cost <= budget.parameters, f"{genotype.design} costs {cost}, {budget}"
    unspent = budget.parameters - cost
    reason = "" if unspent <= rules.tolerance * budget.parameters else _why_unspent(chosen, sizes, budget, available)
    return Compiled(plan, cost, unspent, reason, _notes(genotype, chosen, weights, layers, available))


_Chosen = Mapping[int, tuple[Cell, ...]]
"""The cells of each tuned layer, by position of the layer, in order."""

_CellId = tuple[int, str]
"""Position of the layer and name of the method."""


def _each(chosen: _Chosen) -> list[tuple[_CellId, Cell]]:
    return [((layer, cell.method), cell) for layer, cells in chosen.items() for cell in cells]


def _chosen_cells(genotype: Genotype, layout: Layout) -> _Chosen:
    """Return the cells of every tuned layer."""
    chosen = {}
    for layer, group in enumerate(genotype.groups):
        names = genotype.methods(layer)
        for name in names:
            if why := layout.impossible(layer, name):
                raise InfeasibleDesignError(f"G{group + 1}: {why}")
        cells = tuple(layout.cells[layer, name] for name in names)
        claimed: dict[tuple[str, str], str] = {}
        for cell in cells:
            for site in cell.sites:
                if (other := claimed.setdefault((site, cell.op), cell.method)) != cell.method:
                    raise InfeasibleDesignError(
                        f"G{group + 1}: {other} and {cell.method} both place {cell.op} at {site}"
                    )
        if cells:
            chosen[layer] = cells
    if not chosen:
        raise InfeasibleDesignError(f"{genotype.design.tunable.label}: no layer of this model is in it")
    return chosen


def _share_over_layers(
    genotype: Genotype, layout: Layout, chosen: _Chosen, available: int, rules: Compilation
) -> NDArray[np.float64]:
    """Return the parameters of each tuned layer ``[tuned]``: ``available`` in all, where the methods can take it."""
    least = np.array([sum(cell.least for cell in cells) for cells in chosen.values()])
    most = np.array([sum(cell.most for cell in cells) for cells in chosen.values()])
    weights = genotype.weights[list(chosen)]
    if least.sum() > available:
        raise InfeasibleDesignError(
            f"{genotype.design}: costs at least {least.sum():,} parameters, {available:,} are available; "
            "raise the budget or choose cheaper methods"
        )
    fair = available * weights / weights.sum()
    if rules.tight == "refuse" and (short := np.flatnonzero(least > fair)).size:
        layer = list(chosen)[int(short[0])]
        names = "+".join(cell.method for cell in chosen[layer])
        raise InfeasibleDesignError(
            f"G{genotype.groups[layer] + 1}: {names} costs at least {least[short[0]]:,} parameters in "
            f"{layout.layers[layer]}, whose share of the budget is {int(fair[short[0]]):,}"
        )
    return proportional(available, weights, least, most)


def _sizes(
    genotype: Genotype,
    layout: Layout,
    chosen: _Chosen,
    layers: NDArray[np.float64],
    available: int,
    tolerance: float,
) -> dict[_CellId, int]:
    """Return the size of every cell; those without a size have 1."""
    sizes = {cell_id: 1 for cell_id, _ in _each(chosen)}
    fixed = sum(cell.fixed for _, cell in _each(chosen))
    dials: dict[_CellId, Dial] = {}
    for (layer, cells), amount in zip(chosen.items(), layers, strict=True):
        sized = [cell for cell in cells if cell.per_size]
        shares = proportional(
            float(amount) - sum(cell.fixed for cell in cells),
            [cell.weight for cell in sized],
            [cell.per_size for cell in sized],
            [cell.per_size * cell.largest for cell in sized],
        )
        for cell, share in zip(sized, shares, strict=True):
            order = _serving_order(layer, len(layout.layers), genotype.slope)
            dials[layer, cell.method] = Dial(cell.per_size, cell.largest, float(share) / cell.per_size, order)
    whole = whole_sizes(list(dials.values()), available - fixed, tolerance)
    return sizes | dict(zip(dials, whole, strict=True))


def _serving_order(layer: int, depth: int, slope: float) -> float:
    """Return when a layer is served among equals: along the slope; spread evenly over the depth where there is none."""
    if slope == 0:
        return (layer * _GOLDEN) % 1
    return depth - layer if slope > 0 else layer


def _why_unspent(chosen: _Chosen, sizes: Mapping[_CellId, int], budget: Budget, available: int) -> str:
    raisable = [cell for cell_id, cell in _each(chosen) if cell.per_size and sizes[cell_id] < cell.largest]
    cost = sum(cell.fixed + cell.per_size * sizes[cell_id] for cell_id, cell in _each(chosen))
    share = f"{(budget.parameters - cost) / budget.parameters:.1%} of the budget stays unspent: "
    if not raisable:
        sized = any(cell.per_size for _, cell in _each(chosen))
        return share + ("every size is at its largest" if sized else "its methods have one size only")
    if available < budget.parameters:
        return share + "the share of the frozen groups is forfeited"
    step = min(cell.per_size for cell in raisable)
    return share + f"the smallest step costs {step:,} parameters, {step / budget.parameters:.1%} of the budget"


def _notes(
    genotype: Genotype, chosen: _Chosen, weights: NDArray[np.float64], layers: NDArray[np.float64], available: int
) -> tuple[str, ...]:
    """Say which groups could not be given the share that the allocation asks for."""
    fair = available * weights / weights.sum()
    notes = []
    for group in genotype.design.tunable.groups:
        own = np.array([genotype.groups[layer] == group for layer in chosen])
        if not own.any():
            notes.append(f"G{group + 1} is empty: the model has fewer layers than the grouping needs")
            continue
        most = np.array([sum(cell.most for cell in cells) for cells in chosen.values()])
        least = np.array([sum(cell.least for cell in cells) for cells in chosen.values()])
        if (own & (layers >= most) & (most < fair - 1)).any():
            notes.append(f"G{group + 1} cannot take its share ({int(fair[own].sum()):,} parameters); the rest has it")
        if (own & (layers <= least) & (least > fair + 1)).any():
            notes.append(f"G{group + 1} needs more than its share ({int(fair[own].sum()):,}); the rest makes room")
    return tuple(notes)
