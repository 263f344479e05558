from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftscout.strategies.knapsack import greedy, knapsack, ladder


@st.composite
def problems(draw: st.DrawFn, most_modules: int = 6) -> tuple[np.ndarray, np.ndarray, int]:
    modules, levels = draw(st.integers(1, most_modules)), draw(st.integers(1, 3))
    unit = draw(st.sampled_from([1, 1, 7, 64]))
    cells = modules * levels
    costs = draw(st.lists(st.integers(1, 20), min_size=cells, max_size=cells))
    values = draw(st.lists(st.one_of(st.just(-np.inf), st.floats(-1, 5)), min_size=cells, max_size=cells))
    shape = (modules, levels)
    return unit * np.reshape(costs, shape), np.reshape(values, shape), draw(st.integers(0, 60 * unit))


def by_brute_force(costs: np.ndarray, values: np.ndarray, budget: int) -> float:
    """The largest value of any selection within the budget."""
    best = 0.0
    for levels in product(range(-1, costs.shape[1]), repeat=len(costs)):
        taken = [(m, k) for m, k in enumerate(levels) if k >= 0]
        if sum(costs[t] for t in taken) <= budget:
            best = max(best, sum(values[t] for t in taken))
    return best


@settings(max_examples=150)
@given(problems())
def test_it_is_the_best_of_all_selections(problem) -> None:
    costs, values, budget = problem
    chosen = knapsack(costs, values, budget)
    assert sum(costs[m, k] for m, k in chosen.items()) <= budget
    assert sum(values[m, k] for m, k in chosen.items()) == pytest.approx(by_brute_force(costs, values, budget))


@given(problems(most_modules=30))
def test_it_never_exceeds_the_budget_and_never_takes_what_is_worth_nothing(problem) -> None:
    costs, values, budget = problem
    chosen = knapsack(costs, values, budget)
    assert sum(costs[m, k] for m, k in chosen.items()) <= budget
    assert all(values[m, k] > 0 for m, k in chosen.items())


@settings(max_examples=50)
@given(problems(), st.integers(0, 50))
def test_more_budget_is_never_worse(problem, more: int) -> None:
    costs, values, budget = problem

    def value(bound: int) -> float:
        return sum(values[m, k] for m, k in knapsack(costs, values, bound).items())

    assert value(budget + more) >= value(budget) - 1e-9


@given(problems(most_modules=15))
def test_it_is_at_least_as_good_as_greedy(problem) -> None:
    costs, values, budget = problem
    taken = greedy(costs[:, 0], np.where(values[:, 0] > 0, values[:, 0], -np.inf), budget)
    chosen = knapsack(costs[:, :1], values[:, :1], budget)
    assert sum(values[m, 0] for m in chosen) >= values[taken, 0].sum() - 1e-9


def test_a_case_where_greedy_by_value_is_wrong() -> None:
    costs, values = np.array([[10], [6], [4]]), np.array([[10.0], [9.0], [5.0]])
    assert greedy(costs[:, 0], values[:, 0], 10).tolist() == [True, False, False]
    assert knapsack(costs, values, 10) == {1: 0, 2: 0}


def test_a_smaller_size_is_taken_where_the_larger_does_not_fit() -> None:
    assert knapsack([[4, 8], [4, 8]], [[2.0, 3.0], [2.0, 3.5]], 12) == {0: 0, 1: 1}


def test_among_equal_values_the_cheaper_selection_is_taken() -> None:
    assert knapsack([[9], [3]], [[1.0], [1.0]], 9) == {1: 0}
    assert knapsack([[3, 9]], [[1.0, 1.0]], 9) == {0: 0}


def test_everything_is_taken_where_everything_fits() -> None:
    assert knapsack([[1, 2], [1, 2]], [[1.0, 2.0], [1.0, 2.0]], 10**12) == {0: 1, 1: 1}


