"""Methods on layers: what "adapter", "prefix", "BitFit" and "LoRA" mean in each layer of one model, and what they cost.

The paper calls these strategies; here they are methods, because a strategy is a search. A method is an op at the sites
that match its patterns; in one layer, its sites share one size.
"""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from peftscout.cost import SIZELESS, largest_size, ops_at, price
from peftscout.errors import SpaceError
from peftscout.plan import Sites
from peftscout.sites import Site
from peftscout.space.rules import matching

Numbering = Literal["one_axis", "per_stack"]
"""Whether layers are numbered through all stacks (encoder, then decoder) or grouped within each stack."""

_STACK_ORDER = ("encoder", "decoder")


@dataclass(frozen=True, slots=True)
class Method:
    """One PEFT method of the search.

    Attributes:
        name: as the design names it, such as ``adapter``.
        op: the op it places.
        sites: globs over site ids, such as ``*.attention.{q,v}``; sites that cannot hold ``op`` are passed over.
        biased_only: keep the sites whose module has a bias of its own (BitFit).
        otherwise: globs used in a layer where nothing else matched (added bias vectors where the model has none).
        weight: share of a layer's parameters relative to the other methods there.
    """

    name: str
    op: str
    sites: tuple[str, ...]
    biased_only: bool = False
    otherwise: tuple[str, ...] = ()
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Layer:
    """One block of the model: its stack and its index there."""

    stack: str
    index: int

    def __str__(self) -> str:
        return f"{self.stack}.{self.index}"


@dataclass(frozen=True, slots=True)
class Cell:
    """One method in one layer, all its sites at one size: its price is ``fixed + per_size * size``.

    Attributes:
        method: name of the method.
        op: its op.
        sites: ids of its sites in the layer.
        fixed: parameters that do not depend on the size; for an op without a size, all of them.
        per_size: parameters of one unit of size; 0 for an op without a size.
        largest: largest size that all sites can hold.
        weight: see `Method`.
    """

    method: str
    op: str
    sites: tuple[str, ...]
    fixed: int
    per_size: int
    largest: int
    weight: float

    @property
    def least(self) -> int:
        """Parameters at size 1."""
        return self.fixed + self.per_size

    @property
    def most(self) -> int:
        """Parameters at the largest size."""
        return self.fixed + self.per_size * self.largest


@dataclass(frozen=True, slots=True)
class Filling:
    """The methods of one layer, side by side.

    Attributes:
        cells: one a method.
        least: parameters with every size at 1.
        most: parameters with every size at its largest.
    """

    cells: tuple[Cell, ...]
    least: int
    most: int


@dataclass(frozen=True)
class Layout:
    """The layers of one model on the axis that is grouped, and the methods in each.

    Attributes:
        layers: encoder, then decoder; or the one stack.
        segments: number of layers in each part that is grouped for itself: one, or one a stack.
        cells: by position of the layer and name of the method; what is absent is impossible there.
        methods: the names of the methods, in order.
    """

    layers: tuple[Layer, ...]
    segments: tuple[int, ...]
    cells: dict[tuple[int, str], Cell]
    methods: tuple[str, ...]
    _fillings: dict[tuple[int, tuple[str, ...]], Filling | str] = field(default_factory=dict, compare=False, repr=False)

    def filling(self, layer: int, methods: tuple[str, ...]) -> Filling | str:
        """Return ``methods`` in ``layer``, or why they cannot be there together."""
        key = (layer, methods)
        if key not in self._fillings:
            self._fillings[key] = self._fill(layer, methods)
        return self._fillings[key]

    def _fill(self, layer: int, methods: tuple[str, ...]) -> Filling | str:
        claimed: dict[tuple[str, str], str] = {}
        for method in methods:
            if (layer, method) not in self.cells:
                return f"{self.layers[layer]} has no site for {method}"
            cell = self.cells[layer, method]
            for site in cell.sites:
                if (other := claimed.setdefault((site, cell.op), method)) != method:
                    return f"{other} and {method} both place {cell.op} at {site}"
        cells = tuple(self.cells[layer, method] for method in methods)
        return Filling(cells, sum(cell.least for cell in cells), sum(cell.most for cell in cells))

    @property
    def ops(self) -> tuple[str, ...]:
        """Op families of the methods that have a site, by name."""
        return tuple(sorted({cell.op for cell in self.cells.values()}))

    @property
    def absent(self) -> tuple[str, ...]:
        """Methods that have no site in any layer: the model has none, or the space leaves them out."""
        present = {method for _, method in self.cells}
        return tuple(method for method in self.methods if method not in present)


