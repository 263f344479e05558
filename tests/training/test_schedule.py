"""Learning rates that follow from the width of the model, and from what else a plan trains."""

import pytest
from transformers import AutoConfig

from fake_sites import fake_sites
from peftscout.config import LearningRates
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan
from peftscout.space import load_space
from peftscout.training.schedule import HIGHEST_MATRIX_RATE, rate_factors, rates_at, vectors_among_others


@pytest.mark.parametrize(("width", "rate"), [(384, 3e-3), (768, 1.5e-3), (4096, 2.8125e-4), (32, HIGHEST_MATRIX_RATE)])
def test_the_rate_of_matrices_falls_with_the_width_of_the_model_and_is_bounded(width, rate):
    rates = rates_at(width, LearningRates().model_dump())
    of_matrices = [rates[op] for op in ("lora", "serial", "parallel", "lowrank_adapter")]
    assert of_matrices == pytest.approx([rate] * 4)


def test_vectors_and_heads_have_the_same_rate_at_every_width():
    small, large = (rates_at(width, LearningRates().model_dump()) for width in (384, 4096))
    assert {op for op in small if small[op] != large[op]} == {"lora", "serial", "parallel", "lowrank_adapter"}


def test_a_rate_that_was_given_stays():
    assert rates_at(768, LearningRates(lora=7e-4).model_dump())["lora"] == 7e-4


@pytest.mark.parametrize(
    "kind", ["bert", "roberta", "t5", "bart", "llama", "gpt2", "qwen3", "gemma", "modernbert", "albert"]
)
def test_every_family_says_how_wide_it_is(kind):
    assert AutoConfig.for_model(kind).get_text_config().hidden_size >= 384


SITES = fake_sites(layers=3)


def everywhere(*ops: str) -> Plan:
    """Return the plan that has each of ``ops`` wherever it can be, at its smallest size."""
    choices = [choice for choice in load_space("all", SITES).choices if choice.op in ops]
    return Plan.of({(choice.site, choice.op): min(size for size in choice.sizes if size) for choice in choices})


@pytest.mark.parametrize("op", ["bias", "scale", "norm", "lora"])
def test_a_family_alone_has_the_rate_that_it_was_measured_with(op):
    assert vectors_among_others(everywhere(op), SITES) == 1


def test_vectors_have_a_rate_that_falls_with_the_whole_families_that_a_plan_amounts_to():
    assert vectors_among_others(everywhere("bias", "norm"), SITES) == pytest.approx(1 / 2)
    assert vectors_among_others(everywhere("bias", "norm", "lora", "lowrank_adapter"), SITES) == pytest.approx(1 / 4)
    half = Plan.of(dict(list(everywhere("lora").sizes.items())[:9]) | everywhere("bias").sizes)
    assert vectors_among_others(half, SITES) == pytest.approx(1 / 1.5)


def test_below_one_family_nothing_changes():
    few = Plan.of(
        {("layers.0.attention.q", "lora"): 4, ("layers.0.ffn.up", "bias"): 1, ("layers.1.ffn_norm", "norm"): 1}
    )
    assert vectors_among_others(few, SITES) == 1
    assert vectors_among_others(Plan(), SITES) == 1


def test_matrices_prefixes_and_head_keep_their_rates_and_the_factors_of_a_request_count_for_all():
    request = Evaluate(everywhere("bias", "lora"), Fidelity(3), 0, 3.0, op_lr_scales=(("lora", 0.1),))
    factor = rate_factors(request, SITES)
    assert factor("bias") == factor("norm") == factor("scale") == pytest.approx(1.5)
    assert factor("lora") == pytest.approx(0.3)
    assert factor("serial") == factor("prefix") == factor("head") == 3.0
