"""Random small spaces with ties and switches, for property tests; and all their vectors, by brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
from hypothesis import assume
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.cost import SIZELESS, ops_at
from peftscout.plan import Plan
from peftscout.space import Choice, Space, Vectors

SITES = fake_sites("encoder_decoder", layers=1)
PLACES = [(site.id, op) for site in SITES.values() for op in ops_at(site) if op != "lowrank_adapter"]
_GRIDS = {"a": (1,), "b": (2, 5), "c": (1, 4, 8)}


@st.composite
def small_spaces(draw: st.DrawFn, most_choices: int = 6) -> Space:
    """A space of up to ``most_choices`` choices, each alone or tied to others by its size or a switch.

    It has at most some hundred vectors, so that brute force is quick.
    """
    places = draw(st.lists(st.sampled_from(PLACES), min_size=1, max_size=most_choices, unique=True))
    choices = []
    for site, op in places:
        variable = "a" if op in SIZELESS else draw(st.sampled_from("abc"))
        name = variable if draw(st.booleans()) else f"{site}:{op}"
        switch = draw(st.sampled_from([None, "x", "y", "z"]))
        choices.append(Choice(site, op, _GRIDS[variable], name, switch))
    space = Space("random", tuple(choices), SITES)
    assume(space.levels.prod() <= 400)
    return space


def all_vectors(space: Space) -> Vectors:
    """Every raw vector of ``space``, ``[n, variables]``."""
    return np.array(list(product(*map(range, space.levels.tolist()))), dtype=np.int64)


def all_plans(space: Space) -> set[Plan]:
    """Every plan of ``space`` that is not empty, by brute force."""
    return {plan for vector in all_vectors(space) if len(plan := space.decode(vector))}
