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
from peftscout.strategies.design_spaces.layout import Cell, Filling, Layout
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
    tuned = _tuned_layers(genotype, layout)
    weights, available = genotype.weights, budget.parameters
    if rules.frozen_share == "forfeit":
        available = int(available * weights[list(tuned)].sum() / weights.sum())
    fair = available * weights[list(tuned)] / weights[list(tuned)].sum()
    shares = _share_over_layers(genotype, layout, tuned, fair, available, rules)
    sizes = _sizes(genotype, layout, tuned, shares, available, rules.tolerance * budget.parameters)
    plan = Plan.of({(site, cell.op): sizes[at] for at, cell in _cells(tuned) for site in cell.sites})
    cost = sum(cell.fixed + cell.per_size * sizes[at] for at, cell in _cells(tuned))
    assert cost <= budget.parameters, f"{genotype.design} costs {cost}, {budget}"
    unspent = budget.parameters - cost
    enough = unspent <= rules.tolerance * budget.parameters
    reason = "" if enough else _why_unspent(tuned, sizes, unspent, budget, available)
    return Compiled(plan, cost, unspent, reason, _notes(genotype, tuned, fair, shares))


_Tuned = Mapping[int, Filling]
"""What is in each tuned layer, by position of the layer, in order."""

_At = tuple[int, str]
"""Position of the layer and name of the method."""


def _cells(tuned: _Tuned) -> list[tuple[_At, Cell]]:
    return [((layer, cell.method), cell) for layer, filling in tuned.items() for cell in filling.cells]


def _tuned_layers(genotype: Genotype, layout: Layout) -> _Tuned:
    """Return what is in every layer that gets modules."""
    tuned = {}
    for layer, group in enumerate(genotype.groups):
        if methods := genotype.methods(layer):
            filling = layout.filling(layer, methods)
            if isinstance(filling, str):
                raise InfeasibleDesignError(filling, group)
            tuned[layer] = filling
    if not tuned:
        raise InfeasibleDesignError(f"{genotype.design.tunable.label}: no layer of this model is in it")
    return tuned


def _share_over_layers(
    genotype: Genotype,
    layout: Layout,
    tuned: _Tuned,
    fair: NDArray[np.float64],
    available: int,
    rules: Compilation,
) -> NDArray[np.float64]:
    """Return the parameters of each tuned layer ``[tuned]``: its fair share where its methods can take it.

    They sum to ``available`` where the methods can take it all.
    """
    least = np.array([filling.least for filling in tuned.values()])
    most = np.array([filling.most for filling in tuned.values()])
    if least.sum() > available:
        raise InfeasibleDesignError(
            f"{genotype.design}: costs at least {least.sum():,} parameters, {available:,} are available; "
            "raise the budget or choose cheaper methods"
        )
    if rules.tight == "refuse" and (short := np.flatnonzero(least > fair)).size:
        layer = list(tuned)[int(short[0])]
        raise InfeasibleDesignError(
            f"{'+'.join(genotype.methods(layer))} costs at least {least[short[0]]:,} parameters in "
            f"{layout.layers[layer]}, whose share of the budget is {int(fair[short[0]]):,}",
            genotype.groups[layer],
        )
    return proportional(available, fair, least, most)


def _sizes(
    genotype: Genotype,
    layout: Layout,
    tuned: _Tuned,
    shares: NDArray[np.float64],
    available: int,
    tolerance: float,
) -> dict[_At, int]:
    """Return the size of every cell; those without a size have 1."""
    dials: dict[_At, Dial] = {}
    for (layer, filling), share in zip(tuned.items(), shares, strict=True):
        sized = [cell for cell in filling.cells if cell.per_size]
        amounts = proportional(
            float(share) - sum(cell.fixed for cell in filling.cells),
            [cell.weight for cell in sized],
            [cell.per_size for cell in sized],
            [cell.per_size * cell.largest for cell in sized],
        )
        order = _serving_order(layer, len(layout.layers), genotype.slope)
        for cell, amount in zip(sized, amounts, strict=True):
            dials[layer, cell.method] = Dial(cell.per_size, cell.largest, float(amount) / cell.per_size, order)
    fixed = sum(cell.fixed for _, cell in _cells(tuned))
    whole = whole_sizes(list(dials.values()), available - fixed, tolerance)
    return {at: 1 for at, _ in _cells(tuned)} | dict(zip(dials, whole, strict=True))


def _serving_order(layer: int, depth: int, slope: float) -> float:
    """Return when a layer is served among equals: along the slope; spread evenly over the depth where there is none."""
    if slope == 0:
        return (layer * _GOLDEN) % 1
    return depth - layer if slope > 0 else layer


def _why_unspent(tuned: _Tuned, sizes: Mapping[_At, int], unspent: int, budget: Budget, available: int) -> str:
    raisable = [cell for at, cell in _cells(tuned) if cell.per_size and sizes[at] < cell.largest]
    share = f"{unspent / budget.parameters:.1%} of the budget stays unspent: "
    if not raisable:
        sized = any(cell.per_size for _, cell in _cells(tuned))
        return share + ("every size is at its largest" if sized else "its methods have one size only")
    if available < budget.parameters:
        return share + "the share of the frozen groups is forfeited"
    step = min(cell.per_size for cell in raisable)
    return share + f"the smallest step costs {step:,} parameters, {step / budget.parameters:.1%} of the budget"


def _notes(
    genotype: Genotype, tuned: _Tuned, fair: NDArray[np.float64], shares: NDArray[np.float64]
) -> tuple[str, ...]:
    """Say which groups could not be given the share that the allocation asks for."""
    groups = np.array([genotype.groups[layer] for layer in tuned])
    most = np.array([filling.most for filling in tuned.values()])
    least = np.array([filling.least for filling in tuned.values()])
    notes = []
    for group in genotype.design.tunable.groups:
        own = groups == group
        asked = f"{int(fair[own].sum()):,} parameters"
        if not own.any():
            notes.append(f"G{group + 1} is empty: the model has fewer layers than the grouping needs")
        if (own & (shares >= most) & (most < fair - 1)).any():
            notes.append(f"G{group + 1} cannot take its share ({asked}); the rest has it")
        if (own & (shares <= least) & (least > fair + 1)).any():
            notes.append(f"G{group + 1} needs more than its share ({asked}); the rest makes room")
    return tuple(notes)
