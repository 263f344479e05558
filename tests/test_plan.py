"""Plans: canonical, strict, exact."""

from __future__ import annotations

import json
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.cost import OPS, SIZELESS, largest_size, ops_at
from peftscout.errors import PlanError
from peftscout.plan import Placement, Plan, diff, union

SITES = fake_sites("encoder_decoder", layers=3)
PLACES = [(site.id, op) for site in SITES.values() for op in ops_at(site)]

plans = st.dictionaries(st.sampled_from(PLACES), st.integers(1, 64), max_size=12).map(
    lambda sizes: Plan.of({(site, op): 1 if op in SIZELESS else size for (site, op), size in sizes.items()})
)
fitting_plans = plans.map(
    lambda plan: Plan.of({(p.site, p.op): min(p.size, largest_size(SITES[p.site], p.op)) for p in plan})
)
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@given(plans, st.randoms())
def test_the_order_of_placements_matters_neither_to_equality_nor_to_hash_nor_to_digest(
    plan: Plan, shuffler: random.Random
) -> None:
    placements = list(plan)
    shuffler.shuffle(placements)
    other = Plan(tuple(placements))
    assert other == plan
    assert hash(other) == hash(plan)
    assert other.digest == plan.digest


@given(
    st.lists(
        st.text(alphabet="a.0127²٣é ", min_size=1, max_size=6).map(lambda site: Placement(site, "bias", 1)),
        unique_by=lambda p: p.site,
    ),
    st.randoms(),
)
def test_any_site_ids_have_one_order(placements: list[Placement], shuffler: random.Random) -> None:
    shuffled = list(placements)
    shuffler.shuffle(shuffled)
    assert Plan(tuple(shuffled)).digest == Plan(tuple(placements)).digest


@given(plans)
def test_a_plan_comes_back_from_json_as_it_was(plan: Plan) -> None:
    again = Plan.from_json(json.loads(json.dumps(plan.to_json())))
    assert again == plan
    assert again.digest == plan.digest


@given(plans, plans)
def test_different_plans_have_different_digests(one: Plan, other: Plan) -> None:
    assert (one.digest == other.digest) == (one == other)


def test_the_digest_is_the_same_on_every_machine_and_in_every_version() -> None:
    plan = Plan.of({("layers.10.ffn.down", "lora"): 8, ("layers.9.ffn_norm", "bias"): 1})
    assert plan.digest == "5cb24376de69ea9a"


def test_layers_are_ordered_as_numbers_and_ops_as_listed() -> None:
    plan = Plan.of({("layers.10.ffn", "serial"): 1, ("layers.9.ffn", "prefix"): 1, ("layers.9.ffn", "serial"): 2})
    assert [str(p) for p in plan] == ["layers.9.ffn: serial 2", "layers.9.ffn: prefix 1", "layers.10.ffn: serial 1"]


@given(json_values)
def test_any_json_is_a_plan_or_a_plan_error(data: object) -> None:
    try:
        plan = Plan.from_json(data)
    except PlanError:
        return
    assert len(plan) == len(data["placements"])  # type: ignore[index, call-overload]


placement_rows = st.lists(
    st.one_of(json_values, st.tuples(st.text(), st.sampled_from([*OPS, "lroa"]), st.integers()).map(list)), max_size=5
)


