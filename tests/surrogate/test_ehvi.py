import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from peftscout.surrogate.ehvi import (
    ehvi,
    expected_improvement,
    log_ehvi,
    log_ehvi_bound,
    log_expected_improvement,
    mean_log,
)
from peftscout.surrogate.staircase import Reference, Staircase, hypervolume

REFERENCE = Reference(cost=6.0, score=0.5)
seeds = st.integers(0, 100_000)


def a_front(seed: int, n: int = 6) -> tuple[np.ndarray, np.ndarray, Staircase]:
    rng = np.random.default_rng(seed)
    costs, scores = rng.uniform(3, 6.3, n), rng.uniform(0.4, 0.9, n)
    return costs, scores, Staircase.of(costs, scores, REFERENCE)


def by_brute_force(mean, std, cost, costs, scores) -> float:
    """Gauss-Hermite is no use at the kinks: a fine trapezoid over f of the hypervolume that a point (cost, f) adds."""
    before = hypervolume(costs, scores, REFERENCE)
    f = np.linspace(mean - 9 * std, mean + 9 * std, 4001)
    gains = [hypervolume(np.append(costs, cost), np.append(scores, v), REFERENCE) - before for v in f]
    return float(np.trapezoid(np.array(gains) * norm.pdf(f, mean, std), f))


@pytest.mark.parametrize("seed", range(8))
def test_the_closed_form_equals_brute_force_integration(seed):
    costs, scores, staircase = a_front(seed)
    rng = np.random.default_rng(seed + 1000)
    mean, std, cost = rng.uniform(0.5, 0.9), rng.uniform(0.02, 0.2), rng.uniform(2.5, 5.9)
    closed = ehvi(np.array([mean]), np.array([std]), np.array([cost]), staircase)[0]
    assert closed == pytest.approx(by_brute_force(mean, std, cost, costs, scores), rel=1e-4, abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.0, 1.2), st.floats(0.0, 0.5), st.floats(1.0, 8.0))
def test_ehvi_is_never_negative_and_zero_beyond_the_reference(seed, mean, std, cost):
    _, _, staircase = a_front(seed)
    value = ehvi(np.array([mean]), np.array([std]), np.array([cost]), staircase)[0]
    assert value >= 0.0
    if cost >= REFERENCE.cost:
        assert value == 0.0
        assert log_ehvi(np.array([mean]), np.array([std]), np.array([cost]), staircase)[0] == -np.inf


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.0, 0.5))
def test_ehvi_grows_with_the_mean_and_with_the_uncertainty_and_falls_with_the_cost(seed, std):
    _, _, staircase = a_front(seed)
    means, ones = np.linspace(0.2, 1.2, 60), np.ones(60)
    assert np.all(np.diff(ehvi(means, std * ones, 4.0 * ones, staircase)) >= -1e-15)
    assert np.all(np.diff(ehvi(0.6 * ones, np.linspace(0.0, 0.5, 60), 4.0 * ones, staircase)) >= -1e-15)
    assert np.all(np.diff(ehvi(0.6 * ones, (std + 0.01) * ones, np.linspace(2, 6.5, 60), staircase)) <= 1e-15)


def test_a_known_score_is_worth_the_hypervolume_it_adds():
    costs, scores, staircase = a_front(3)
    added = hypervolume(np.append(costs, 3.5), np.append(scores, 0.85), REFERENCE) - staircase.area()
    assert ehvi(np.array([0.85]), np.array([0.0]), np.array([3.5]), staircase)[0] == pytest.approx(added)


@settings(max_examples=50, deadline=None)
@given(seeds, st.floats(0.3, 1.0), st.floats(0.01, 0.4), st.floats(2.0, 5.99))
def test_the_logarithm_is_that_of_the_plain_value(seed, mean, std, cost):
    _, _, staircase = a_front(seed)
    at = (np.array([mean]), np.array([std]), np.array([cost]), staircase)
    plain = ehvi(*at)[0]
    if plain > 1e-9:  # below, the plain value is what cancels
        assert log_ehvi(*at)[0] == pytest.approx(math.log(plain), abs=1e-5)
    else:
        assert log_ehvi(*at)[0] < math.log(1.1e-9)


@settings(max_examples=80, deadline=None)
@given(seeds, st.floats(-2.0, 1.5), st.floats(0.001, 0.4), st.floats(0.0, 0.3), st.floats(2.0, 6.5))
def test_the_bound_is_never_below_the_value_even_with_a_bound_of_the_deviation(seed, mean, std, more, cost):
    _, _, staircase = a_front(seed)
    value = log_ehvi(np.array([mean]), np.array([std]), np.array([cost]), staircase)[0]
    bound = log_ehvi_bound(np.array([mean]), np.array([std + more]), np.array([cost]), staircase)[0]
    assert bound >= value - 1e-9


@pytest.mark.parametrize("z", [5.0, 0.0, -0.999, -1.001, -5.0, -38.0, -290.0, -310.0, -1e5])
def test_log_expected_improvement_is_exact_where_the_value_underflows(z):
    mpmath = pytest.importorskip("mpmath", reason="arbitrary precision is the truth here")
    with mpmath.mp.workdps(60):
        truth = float(mpmath.log(mpmath.npdf(z) + mpmath.mpf(z) * mpmath.erfc(-mpmath.mpf(z) / mpmath.sqrt(2)) / 2))
    assert log_expected_improvement(np.array([z]), np.ones(1), 0.0)[0] == pytest.approx(truth, rel=1e-9, abs=1e-9)


def test_log_expected_improvement_rises_through_all_its_branches():
    z = np.concatenate([-np.geomspace(1e6, 1e-3, 4000), np.geomspace(1e-3, 50, 500)])
    values = log_expected_improvement(z, np.ones_like(z), 0.0)
    assert np.all(np.isfinite(values))
    assert np.all(np.diff(values) > 0)


def test_expected_improvement_of_a_known_value_is_the_improvement():
    improvement = expected_improvement(np.array([0.7, 0.3]), np.zeros(2), 0.5)
    np.testing.assert_allclose(improvement, [0.2, 0.0], atol=1e-15)


def test_points_far_from_the_front_keep_their_order_in_logarithms():
    _, _, staircase = a_front(1)
    means, ones = np.linspace(-9.0, -3.0, 20), np.ones(20)
    assert np.all(ehvi(means, 0.01 * ones, 4.0 * ones, staircase) == 0.0)
    assert np.all(np.diff(log_ehvi(means, 0.01 * ones, 4.0 * ones, staircase)) > 0)


def test_the_mean_of_logarithms_is_the_logarithm_of_the_mean():
    parts = [np.array([-1000.0, 0.0, -np.inf]), np.array([-1001.0, 1.0, -np.inf])]
    expected = [-1000 + math.log((1 + math.exp(-1)) / 2), math.log((1 + math.e) / 2), -np.inf]
    np.testing.assert_allclose(mean_log(parts), expected)
    np.testing.assert_allclose(mean_log(parts[:1]), parts[0])
