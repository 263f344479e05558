"""Prices of the four methods against the table of the dossier (section 1.5), which was computed by hand there.

One layer's share of a budget under uniform allocation, and the size that one method alone could have for it.
"""

from functools import cache

import pytest
import torch
from transformers import AutoModel, BartConfig, PretrainedConfig, RobertaConfig, T5Config

from peftscout.architecture import ModelMap
from peftscout.strategies.design_spaces import load_design_space
from peftscout.strategies.design_spaces.layout import Layout, layout

CONFIGS: dict[str, PretrainedConfig] = {
    "roberta-base": RobertaConfig(),
    "roberta-large": RobertaConfig(
        hidden_size=1024, intermediate_size=4096, num_hidden_layers=24, num_attention_heads=16
    ),
    "t5-base": T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12),
    "bart-base": BartConfig(d_model=768, encoder_layers=6, decoder_layers=6),
    "bart-large": BartConfig(d_model=1024, encoder_layers=12, decoder_layers=12),
}

# Backbone: parameters, layers, and at 0.1 % and 0.5 %: a layer's share in thousands, adapter, LoRA rank, prefix length.
TABLE = {
    "roberta-base": (124.6e6, 12, (10.4, 6.3, 3.4, 6.8), (51.9, 33.3, 16.9, 33.8)),
    "roberta-large": (355e6, 24, (14.8, 6.7, 3.6, 7.2), (74.0, 35.6, 18.1, 36.2)),
    "t5-base": (223e6, 24, (9.3, 5.5, 3.0, 6.1), (46.4, 29.7, 15.1, 30.2)),
    "bart-base": (139.4e6, 12, (11.6, 7.1, 3.8, 7.6), (58.1, 37.3, 18.9, 37.8)),
    "bart-large": (406e6, 24, (16.9, 7.8, 4.1, 8.3), (84.6, 40.8, 20.7, 41.3)),
}


@cache
def layout_of(name: str) -> Layout:
    with torch.device("meta"):
        sites = ModelMap.from_model(AutoModel.from_config(CONFIGS[name])).sites
    return layout(sites, load_design_space("chen2023-s0").methods_defined)


@pytest.mark.parametrize("column", [0, 1])
@pytest.mark.parametrize("name", TABLE)
def test_one_method_alone_can_be_as_large_as_the_dossier_says(name, column):
    parameters, layers, *sizes = TABLE[name]
    share = (0.001, 0.005)[column] * parameters / layers
    there = layout_of(name)
    assert len(there.layers) == layers
    thousands, *expected = sizes[column]
    assert share / 1000 == pytest.approx(thousands, abs=0.06)
    for method, size in zip(("adapter", "lora", "prefix"), expected, strict=True):
        cell = there.cells[0, method]
        assert (share - cell.fixed) / cell.per_size == pytest.approx(size, abs=0.1)


@pytest.mark.parametrize(
    ("name", "at_a_tenth", "at_half"), [("roberta-base", 0.81, 0.16), ("roberta-large", 0.76, 0.15)]
)
def test_bitfit_has_a_fixed_price_that_eats_a_small_budget(name, at_a_tenth, at_half):
    """Eleven vectors of the hidden width: q, k, v, o, up (four of them), down, and two norms."""
    parameters, layers, *_ = TABLE[name]
    bitfit = layout_of(name).cells[0, "bitfit"]
    assert bitfit.fixed == bitfit.most == 11 * CONFIGS[name].hidden_size
    assert bitfit.fixed / (0.001 * parameters / layers) == pytest.approx(at_a_tenth, abs=0.01)
    assert bitfit.fixed / (0.005 * parameters / layers) == pytest.approx(at_half, abs=0.01)


def test_t5_has_no_biases_so_vectors_are_added_to_all_its_linears():
    there = layout_of("t5-base")
    assert there.cells[0, "bitfit"].fixed == 4 * 768 + 3072 + 768
    assert there.cells[12, "bitfit"].fixed == 8 * 768 + 3072 + 768  # cross-attention, too
