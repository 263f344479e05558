"""Space: which plans may be chosen. A frozen list of choices with ties. Pure; numpy only.

A space is a set of `Choice`s, one for each (site, op), over two kinds of variables:

* a **size variable** is absent (level 0) or one of its sizes; choices that name the same size variable share one size;
* a **switch** is off or on; choices that name the same switch are there together or not at all.

A choice is in the plan if and only if its size variable is not absent and its switch, if it has one, is on. Per-site
LoRA ranks are choices with a size variable each and no switch; AutoPEFT is three size variables and a switch a layer.

A **vector** holds one level (an index, not a size) for each variable, in the order of `Space.variables`. Several
vectors may decode to one plan (a switch that is on while every size is absent changes nothing); the one in which every
such idle variable is at level 0 is **canonical**, and canonical vectors correspond to plans one to one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray

from peftscout.cost import OPS, largest_size, price
from peftscout.errors import PlanError, SpaceError, nearest
from peftscout.plan import Budget, Placement, Plan, Sites
from peftscout.space import moves
from peftscout.space.count import count_live
from peftscout.space.moves import Term, Wiring
from peftscout.stock import StockForm, holds

Vectors = NDArray[np.int64]
"""Vectors of a space, one a row: ``[n, variables]``, or a single one: ``[variables]``."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One op that may be placed at one site.

    Attributes:
        site: id of the site.
        op: one of `peftscout.cost.OPS`.
        sizes: the sizes allowed, ascending, from 1; absent is always allowed as well.
        size_variable: choices with the same size variable share one size (and have the same ``sizes``).
        switch: choices with the same switch share one on/off; ``None``: there whenever the size is.
    """

    site: str
    op: str
    sizes: tuple[int, ...]
    size_variable: str
    switch: str | None = None

    @classmethod
    def untied(cls, site: str, op: str, sizes: Iterable[int]) -> Self:
        """Return a choice with a size variable of its own and no switch."""
        return cls(site, op, tuple(sizes), f"{site}:{op}")

    def __str__(self) -> str:
        return f"{self.site}: {self.op}"


@dataclass(frozen=True, slots=True)
class Variable:
    """One dimension of a space.

    Attributes:
        name: as the choices name it; unique within its kind.
        kind: ``size`` or ``switch``.
        values: what each level means: ``(0, 1, 4, 8)`` for a size (0: absent), ``(0, 1)`` for a switch.
    """

    name: str
    kind: Literal["size", "switch"]
    values: tuple[int, ...]


@dataclass(frozen=True)
class Space:
    """The plans that may be chosen for one model. The order of ``choices`` decides the order of the variables.

    Raises:
        SpaceError: when there is no choice, or one names an unknown site, an op that cannot sit there or a size that
            does not fit, or tied choices disagree on their sizes.
    """

    name: str
    choices: tuple[Choice, ...]
    sites: Sites = field(compare=False, repr=False)

    def __post_init__(self) -> None:
        if not self.choices:
            raise SpaceError(f"space {self.name!r}: it holds no choice, so there is nothing to search")
        first_of_tie: dict[str, Choice] = {}
        seen: set[tuple[str, str]] = set()
        for choice in self.choices:
            _check_choice(self.name, choice, self.sites)
            if (choice.site, choice.op) in seen:
                raise SpaceError(f"space {self.name!r}: {choice} is there twice")
            seen.add((choice.site, choice.op))
            first = first_of_tie.setdefault(choice.size_variable, choice)
            if first.sizes != choice.sizes:
                raise SpaceError(
                    f"space {self.name!r}: {first} and {choice} share the size variable {choice.size_variable!r} "
                    f"but allow the sizes {first.sizes} and {choice.sizes}; make them equal or untie them"
                )

    # -- variables and vectors ----------------------------------------------------------------------------------------

    @cached_property
    def variables(self) -> tuple[Variable, ...]:
        """The size variables, then the switches, each in the order of first appearance in ``choices``."""
        sizes = {c.size_variable: (0, *c.sizes) for c in self.choices}
        switches = dict.fromkeys(c.switch for c in self.choices if c.switch is not None)
        return (
            *(Variable(name, "size", values) for name, values in sizes.items()),
            *(Variable(name, "switch", (0, 1)) for name in switches),
        )

    @cached_property
    def levels(self) -> Vectors:
        """Number of levels of each variable, ``[variables]``."""
        return np.array([len(v.values) for v in self.variables], dtype=np.int64)

    @cached_property
    def _wiring(self) -> Wiring:
        """The choices as terms over variable indices; choices on the same pair of variables are one term."""
        prices: dict[tuple[int, int | None], list[int]] = {}
        for choice, (size, switch) in zip(self.choices, self._indices, strict=True):
            p = price(self.sites[choice.site], choice.op)
            total = prices.setdefault((size, switch), [0] * (len(choice.sizes) + 1))
            for level, value in enumerate(choice.sizes, start=1):
                total[level] += p.at(value)
        terms = tuple(Term(size, switch, tuple(total)) for (size, switch), total in prices.items())
        return Wiring(tuple(int(n) for n in self.levels), terms)

    @cached_property
    def _indices(self) -> tuple[tuple[int, int | None], ...]:
        """For each choice, the positions of its size variable and its switch in a vector."""
        at = {(v.kind, v.name): n for n, v in enumerate(self.variables)}
        return tuple(
            (at["size", c.size_variable], None if c.switch is None else at["switch", c.switch]) for c in self.choices
        )

    def decode(self, vector: Sequence[int] | Vectors) -> Plan:
        """Return the plan that ``vector`` stands for; the empty plan when everything is off.

        Raises:
            SpaceError: when the vector has the wrong length or a level out of range.
        """
        v = self._checked(np.asarray(vector)[None])[0].tolist()
        return Plan(
            tuple(
                Placement(choice.site, choice.op, choice.sizes[v[size] - 1])
                for choice, (size, switch) in zip(self.choices, self._indices, strict=True)
                if v[size] and (switch is None or v[switch])
            )
        )

    def encode(self, plan: Plan) -> Vectors:
        """Return the canonical vector of ``plan``, ``[variables]``; the inverse of `decode`.

        Raises:
            SpaceError: naming the placement that keeps the plan out of the space.
        """
        wanted = plan.sizes
        choices = {(c.site, c.op): n for n, c in enumerate(self.choices)}
        vector = [0] * len(self.variables)
        decided_by: dict[int, Placement] = {}
        for placement in plan:
            if (placement.site, placement.op) not in choices:
                raise self._not_a_choice(placement)
            n = choices[placement.site, placement.op]
            choice, (size, switch) = self.choices[n], self._indices[n]
            if placement.size not in choice.sizes:
                raise SpaceError(f"space {self.name!r}: {placement} is not in it; sizes allowed: {choice.sizes}")
            level = choice.sizes.index(placement.size) + 1
            other = decided_by.setdefault(size, placement)
            if vector[size] not in (0, level):
                raise SpaceError(f"space {self.name!r}: {placement} must have the same size as {other}")
            vector[size] = level
            if switch is not None:
                vector[switch] = 1
        for choice, (size, switch) in zip(self.choices, self._indices, strict=True):
            implied = vector[size] and (switch is None or vector[switch])
            if implied and (choice.site, choice.op) not in wanted:
                raise SpaceError(
                    f"space {self.name!r}: {decided_by[size]} is tied to {choice}, which is not in the plan"
                )
        return np.array(vector, dtype=np.int64)

    def contains(self, plan: Plan) -> bool:
        """Return whether ``plan`` can be chosen. The empty plan is in no space."""
        try:
            self.encode(plan)
        except SpaceError:
            return False
        return len(plan) > 0

    # -- cost, count, extremes ----------------------------------------------------------------------------------------

    def costs(self, vectors: Vectors) -> Vectors:
        """Return the exact cost of each row of ``vectors`` ``[n, variables]`` as ``[n]``; 0 is the empty plan.

        Vectorised, to scan millions of candidates; equal to `Plan.cost` of the decoded rows.

        Raises:
            SpaceError: when ``vectors`` has the wrong shape or a level out of range.
        """
        return self._wiring.costs(self._checked(np.asarray(vectors)))

    def cardinality(self) -> int:
        """Return the exact number of distinct non-empty plans.

        Raises:
            SpaceError: when more size variables and switches are entangled than can be counted (see `count_live`).
        """
        return self._count

    @cached_property
    def _count(self) -> int:
        return count_live(self._wiring) - 1

    def cheapest(self) -> Plan:
        """Return the plan of lowest cost that is not empty (the first one among equals)."""
        wiring = self._wiring
        empty = wiring.empty()
        first = min(moves.wakes(wiring, empty), key=lambda change: wiring.difference(empty, change))
        return self.decode(wiring.changed(empty, first))

    def dearest(self) -> Plan:
        """Return the plan that has every choice at its largest size."""
        return self.decode(self.levels - 1)

    # -- drawing and moving -------------------------------------------------------------------------------------------

    def sample_vectors(self, n: int, rng: np.random.Generator) -> Vectors:
        """Return ``n`` vectors ``[n, variables]``, every variable uniform over its levels.

        Not canonical, and the empty plan is possible: its cost is 0.
        """
        return rng.integers(0, self.levels, size=(n, len(self.levels)), dtype=np.int64)

    def sample(self, rng: np.random.Generator) -> Plan:
        """Return a plan drawn uniformly over raw vectors; the empty plan is drawn again. Knows no budget."""
        while not (plan := self.decode(self.sample_vectors(1, rng)[0])):
            pass
        return plan

    def sample_within(self, budget: Budget, rng: np.random.Generator) -> Plan:
        """Return a random plan that is within ``budget`` and uses it up: no variable can be raised any further.

        A uniform draw that costs too much is thinned out to a random number of modules (log-uniform, so that plans
        range from a few large modules to many small ones) and shrunk until it fits; then it is grown until nothing more
        fits. All in random order: see `moves.thin`, `moves.shrink` and `moves.grow`.

        Raises:
            SpaceError: when not even the cheapest plan fits; the message has its price.
        """
        self._require_affordable(budget)
        wiring = self._wiring
        vector = wiring.canonical(self.sample_vectors(1, rng)[0].tolist())
        if wiring.cost(vector) > budget.parameters:
            vector = moves.shrink(wiring, wiring.canonical(moves.thin(vector, rng)), budget.parameters, rng)
        return self.decode(moves.grow(wiring, vector, budget.parameters, rng))

    def repair(self, plan: Plan, budget: Budget, rng: np.random.Generator) -> Plan:
        """Return ``plan`` if it is within ``budget``, else a plan near it that is: random modules made smaller.

        Where shrinking leaves nothing, the result is one random smallest module that fits.

        Raises:
            SpaceError: when ``plan`` is not in the space or empty, or not even the cheapest plan fits.
        """
        if not len(plan):
            raise SpaceError(f"space {self.name!r}: the empty plan cannot be repaired")
        vector = self.encode(plan).tolist()
        self._require_affordable(budget)
        vector = moves.shrink(self._wiring, vector, budget.parameters, rng)
        if not any(vector):
            vector = moves.wake_one(self._wiring, vector, budget.parameters, rng)
        return self.decode(vector)

    def neighbours(self, plan: Plan) -> list[Plan]:
        """Return every plan one step away: one variable moved by one level.

        Without the empty plan and without repeats, in the order of the variables. A variable that is idle alone moves
        together with its partner (size variable and switch), so that every plan can be reached from every other.

        Raises:
            SpaceError: when ``plan`` is not in the space.
        """
        return [self.decode(vector) for vector in self.neighbour_vectors(self.encode(plan))]

    def neighbour_vectors(self, vector: Vectors) -> Vectors:
        """Return `neighbours` as canonical vectors ``[n, variables]``, of a canonical ``vector`` ``[variables]``."""
        found = list(moves.neighbours(self._wiring, self._checked(vector[None])[0].tolist()))
        return np.array(found, dtype=np.int64).reshape(len(found), len(self.levels))

    # -- smaller spaces -----------------------------------------------------------------------------------------------

    def restrict(self, keep: Callable[[Choice], bool], name: str | None = None) -> Space:
        """Return the space of the choices for which ``keep`` is true; ties among them stay.

        Raises:
            SpaceError: when none is left.
        """
        return Space(name or self.name, tuple(filter(keep, self.choices)), self.sites)

    def restrict_ops(self, ops: Iterable[str]) -> Space:
        """Return the space restricted to ``ops``.

        Raises:
            SpaceError: when an op is unknown or no choice has one of them.
        """
        kept = set(ops)
        for op in sorted(kept - set(OPS)):
            raise SpaceError(f"unknown op {op!r}{nearest(op, OPS)}; the ops are {', '.join(OPS)}")
        if not any(c.op in kept for c in self.choices):
            raise SpaceError(
                f"space {self.name!r} has no {' or '.join(sorted(kept))}: it holds {', '.join(self.ops)}; "
                "choose another space"
            )
        return self.restrict(lambda choice: choice.op in kept)

    def for_stock(self, form: StockForm) -> Space:
        """Return the space restricted to what a stock adapter of ``form`` can hold, see `peftscout.stock`.

        Raises:
            SpaceError: when nothing is left.
        """
        if not any(holds(form, self.sites[c.site], c.op) for c in self.choices):
            raise SpaceError(
                f"space {self.name!r} has nothing that a stock {form} adapter can hold: it holds "
                f"{', '.join(self.ops)}; choose another space"
            )
        return self.restrict(lambda choice: holds(form, self.sites[choice.site], choice.op))

    @property
    def ops(self) -> tuple[str, ...]:
        """The distinct ops of the choices, in canonical order."""
        used = {c.op for c in self.choices}
        return tuple(op for op in OPS if op in used)

    # -- helpers ------------------------------------------------------------------------------------------------------

    def _checked(self, vectors: NDArray[np.generic]) -> Vectors:
        """Return ``vectors`` as int64, or raise a SpaceError that names the variable with a level out of range."""
        if vectors.ndim != 2 or vectors.shape[1] != len(self.levels) or not np.issubdtype(vectors.dtype, np.integer):
            raise SpaceError(
                f"space {self.name!r}: a vector is {len(self.levels)} whole numbers, "
                f"not {vectors.dtype} of shape {vectors.shape[1:]}"
            )
        checked = vectors.astype(np.int64, copy=False)
        outside = (checked < 0) | (checked >= self.levels)
        if outside.any():
            row, column = np.argwhere(outside)[0]
            variable = self.variables[column]
            raise SpaceError(
                f"space {self.name!r}: level {checked[row, column]} of {variable.kind} variable {variable.name!r}; "
                f"levels are 0 to {len(variable.values) - 1}"
            )
        return checked

    def _not_a_choice(self, placement: Placement) -> SpaceError:
        ops = [c.op for c in self.choices if c.site == placement.site]
        hint = f"ops there: {', '.join(ops)}" if ops else f"no op there{nearest(placement.site, self._site_ids)}"
        return SpaceError(f"space {self.name!r}: {placement} is not in it; {hint}")

    @cached_property
    def _site_ids(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(c.site for c in self.choices))

    def _require_affordable(self, budget: Budget) -> None:
        cheapest = self._cheapest
        if cheapest[1] not in budget:
            raise SpaceError(
                f"space {self.name!r}: nothing fits into {budget}; the cheapest plan ({cheapest[0]}) "
                f"costs {cheapest[1]:,} parameters"
            )

    @cached_property
    def _cheapest(self) -> tuple[Plan, int]:
        plan = self.cheapest()
        return plan, plan.cost(self.sites)


def _check_choice(space: str, choice: Choice, sites: Sites) -> None:
    """Raise a SpaceError unless ``choice`` can be placed in the model at every one of its sizes."""
    where = f"space {space!r}: {choice}"
    site = sites.get(choice.site)
    if site is None:
        raise SpaceError(f"{where}: no such site in this model{nearest(choice.site, sites)}")
    try:
        largest = largest_size(site, choice.op)
    except PlanError as error:
        raise SpaceError(f"space {space!r}: {error}") from None
    ascending = all(a < b for a, b in zip((0, *choice.sizes), choice.sizes, strict=False))
    if not choice.sizes or not ascending or any(type(size) is not int for size in choice.sizes):
        raise SpaceError(f"{where}: sizes {choice.sizes}: they must be whole numbers from 1, ascending")
    if choice.sizes[-1] > largest:
        raise SpaceError(f"{where}: size {choice.sizes[-1]} > {largest}, the largest size at this site")
