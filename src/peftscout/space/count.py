"""Exact count of the plans of a space, as a big integer. Pure combinatorics."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import product
from math import prod

from peftscout.errors import SpaceError
from peftscout.space.moves import Wiring

_LARGEST_SIDE = 12
"""Inclusion-exclusion over n classes has 3^n terms: 12 take a few seconds."""

Partners = Mapping[int, frozenset[int]]
"""For each node of one side of a bipartite graph, its partners on the other."""


@dataclass(frozen=True, slots=True)
class _Class:
    """Nodes of one side that have exactly the same partners, so that only "all at 0" or not matters.

    Attributes:
        partners: of each member.
        free: members may be above 0 without a partner that is.
        weight: number of ways in which not all members are at 0.
    """

    partners: frozenset[int]
    free: bool
    weight: int


def count_live(w: Wiring) -> int:
    """Return the number of canonical vectors, the empty one included.

    A vector is canonical when every size variable above 0 has a switch that is on (or a term that needs none) and every
    switch that is on has a size variable above 0. Components that share no variable multiply; see `_count_component`.

    Raises:
        SpaceError: when a component stays larger than 12 classes of variables on both sides.
    """
    switches_of: dict[int, set[int]] = {}
    for term in w.terms:
        if term.switch is not None:
            switches_of.setdefault(term.size, set()).add(term.switch)
    free = {term.size for term in w.terms if term.switch is None}
    independent = prod(w.levels[size] for size in free - set(switches_of))
    return independent * prod(
        _count_component({s: frozenset(switches_of[s]) for s in sizes}, free, w.levels)
        for sizes in _components(switches_of)
    )


def _components(switches_of: Mapping[int, set[int]]) -> Iterable[list[int]]:
    """Return the size variables of each component that shares no switch with the others."""
    components: list[tuple[list[int], set[int]]] = []
    for size, switches in switches_of.items():
        joined = [c for c in components if c[1] & switches]
        apart = [c for c in components if not c[1] & switches]
        members = [size, *(s for c in joined for s in c[0])]
        components = [*apart, (members, switches.union(*(c[1] for c in joined)))]
    return [sizes for sizes, _ in components]


def _count_component(switches_of: Partners, free: set[int], levels: tuple[int, ...]) -> int:
    """Count the canonical vectors of one component by inclusion-exclusion over its smaller side.

    S and T are the two sides (classes of size variables, classes of switches), x their weights, N(A) the partners of A.
    Let A be the set of classes of S that are not at 0. Of T, only partners of A and free classes may then be above 0,
    and every class of A that is not free must have a partner that is. With B the classes of A left without one::

        sum_A  prod_{a in A} x_a  sum_{B subset of A, none free} (-1)^|B|  prod_{t in (N(A) + free T) - N(B)} (1 + x_t)
    """
    sizes = _classes(switches_of, {s: levels[s] - 1 for s in switches_of}, free)
    sizes_of = {
        switch: frozenset(n for n, c in enumerate(sizes) if switch in c.partners)
        for switch in frozenset().union(*switches_of.values())
    }
    switches = _classes(sizes_of, dict.fromkeys(sizes_of, 1), set())
    links = [(s, t) for t, switch in enumerate(switches) for s in switch.partners]
    if len(sizes) <= len(switches):
        return _inclusion_exclusion(sizes, switches, links)
    return _inclusion_exclusion(switches, sizes, [(t, s) for s, t in links])


def _classes(partners: Partners, weights: Mapping[int, int], free: set[int]) -> list[_Class]:
    """Merge the nodes that have the same partners and the same freedom."""
    ways: dict[tuple[frozenset[int], bool], int] = {}
    for node, linked in partners.items():
        key = linked, node in free
        ways[key] = ways.get(key, 1) * (1 + weights[node])
    return [_Class(linked, is_free, n - 1) for (linked, is_free), n in ways.items()]


def _inclusion_exclusion(S: list[_Class], T: list[_Class], links: list[tuple[int, int]]) -> int:
    """Evaluate the sum of `_count_component`; ``links`` are pairs of positions in ``S`` and ``T``."""
    if len(S) > _LARGEST_SIDE:
        raise SpaceError(
            f"this space cannot be counted: {len(S)} classes of size variables and switches are tied together, "
            f"more than {_LARGEST_SIDE}; use fewer overlapping ties"
        )
    N = [{t for s, t in links if s == a} for a in range(len(S))]
    free_T = {t for t, c in enumerate(T) if c.free}
    out, covered, uncovered = range(3)
    total = 0
    for state in product((out, covered, uncovered), repeat=len(S)):
        A = [a for a, x in enumerate(state) if x != out]
        B = [b for b, x in enumerate(state) if x == uncovered]
        if any(S[b].free for b in B):
            continue
        possible = free_T.union(*(N[a] for a in A)).difference(*(N[b] for b in B))
        total += (-1) ** len(B) * prod(S[a].weight for a in A) * prod(1 + T[t].weight for t in possible)
    return total
