from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq

from peftscout.errors import BudgetError
from peftscout.strategies.shifted_sigmoid import (
    concrete,
    find_shift,
    probabilities,
    sigmoid,
    through_competition,
    through_concrete,
    through_sigmoid,
)


@st.composite
def gates(draw: st.DrawFn):
    size = draw(st.integers(2, 40))
    alpha = np.array(draw(st.lists(st.floats(-30, 30), min_size=size, max_size=size)))
    n = np.array(draw(st.lists(st.integers(1, 10_000), min_size=size, max_size=size)), dtype=float)
    share = draw(st.floats(0.01, 0.99))
    return alpha, n, n.min() + share * (n.sum() - n.min()) * 0.999, draw(st.sampled_from([0.3, 1.0, 4.0]))


@given(gates())
def test_the_expected_cost_is_the_budget(case) -> None:
    alpha, n, B, beta = case
    assert (n * probabilities(alpha, n, B, beta)).sum() == pytest.approx(B, rel=1e-8)


@given(gates(), st.floats(-10, 10))
def test_the_shift_moves_with_all_alphas_so_that_nothing_changes(case, shift: float) -> None:
    alpha, n, B, beta = case
    assert probabilities(alpha + shift, n, B, beta) == pytest.approx(probabilities(alpha, n, B, beta), abs=1e-6)


@given(gates())
def test_probabilities_keep_the_order_of_the_alphas(case) -> None:
    alpha, n, B, beta = case
    order = np.argsort(alpha)
    assert (np.diff(probabilities(alpha, n, B, beta)[order]) >= 0).all()


def test_the_root_is_that_of_a_library() -> None:
    rng = np.random.default_rng(0)
    alpha, n = rng.standard_normal(50), rng.integers(1, 100, 50).astype(float)
    expected = brentq(lambda z: (n * sigmoid((alpha - z) / 0.7)).sum() - 300.0, -50, 50, xtol=1e-13)
    assert find_shift(alpha, n, 300.0, 0.7) == pytest.approx(expected, abs=1e-9)


def test_rows_are_solved_at_once_as_one_by_one() -> None:
    rng = np.random.default_rng(0)
    alpha, n = 5 * rng.standard_normal((4, 3, 20)), rng.integers(1, 100, 20).astype(float)
    together = find_shift(alpha, n, 200.0)
    assert together.shape == (4, 3)
    assert together[2, 1] == pytest.approx(find_shift(alpha[2, 1], n, 200.0), abs=1e-9)


def test_equal_alphas_are_equal_shares_as_in_the_published_space() -> None:
    # S3Delta-M on T5-large: 102,458 of 1,881,088 parameters
    p = probabilities(np.zeros(916), np.full(916, 1_881_088 / 916), 102_458)
    assert p == pytest.approx(0.0545, abs=5e-5)


@pytest.mark.parametrize(("B", "message"), [(9.0, "cheapest"), (60.0, "nothing to choose"), (1e9, "nothing to choose")])
def test_a_budget_below_the_cheapest_or_above_everything_is_refused(B: float, message: str) -> None:
    with pytest.raises(BudgetError, match=message):
        find_shift(np.zeros(3), np.array([10.0, 20.0, 30.0]), B)


@given(gates())
def test_under_competition_raising_all_gates_alike_gains_nothing(case) -> None:
    alpha, n, B, beta = case
    p = np.clip(probabilities(alpha, n, B, beta), 1e-6, 1)
    # d sum_i p_i / d p_k = 0 for every k
    assert through_competition(p, np.ones_like(p)) == pytest.approx(0.0, abs=1e-9)


def test_the_gradients_are_those_of_finite_differences() -> None:
    rng = np.random.default_rng(1)
    p, upstream, u = rng.uniform(0.1, 0.9, 6), rng.standard_normal(6), rng.uniform(0.1, 0.9, 6)
    total = p.sum()

    def slope(f):
        return np.array([(f(p + d) - f(p - d)) / 2e-6 for d in 1e-6 * np.eye(6)])

    assert through_competition(p, upstream) == pytest.approx(slope(lambda q: (upstream * q).sum() * total / q.sum()))
    assert through_concrete(p, concrete(p, u), upstream) == pytest.approx(
        slope(lambda q: (upstream * concrete(q, u)).sum())
    )
    alpha = np.log(p / (1 - p)) * 2.0
    slopes = [(upstream * (sigmoid((alpha + d) / 2) - sigmoid((alpha - d) / 2))).sum() / 2e-6 for d in 1e-6 * np.eye(6)]
    assert through_sigmoid(p, upstream, 2.0) == pytest.approx(np.array(slopes), abs=1e-6)


def test_concrete_samples_are_above_one_half_as_often_as_the_probability_says() -> None:
    u = np.random.default_rng(0).random(20_000)
    for p in (0.05, 0.5, 0.9):
        assert (concrete(np.full(20_000, p), u) > 0.5).mean() == pytest.approx(p, abs=0.01)


def test_probabilities_of_zero_and_one_stay_finite() -> None:
    p = np.array([0.0, 1.0])
    s = concrete(p, np.array([0.5, 0.5]))
    assert s == pytest.approx([0.0, 1.0], abs=1e-8)
    assert np.isfinite(through_concrete(p, s, np.ones(2))).all()
