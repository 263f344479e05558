from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.plan import Budget
from peftscout.strategies.design_spaces.axes import ALLOCATIONS, MethodSet, Tunable
from peftscout.strategies.design_spaces.compilation import Compilation, compile_genotype
from peftscout.strategies.design_spaces.compositions import pattern
from peftscout.strategies.design_spaces.genotype import (
    Genotype,
    InfeasibleDesignError,
    LearningRates,
    canonical_genotype,
    draw_design,
    draw_latent,
    realise,
)
from peftscout.strategies.design_spaces.layout import Layout, Method, layout
from peftscout.strategies.design_spaces.yaml import load_design_space

SPACE = load_design_space("chen2023-s0")
MODELS = {
    (kind, layers): fake_sites(kind, layers=layers, width=64, ffn=160, heads=4, kv_heads=2)
    for kind in ("encoder", "encoder_decoder", "decoder")
    for layers in (6, 12)
}
LAYOUTS = {key: layout(sites, SPACE.methods_defined) for key, sites in MODELS.items()}


def within(parameters: int) -> Budget:
    return Budget(parameters, str(parameters))


def genotype_of(seed: int, there: Layout) -> Genotype | None:
    rng = np.random.default_rng(seed)
    try:
        return realise(draw_design(rng, SPACE), draw_latent(rng, there, LearningRates()), there)
    except InfeasibleDesignError:  # no such grouping at this depth
        return None


def design(methods: list[tuple[str, ...]], allocation: str = "uniform", tunable=(0, 1, 2, 3), grouping="uniform"):
    sets = tuple(MethodSet(names) for names in methods)
    return replace(
        SPACE.first,
        grouping=pattern(grouping, 4),
        allocation=ALLOCATIONS[allocation],
        tunable=Tunable(tuple(tunable), 4),
        methods=sets,
    )


def compiled(design, budget: int, kind="encoder", layers=12, **rules):
    there = LAYOUTS[kind, layers]
    return compile_genotype(canonical_genotype(design, there), there, within(budget), Compilation(**rules))


EVERYWHERE = [("lora",)] * 4


@settings(max_examples=300)
@given(
    seed=st.integers(0, 2**32 - 1),
    model=st.sampled_from(sorted(MODELS)),
    budget=st.integers(100, 200_000),
    tight=st.sampled_from(["refuse", "make_room"]),
    frozen=st.sampled_from(["redistribute", "forfeit"]),
)
def test_a_plan_is_never_above_the_budget_and_within_half_a_percent_of_it_or_says_why(
    seed, model, budget, tight, frozen
):
    there, sites = LAYOUTS[model], MODELS[model]
    genotype = genotype_of(seed, there)
    if genotype is None:
        return
    try:
        result = compile_genotype(genotype, there, within(budget), Compilation(tight=tight, frozen_share=frozen))
    except InfeasibleDesignError:
        least = sum(there.cells[n, m].least for n in range(len(there.layers)) for m in genotype.methods(n))
        assert tight == "refuse" or frozen == "forfeit" or least > budget
        return
    assert 0 < result.plan.cost(sites) == result.cost <= budget
    assert result.unspent == budget - result.cost
    assert (result.unspent <= 0.005 * budget) == (result.reason == "")
    result.plan.check(sites)


@settings(max_examples=150)
@given(seed=st.integers(0, 2**32 - 1), model=st.sampled_from(sorted(MODELS)), budget=st.integers(20_000, 400_000))
def test_a_plan_has_the_methods_of_its_genotype_in_every_layer_and_nowhere_else(seed, model, budget):
    there = LAYOUTS[model]
    genotype = genotype_of(seed, there)
    if genotype is None:
        return
    try:
        plan = compile_genotype(genotype, there, within(budget), Compilation(tight="make_room")).plan
    except InfeasibleDesignError:
        return
    expected = {
        (site, there.cells[layer, name].op)
        for layer in range(len(there.layers))
        for name in genotype.methods(layer)
        for site in there.cells[layer, name].sites
    }
    assert set(plan.sizes) == expected


