"""Moves in a space, on plain lists of levels: shrink, grow, one-step neighbours. The arithmetic behind `Space`.

A `Wiring` is a space with the names taken off: variables are positions, and the price of everything that hangs on the
same (size variable, switch) pair is one `Term`. The functions take canonical vectors and return canonical vectors.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import groupby

import numpy as np
from numpy.typing import NDArray

Vector = list[int]
"""One level for each variable."""

Change = Mapping[int, int]
"""New levels of a few variables, by position."""

_FINE_LEVELS = 8
"""Shrinking moves by an eighth of a variable's level, at least one: exact on short grids, quick on long ones."""


@dataclass(frozen=True, slots=True)
class Term:
    """What hangs on one size variable and one switch.

    Attributes:
        size: position of the size variable.
        switch: position of the switch, or ``None``.
        prices: trainable parameters by level of the size variable; ``prices[0]`` is 0.
    """

    size: int
    switch: int | None
    prices: tuple[int, ...]


@dataclass(frozen=True)
class Wiring:
    """The variables of a space (their numbers of levels) and the terms over them."""

    levels: tuple[int, ...]
    terms: tuple[Term, ...]

    @cached_property
    def touching(self) -> tuple[tuple[Term, ...], ...]:
        """For each variable, the terms that it takes part in."""
        touching: list[list[Term]] = [[] for _ in self.levels]
        for term in self.terms:
            touching[term.size].append(term)
            if term.switch is not None:
                touching[term.switch].append(term)
        return tuple(map(tuple, touching))

    def empty(self) -> Vector:
        """Return the vector of the empty plan."""
        return [0] * len(self.levels)

    def cost(self, vector: Vector) -> int:
        """Return the cost of ``vector``."""
        return sum(_paid(term, vector) for term in self.terms)

    def difference(self, vector: Vector, change: Change) -> int:
        """Return by how much ``change`` raises the cost of ``vector``."""
        touched = {id(term): term for position in change for term in self.touching[position]}.values()
        after = {**{p: vector[p] for term in touched for p in _positions(term)}, **change}
        return sum(_paid(term, after) - _paid(term, vector) for term in touched)

    def changed(self, vector: Vector, change: Change) -> Vector:
        """Return the canonical form of ``vector`` with ``change`` applied."""
        return self.canonical([change.get(position, level) for position, level in enumerate(vector)])

    def canonical(self, vector: Vector) -> Vector:
        """Return ``vector`` with every idle variable at level 0: one that has no term that is there."""
        return [level if any(_paid(t, vector) for t in self.touching[p]) else 0 for p, level in enumerate(vector)]

    def costs(self, vectors: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the cost of each row, ``[n, variables] -> [n]``.

        The terms of one size variable that have the same prices (AutoPEFT: every layer) are looked up once and
        multiplied by how many of them are on.
        """
        total = np.zeros(len(vectors), dtype=np.int64)
        for prices, terms in self._alike:
            always = sum(term.switch is None for term in terms)
            switches = [term.switch for term in terms if term.switch is not None]
            on = always + vectors[:, switches].sum(axis=1) if switches else always
            total += prices[vectors[:, terms[0].size]] * on
        return total

    @cached_property
    def _alike(self) -> list[tuple[NDArray[np.int64], list[Term]]]:
        def key(term: Term) -> tuple[int, tuple[int, ...]]:
            return term.size, term.prices

        return [(np.array(k[1], dtype=np.int64), list(terms)) for k, terms in groupby(sorted(self.terms, key=key), key)]


def _paid(term: Term, vector: Vector | Mapping[int, int]) -> int:
    """Return the price of ``term`` as it stands in ``vector``: 0 when it is absent."""
    return term.prices[vector[term.size]] if term.switch is None or vector[term.switch] else 0


def _positions(term: Term) -> tuple[int, ...]:
    return (term.size,) if term.switch is None else (term.size, term.switch)


def shrink(w: Wiring, vector: Vector, limit: int, rng: np.random.Generator, drop: float) -> Vector:
    """Lower random variables until the cost is at most ``limit``; may end empty.

    Each turn takes a random variable that is not at 0. Where lowering it alone is enough, it gets the highest level
    that fits and we are done. Otherwise it is dropped to 0 with probability ``drop``, else lowered by one step.
    """
    vector = list(vector)
    cost = w.cost(vector)
    while cost > limit:
        live = [p for p, level in enumerate(vector) if level]
        p = live[rng.integers(len(live))]
        fits = [k for k in range(vector[p]) if cost + w.difference(vector, {p: k}) <= limit]
        step = max(1, vector[p] // _FINE_LEVELS)
        lower = fits[-1] if fits else 0 if rng.random() < drop else vector[p] - step
        cost += w.difference(vector, {p: lower})
        vector[p] = lower
    return w.canonical(vector)


def grow(w: Wiring, vector: Vector, limit: int, rng: np.random.Generator) -> Vector:
    """Raise variables, in random order and each to a random level that fits, until no single raise fits ``limit``."""
    vector = list(vector)
    cost = w.cost(vector)
    grown = True
    while grown:
        grown = False
        raises = list(_raises(w, vector))
        for n in rng.permutation(len(raises)):
            affordable = [c for c in raises[n] if 0 < w.difference(vector, c) <= limit - cost]
            affordable = [c for c in affordable if all(level > vector[p] for p, level in c.items())]
            if affordable:
                change = affordable[rng.integers(len(affordable))]
                cost += w.difference(vector, change)
                for p, level in change.items():
                    vector[p] = level
                grown = True
    return vector


def wake_one(w: Wiring, vector: Vector, limit: int, rng: np.random.Generator) -> Vector:
    """Return ``vector`` with one random idle module added at its smallest size, among those that fit ``limit``."""
    cost = w.cost(vector)
    fitting = [c for c in wakes(w, vector) if cost + w.difference(vector, c) <= limit]
    return w.changed(vector, fitting[rng.integers(len(fitting))])


def neighbours(w: Wiring, vector: Vector) -> Iterator[Vector]:
    """Yield the canonical vectors one step from ``vector``, each once, without the empty one."""
    seen = {tuple(vector), tuple(w.empty())}
    steps = [{p: k + s} for p, k in enumerate(vector) for s in (-1, 1) if 0 <= k + s < w.levels[p]]
    for change in [*steps, *wakes(w, vector)]:
        other = w.changed(vector, change)
        if tuple(other) not in seen:
            seen.add(tuple(other))
            yield other


def wakes(w: Wiring, vector: Vector) -> Iterator[Change]:
    """Yield the smallest changes that make idle variables count.

    A size variable at 0 that has a term without a switch wakes alone. Where raising the size variable alone and turning
    on the switch alone would both change nothing, the two wake together.
    """

    def idle(position: int, level: int) -> bool:
        return vector[position] == 0 and w.difference(vector, {position: level}) == 0

    for position, level in enumerate(vector):
        if level == 0 and not idle(position, 1):
            yield {position: 1}
    for term in w.terms:
        if term.switch is not None and idle(term.size, 1) and idle(term.switch, 1):
            yield {term.size: 1, term.switch: 1}


def _raises(w: Wiring, vector: Vector) -> Iterator[list[Change]]:
    """Yield, for each variable that can be raised, its possible raises; wakes of pairs come as one each."""
    for p, k in enumerate(vector):
        if k + 1 < w.levels[p]:
            yield [{p: higher} for higher in range(k + 1, w.levels[p])]
    for change in wakes(w, vector):
        if len(change) > 1:
            yield [change]
