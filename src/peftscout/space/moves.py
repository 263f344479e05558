"""Moves in a space, on plain lists of levels: shrink, grow, one-step neighbours. The arithmetic behind `Space`.

A `Wiring` is a space with the names taken off: variables are positions, and the price of everything that hangs on the
same (size variable, switch) pair is one `Term`. The functions take canonical vectors and return canonical vectors.
"""

from __future__ import annotations

from bisect import bisect_right
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
        """Return the canonical form of ``vector``, which is canonical, with ``change`` applied."""
        changed = list(vector)
        for position, level in change.items():
            changed[position] = level
        for position in {p for c in change for term in self.touching[c] for p in _positions(term)}:
            changed[position] = self._canonical_level(changed, position)
        return changed

    def canonical(self, vector: Vector) -> Vector:
        """Return ``vector`` with every idle variable at level 0: one that has no term that is there."""
        return [self._canonical_level(vector, position) for position in range(len(vector))]

    def _canonical_level(self, vector: Vector, position: int) -> int:
        return vector[position] if any(_paid(term, vector) for term in self.touching[position]) else 0

    def highest(self, vector: Vector, position: int, room: int) -> int:
        """Return the highest level of one variable that costs at most ``room`` more than it does now; -1 if none."""
        levels = range(self.levels[position])
        return bisect_right(levels, room, key=lambda level: self.difference(vector, {position: level})) - 1

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


def thin(vector: Vector, rng: np.random.Generator) -> Vector:
    """Keep a random few of the variables that are not at 0: how many is log-uniform between one and all of them."""
    live = np.flatnonzero(vector)
    kept = rng.choice(live, size=round(len(live) ** rng.random()), replace=False)
    return [level if kept_ else 0 for level, kept_ in zip(vector, np.isin(np.arange(len(vector)), kept), strict=True)]


def shrink(w: Wiring, vector: Vector, limit: int, rng: np.random.Generator) -> Vector:
    """Lower random variables, step by step, until the cost is at most ``limit``; may end empty.

    Where lowering the variable at hand is enough, it gets the highest level that fits, and that is the end.
    """
    vector = list(vector)
    cost = w.cost(vector)
    while cost > limit:
        live = np.flatnonzero(vector)
        p = int(live[rng.integers(len(live))])
        fitting = w.highest(vector, p, limit - cost)
        step = max(1, vector[p] // _FINE_LEVELS)
        lower = fitting if fitting >= 0 else vector[p] - step
        cost += w.difference(vector, {p: lower})
        vector[p] = lower
    return w.canonical(vector)


def grow(w: Wiring, vector: Vector, limit: int, rng: np.random.Generator) -> Vector:
    """Raise variables, in random order and each to a random level that fits, until no single raise fits ``limit``."""
    vector = list(vector)
    cost = w.cost(vector)
    before = -1
    while before < cost:
        before = cost
        pairs = [change for change in wakes(w, vector) if len(change) > 1]
        for n in rng.permutation(len(vector) + len(pairs)).tolist():
            change = _raise(w, vector, n, limit - cost, rng) if n < len(vector) else pairs[n - len(vector)]
            change = {p: level for p, level in change.items() if level > vector[p]}  # a partner may be awake by now
            difference = w.difference(vector, change)
            if 0 < difference <= limit - cost:
                cost += difference
                for p, level in change.items():
                    vector[p] = level
    return vector


def _raise(w: Wiring, vector: Vector, p: int, room: int, rng: np.random.Generator) -> Change:
    """Return a random higher level for variable ``p`` that costs at most ``room`` more; no change if there is none."""
    highest = w.highest(vector, p, room)
    return {p: int(rng.integers(vector[p] + 1, highest + 1))} if highest > vector[p] else {}


def wake_one(w: Wiring, vector: Vector, limit: int, rng: np.random.Generator) -> Vector:
    """Return ``vector`` with one random idle module added at its smallest size, among those that fit ``limit``."""
    room = limit - w.cost(vector)
    fitting = [change for change in wakes(w, vector) if w.difference(vector, change) <= room]
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

    A variable at 0 wakes alone where raising it adds to the plan: its switch is on, or its size is there. Where neither
    the size variable nor the switch of a term would add anything alone, the two wake together.
    """
    alone = [level == 0 and w.difference(vector, {p: 1}) > 0 for p, level in enumerate(vector)]
    yield from ({p: 1} for p, wakes_alone in enumerate(alone) if wakes_alone)
    for term in w.terms:
        both = () if term.switch is None else (term.size, term.switch)
        if both and not any(vector[p] or alone[p] for p in both):
            yield dict.fromkeys(both, 1)