@settings(max_examples=150)
@given(
    seed=st.integers(0, 2**32 - 1),
    allocation=st.sampled_from(sorted(ALLOCATIONS)),
    budget=st.integers(8_000, 200_000),
    tolerance=st.sampled_from([0.0, 0.005, 1.0]),
)
def test_sizes_follow_the_allocation_within_layers_of_equal_methods(seed, allocation, budget, tolerance):
    """Monotone with the slope; where it is uniform, at most a few steps apart."""
    there = LAYOUTS["encoder", 12]
    genotype = genotype_of(seed, there)
    if genotype is None:
        return
    chosen = replace(genotype.design, allocation=ALLOCATIONS[allocation])
    genotype = replace(genotype, design=chosen, slope=ALLOCATIONS[allocation].slope(seed / 2**32))
    try:
        plan = compile_genotype(genotype, there, within(budget), Compilation(tolerance)).plan
    except InfeasibleDesignError:
        return
    for group in genotype.design.tunable.groups:
        layers = [layer for layer, own in enumerate(genotype.groups) if own == group]
        for name in genotype.design.methods[group].names:
            cells = [there.cells[layer, name] for layer in layers]
            sizes = [plan.sizes[cell.sites[0], cell.op] for cell in cells]
            match allocation:
                case "increasing":
                    assert sizes == sorted(sizes)
                case "decreasing":
                    assert sizes == sorted(sizes, reverse=True)
                case _:
                    assert max(sizes) - min(sizes) <= 1


def test_the_sites_of_a_method_share_one_size_in_a_layer():
    plan = compiled(design(EVERYWHERE), 20_000).plan
    for layer in range(12):
        assert plan.sizes[f"layers.{layer}.attention.q", "lora"] == plan.sizes[f"layers.{layer}.attention.v", "lora"]


def test_the_share_of_frozen_groups_goes_to_the_tuned_ones():
    every, one = (compiled(design(EVERYWHERE, tunable=t), 20_000) for t in ((0, 1, 2, 3), (2,)))
    assert len({p.site for p in one.plan}) == len({p.site for p in every.plan}) / 4
    assert one.cost > 0.98 * 20_000
    assert max(p.size for p in one.plan) >= 4 * min(p.size for p in every.plan)


def test_the_share_of_frozen_groups_can_be_forfeited():
    result = compiled(design(EVERYWHERE, tunable=(2,)), 20_000, frozen_share="forfeit")
    assert 0.24 * 20_000 < result.cost <= 0.25 * 20_000
    assert result.reason.endswith("of the budget stays unspent: the share of the frozen groups is forfeited")


def test_bitfit_dearer_than_the_share_of_its_layer_is_refused_in_words():
    bias = LAYOUTS["encoder", 12].cells[0, "bitfit"].fixed
    with pytest.raises(InfeasibleDesignError) as refused:
        compiled(design([("bitfit",), *EVERYWHERE[1:]]), 12 * bias - 12)
    assert str(refused.value) == (
        f"G1: bitfit costs at least {bias} parameters in layers.0, whose share of the budget is {bias - 1}"
    )
    assert compiled(design([("bitfit",), *EVERYWHERE[1:]]), 12 * bias).plan


def test_room_is_made_for_a_dear_layer_where_that_is_asked_for():
    bias = LAYOUTS["encoder", 12].cells[0, "bitfit"].fixed
    budget = 8 * bias
    result = compiled(design([("bitfit",), *EVERYWHERE[1:]]), budget, tight="make_room")
    assert result.cost <= budget
    assert result.notes == (f"G1 needs more than its share ({budget // 4:,} parameters); the rest makes room",)


def test_what_bitfit_leaves_of_its_share_goes_to_the_other_layers():
    bias = LAYOUTS["encoder", 12].cells[0, "bitfit"].fixed
    result = compiled(design([("bitfit",), *EVERYWHERE[1:]]), 40_000)
    assert result.cost > 0.98 * 40_000
    assert result.notes == ("G1 cannot take its share (10,000 parameters); the rest has it",)
    lora = result.cost - 3 * bias
    assert lora > 30_000