@given(st.fixed_dictionaries({"schema": st.sampled_from([1, 1.0, True, 2]), "placements": placement_rows}))
def test_any_rows_are_a_plan_or_a_plan_error(data: dict[str, object]) -> None:
    try:
        plan = Plan.from_json(data)
    except PlanError:
        return
    assert data["schema"] is not True
    assert len(plan) == len(data["placements"])  # type: ignore[arg-type]
    assert len(plan.digest) == 16


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "a plan is a JSON object, not list"),
        ({"schema": 1, "placement": []}, r"unknown key 'placement' \(did you mean 'placements'\?\)"),
        ({"placements": []}, "schema None"),
        ({"schema": 2, "placements": []}, "schema 2, this version of peftscout reads schema 1"),
        ({"schema": True, "placements": []}, "schema True"),
        ({"schema": 1}, "'placements' must be a list"),
        ({"schema": 1, "placements": [["a", "lora"]]}, r"placements\[0\] is \['a', 'lora'\]"),
        ({"schema": 1, "placements": [["a", "lora", True]]}, r"placements\[0\]"),
        ({"schema": 1, "placements": [["a", "lora", 1], ["a", "lora", 2.0]]}, r"placements\[1\]"),
    ],
)
def test_malformed_json_is_refused_with_the_place(data: object, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan.from_json(data)


@pytest.mark.parametrize(
    ("placement", "message"),
    [
        (Placement("a.q", "lroa", 1), r"a\.q: unknown op 'lroa' \(did you mean 'lora'\?\)"),
        (Placement("a.q", "lora", 0), r"a\.q: lora of size 0; .* leave an absent op out"),
        (Placement("a.q", "lora", -3), "lora of size -3"),
        (Placement("a.q", "lora", True), "lora of size True"),
        (Placement("a.q", "bias", 2), "bias has no size, write 1 instead of 2"),
    ],
)
def test_an_impossible_placement_is_refused(placement: Placement, message: str) -> None:
    with pytest.raises(PlanError, match=message):
        Plan((placement,))


def test_a_doubled_placement_is_refused() -> None:
    with pytest.raises(PlanError, match=r"a\.q: lora is there twice"):
        Plan((Placement("a.q", "lora", 1), Placement("a.q", "lora", 2)))


def test_size_0_is_taken_as_absent_when_building_from_a_mapping() -> None:
    assert Plan.of({("a.q", "lora"): 0, ("a.v", "lora"): 2}) == Plan((Placement("a.v", "lora", 2),))


@given(fitting_plans)
def test_a_plan_that_fits_the_model_passes_the_check(plan: Plan) -> None:
    plan.check(SITES)


def test_a_size_that_does_not_fit_is_refused_with_the_largest_that_does() -> None:
    with pytest.raises(PlanError, match=r"encoder\.0\.ffn\.down: lora 33 > 32, the largest size at this site"):
        Plan.of({("encoder.0.ffn.down", "lora"): 33}).check(SITES)


def test_an_unknown_site_is_refused_with_the_nearest_one() -> None:
    plan = Plan.of({("encoder.0.atention.q", "lora"): 1})
    for ask in (plan.check, plan.cost):
        with pytest.raises(PlanError, match=r"encoder\.0\.atention\.q: no such site .*did you mean 'encoder\.\d\.att"):
            ask(SITES)


@given(fitting_plans, fitting_plans)
def test_the_cost_of_disjoint_plans_adds_up(one: Plan, other: Plan) -> None:
    rest = Plan.of({key: size for key, size in other.sizes.items() if key not in one.sizes})
    assert union([one, rest]).cost(SITES) == one.cost(SITES) + rest.cost(SITES)


@given(plans, plans)
def test_a_union_holds_the_larger_size_of_each(one: Plan, other: Plan) -> None:
    both = union([one, other])
    assert set(both.sizes) == set(one.sizes) | set(other.sizes)
    assert all(size == max(one.sizes.get(key, 0), other.sizes.get(key, 0)) for key, size in both.sizes.items())


def test_the_difference_of_two_plans_reads_line_by_line() -> None:
    old = Plan.of({("layers.0.q", "lora"): 4, ("layers.1.q", "lora"): 4, ("layers.2.norm", "bias"): 1})
    new = Plan.of({("layers.0.q", "lora"): 8, ("layers.1.q", "lora"): 4, ("layers.10.q", "lora"): 2})
    assert diff(old, new) == ["~ layers.0.q: lora 4 -> 8", "- layers.2.norm: bias", "+ layers.10.q: lora 2"]


@given(plans, plans)
def test_the_difference_is_empty_for_equal_plans_only(one: Plan, other: Plan) -> None:
    assert (diff(one, other) == []) == (one == other)


def test_the_ops_of_a_plan_are_in_canonical_order() -> None:
    plan = Plan.of({("a", "prefix"): 1, ("b", "lora"): 1, ("c", "bias"): 1, ("d", "bias"): 1})
    assert plan.ops == ("lora", "bias", "prefix")


def test_a_plan_reads_as_one_line_and_an_empty_one_as_nothing() -> None:
    assert str(Plan.of({("a", "lora"): 2, ("b", "bias"): 1})) == "a: lora 2; b: bias"
    assert str(Plan()) == "nothing"
