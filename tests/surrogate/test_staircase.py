import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftscout.surrogate.staircase import Reference, Staircase, front, hypervolume

REFERENCE = Reference(cost=6.0, score=0.5)
points = st.lists(st.tuples(st.floats(2.0, 7.0), st.floats(0.2, 1.0)), max_size=12)


def arrays(pairs):
    return np.array([c for c, _ in pairs], dtype=float), np.array([s for _, s in pairs], dtype=float)


def test_three_points_make_the_area_that_is_counted_by_hand():
    """Signs: cheaper is better to the left, higher is better upwards."""
    costs, scores = np.array([3.0, 4.0, 5.0]), np.array([0.6, 0.55, 0.8])
    staircase = Staircase.of(costs, scores, REFERENCE)
    assert staircase.edges.tolist() == [-np.inf, 3.0, 5.0, 6.0]
    assert staircase.levels.tolist() == [0.5, 0.6, 0.8]
    assert staircase.area() == pytest.approx(2 * 0.1 + 1 * 0.3)


def test_without_a_point_there_is_the_floor_and_no_area():
    staircase = Staircase.of(np.empty(0), np.empty(0), REFERENCE)
    assert staircase.area() == 0.0
    assert staircase(np.array([1.0, 5.0])).tolist() == [0.5, 0.5]


def test_a_single_point_is_a_front():
    assert Staircase.of(np.array([4.0]), np.array([0.9]), REFERENCE).area() == pytest.approx(2 * 0.4)


def test_points_at_the_reference_or_below_the_floor_add_nothing():
    costs, scores = np.array([6.0, 7.0, 3.0]), np.array([0.9, 0.9, 0.5])
    assert hypervolume(costs, scores, REFERENCE) == 0.0


@settings(max_examples=60, deadline=None)
@given(points)
def test_the_area_is_the_riemann_sum_of_the_best_score_seen_so_far(pairs):
    costs, scores = arrays(pairs)
    grid = np.linspace(1.5, 6.0, 20_001)[:-1] + 4.5 / 40_000
    best = np.full(len(grid), 0.5)
    for c, s in pairs:
        best = np.where(grid >= c, np.maximum(best, s), best)
    assert hypervolume(costs, scores, REFERENCE) == pytest.approx(np.sum(best - 0.5) * 4.5 / 20_000, abs=3e-3)
    np.testing.assert_allclose(Staircase.of(costs, scores, REFERENCE)(grid), best)


@settings(max_examples=60, deadline=None)
@given(points, st.tuples(st.floats(2.0, 7.0), st.floats(0.2, 1.0)))
def test_one_more_point_never_lowers_the_hypervolume(pairs, new):
    before = hypervolume(*arrays(pairs), REFERENCE)
    assert hypervolume(*arrays([*pairs, new]), REFERENCE) >= before - 1e-12


@settings(max_examples=60, deadline=None)
@given(points)
def test_the_front_is_what_no_other_point_beats_on_both(pairs):
    costs, scores = arrays(pairs)
    chosen = front(costs, scores)
    for i in chosen:
        better = (costs <= costs[i]) & (scores >= scores[i]) & ((costs < costs[i]) | (scores > scores[i]))
        assert not better.any()
    assert hypervolume(costs[chosen], scores[chosen], REFERENCE) == pytest.approx(hypervolume(costs, scores, REFERENCE))
    assert np.all(np.diff(costs[chosen]) > 0)
    assert np.all(np.diff(scores[chosen]) > 0)


def test_of_two_equal_points_the_first_is_on_the_front():
    assert front(np.array([3.0, 3.0]), np.array([0.7, 0.7])) == [0]


def test_widths_right_of_a_cost_add_up_to_the_way_to_the_reference():
    staircase = Staircase.of(np.array([3.0, 5.0]), np.array([0.6, 0.8]), REFERENCE)
    costs = np.array([2.0, 3.0, 4.5, 5.5, 6.0, 9.0])
    np.testing.assert_allclose(staircase.widths(costs).sum(axis=1), np.maximum(6.0 - costs, 0))


def test_the_reference_cannot_be_changed():
    with pytest.raises(AttributeError):
        REFERENCE.score = 0.0  # type: ignore[misc]