def test_methods_of_one_size_leave_the_budget_unspent_with_a_reason():
    result = compiled(design([("bitfit",)] * 4), 40_000)
    assert result.reason.endswith("of the budget stays unspent: its methods have one size only")
    full = compiled(design(EVERYWHERE), 10**7)
    assert full.reason.endswith("of the budget stays unspent: every size is at its largest")
    assert max(p.size for p in full.plan) == 64


def test_a_coarse_step_is_the_reason_where_it_is():
    step = LAYOUTS["encoder", 12].cells[0, "lora"].per_size
    result = compiled(design(EVERYWHERE), 12 * step + step // 2)
    assert result.cost == 12 * step
    assert result.reason.endswith(
        f"the smallest step costs {step} parameters, {step / (12.5 * step):.1%} of the budget"
    )


def test_a_budget_below_size_one_everywhere_is_refused_with_the_price():
    with pytest.raises(InfeasibleDesignError, match=r"costs at least 3,072 parameters, 3,071 are available; raise"):
        compiled(design(EVERYWHERE), 12 * 256 - 1, tight="make_room")


def test_fixed_costs_come_first():
    """An adapter pays its output bias before its bottleneck, so it is smaller than LoRA beside it, not dearer."""
    result = compiled(design([("lora", "adapter")] * 4), 60_000)
    cells = LAYOUTS["encoder", 12].cells
    lora = cells[3, "lora"].per_size * result.plan.sizes["layers.3.attention.q", "lora"]
    adapter = cells[3, "adapter"].per_size * result.plan.sizes["layers.3.ffn", "serial"]
    assert abs(lora - adapter) <= cells[3, "lora"].per_size + cells[3, "adapter"].per_size


def test_methods_share_a_layer_by_their_weights():
    heavy = [replace(m, weight=3.0 if m.name == "adapter" else 1.0) for m in SPACE.methods_defined]
    there = layout(MODELS["encoder", 12], heavy)
    genotype = canonical_genotype(design([("lora", "adapter")] * 4), there)
    plan = compile_genotype(genotype, there, within(120_000)).plan
    lora = there.cells[3, "lora"].per_size * plan.sizes["layers.3.attention.q", "lora"]
    adapter = there.cells[3, "adapter"].per_size * plan.sizes["layers.3.ffn", "serial"]
    assert adapter / lora == pytest.approx(3, rel=0.1)


def test_two_methods_for_one_place_are_refused():
    methods = (*SPACE.methods_defined, Method("lora_all", "lora", ("*.attention.*", "*.ffn.*")))
    there = layout(MODELS["encoder", 6], methods)
    genotype = canonical_genotype(design([("lora", "lora_all")] * 4), there)
    with pytest.raises(InfeasibleDesignError, match=r"G1: lora and lora_all both place lora at layers.0.attention.q"):
        compile_genotype(genotype, there, within(50_000))


def test_a_method_missing_in_one_layer_is_named_with_its_group():
    half = [*SPACE.methods_defined[1:], replace(SPACE.methods_defined[0], sites=("layers.{0..5}.attention.q",))]
    there = layout(MODELS["encoder", 12], half)
    with pytest.raises(InfeasibleDesignError, match=r"G3: layers.6 has no site for lora"):
        compile_genotype(canonical_genotype(design(EVERYWHERE), there), there, within(50_000))


def test_the_extra_steps_of_a_uniform_allocation_are_spread_over_the_depth():
    plan = compiled(design(EVERYWHERE), 12 * 256 * 5 + 6 * 256).plan
    sizes = [plan.sizes[f"layers.{layer}.attention.q", "lora"] for layer in range(12)]
    assert sorted(sizes) == [5] * 6 + [6] * 6
    assert 2 <= sizes[:6].count(6) <= 4


@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder"])
def test_models_without_biases_get_added_vectors(kind):
    plan = compiled(design([("bitfit", "lora")] * 4), 100_000, kind=kind).plan
    biased = {p.site for p in plan if p.op == "bias"}
    assert biased == {s.id for s in MODELS[kind, 12].values() if s.kind == "linear"}
