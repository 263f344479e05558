"""Patterns over site ids, and AutoPEFT's grid."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.errors import SpaceError
from peftscout.space.rules import expand_braces, halvings, matching

SITES = fake_sites("encoder_decoder", layers=12)


@pytest.mark.parametrize(
    ("pattern", "count", "example"),
    [
        ("*", len(SITES), "encoder.final_norm"),
        ("*.attention.q", 24, "decoder.11.attention.q"),
        ("*.cross_attention.*", 48, "decoder.0.cross_attention.o"),
        ("*.ffn", 24, "encoder.3.ffn"),
        ("*.attention.{q,v}", 48, "encoder.0.attention.v"),
        ("{encoder,decoder}.{0..2}.ffn.up", 6, "decoder.2.ffn.up"),
        ("decoder.{9..11}.*", 3 * 16, "decoder.10.ffn_norm"),
        ("encoder.?.attention_norm", 10, "encoder.9.attention_norm"),
        ("encoder.[0-2].ffn.*", 6, "encoder.1.ffn.down"),
        ("*.{attention.{q,k},ffn.{up,down}}", 96, "decoder.5.ffn.down"),
        ("decoder.7.attention.q", 1, "decoder.7.attention.q"),
        ("*.ATTENTION.q", 0, None),
        ("attention", 0, None),
    ],
)
def test_patterns_match_site_ids(pattern: str, count: int, example: str | None) -> None:
    found = matching(pattern, SITES)
    assert len(found) == len(set(found)) == count
    assert example is None or example in found


def test_matches_come_in_model_order() -> None:
    order = list(SITES)
    found = matching("{decoder,encoder}.{11..0}.*", SITES) + matching("{decoder,encoder}.{0..11}.*", SITES)
    assert [order.index(site) for site in found] == sorted(order.index(site) for site in found)


def test_self_attention_is_not_cross_attention() -> None:
    assert not any("cross" in site for site in matching("*.attention*", SITES))


@pytest.mark.parametrize(
    ("pattern", "expanded"),
    [
        ("plain", ["plain"]),
        ("", [""]),
        ("a{b,c}d", ["abd", "acd"]),
        ("{a,b}{c,d}", ["ac", "ad", "bc", "bd"]),
        ("{a,{b,c}d}", ["a", "bd", "cd"]),
        ("{a,}x", ["ax", "x"]),
        ("{a}", ["a"]),
        ("{8..11}", ["8", "9", "10", "11"]),
        ("{5..3}", []),
        ("{a..c}", ["a..c"]),
        ("{0..99999}", ["0..99999"]),
    ],
)
def test_braces_stand_for_alternatives(pattern: str, expanded: list[str]) -> None:
    assert expand_braces(pattern) == expanded


@pytest.mark.parametrize(
    ("pattern", "message"),
    [
        ("a{b", r"here:1: 'a\{b': a '\{' without its '\}'"),
        ("a}b", r"a '\}' without its '\{'"),
        ("{a,{b}", r"a '\{' without its '\}'"),
        ("{0..9999}{a,b}", "more than 10,000 patterns"),
        ("{0..99}" * 3, "more than 10,000 patterns"),
    ],
)
def test_braces_that_cannot_be_read_are_refused_with_the_place(pattern: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        expand_braces(pattern, "here:1")


@given(st.text(alphabet="ab{},.0123*[]", max_size=16))
def test_any_pattern_is_expanded_without_braces_or_refused(pattern: str) -> None:
    try:
        expanded = expand_braces(pattern)
    except SpaceError:
        return
    assert not any("{" in glob or "}" in glob for glob in expanded)
    assert set(matching(pattern, SITES)) <= set(SITES)


def test_autopefts_grid_on_bert_base() -> None:
    assert halvings(768) == (1, 3, 6, 12, 24, 48, 96, 192, 384, 768)


@given(st.integers(1, 100_000))
def test_halvings_run_from_1_to_the_width_each_half_of_the_next(width: int) -> None:
    grid = halvings(width)
    assert (grid[0], grid[-1]) == (1, width)
    assert all(low == high // 2 for low, high in pairwise(grid))
