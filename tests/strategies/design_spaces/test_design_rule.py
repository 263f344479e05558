import pytest

from fake_sites import fake_sites
from peftscout.errors import SpaceError
from peftscout.plan import Budget
from peftscout.strategies.design_spaces import Rule, compile_preset, load_design_space, parse_design_space, preset_plan
from peftscout.strategies.design_spaces.layout import layout

S4 = [{"adapter", "lora"}, {"adapter", "prefix"}, {"adapter", "prefix", "bitfit"}, {"prefix", "bitfit", "lora"}]
OPS = {"adapter": "serial", "lora": "lora", "prefix": "prefix", "bitfit": "bias"}
BERT = fake_sites("encoder", layers=12, width=768, ffn=3072, heads=12)


def within(parameters: int) -> Budget:
    return Budget(parameters, str(parameters))


def ops_by_layer(plan, sites) -> list[set[str]]:
    stacks = dict.fromkeys(s.stack for s in sites.values() if s.layer is not None)
    layers = [(stack, n) for stack in stacks for n in range(1 + max(s.layer or 0 for s in sites.values()))]
    return [{p.op for p in plan if (sites[p.site].stack, sites[p.site].layer) == layer} for layer in layers]


# -- the published models ----------------------------------------------------------------------------------------------


def test_s4_on_twelve_layers_is_the_papers_table():
    """Spindle groups of 2, 4, 4, 2 layers: A,L | A,P | A,P,B | P,B,L."""
    plan = preset_plan("s4-model", BERT, within(623_000))
    groups = [group for group, size in enumerate((2, 4, 4, 2)) for _ in range(size)]
    assert ops_by_layer(plan, BERT) == [{OPS[m] for m in S4[group]} for group in groups]
    assert 0.995 * 623_000 <= plan.cost(BERT) <= 623_000


def test_its_sizes_are_those_that_an_equal_share_of_each_layer_pays_for():
    """0.5 % of RoBERTa-base: 51.9k a layer, as in the dossier (section 1.5), halved or less between methods."""
    sizes = preset_plan("s4-model", BERT, within(623_000)).sizes
    assert sizes["layers.0.attention.q", "lora"] == sizes["layers.0.attention.v", "lora"] == 8  # of 16.9 alone
    assert sizes["layers.0.ffn", "serial"] in (16, 17)  # of 33.3 alone
    assert sizes["layers.3.attention", "prefix"] in (16, 17)  # of 33.8 alone
    assert ("layers.6.attention.q", "bias") in sizes


def test_on_t5_the_groups_go_through_the_encoder_and_then_the_decoder():
    sites = fake_sites("encoder_decoder", layers=12, width=768, ffn=2048, heads=12)
    plan = preset_plan("s4-model", sites, within(1_115_000))
    groups = [group for group, size in enumerate((4, 8, 8, 4)) for _ in range(size)]
    assert ops_by_layer(plan, sites) == [{OPS[m] for m in S4[group]} for group in groups]
    assert 0.995 * 1_115_000 <= plan.cost(sites) <= 1_115_000
    assert not any("cross_attention" in p.site for p in plan if p.op != "bias")


def test_s4_3b_has_other_methods_in_the_same_groups():
    plan = preset_plan("s4-3b-model", BERT, within(623_000))
    assert ops_by_layer(plan, BERT)[0] == {"prefix", "lora"}
    assert ops_by_layer(plan, BERT)[11] == {"serial", "prefix", "bias"}


@pytest.mark.parametrize("preset", ["s4-model", "s4-3b-model", "chen2023-s4"])
@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder", "decoder"])
@pytest.mark.parametrize("layers", [2, 3, 5, 6, 7, 12, 24])
def test_the_published_models_compile_on_any_depth_and_budget(preset, kind, layers):
    sites = fake_sites(kind, layers=layers, width=64, ffn=128)
    for budget in (40_000, 100_000):
        result = compile_preset(preset, sites, within(budget))
        assert 0 < result.plan.cost(sites) <= budget
        assert result.unspent <= 0.005 * budget or result.reason
        result.plan.check(sites)


def test_on_a_model_with_fewer_layers_than_groups_the_middle_ones_are_there_and_it_is_noted():
    result = compile_preset("s4-model", fake_sites("encoder", layers=2), within(4000))
    assert ops_by_layer(result.plan, fake_sites("encoder", layers=2)) == [{OPS[m] for m in S4[g]} for g in (1, 2)]
    assert "G1 is empty: the model has fewer layers than the grouping needs" in result.notes


