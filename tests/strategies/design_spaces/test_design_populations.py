import pytest

from fake_sites import fake_sites
from peftscout.errors import BudgetError, SpaceError
from peftscout.plan import Budget
from peftscout.strategies.design_spaces.axes import DesignSpace
from peftscout.strategies.design_spaces.compilation import Compilation
from peftscout.strategies.design_spaces.genotype import LearningRates
from peftscout.strategies.design_spaces.layout import layout
from peftscout.strategies.design_spaces.populations import PROBES, Sampler, paired_population, possible_options
from peftscout.strategies.design_spaces.yaml import load_design_space

SPACE = load_design_space("chen2023-s0")
SPACE_LABELS = [option.label for option in SPACE.methods[0]]
SITES = fake_sites("encoder", layers=12, width=64, ffn=128)


def sampler(budget: int = 40_000, sites=SITES, shortfall: float = 0.05, rates=LearningRates()) -> Sampler:  # noqa: B008
    there = layout(sites, SPACE.methods_defined)
    return Sampler(there, Budget(budget, str(budget)), Compilation(), rates, shortfall)


def population(axis: str, models: int = 10, space: DesignSpace = SPACE, budget: int = 40_000, stream=(0, 1), **rest):
    drawn = sampler(budget, **rest)
    return paired_population(drawn, space, axis, space.options(axis), models, stream)


@pytest.mark.parametrize("axis", SPACE.axes)
def test_every_option_is_realised_on_the_same_base_models(axis):
    found = population(axis)
    assert len(found.options) >= 2
    for k in range(10):
        variants = [found.models[label][k].genotype for label in found.options]
        assert len({v.rates for v in variants}) == 1
        for other in SPACE.axes:
            if other != axis:
                assert len({str(on_axis(v.design, other)) for v in variants}) == 1
        assert [on_axis(v.design, axis).label for v in variants] == list(found.options)
        if axis != "grouping":
            assert len({v.sizes for v in variants}) == 1


def on_axis(design, axis: str):
    if axis.startswith("methods."):
        return design.methods[int(axis[-1]) - 1]
    return getattr(design, axis)


def test_every_model_of_a_population_is_within_the_budget_and_near_it():
    for axis in ("grouping", "tunable", "methods.G4"):
        for models in population(axis, models=5).models.values():
            for candidate in models:
                assert 0.95 * 40_000 <= candidate.compiled.plan.cost(SITES) <= 40_000


def test_the_group_whose_methods_are_compared_is_never_frozen():
    for models in population("methods.G3").models.values():
        assert all(2 in candidate.genotype.design.tunable.groups for candidate in models)


def test_the_same_stream_gives_the_same_models_and_another_one_others():
    first, again, other = population("allocation"), population("allocation"), population("allocation", stream=(0, 2))
    assert first == again
    assert first.models != other.models


def test_a_larger_population_begins_with_the_smaller_one():
    few, many = population("allocation", 5), population("allocation", 15)
    assert all(many.models[label][:5] == models for label, models in few.models.items())


def test_options_dearer_than_the_budget_are_refused_with_the_most_frequent_reason():
    bias = layout(SITES, SPACE.methods_defined).cells[0, "bitfit"].fixed
    space = SPACE.keep("tunable", ["all groups"]).keep("allocation", ["uniform"])
    found = population("methods.G1", budget=12 * bias - 100, space=space)
    assert "lora" in found.options
    assert {label for label in SPACE_LABELS if "bitfit" in label} <= set(found.refused)
    assert found.refused["lora+bitfit"].startswith(f"G1: lora+bitfit costs at least {bias + 256} parameters in layers.")


def test_options_that_are_possible_only_apart_are_not_compared():
    """What is left is possible together, in at least one of ten base models."""
    space = SPACE.keep("allocation", ["uniform"]).keep("grouping", ["uniform"])
    found = population("tunable", budget=14_000, space=space, models=PROBES)
    assert len(found.models[found.options[0]]) == PROBES
    assert set(found.options) | set(found.refused) == {option.label for option in SPACE.tunable}


def test_a_plan_that_leaves_much_of_the_budget_unspent_is_refused():
    """BitFit alone in one group costs 7 % of this budget: no comparison at equal cost."""
    space = SPACE.keep("tunable", ["G1"]).keep("methods.G1", ["lora", "bitfit"])
    found = population("methods.G1", space=space)
    assert found.options == ("lora",)
    assert "its methods have one size only" in found.refused["bitfit"]


def test_where_no_option_is_possible_none_is_returned():
    space = SPACE.keep("methods.G1", ["bitfit"]).keep("tunable", ["G1"])
    found = population("allocation", space=space)
    assert found.options == ()
    assert set(found.refused) == {"uniform", "increasing", "decreasing"}


def test_structures_that_do_not_exist_at_the_depth_are_taken_out_with_the_reason():
    there = layout(fake_sites("encoder", layers=7), SPACE.methods_defined)
    space, refused = possible_options(SPACE, there)
    assert [p.label for p in space.grouping] == ["uniform", "bottleneck"]
    assert "7 layers cannot be cut into 4 groups" in refused["grouping"]["spindle"]


def test_methods_without_a_site_are_taken_out_with_the_reason():
    allowed = {(s, "lora") for s in SITES}
    there = layout(SITES, SPACE.methods_defined, allowed=allowed)
    space, refused = possible_options(SPACE, there)
    assert [[s.label for s in sets] for sets in space.methods] == [["lora"]] * 4
    assert refused["methods.G2"]["adapter"] == "adapter has no site in this model and space"
    assert len(refused["methods.G2"]) == 14


def test_a_space_of_which_nothing_is_left_is_refused():
    there = layout(fake_sites("encoder", layers=7), SPACE.methods_defined)
    with pytest.raises(SpaceError, match="'chen2023-s0': grouping: grouping 'spindle': 7 layers cannot be cut"):
        possible_options(SPACE.keep("grouping", ["spindle"]), there)


def test_a_budget_too_small_for_any_design_is_refused_with_the_most_frequent_reason():
    with pytest.raises(
        BudgetError, match=r"none of 400 designs of chen2023-s0 is possible within 100 parameters; most"
    ):
        sampler(100).require_possible(SPACE, seed=0)


def test_a_budget_larger_than_any_design_can_hold_is_no_obstacle():
    drawn = sampler(10**7)
    drawn.require_possible(SPACE, seed=0)
    candidate = next(drawn.models(SPACE, [0]))
    assert candidate.compiled.unspent > 0.5 * 10**7
    assert "stays unspent" in candidate.compiled.reason


def test_learning_rates_of_a_population_come_from_the_range():
    found = population("grouping", 30, rates=LearningRates(between=(0.3, 3.0)))
    rates = {candidate.genotype.rates.lr_scale for candidate in found.models["uniform"]}
    assert len(rates) > 20
    assert all(0.3 <= rate <= 3 for rate in rates)


def test_models_of_a_small_space_may_repeat_since_their_seeds_do_not():
    space = SPACE.keep("grouping", ["uniform"]).keep("allocation", ["uniform"]).keep("tunable", ["all groups"])
    for group in range(2, 5):
        space = space.keep(f"methods.G{group}", ["lora"])
    found = population("methods.G1", 12, space)
    assert len({c.compiled.plan for c in found.models["lora"]}) == 1
    assert len(found.models["lora"]) == 12
