import itertools

import numpy as np
import pytest

from peftscout.plan import Budget
from peftscout.strategies.autopeft_design import cost_limit, limited_draw, spread_design
from peftscout.surrogate.features import Encoder
from small_spaces import autopeft_space, layerwise_space

ENCODER = Encoder(layerwise_space(6))
CHEAPEST = ENCODER.space.cheapest().cost(ENCODER.space.sites)
DEAREST = ENCODER.space.dearest().cost(ENCODER.space.sites)


def design(n: int, budget: int = DEAREST, seed: int = 0, first=(), encoder: Encoder = ENCODER) -> np.ndarray:
    return np.stack(list(itertools.islice(spread_design(encoder, Budget(budget, str(budget)), seed, first), n)))


def test_a_limited_draw_uses_its_limit_and_does_not_exceed_it():
    rng = np.random.default_rng(0)
    costs = [int(ENCODER.costs(limited_draw(ENCODER, 900, rng)[None])[0]) for _ in range(30)]
    assert max(costs) <= 900
    assert np.mean(costs) > 700


@pytest.mark.parametrize("position", [0.0, 0.3, 1.0])
def test_cost_limits_lie_on_the_log_axis_between_cheapest_and_budget(position):
    assert cost_limit(position, 100, 10_000) == round(100 * 100**position)


def test_a_budget_that_only_the_cheapest_plan_fits_has_one_limit():
    assert {cost_limit(p, 100, 100) for p in (0.0, 0.5, 1.0)} == {100}


def test_the_design_reaches_every_third_of_the_log_cost_axis():
    costs = np.log(ENCODER.costs(design(24)).astype(float))
    position = (costs - np.log(CHEAPEST)) / (np.log(DEAREST) - np.log(CHEAPEST))
    assert np.all(np.histogram(position, bins=[0, 1 / 3, 2 / 3, 1.001])[0] >= 5)


def test_the_first_point_of_the_design_uses_the_whole_budget():
    assert ENCODER.costs(design(1, budget=3000))[0] > 2000


def test_the_design_keeps_to_the_budget_and_is_a_function_of_the_seed():
    first, again, other = design(12, 2000, 3), design(12, 2000, 3), design(12, 2000, 4)
    assert ENCODER.costs(first).max() <= 2000
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_the_design_is_further_apart_than_single_draws():
    def nearest(points: np.ndarray) -> float:
        X = ENCODER(points)
        distances = np.sum((X[:, None] - X[None]) ** 2, axis=2) + 1e9 * np.eye(len(X))
        return float(distances.min(axis=1).mean())

    rng = np.random.default_rng(0)
    limits = [cost_limit(1.0 - (n * 0.618034) % 1.0, CHEAPEST, DEAREST) for n in range(20)]
    draws = np.stack([limited_draw(ENCODER, limit, rng) for limit in limits])
    assert nearest(design(20)) > nearest(draws)


def test_given_points_come_first_and_in_their_order():
    given = design(3, seed=9)
    assert np.array_equal(design(6, first=list(given))[:3], given)


def test_the_design_draws_every_learning_rate():
    encoder = Encoder(autopeft_space(), (0.3, 1.0, 3.0))
    assert set(design(20, 2000, encoder=encoder)[:, -1]) == {0, 1, 2}
