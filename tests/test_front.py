from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from peftscout.front import front_of

POINTS = st.lists(st.tuples(st.integers(1, 9), st.integers(0, 9)), max_size=30)


def beats(a, b):
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_the_front_holds_exactly_the_points_that_no_other_beats(points):
    front = [points[i] for i in front_of([c for c, _ in points], [s for _, s in points])]
    assert set(front) == {p for p in points if not any(beats(q, p) for q in points)}
    assert len(front) == len(set(front))


@given(POINTS)
def test_the_front_rises_in_cost_and_score(points):
    front = [points[i] for i in front_of([c for c, _ in points], [s for _, s in points])]
    assert all(a[0] < b[0] and a[1] < b[1] for a, b in pairwise(front))


def test_of_equal_points_the_first_stays():
    assert front_of([2, 2, 1], [5, 5, 1]) == [2, 0]


def test_an_empty_list_has_an_empty_front():
    assert front_of([], []) == []
