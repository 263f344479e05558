"""What must hold for every space, checked on random small ones against brute force."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from fake_spaces import all_plans, all_vectors, small_spaces
from peftscout.errors import SpaceError
from peftscout.plan import Budget, Plan
from peftscout.space import Space, moves

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0, 1.2)


def _budget(space: Space, share: float) -> Budget:
    """A budget between nothing and more than everything."""
    parameters = max(1, int(share * space.dearest().cost(space.sites)))
    return Budget(parameters, str(parameters))


def _affordable(space: Space, share: float) -> Budget:
    budget = _budget(space, share)
    assume(space.cheapest().cost(space.sites) in budget)
    return budget


@given(small_spaces())
def test_the_cardinality_is_the_number_of_plans_counted_one_by_one(space: Space) -> None:
    assert space.cardinality() == len(all_plans(space))


@given(small_spaces())
def test_encoding_picks_the_lowest_vector_of_a_plan_and_decoding_undoes_it(space: Space) -> None:
    for vector in all_vectors(space):
        plan = space.decode(vector)
        canonical = space.encode(plan)
        assert space.decode(canonical) == plan
        assert (canonical <= vector).all()
        assert ((canonical == vector) | (canonical == 0)).all()


@given(small_spaces())
def test_the_cost_of_every_vector_is_the_cost_of_its_plan(space: Space) -> None:
    vectors = all_vectors(space)
    costs = space.costs(vectors)
    assert costs.dtype == np.int64
    assert costs.tolist() == [space.decode(vector).cost(space.sites) for vector in vectors]


@given(small_spaces())
def test_the_cheapest_and_the_dearest_plan_bound_all_others(space: Space) -> None:
    costs = [plan.cost(space.sites) for plan in all_plans(space)]
    assert space.cheapest().cost(space.sites) == min(costs)
    assert space.dearest().cost(space.sites) == max(costs)


@given(small_spaces(), shares, seeds)
def test_a_plan_drawn_within_a_budget_is_in_the_space_and_uses_the_budget_up(
    space: Space, share: float, seed: int
) -> None:
    budget = _affordable(space, share)
    plan = space.sample_within(budget, np.random.default_rng(seed))
    cost = plan.cost(space.sites)
    assert 0 < cost <= budget.parameters
    assert space.contains(plan)
    larger = [other for other in space.neighbours(plan) if cost < other.cost(space.sites)]
    assert all(other.cost(space.sites) not in budget for other in larger)


@given(small_spaces(), seeds, st.integers(0, 1))
def test_growing_and_shrinking_keep_to_a_limit_that_is_only_just_missed(space: Space, seed: int, less: int) -> None:
    wiring = space._wiring
    rng = np.random.default_rng(seed)
    limit = space.sample(rng).cost(space.sites) - less
    for _ in range(5):
        grown = moves.grow(wiring, wiring.empty(), limit, rng)
        shrunk = moves.shrink(wiring, wiring.canonical((space.levels - 1).tolist()), limit, rng)
        for vector in (grown, shrunk):
            assert vector == wiring.canonical(vector)
            assert wiring.cost(vector) == space.decode(vector).cost(space.sites) <= limit


@given(small_spaces(), shares, seeds)
def test_repair_keeps_what_fits_and_makes_the_rest_fit(space: Space, share: float, seed: int) -> None:
    budget = _affordable(space, share)
    rng = np.random.default_rng(seed)
    plan = space.sample(rng)
    repaired = space.repair(plan, budget, rng)
    assert len(repaired) > 0
    assert repaired.cost(space.sites) in budget
    assert space.contains(repaired)
    if plan.cost(space.sites) in budget:
        assert repaired == plan


@given(small_spaces(), shares, seeds)
def test_repair_only_takes_away_unless_nothing_would_be_left(space: Space, share: float, seed: int) -> None:
    budget = _affordable(space, share)
    rng = np.random.default_rng(seed)
    plan = space.sample(rng)
    repaired = space.repair(plan, budget, rng)
    taken_away = all(size <= plan.sizes.get(key, 0) for key, size in repaired.sizes.items())
    smallest = all(repaired.cost(space.sites) <= other.cost(space.sites) for other in space.neighbours(repaired))
    assert taken_away or smallest


@given(small_spaces(), seeds)
def test_a_budget_below_the_cheapest_plan_is_refused_with_its_price(space: Space, seed: int) -> None:
    price = space.cheapest().cost(space.sites)
    budget = Budget(price - 1, "too little")
    rng = np.random.default_rng(seed)
    for attempt in (lambda: space.sample_within(budget, rng), lambda: space.repair(space.dearest(), budget, rng)):
        with pytest.raises(SpaceError, match=f"costs {price:,} parameters"):
            attempt()


@given(small_spaces(), seeds)
def test_a_budget_of_exactly_the_cheapest_plan_is_met(space: Space, seed: int) -> None:
    price = space.cheapest().cost(space.sites)
    assert space.sample_within(Budget(price, "least"), np.random.default_rng(seed)).cost(space.sites) == price


@given(small_spaces(), seeds)
def test_neighbours_are_other_plans_one_level_of_one_variable_away(space: Space, seed: int) -> None:
    plan = space.sample(np.random.default_rng(seed))
    vector = space.encode(plan)
    neighbours = space.neighbours(plan)
    assert len(set(neighbours)) == len(neighbours)
    assert plan not in neighbours
    assert Plan() not in neighbours
    sizes = sum(variable.kind == "size" for variable in space.variables)
    for neighbour in neighbours:
        other = space.encode(neighbour)
        changed = np.flatnonzero(other != vector)
        asleep = [p for p in changed if other[p] == 0]
        woken = [p for p in changed if vector[p] == 0]
        moved = [p for p in changed if p not in asleep and p not in woken]
        # one variable moves by one level; a partner may wake with it, or those that it held may fall asleep
        assert all(abs(int(other[p] - vector[p])) == 1 for p in moved)
        assert all(other[p] == 1 for p in woken)
        assert len(moved) + len(woken) <= 1 or (len(woken) == 2 and {p < sizes for p in woken} == {True, False})
        assert not (asleep and (moved or woken))
        assert not asleep or any(vector[p] == 1 for p in asleep)


@given(small_spaces())
def test_every_single_step_of_every_variable_is_among_the_neighbours(space: Space) -> None:
    for plan in sorted(all_plans(space), key=lambda plan: plan.digest)[:20]:
        vector = space.encode(plan)
        expected = set()
        for position, levels in enumerate(space.levels):
            for step in (-1, 1):
                other = vector.copy()
                other[position] += step
                if 0 <= other[position] < levels:
                    expected.add(space.decode(other))
        assert expected - {plan, Plan()} <= set(space.neighbours(plan))


@given(small_spaces(most_choices=5))
def test_every_plan_can_be_reached_from_every_other_by_single_steps(space: Space) -> None:
    steps = {plan: set(space.neighbours(plan)) for plan in all_plans(space)}
    back: dict[Plan, set[Plan]] = {plan: set() for plan in steps}
    for plan, others in steps.items():
        for other in others:
            back[other].add(plan)
    start = space.cheapest()
    assert _reached(start, steps) == _reached(start, back) == set(steps)


def _reached(start: Plan, steps: dict[Plan, set[Plan]]) -> set[Plan]:
    reached, frontier = {start}, [start]
    while frontier:
        new = steps[frontier.pop()] - reached
        reached |= new
        frontier += new
    return reached


@given(small_spaces(), seeds)
def test_the_same_seed_draws_the_same_plans(space: Space, seed: int) -> None:
    budget = Budget(space.dearest().cost(space.sites) // 2 + space.cheapest().cost(space.sites), "half")

    def draw() -> list[Plan]:
        rng = np.random.default_rng(seed)
        return [
            space.sample(rng),
            space.sample_within(budget, rng),
            space.repair(space.dearest(), budget, rng),
            *map(space.decode, space.sample_vectors(3, rng)),
        ]

    assert draw() == draw()


@given(small_spaces())
def test_a_restricted_space_holds_exactly_the_plans_of_its_choices(space: Space) -> None:
    kept = {c.site for c in space.choices[::2]}
    smaller = space.restrict(lambda choice: choice.site in kept)
    projected = {Plan(tuple(p for p in plan if p.site in kept)) for plan in all_plans(space)}
    assert all_plans(smaller) == projected - {Plan()}
