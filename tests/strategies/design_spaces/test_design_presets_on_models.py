"""The published models on real architectures: built from config, on the meta device, and once for real in miniature."""

from functools import cache

import pytest
import torch
from transformers import (
    AutoModel,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    RobertaConfig,
    T5Config,
)

from peftscout.architecture import ModelMap
from peftscout.plan import Budget
from peftscout.strategies.design_spaces import compile_preset
from peftscout.tuner import build, parameters_by_op
from tiny_models import tiny_model

CONFIGS: dict[str, PretrainedConfig] = {
    "bert-base": BertConfig(),
    "roberta-large": RobertaConfig(hidden_size=1024, num_hidden_layers=24, num_attention_heads=16),
    "t5-base": T5Config(d_model=768, d_ff=3072, num_layers=12, num_heads=12),
    "t5-3b, inner width 4096": T5Config(d_model=1024, d_ff=16384, num_layers=24, num_heads=32, d_kv=128),
    "bart-base": BartConfig(d_model=768, encoder_layers=6, decoder_layers=6),
    "gpt2, fused qkv": GPT2Config(),
    "llama-1b, grouped queries": LlamaConfig(
        hidden_size=2048, intermediate_size=8192, num_hidden_layers=16, num_attention_heads=32, num_key_value_heads=8
    ),
}


@cache
def mapped(name: str) -> ModelMap:
    with torch.device("meta"):
        return ModelMap.from_model(AutoModel.from_config(CONFIGS[name]))


@pytest.mark.parametrize("share", ["0.5%", "1%"])
@pytest.mark.parametrize("preset", ["s4-model", "s4-3b-model"])
@pytest.mark.parametrize("name", CONFIGS)
def test_the_published_models_compile_on_every_architecture(name, preset, share):
    model_map = mapped(name)
    budget = Budget.parse(share, model_map.total)
    result = compile_preset(preset, model_map.sites, budget)
    assert 0.995 * budget.parameters <= result.plan.cost(model_map.sites) <= budget.parameters
    assert result.reason == ""
    assert result.plan.ops == ("lora", "bias", "serial", "prefix")
    result.plan.check(model_map.sites)


def test_where_projections_are_fused_lora_is_on_the_fused_one():
    sites = mapped("gpt2, fused qkv").sites
    plan = compile_preset("s4-model", sites, Budget.parse("0.5%", mapped("gpt2, fused qkv").total)).plan
    assert {sites[p.site].role for p in plan if p.op == "lora"} == {"qkv"}


def test_an_inner_width_unlike_the_hidden_one_is_paid_for():
    """A step of LoRA on q and v costs 2 (1024 + 4096) on T5-3b, and one of a prefix 2 * 4096 (dossier, section 1.5)."""
    sites = mapped("t5-3b, inner width 4096").sites
    plan = compile_preset("s4-3b-model", sites, Budget(12_000_000, "12M")).plan
    lora = plan.sizes["encoder.0.attention.q", "lora"]
    prefix = plan.sizes["encoder.0.attention", "prefix"]
    first = [p for p in plan if p.site.startswith("encoder.0.")]
    assert {p.op for p in first} == {"lora", "prefix"}
    assert 2 * (1024 + 4096) * lora + 2 * 4096 * prefix == type(plan)(tuple(first)).cost(sites)


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama"])
def test_the_built_model_has_as_many_trainable_parameters_as_the_compiled_plan_costs(name):
    layers = {"t5": {"num_layers": 3, "num_decoder_layers": 3}, "gpt2": {"n_layer": 6}}
    model = tiny_model(name, head="sequence", **layers.get(name, {"num_hidden_layers": 6}))
    model_map = ModelMap.from_model(model)
    result = compile_preset("s4-model", model_map.sites, Budget(9_000, "9k"))
    trained = parameters_by_op(build(model, result.plan, model_map))
    counted = sum(tensor.numel() for op, tensors in trained.items() if op != "head" for tensor in tensors)
    assert counted == result.cost == result.plan.cost(model_map.sites) <= 9_000