def test_nothing_fits_and_nothing_is_worth_anything() -> None:
    assert knapsack([[5]], [[1.0]], 4) == {}
    assert knapsack([[5]], [[0.0]], 9) == {}


def test_a_budget_of_the_size_of_the_published_search_is_quick() -> None:
    rng = np.random.default_rng(0)
    costs = np.concatenate([np.tile([2048, 8192, 16384], (288, 1)), np.tile([3168, 9504, 17952], (96, 1))])
    values = rng.random(costs.shape) * costs
    chosen = knapsack(costs, values, 102_600)
    assert 0.95 * 102_600 < sum(costs[m, k] for m, k in chosen.items()) <= 102_600


@pytest.mark.parametrize(
    ("costs", "values", "message"),
    [
        ([[1]], [[1.0, 2.0]], "shape|must both"),
        ([[0]], [[1.0]], "costs nothing"),
        ([[1]], [[np.nan]], "NaN"),
        ([[1]], [[np.inf]], "infinity"),
    ],
)
def test_what_cannot_be_solved_is_refused(costs, values, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        knapsack(costs, values, 10)


def test_where_the_table_would_not_fit_costs_are_rounded_up_and_the_budget_still_holds(monkeypatch) -> None:
    monkeypatch.setattr("peftscout.strategies.knapsack.MOST_CELLS", 2000)
    rng = np.random.default_rng(0)
    costs, values = rng.integers(1000, 9000, (20, 2)), rng.random((20, 2))
    chosen = knapsack(costs, values, 50_000)
    assert 0.8 * 50_000 < sum(costs[m, k] for m, k in chosen.items()) <= 50_000


@settings(max_examples=80)
@given(problems(most_modules=8), st.lists(st.integers(0, 400), min_size=1, max_size=5))
def test_a_ladder_has_for_each_budget_what_the_knapsack_of_that_budget_has(problem, budgets: list[int]) -> None:
    costs, values, _ = problem
    for chosen, budget in zip(ladder(costs, values, budgets), budgets, strict=True):
        alone = knapsack(costs, values, budget)
        assert sum(costs[m, k] for m, k in chosen.items()) <= budget
        assert sum(values[t] for t in chosen.items()) == pytest.approx(sum(values[t] for t in alone.items()))


@settings(max_examples=80)
@given(problems(most_modules=12), st.lists(st.integers(0, 400), min_size=2, max_size=5))
def test_the_rungs_of_a_ladder_cost_and_are_worth_more_the_higher_they_are(problem, budgets: list[int]) -> None:
    costs, values, _ = problem
    rungs = ladder(costs, values, sorted(budgets))
    for array in (costs, values):
        totals = [sum(array[t] for t in chosen.items()) for chosen in rungs]
        assert all(low <= high + 1e-9 for low, high in pairwise(totals))


def test_a_ladder_without_budgets_or_within_which_nothing_fits_is_empty() -> None:
    assert ladder([[5]], [[1.0]], []) == []
    assert ladder([[5]], [[1.0]], [4, 0, -1]) == [{}, {}, {}]
    assert ladder([[5]], [[1.0]], [4, 5]) == [{}, {0: 0}]


def test_a_quick_ladder_rounds_costs_up_and_keeps_every_budget() -> None:
    rng = np.random.default_rng(0)
    costs, values = rng.integers(1000, 9000, (20, 2)), rng.random((20, 2))
    for chosen, budget in zip(ladder(costs, values, [20_000, 50_000], 2000), [20_000, 50_000], strict=True):
        assert 0.7 * budget < sum(costs[m, k] for m, k in chosen.items()) <= budget


def test_greedy_skips_what_does_not_fit_and_goes_on() -> None:
    assert greedy([5, 9, 4, 1], [4.0, 3.0, 2.0, 1.0], 10).tolist() == [True, False, True, True]


def test_greedy_never_takes_a_score_of_minus_infinity() -> None:
    assert greedy([1, 1], [-np.inf, -5.0], 10).tolist() == [False, True]
