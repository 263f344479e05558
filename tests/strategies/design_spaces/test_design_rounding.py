from itertools import product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftscout.strategies.design_spaces.rounding import Coin, Dial, fill, proportional, whole_sizes

bounds = st.lists(
    st.tuples(st.floats(0.1, 10), st.integers(1, 50), st.integers(0, 500)).map(lambda t: (t[0], t[1], t[1] + t[2])),
    min_size=1,
    max_size=8,
)


@given(bounds=bounds, total=st.floats(0, 5000))
def test_shares_keep_their_bounds_and_sum_to_the_total_where_that_is_possible(bounds, total):
    weights, least, most = (np.array(column, dtype=float) for column in zip(*bounds, strict=True))
    shares = proportional(total, weights, least, most)
    assert (shares >= least - 1e-9).all()
    assert (shares <= most + 1e-9).all()
    assert shares.sum() == pytest.approx(min(max(total, least.sum()), most.sum()), rel=1e-9)


@given(bounds=bounds, total=st.floats(0, 5000))
def test_shares_within_their_bounds_are_proportional_to_the_weights(bounds, total):
    weights, least, most = (np.array(column, dtype=float) for column in zip(*bounds, strict=True))
    shares = proportional(total, weights, least, most)
    inside = (shares > least + 1e-6) & (shares < most - 1e-6)
    levels = shares[inside] / weights[inside]
    assert np.ptp(levels) <= 1e-6 * levels.max() if inside.any() else True


def test_what_one_cannot_take_goes_to_the_others():
    assert proportional(100, [1, 1, 1], [0, 0, 0], [10, 1000, 1000]).tolist() == [10, 45, 45]


def test_room_is_made_for_what_one_needs():
    assert proportional(100, [1, 1, 1], [60, 0, 0], [1000, 1000, 1000]).tolist() == [60, 20, 20]


coins = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=4)


@given(coins=coins, amount=st.integers(0, 150))
def test_the_coins_spent_are_the_fullest_possible_combination(coins, amount):
    chosen = [Coin(*coin) for coin in coins]
    counts = fill(amount, chosen)
    assert all(0 <= n <= coin.available for n, coin in zip(counts, chosen, strict=True))
    reachable = (
        sum(n * coin.unit for n, coin in zip(ns, chosen, strict=True))
        for ns in product(*(range(coin.available + 1) for coin in chosen))
    )
    best = max(total for total in reachable if total <= amount)
    assert sum(n * coin.unit for n, coin in zip(counts, chosen, strict=True)) == best


def test_of_equal_sums_the_counts_nearest_to_those_wanted_are_taken():
    coins = [Coin(10, 6, 2), Coin(5, 12, 8)]
    assert fill(60, coins) == (2, 8)
    assert fill(60, [Coin(10, 6, 6), Coin(5, 12, 0)]) == (6, 0)


def test_large_units_are_counted_by_their_common_divisor():
    assert fill(10**9, [Coin(10**6, 900, 0), Coin(15 * 10**5, 100, 100)]) == (850, 100)


dials = st.lists(
    st.tuples(st.integers(1, 40), st.integers(1, 30), st.floats(0, 1), st.integers(0, 5)).map(
        lambda t: Dial(t[0], t[1], 1 + t[2] * (t[1] - 1), float(t[3]))
    ),
    min_size=1,
    max_size=10,
)


@given(dials=dials, spare=st.integers(0, 60), tolerance=st.integers(0, 20))
def test_whole_sizes_are_never_above_the_amount_and_near_their_ideals(dials, spare, tolerance):
    amount = int(sum(dial.unit * dial.ideal for dial in dials)) + spare
    if sum(dial.unit * dial.floor for dial in dials) > amount:
        return
    sizes = whole_sizes(dials, amount, tolerance)
    assert sum(size * dial.unit for size, dial in zip(sizes, dials, strict=True)) <= amount
    for size, dial in zip(sizes, dials, strict=True):
        assert 1 <= size <= dial.largest
        assert dial.floor - 1 <= size <= dial.floor + 2


@given(dials=dials, spare=st.integers(0, 60))
def test_what_is_left_is_less_than_the_smallest_step_that_could_be_taken(dials, spare):
    amount = int(sum(dial.unit * dial.ideal for dial in dials)) + spare
    if sum(dial.unit * dial.floor for dial in dials) > amount:
        return
    sizes = whole_sizes(dials, amount, tolerance=0)
    left = amount - sum(size * dial.unit for size, dial in zip(sizes, dials, strict=True))
    steps = [d.unit for d, s in zip(dials, sizes, strict=True) if s < min(d.largest, d.floor + 2)]
    assert not steps or left < min(steps)


@given(
    ideals=st.lists(st.floats(1, 20), min_size=2, max_size=12),
    unit=st.integers(1, 50),
    spare=st.integers(0, 100),
    tolerance=st.sampled_from([0, 10, 10**9]),
)
def test_sizes_of_one_unit_keep_the_order_of_their_ideals(ideals, unit, spare, tolerance):
    ideals = sorted(ideals)
    dials = [Dial(unit, 20, ideal, -n) for n, ideal in enumerate(ideals)]
    sizes = whole_sizes(dials, int(unit * sum(ideals)) + spare + unit, tolerance)
    assert sizes == sorted(sizes)


def test_equal_ideals_are_served_in_their_order():
    dials = [Dial(10, 9, 2.5, order) for order in (3.0, 1.0, 2.0, 0.0)]
    assert whole_sizes(dials, 100, tolerance=0) == [2, 3, 2, 3]


def test_a_finer_combination_is_found_where_the_largest_remainder_leaves_too_much():
    dials = [Dial(7, 30, 10.4, 0), Dial(5, 30, 10.4, 1)]
    assert whole_sizes(dials, 129, tolerance=2) == [11, 10]  # the largest remainder: 127
    assert whole_sizes(dials, 129, tolerance=1) == [12, 9]  # 84 + 45, all of it


def test_an_amount_below_the_least_sizes_is_refused():
    with pytest.raises(ValueError, match="cost 12 parameters, only 11"):
        whole_sizes([Dial(12, 5, 1.0, 0)], 11, 0)


def test_nothing_to_set_is_no_error():
    assert whole_sizes([], 100, 0) == []
    assert fill(10, []) == ()
