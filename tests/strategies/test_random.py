from contract import StrategyContract, drive, problem

from peftscout.strategies.random import random_search


class TestRandomSearch(StrategyContract):
    factory = staticmethod(random_search)


def test_random_search_uses_the_budget_rather_than_a_small_part_of_it():
    p = problem(budget=3000, trials=20)
    costs = [r.plan.cost(p.sites) for r in drive(random_search, p)[1:]]
    assert sum(costs) / len(costs) > 0.8 * 3000


def test_random_search_draws_the_learning_rate_from_the_problem():
    scales = {r.lr_scale for r in drive(random_search, problem(trials=30, lr_scales=(0.3, 1.0, 3.0)))}
    assert scales == {0.3, 1.0, 3.0}


def test_different_seeds_draw_different_plans():
    first, second = (drive(random_search, problem(seed=s))[1:] for s in (0, 1))
    assert {r.plan for r in first}.isdisjoint(r.plan for r in second)
