from collections import Counter
from itertools import product
from math import comb

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from peftscout.errors import SpaceError
from peftscout.strategies.design_spaces.compositions import (
    Compositions,
    Pattern,
    canonical,
    compositions,
    pattern,
)

NAMES = ("any", "increasing", "uniform", "decreasing", "spindle", "bottleneck")

COUNTS = {  # depth: number of compositions into 4 groups, in the order of NAMES (dossier, section 1.1)
    12: (165, 2, 1, 2, 4, 10),
    24: (1771, 47, 1, 47, 19, 55),
    28: (2925, 84, 1, 84, 26, 78),
    32: (4495, 136, 1, 136, 35, 105),
    36: (6545, 206, 1, 206, 46, 136),
    48: (16215, 551, 1, 551, 85, 253),
}


@pytest.mark.parametrize("depth", COUNTS)
def test_the_numbers_of_compositions_are_those_of_the_dossier(depth):
    assert tuple(len(Compositions(pattern(name, 4), depth)) for name in NAMES) == COUNTS[depth]


def test_the_spindles_of_12_layers_are_these_four():
    assert list(Compositions(pattern("spindle", 4), 12)) == [(1, 4, 4, 3), (1, 5, 5, 1), (2, 4, 4, 2), (3, 4, 4, 1)]


def every_composition(depth: int, groups: int) -> list[tuple[int, ...]]:
    return [sizes for sizes in product(range(1, depth + 1), repeat=groups) if sum(sizes) == depth]


@given(depth=st.integers(1, 11), groups=st.integers(1, 5), name=st.sampled_from(NAMES))
def test_compositions_are_exactly_those_that_the_pattern_admits_in_order(depth, groups, name):
    try:
        p = pattern(name, groups)
    except SpaceError:
        assert groups < 3
        return
    assert list(Compositions(p, depth)) == [sizes for sizes in every_composition(depth, groups) if p.admits(sizes)]


@given(depth=st.integers(1, 60), name=st.sampled_from(NAMES), groups=st.integers(3, 6), at=st.integers(0, 10**9))
def test_any_composition_can_be_had_by_its_index_without_listing(depth, name, groups, at):
    p = pattern(name, groups)
    every = Compositions(p, depth)
    if not len(every):
        return
    sizes = every[at % len(every)]
    assert sum(sizes) == depth
    assert p.admits(sizes)


def test_indices_outside_are_refused_and_negative_ones_count_from_the_end():
    every = Compositions(pattern("increasing", 4), 12)
    assert every[-1] == every[1] == (1, 2, 4, 5)
    assert every[0:2] == [(1, 2, 3, 6), (1, 2, 4, 5)]
    with pytest.raises(IndexError):
        every[2]


def test_a_pattern_over_many_layers_is_counted_and_indexed_without_being_listed():
    every = Compositions(pattern("any", 8), 126)
    assert len(every) == comb(125, 7)  # 88 thousand million
    assert every[0] == (1, 1, 1, 1, 1, 1, 1, 119)
    assert every[-1] == (119, 1, 1, 1, 1, 1, 1, 1)
    assert sum(every[len(every) // 2]) == 126


@pytest.mark.parametrize("depth", range(4, 30))
def test_uniform_is_near_uniform_where_the_depth_is_not_divisible(depth):
    found = list(Compositions(pattern("uniform", 4), depth))
    assert all(max(sizes) - min(sizes) == (depth % 4 > 0) for sizes in found)
    assert len(found) == {0: 1, 1: 4, 2: 6, 3: 4}[depth % 4]


def test_uniform_admits_no_difference_where_the_depth_is_divisible():
    assert not pattern("uniform", 4).admits((2, 3, 4, 3))
    assert pattern("uniform", 4).admits((3, 3, 3, 3))
    assert pattern("uniform", 4).admits((3, 4, 3, 3))
    assert not pattern("uniform", 4).admits((3, 5, 3, 2))


@pytest.mark.parametrize(("depth", "sizes"), [(12, (2, 4, 4, 2)), (24, (4, 8, 8, 4)), (32, (5, 11, 11, 5))])
def test_the_canonical_spindles_are_those_of_the_dossier(depth, sizes):
    assert canonical(pattern("spindle", 4), depth) == sizes


@given(depth=st.integers(8, 60), name=st.sampled_from(NAMES[1:]))
def test_the_canonical_structure_obeys_the_pattern_wherever_one_does(depth, name):
    p = pattern(name, 4)
    sizes = canonical(p, depth)
    assert sum(sizes) == depth
    assert p.admits(sizes) or not len(Compositions(p, depth))


def test_the_spare_layer_of_an_odd_depth_goes_to_the_last_group():
    assert canonical(pattern("spindle", 4), 11) == (1, 4, 4, 2)
    assert canonical(pattern("uniform", 4), 13) == (3, 3, 3, 4)


@pytest.mark.parametrize(
    ("depth", "sizes"), [(1, (0, 0, 1, 0)), (2, (0, 1, 1, 0)), (3, (0, 1, 1, 1)), (5, (1, 1, 2, 1))]
)
def test_in_a_model_too_shallow_for_the_pattern_the_shares_are_rounded(depth, sizes):
    assert not len(Compositions(pattern("spindle", 4), depth))
    assert canonical(pattern("spindle", 4), depth) == sizes


def test_a_depth_without_a_structure_is_refused_in_words():
    with pytest.raises(SpaceError, match=r"'spindle': 7 layers cannot be cut into 4 groups with N1 < N2 = N3 > N4"):
        compositions(pattern("spindle", 4), 7)


def test_an_unknown_pattern_is_refused_with_the_nearest():
    with pytest.raises(SpaceError, match="no grouping pattern 'spindel'.*did you mean 'spindle'"):
        pattern("spindel", 4)


def test_a_pattern_that_needs_more_groups_is_refused():
    with pytest.raises(SpaceError, match="'spindle' needs at least 3 groups, not 2"):
        pattern("spindle", 2)


@pytest.mark.parametrize("groups", [3, 4, 5, 7])
def test_patterns_exist_for_any_number_of_groups(groups):
    for name in NAMES:
        p = pattern(name, groups)
        assert p.groups == len(p.shares) == groups
        found = Compositions(p, 6 * groups)
        assert len(found) >= 1
        assert all(p.admits(sizes) for sizes in found[:50])


def test_a_users_pattern_is_a_chain_of_relations():
    hourglass = Pattern("hourglass", (">", "<"), (2, 1, 2))
    assert list(Compositions(hourglass, 6)) == [(2, 1, 3), (3, 1, 2)]
    assert canonical(hourglass, 10) == (4, 2, 4)


@pytest.mark.parametrize("name", ["spindle", "bottleneck", "increasing"])
def test_a_uniform_index_is_a_uniform_draw(name):
    """Chi-square over all structures; the seed is fixed, so that this passes or fails for good."""
    every = Compositions(pattern(name, 4), 24)
    draws = Counter(every[int(i)] for i in np.random.default_rng(0).integers(len(every), size=200 * len(every)))
    assert set(draws) == set(every)
    assert chisquare([draws[sizes] for sizes in every]).pvalue > 0.01
