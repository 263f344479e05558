"""Spaces by example: variables, ties, messages, counts of the published ones."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest

from fake_sites import fake_sites
from peftscout.errors import SpaceError
from peftscout.plan import Budget, Plan
from peftscout.space import Choice, Space

SITES = fake_sites("encoder", layers=12, width=768, ffn=3072, heads=12)
GRID = (1, 3, 6, 12, 24, 48, 96, 192, 384, 768)
RNG = np.random.default_rng


def _autopeft(layers: int = 12) -> Space:
    """Three global sizes and one on/off for each layer."""
    places = [("ffn", "serial"), ("ffn", "parallel"), ("attention", "prefix")]
    return Space(
        "autopeft",
        tuple(
            Choice(f"layers.{layer}.{sublayer}", op, GRID, op, f"layer {layer}")
            for layer in range(layers)
            for sublayer, op in places
        ),
        SITES,
    )


def _ranks(sites: tuple[str, ...] = ("layers.0.attention.q", "layers.0.attention.v"), *sizes: int) -> Space:
    """A rank of its own at each site."""
    return Space("ranks", tuple(Choice.untied(site, "lora", sizes or (1, 2, 4)) for site in sites), SITES)


def _plan(*placements: tuple[str, str, int]) -> Plan:
    return Plan.of({(f"layers.{site}", op): size for site, op, size in placements})


# -- variables and vectors --------------------------------------------------------------------------------------------


def test_variables_are_the_sizes_then_the_switches_in_the_order_of_the_choices() -> None:
    space = _autopeft(layers=2)
    assert [(v.name, v.kind, len(v.values)) for v in space.variables] == [
        ("serial", "size", 11),
        ("parallel", "size", 11),
        ("prefix", "size", 11),
        ("layer 0", "switch", 2),
        ("layer 1", "switch", 2),
    ]
    assert space.variables[0].values == (0, *GRID)
    assert space.levels.tolist() == [11, 11, 11, 2, 2]


def test_a_choice_is_in_the_plan_when_its_size_is_not_absent_and_its_switch_is_on() -> None:
    space = _autopeft(layers=2)
    assert space.decode([2, 0, 1, 0, 1]) == _plan(("1.ffn", "serial", 3), ("1.attention", "prefix", 1))
    assert space.decode([0, 0, 0, 1, 1]) == space.decode([5, 5, 5, 0, 0]) == Plan()


def test_a_plan_has_one_canonical_vector() -> None:
    space = _autopeft(layers=2)
    assert space.encode(_plan(("1.ffn", "serial", 3))).tolist() == [2, 0, 0, 0, 1]
    assert space.encode(Plan()).tolist() == [0, 0, 0, 0, 0]


def test_choices_without_ties_have_a_variable_each() -> None:
    space = _ranks()
    assert [v.name for v in space.variables] == ["layers.0.attention.q:lora", "layers.0.attention.v:lora"]
    assert space.decode([3, 1]) == _plan(("0.attention.q", "lora", 4), ("0.attention.v", "lora", 1))


@pytest.mark.parametrize(
    ("vector", "message"),
    [
        ([1], r"a vector is 2 whole numbers, not int64 of shape \(1,\)"),
        ([1, 1, 1], r"of shape \(3,\)"),
        ([0.5, 1], "not float64"),
        ([0, 4], r"level 4 of size variable 'layers\.0\.attention\.v:lora'; levels are 0 to 3"),
        ([-1, 0], r"level -1 of size variable 'layers\.0\.attention\.q:lora'"),
    ],
)
def test_a_vector_that_means_nothing_is_refused(vector: list[int], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        _ranks().decode(vector)
    with pytest.raises(SpaceError, match=message):
        _ranks().costs(np.array([vector]))


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (_plan(("0.attention.k", "lora", 1)), r"layers\.0\.attention\.k: lora 1 is not in it; no op there \(did you"),
        (_plan(("0.ffn", "lowrank_adapter", 1)), r"layers\.0\.ffn: lowrank_adapter 1 .*ops there: serial, parallel"),
        (_plan(("0.ffn", "serial", 2)), r"layers\.0\.ffn: serial 2 is not in it; sizes allowed: \(1, 3, 6"),
        (
            _plan(("0.ffn", "serial", 1), ("1.ffn", "serial", 3)),
            r"layers\.1\.ffn: serial 3 must have the same size as layers\.0\.ffn: serial 1",
        ),
        (
            _plan(("0.ffn", "serial", 1), ("0.attention", "prefix", 1), ("1.ffn", "serial", 1)),
            r"layers\.0\.attention: prefix 1 is tied to layers\.1\.attention: prefix, which is not in the plan",
        ),
    ],
)
def test_a_plan_outside_the_space_is_refused_with_the_placement_that_keeps_it_out(plan: Plan, message: str) -> None:
    space = _autopeft(layers=2)
    with pytest.raises(SpaceError, match=message):
        space.encode(plan)
    assert not space.contains(plan)


def test_the_empty_plan_is_in_no_space() -> None:
    assert not _ranks().contains(Plan())
    assert _ranks().contains(_ranks().dearest())


# -- counts and costs -------------------------------------------------------------------------------------------------


def test_autopeft_on_12_layers_has_the_published_number_of_plans() -> None:
    assert _autopeft().cardinality() == (11**3 - 1) * (2**12 - 1) == 5_446_350


def test_independent_ranks_multiply() -> None:
    linears = tuple(site.id for site in SITES.values() if site.kind == "linear")
    assert _ranks(linears, 1, 2, 4, 8, 16, 32).cardinality() == 7**72 - 1


def test_one_size_and_one_switch_for_everything_count_as_one() -> None:
    sites = [f"layers.{n}.attention.q" for n in range(12)]
    space = Space("one", tuple(Choice(site, "lora", (1, 2), "r", "all") for site in sites), SITES)
    assert space.cardinality() == 2


def test_a_size_with_and_without_a_switch_is_counted_exactly() -> None:
    # q is there with its size; v of the same size comes with the switch: (q1) (q2) (q1 v1) (q2 v2)
    space = Space(
        "mixed",
        (
            Choice("layers.0.attention.q", "lora", (1, 2), "r"),
            Choice("layers.0.attention.v", "lora", (1, 2), "r", "v"),
        ),
        SITES,
    )
    assert space.cardinality() == 4


def test_ties_too_tangled_to_count_are_refused_rather_than_guessed() -> None:
    # a ring: size n hangs on switch n and on switch n + 1
    wide = fake_sites("encoder", layers=13)
    ring = tuple(
        Choice(f"layers.{n}.attention.{role}", "lora", (1,), f"size {n}", f"switch {(n + step) % 13}")
        for n in range(13)
        for step, role in enumerate("qv")
    )
    with pytest.raises(SpaceError, match="cannot be counted: 13 classes"):
        Space("ring", ring, wide).cardinality()
    assert Space("chain", ring[: 2 * 8], wide).cardinality() > 0


def test_a_million_costs_are_exact() -> None:
    space = _autopeft()
    vectors = np.concatenate([space.sample_vectors(1_000_000, RNG(0)), (space.levels - 1)[None]])
    costs = space.costs(vectors)
    assert costs[-1] == space.dearest().cost(SITES) == 12 * (2 * (768 * 1536 + 768 + 768) + 2 * 768 * 768)
    for row in range(0, 1_000_000, 100_000):
        assert costs[row] == space.decode(vectors[row]).cost(SITES)


def test_costs_beyond_32_bits_are_exact() -> None:
    huge = fake_sites("decoder", width=65_536, ffn=262_144)
    space = Space("huge", (Choice.untied("layers.0.ffn", "serial", [65_535, 65_536]),), huge)
    assert space.costs(np.array([[1], [2]])).tolist() == [n * (2 * 65_536 + 1) + 65_536 for n in (65_535, 65_536)]


def test_costs_of_no_vectors_are_none() -> None:
    assert _autopeft().costs(np.empty((0, 15), dtype=np.int64)).shape == (0,)


def test_the_cheapest_plan_is_one_smallest_module() -> None:
    assert _autopeft().cheapest() == _plan(("0.attention", "prefix", 1))
    assert _ranks(("layers.0.ffn.up", "layers.0.attention.v"), 2, 4).cheapest() == _plan(("0.attention.v", "lora", 2))


def test_the_cheapest_plan_of_tied_choices_pays_for_all_of_them() -> None:
    space = Space("tied", tuple(Choice(f"layers.{n}.attention.q", "lora", (1, 2), "r") for n in range(12)), SITES)
    assert len(space.cheapest()) == 12
    assert space.cheapest().cost(SITES) == 12 * 1536


def test_the_dearest_plan_has_every_choice_at_its_largest() -> None:
    assert _ranks().dearest() == _plan(("0.attention.q", "lora", 4), ("0.attention.v", "lora", 4))


# -- drawing ----------------------------------------------------------------------------------------------------------


def test_sampling_is_uniform_over_raw_vectors_without_the_empty_plan() -> None:
    space = _ranks(("layers.0.attention.q", "layers.0.attention.v"), 1)
    rng = RNG(0)
    counts = Counter(str(space.sample(rng)) for _ in range(3_000))
    assert len(counts) == 3
    assert all(900 < count < 1_100 for count in counts.values())


def test_raw_vectors_are_uniform_over_the_levels_of_each_variable() -> None:
    vectors = _autopeft().sample_vectors(11_000, RNG(1))
    assert vectors.shape == (11_000, 15)
    assert all(850 < count < 1_150 for count in np.bincount(vectors[:, 0], minlength=11))
    assert 5_200 < vectors[:, -1].sum() < 5_800


def test_plans_within_a_budget_range_from_few_large_modules_to_many_small_ones() -> None:
    linears = tuple(site.id for site in SITES.values() if site.kind == "linear")
    space = _ranks(linears, 1, 2, 4, 8, 16, 32)
    rng = RNG(0)
    plans = [space.sample_within(Budget(100_000, "100k"), rng) for _ in range(100)]
    lengths = [len(plan) for plan in plans]
    assert min(lengths) <= 4
    assert max(lengths) >= 20
    assert len({site for plan in plans for site, _ in plan.sizes}) == len(linears)
    assert {size for plan in plans for size in plan.sizes.values()} == {1, 2, 4, 8, 16, 32}
    costs = [plan.cost(SITES) for plan in plans]
    assert max(costs) <= 100_000
    assert min(costs) > 100_000 - 1536  # less than rank 1 of the smallest site is left over


def test_a_budget_above_everything_gives_the_dearest_plan() -> None:
    space = _ranks()
    assert space.sample_within(Budget(10**9, "1G"), RNG(0)) == space.dearest()


def test_sampling_within_wakes_size_and_switch_together_from_nothing() -> None:
    space = _autopeft()
    price = space.cheapest().cost(SITES)
    plans = {space.sample_within(Budget(price, "least"), RNG(seed)) for seed in range(60)}
    assert plans == {_plan((f"{n}.attention", "prefix", 1)) for n in range(12)}


def test_a_switch_is_not_turned_on_at_the_price_of_a_smaller_size_than_its_partner_has_by_then() -> None:
    space = Space(
        "uneven",
        (
            Choice("layers.0.attention", "prefix", (2, 3), "size", "attention"),
            Choice("layers.0.ffn.up", "lora", (2, 3), "size", "ffn"),
        ),
        SITES,
    )
    both_small = 2 * 1_536 + 2 * 3_840
    plans = {space.sample_within(Budget(both_small, "small"), RNG(seed)) for seed in range(300)}
    assert plans == {
        _plan(("0.attention", "prefix", 2), ("0.ffn.up", "lora", 2)),
        _plan(("0.attention", "prefix", 3)),
    }


def test_a_budget_below_every_module_is_refused_with_the_price_of_the_cheapest() -> None:
    with pytest.raises(
        SpaceError,
        match=r"nothing fits into 1,535 parameters; the cheapest plan \(.*q: lora 1\) costs 1,536 parameters",
    ):
        _ranks().sample_within(Budget(1_535, "1535"), RNG(0))


def test_repair_stays_near_the_plan() -> None:
    space = _ranks(tuple(site.id for site in SITES.values() if site.kind == "linear"), 1, 2, 4, 8, 16, 32)
    plan = space.dearest()
    slightly_less = Budget(plan.cost(SITES) - 1, "a little less")
    repaired = space.repair(plan, slightly_less, RNG(0))
    assert sum(plan.sizes[key] != repaired.sizes.get(key) for key in plan.sizes) == 1
    assert min(repaired.sizes.values()) == 16


def test_repair_of_what_cannot_be_shrunk_gives_one_module_that_fits() -> None:
    space = _ranks(("layers.0.ffn.up", "layers.0.attention.q"), 1)
    repaired = space.repair(_plan(("0.ffn.up", "lora", 1)), Budget(2_000, "2k"), RNG(0))
    assert repaired == _plan(("0.attention.q", "lora", 1))


def test_repair_refuses_the_empty_plan_and_plans_from_elsewhere() -> None:
    with pytest.raises(SpaceError, match="the empty plan cannot be repaired"):
        _ranks().repair(Plan(), Budget(10_000, "10k"), RNG(0))
    with pytest.raises(SpaceError, match="is not in it"):
        _ranks().repair(_plan(("0.ffn.up", "lora", 1)), Budget(10_000, "10k"), RNG(0))


# -- neighbours -------------------------------------------------------------------------------------------------------


def test_neighbours_of_ranks_are_one_size_up_or_down() -> None:
    q, v = "0.attention.q", "0.attention.v"
    assert _ranks().neighbours(_plan((q, "lora", 2))) == [
        _plan((q, "lora", 1)),
        _plan((q, "lora", 4)),
        _plan((q, "lora", 2), (v, "lora", 1)),
    ]


def test_switching_the_last_layer_off_is_no_neighbour_when_nothing_would_be_left() -> None:
    space = _autopeft(layers=2)
    assert set(space.neighbours(_plan(("0.ffn", "serial", 1)))) == {
        _plan(("0.ffn", "serial", 3)),
        _plan(("0.ffn", "serial", 1), ("0.ffn", "parallel", 1)),
        _plan(("0.ffn", "serial", 1), ("0.attention", "prefix", 1)),
        _plan(("0.ffn", "serial", 1), ("1.ffn", "serial", 1)),
    }


def test_neighbour_vectors_are_the_neighbours() -> None:
    space = _autopeft(layers=3)
    plan = space.sample(RNG(3))
    vectors = space.neighbour_vectors(space.encode(plan))
    assert vectors.shape == (len(space.neighbours(plan)), 6)
    assert [space.decode(vector) for vector in vectors] == space.neighbours(plan)


def test_a_space_of_one_plan_has_no_neighbours() -> None:
    space = _ranks(("layers.0.attention.q",), 1)
    assert space.neighbours(space.dearest()) == []
    assert space.neighbour_vectors(space.encode(space.dearest())).shape == (0, 1)


# -- smaller spaces and impossible ones -------------------------------------------------------------------------------


def test_a_space_is_restricted_to_lora_for_export() -> None:
    mixed = Space(
        "mixed",
        (Choice.untied("layers.0.attention.q", "lora", [1]), Choice.untied("layers.0.attention.q", "bias", [1])),
        SITES,
    )
    assert mixed.ops == ("lora", "bias")
    assert mixed.for_stock("lora").ops == ("lora",)


def test_a_space_without_lora_cannot_be_exported_as_lora() -> None:
    with pytest.raises(SpaceError, match="'autopeft' has nothing that a stock lora adapter can hold: it holds serial"):
        _autopeft().for_stock("lora")


def test_restricting_to_an_unknown_op_names_the_nearest() -> None:
    with pytest.raises(SpaceError, match=r"unknown op 'seriel' \(did you mean 'serial'\?\)"):
        _autopeft().restrict_ops(["seriel"])


def test_restricting_keeps_ties_and_takes_a_new_name() -> None:
    low = _autopeft().restrict(lambda c: c.site.startswith(("layers.0.", "layers.1.")), name="low layers")
    assert low.name == "low layers"
    assert low.cardinality() == (11**3 - 1) * (2**2 - 1)


Q = "layers.0.attention.q"


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ([], "holds no choice"),
        ([Choice.untied("layers.0.atention.q", "lora", [1])], r"no such site .*did you mean 'layers\.0\.attention\.q'"),
        ([Choice.untied(Q, "lroa", [1])], r"unknown op 'lroa' \(did you mean 'lora'\?\)"),
        ([Choice.untied(Q, "serial", [1])], r"layers\.0\.attention\.q: op 'serial' cannot sit at a linear"),
        ([Choice.untied(Q, "lora", [])], r"sizes \(\): they must be whole numbers from 1, ascending"),
        ([Choice.untied(Q, "lora", [0, 1])], r"sizes \(0, 1\)"),
        ([Choice.untied(Q, "lora", [2, 1])], r"sizes \(2, 1\)"),
        ([Choice.untied(Q, "lora", [1, 1])], r"sizes \(1, 1\)"),
        ([Choice.untied(Q, "lora", [1, 769])], "size 769 > 768, the largest size at this site"),
        ([Choice.untied(Q, "bias", [1, 2])], "size 2 > 1"),
        (
            [Choice.untied(Q, "lora", [1]), Choice.untied(Q, "lora", [2])],
            r"layers\.0\.attention\.q: lora is there twice",
        ),
        (
            [Choice(Q, "lora", (1, 2), "r"), Choice("layers.1.attention.q", "lora", (1, 4), "r")],
            r"share the size variable 'r' but allow the sizes \(1, 2\) and \(1, 4\)",
        ),
    ],
)
def test_an_impossible_space_is_refused(choices: list[Choice], message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        Space("mine", tuple(choices), SITES)


def test_spaces_with_the_same_choices_are_equal_and_hashable() -> None:
    assert _autopeft() == _autopeft()
    assert hash(_autopeft()) == hash(_autopeft())
    assert _autopeft() != _autopeft(layers=11)