def layout(
    sites: Sites,
    methods: Iterable[Method],
    numbering: Numbering = "one_axis",
    allowed: Container[tuple[str, str]] | None = None,
) -> Layout:
    """Return the layers of the model behind ``sites`` and what each method is in each of them.

    Args:
        sites: sites of the model.
        methods: what may be placed.
        numbering: see `Numbering`.
        allowed: (site, op) pairs that may be used; ``None``: all.

    Raises:
        SpaceError: when the model has no layers, or no method has a site in any of them.
    """
    methods = tuple(methods)
    layers = _layers(sites)
    if not layers:
        raise SpaceError("design spaces group the layers of a model; this one has no site inside a layer")
    position = {layer: n for n, layer in enumerate(layers)}
    inside: list[dict[str, Site]] = [{} for _ in layers]
    for site in sites.values():
        if site.layer is not None:
            inside[position[Layer(site.stack, site.layer)]][site.id] = site
    cells = {}
    for method in methods:
        cells.update({(n, method.name): c for n, there in enumerate(inside) if (c := _cell(method, there, allowed))})
    if not cells:
        where = "of this model" if allowed is None else "of this model that the space allows"
        raise SpaceError(f"none of the methods {', '.join(m.name for m in methods)} has a site {where}")
    stacks = [layer.stack for layer in layers]
    segments = [len(layers)] if numbering == "one_axis" else [stacks.count(stack) for stack in dict.fromkeys(stacks)]
    return Layout(layers, tuple(segments), cells, tuple(m.name for m in methods))


def _layers(sites: Sites) -> tuple[Layer, ...]:
    stacks = dict.fromkeys(site.stack for site in sites.values() if site.layer is not None)
    ordered = sorted(stacks, key=lambda s: _STACK_ORDER.index(s) if s in _STACK_ORDER else -1)
    return tuple(
        Layer(stack, index)
        for stack in ordered
        for index in sorted({s.layer for s in sites.values() if s.stack == stack and s.layer is not None})
    )


def _cell(method: Method, inside: Sites, allowed: Container[tuple[str, str]] | None) -> Cell | None:
    """Return ``method`` in a layer with the sites ``inside``, or ``None`` when it has no place there."""
    chosen = _places(method, method.sites, inside, allowed)
    if method.biased_only:
        chosen = [site for site in chosen if site.has_bias]
    if not chosen:
        chosen = _places(method, method.otherwise, inside, allowed)
    if not chosen:
        return None
    prices = [price(site, method.op) for site in chosen]
    fixed, per_size = sum(p.fixed for p in prices), sum(p.per_size for p in prices)
    if method.op in SIZELESS:
        fixed, per_size = fixed + per_size, 0
    largest = min(largest_size(site, method.op) for site in chosen)
    return Cell(method.name, method.op, tuple(s.id for s in chosen), fixed, per_size, largest, method.weight)


def _places(
    method: Method, patterns: Sequence[str], inside: Sites, allowed: Container[tuple[str, str]] | None
) -> list[Site]:
    """Return the sites ``inside`` a layer that match and may hold the op, in model order."""
    matched = {site_id for pattern in patterns for site_id in matching(pattern, inside, f"method {method.name!r}")}
    return [
        site
        for site in inside.values()
        if site.id in matched and method.op in ops_at(site) and (allowed is None or (site.id, method.op) in allowed)
    ]


def group_number(label: str, groups: int) -> int:
    """Return the position of group ``label`` (``G1`` is 0).

    Raises:
        SpaceError: when it is not one of G1 to G``groups``.
    """
    match = re.fullmatch(r"G([1-9]\d*)", label)
    if match is None or int(match[1]) > groups:
        raise SpaceError(f"no group {label!r}; there are G1 to G{groups}")
    return int(match[1]) - 1
