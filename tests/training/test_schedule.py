"""Learning rates that follow from the width of the model."""

import pytest
from transformers import AutoConfig

from peftscout.config import LearningRates
from peftscout.training.schedule import HIGHEST_MATRIX_RATE, rates_at


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
