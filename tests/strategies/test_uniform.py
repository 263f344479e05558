import pytest
from contract import StrategyContract, drive, problem
from hypothesis import given
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.errors import BudgetError
from peftscout.plan import Budget
from peftscout.strategies.uniform import bitfit, lora_on_all_linear, lora_on_query_value, uniform, uniform_plans

OPS = ("lora", "bias", "serial", "prefix")


class TestUniform(StrategyContract):
    factory = staticmethod(uniform)


def within(parameters: int) -> Budget:
    return Budget(parameters, str(parameters))


def test_the_baseline_is_lora_of_one_rank_on_queries_and_values():
    uniform_plan = lora_on_query_value(fake_sites("encoder", layers=2, width=32), within(2 * 2 * 64 * 5 + 3))
    assert {p.site for p in uniform_plan.plan} == {f"layers.{i}.attention.{r}" for i in (0, 1) for r in "qv"}
    assert {p.size for p in uniform_plan.plan} == {5}
    assert uniform_plan.label == "uniform LoRA 5 on q, v"


@given(parameters=st.integers(64, 40_000), kind=st.sampled_from(["encoder", "encoder_decoder", "decoder"]))
def test_the_baseline_fills_the_budget_and_never_exceeds_it(parameters, kind):
    sites = fake_sites(kind)
    try:
        plan = lora_on_query_value(sites, within(parameters)).plan
    except BudgetError:
        assert parameters < 2 * 64 * 2  # not even rank 1 in the last layer
        return
    assert plan.cost(sites) <= parameters
    rank = {p.size for p in plan}
    assert len(rank) == 1
    bigger = plan.of({key: size + 1 for key, size in plan.sizes.items()})
    at_limit = rank == {min(min(sites[p.site].in_features, sites[p.site].out_features) for p in plan)}
    assert at_limit or bigger.cost(sites) > parameters


def test_where_the_budget_does_not_reach_all_layers_the_last_ones_are_kept():
    uniform_plan = lora_on_query_value(fake_sites("encoder", layers=4), within(2 * 64 + 60))
    assert {p.site for p in uniform_plan.plan} == {"layers.3.attention.q", "layers.3.attention.v"}
    assert uniform_plan.label == "uniform LoRA 1 on q, v of the last 1 layers"


def test_a_budget_below_one_layer_is_refused_with_the_price():
    with pytest.raises(BudgetError, match=r"below one layer of it \(64 at its cheapest site\)"):
        lora_on_query_value(fake_sites("encoder"), within(60))


def test_bitfit_takes_the_models_own_biases_or_adds_vectors_where_it_has_none():
    with_biases = bitfit(fake_sites("encoder"), within(10_000))
    assert with_biases.label == "uniform BitFit on all biases"
    assert {p.op for p in with_biases.plan} == {"bias"}
    without = bitfit(fake_sites("encoder_decoder"), within(10_000))
    assert without.label == "uniform BitFit on added biases of all linear layers"


def test_every_uniform_plan_that_fits_is_offered_once():
    plans = uniform_plans(fake_sites("encoder"), within(5000), OPS)
    assert [u.plan.ops for u in plans] == [("lora",), ("lora",), ("serial",), ("bias",), ("prefix",)]


def test_only_the_ops_of_the_space_are_used():
    assert {u.plan.ops for u in uniform_plans(fake_sites("encoder"), within(5000), ("lora",))} == {("lora",)}


def test_lora_on_all_linear_covers_every_projection():
    sites = fake_sites("decoder")
    plan = lora_on_all_linear(sites, within(50_000)).plan
    assert {p.site for p in plan} == {s.id for s in sites.values() if s.kind == "linear"}


def test_each_plan_is_tried_at_each_learning_rate():
    requests = drive(uniform, problem(trials=None, lr_scales=(1.0, 3.0)))
    pairs = [(r.plan, r.lr_scale) for r in requests]
    assert len(pairs) == len(set(pairs)) == 2 * len({r.plan for r in requests})