def test_at_a_tenth_of_a_percent_room_is_made_for_bitfit_and_it_is_noted():
    """It eats 76 to 81 % of a layer's share there (dossier, section 1.5)."""
    result = compile_preset("s4-model", BERT, within(124_600))
    assert result.cost <= 124_600
    assert any(note.startswith("G3 needs more than its share") for note in result.notes)


def test_a_budget_below_the_least_sizes_is_refused_with_the_price():
    with pytest.raises(SpaceError, match=r"costs at least [0-9,]+ parameters, 50,000 are available; raise the budget"):
        preset_plan("s4-model", BERT, within(50_000))


def test_a_space_with_open_axes_is_no_model():
    with pytest.raises(SpaceError, match="chen2023-s1 is a space, not a model: allocation has several options"):
        preset_plan("chen2023-s1", BERT, within(623_000))


def test_a_model_of_ones_own_compiles_from_a_file(tmp_path):
    path = tmp_path / "top.yaml"
    path.write_text(
        "extends: s4-model\n"
        "axes: {allocation: [increasing], tunable: [[G4]], methods: {each_group: [[lora]]}, grouping: [uniform]}\n"
    )
    plan = preset_plan(path, BERT, within(300_000))  # an axis of one's own replaces the extended one as a whole
    assert {BERT[p.site].layer for p in plan} == {9, 10, 11}
    assert plan.ops == ("lora",)
    assert plan.sizes["layers.9.attention.q", "lora"] < plan.sizes["layers.11.attention.q", "lora"]


def test_two_calls_give_the_same_plan():
    assert preset_plan("s4-model", BERT, within(623_000)) == preset_plan("s4-model", BERT, within(623_000))


# -- found rules -------------------------------------------------------------------------------------------------------


def test_a_decided_rule_reads_like_the_papers():
    assert str(Rule(load_design_space("s4-model"))) == (
        "spindle, uniform allocation, all groups, "
        "G1: lora+serial; G2: serial+prefix; G3: bias+serial+prefix; G4: lora+bias+prefix"
    )


def test_an_open_axis_is_told_as_undecided_with_its_options():
    space = load_design_space("s4-model").with_axis("grouping", load_design_space("chen2023-s0").grouping[:2])
    rule = Rule(space)
    assert str(rule).startswith("undecided (uniform, spindle), uniform allocation")
    assert rule.open_axes == ("grouping",)
    every = Rule(load_design_space("chen2023-s0"))
    assert "undecided (uniform, spindle, bottleneck, increasing, ... (5 options))" in str(every)


def test_groups_that_stay_frozen_are_not_told():
    space = load_design_space("chen2023-s0").keep("tunable", ["G1", "G4"])
    assert "G1: " in str(Rule(space))
    assert "G2: " not in str(Rule(space))


def test_methods_that_share_an_op_are_told_by_name():
    text = """
groups: 1
methods:
  on_queries: {op: lora, sites: ["*.attention.q"]}
  on_values: {op: lora, sites: ["*.attention.v"]}
  adapter: {op: serial, sites: ["*.ffn"]}
axes: {grouping: [uniform], allocation: [uniform], tunable: [[G1]], methods: {G1: [[on_values, adapter]]}}
"""
    assert str(Rule(parse_design_space(text))) == "uniform, uniform allocation, all groups, G1: on_values+serial"


def test_the_plans_of_an_open_rule_are_one_a_design_simplest_first_and_all_within_the_budget():
    rule = Rule(load_design_space("chen2023-s3").keep("methods.G1", ["lora"]).keep("methods.G2", ["lora"]))
    there = layout(BERT, rule.space.methods_defined)
    plans = rule.plans(there, within(400_000), limit=5)
    assert len(plans) == len({compiled.plan for _, compiled in plans}) == 5
    assert plans[0][1].plan.ops == ("lora",)
    for design, compiled in plans:
        assert compiled.plan.cost(BERT) <= 400_000
        assert "G1: lora; G2: lora" in str(design)


def test_designs_that_cost_too_much_are_left_out_of_the_plans():
    rule = Rule(load_design_space("chen2023-s3"))
    there = layout(BERT, rule.space.methods_defined)
    plans = rule.plans(there, within(40_000), limit=4)
    assert plans
    assert all("bias" not in compiled.plan.ops for _, compiled in plans)
    assert rule.plans(there, within(1000)) == []


def test_a_rule_of_many_open_axes_lists_a_thousand_designs_at_most():
    assert len(Rule(load_design_space("chen2023-s0")).designs()) == 1000


def test_a_rule_written_as_yaml_is_read_as_the_same_space():
    space = load_design_space("chen2023-s0").keep("grouping", ["spindle", "uniform"])
    assert parse_design_space(Rule(space).to_yaml()) == space
