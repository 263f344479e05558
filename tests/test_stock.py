"""What a stock adapter of peft can hold, as data, and what studies make of it."""

from __future__ import annotations

import pytest

import peftscout
from adapted import FAMILIES, everything
from peftscout.architecture import ModelMap
from peftscout.config import StudyConfig
from peftscout.errors import ConfigError, SpaceError
from peftscout.plan import Plan
from peftscout.space import load_space
from peftscout.stock import STOCK_FORMS, holds, holds_plan, stock_form
from tiny_models import tiny_model
from tiny_task import save_tiny_model, write_task

QUICK = {"trials": 3, "steps": 4, "final": {"seeds": 1, "lr_scales": [1.0]}, "progress": False}


def sites_of(name: str = "bert"):
    return ModelMap.from_model(tiny_model(name)).sites


@pytest.mark.parametrize("name", FAMILIES)
def test_no_placement_is_held_by_two_forms(name):
    sites = sites_of(name)
    for placement in everything(ModelMap.from_model(tiny_model(name))):
        assert sum(holds(form, sites[placement.site], placement.op) for form in STOCK_FORMS) <= 1


@pytest.mark.parametrize(
    ("ops", "form"),
    [
        (("lora",), "lora"),
        (("norm",), "ln_tuning"),
        (("scale",), "ia3"),
        (("lora", "norm"), None),
        (("serial",), None),
        (("bias",), None),
    ],
)
def test_the_ops_of_a_plan_decide_its_form(ops, form):
    plan = everything(ModelMap.from_model(tiny_model("bert")), only=ops)
    assert stock_form(plan, sites_of()) == form


def test_a_bias_belongs_to_ln_tuning_where_the_norm_has_one_and_only_there():
    plan = Plan.of({("layers.0.attention_norm", "bias"): 1, ("layers.0.ffn_norm", "norm"): 1})
    assert stock_form(plan, sites_of("bert")) == "ln_tuning"
    assert stock_form(plan, sites_of("llama")) is None
    assert stock_form(Plan.of({("layers.0.attention.q", "bias"): 1}), sites_of("bert")) is None


def test_nothing_holds_an_empty_plan():
    assert stock_form(Plan(), sites_of()) is None
    assert not any(holds_plan(form, Plan(), sites_of()) for form in STOCK_FORMS)


@pytest.mark.parametrize("form", STOCK_FORMS)
def test_every_plan_of_a_restricted_space_is_held(form):
    sites = sites_of("llama")
    space = load_space("all", sites).for_stock(form)
    assert holds_plan(form, space.dearest(), sites)
    assert len(space.choices) == sum(holds(form, sites[c.site], c.op) for c in load_space("all", sites).choices)


def test_a_space_in_which_nothing_fits_is_refused_with_what_it_holds():
    with pytest.raises(SpaceError, match="'lora' has nothing that a stock ia3 adapter can hold: it holds lora"):
        load_space("lora", sites_of()).for_stock("ia3")


def test_the_form_may_be_written_with_a_dash_and_a_wrong_one_is_refused():
    base = {"model": "m", "budget": "1%", "data": {"source": "d"}}
    assert StudyConfig.from_mapping({**base, "export": "ln-tuning"}).export == "ln_tuning"
    with pytest.raises(ConfigError, match="export"):
        StudyConfig.from_mapping({**base, "export": "lntuning"})


@pytest.mark.parametrize("form", ["ln_tuning", "ia3"])
def test_a_study_hands_out_the_form_that_was_asked_for_though_the_baseline_is_lora(form, tmp_path):
    model, data = save_tiny_model(tmp_path / "model"), write_task(tmp_path / "data", train=60, validation=20)
    result = peftscout.search(model, data, budget="5%", study=tmp_path / "s", export=form, **QUICK)
    sites = peftscout.map_model(model).sites
    assert holds_plan(form, result.best.plan, sites)
    assert result.summary["baseline"]["cost"] > 0
    first, *others = result.trials[result.trials["stage"] == "search"]["plan"]
    assert first.ops == ("lora",)
    assert all(holds_plan(form, plan, sites) for plan in others)
    assert result.summary["final"]["difference"] == pytest.approx(
        result.summary["final"]["best"]["mean"] - result.summary["final"]["baseline"]["mean"]
    )
