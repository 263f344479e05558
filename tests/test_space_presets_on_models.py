"""Presets on the sites of real architectures, built on the meta device."""

from __future__ import annotations

from collections import Counter

import pytest
import torch
from transformers import AutoModel, AutoModelForSeq2SeqLM, T5Config

from peftscout.architecture import ModelMap
from peftscout.cost import OPS
from peftscout.plan import Budget, Plan
from peftscout.space import load_space, presets
from tiny_models import tiny_config


@pytest.fixture(scope="module")
def t5_large() -> ModelMap:
    """T5-large with its embeddings resized to the tokenizer, as the papers count it."""
    config = T5Config(d_model=1024, d_ff=4096, d_kv=64, num_heads=16, num_layers=24, vocab_size=32_100)
    with torch.device("meta"):
        return ModelMap.from_model(AutoModelForSeq2SeqLM.from_config(config))


@pytest.mark.parametrize(
    ("name", "ops", "dearest"),
    [
        ("bipeft-s1", {"lora": 288, "lowrank_adapter": 96, "bias": 410, "norm": 122}, 9_493_504),
        ("s3delta-m", {"lora": 288, "lowrank_adapter": 96, "bias": 410, "norm": 122}, 1_881_088),
        ("s3delta-l", {"lora": 288}, 884_736),
        ("bipeft-s2", {"serial": 48, "parallel": 48, "prefix": 48}, 2_458_368),
    ],
)
def test_t5_large_has_the_published_candidates_and_supernet_sizes(
    t5_large: ModelMap, name: str, ops: dict[str, int], dearest: int
) -> None:
    space = load_space(name, t5_large.sites)
    assert Counter(choice.op for choice in space.choices) == ops
    assert space.dearest().cost(t5_large.sites) == dearest


def test_the_published_budgets_on_t5_large(t5_large: ModelMap) -> None:
    assert t5_large.total == 737_639_424
    supernet = load_space("bipeft-s1", t5_large.sites).dearest().cost(t5_large.sites)
    assert supernet in Budget.parse("128.8‱", t5_large.total)
    assert supernet not in Budget.parse("128.6‱", t5_large.total)


RELEASED = {
    # structure: (parameters, biases of norms and q, LoRA r=1 by role, low-rank adapters of attention and FFN, norms)
    "average": (102_144, 46, {"q": 10, "up": 1}, (1, 7), 4),
    "SST-2": (101_760, 38, {"q": 5, "up": 6, "down": 1}, (0, 4), 4),
    "MNLI": (101_856, 33, {"q": 8, "k": 3, "v": 1, "up": 2, "down": 3}, (0, 5), 2),
    "MRPC": (102_048, 45, {"q": 13, "k": 1}, (0, 7), 5),
}
"""The structures released with S3Delta for T5-large at 1.39 permyriad, by how many of each there are."""


@pytest.mark.parametrize("name", RELEASED)
def test_the_released_structures_are_in_the_space_and_cost_what_was_published(t5_large: ModelMap, name: str) -> None:
    parameters, biases, lora, adapters, norms = RELEASED[name]
    sites = t5_large.sites
    of_norms = [site.id for site in sites.values() if site.kind == "norm"]
    assert len(of_norms) == 122

    def at(role: str, stack: str) -> list[str]:
        return [s.id for s in sites.values() if s.role == role and s.stack == stack and ".cross" not in s.id]

    places = [(site, "bias") for site in of_norms[:biases]]
    places += [(site, "lora") for role, count in lora.items() for site in at(role, "decoder")[:count]]
    for role, count in zip(("attention", "ffn"), adapters, strict=True):
        places += [(site, "lowrank_adapter") for site in at(role, "decoder")[:count]]
    places += [(site, "norm") for site in of_norms[:norms]]
    plan = Plan.of(dict.fromkeys(places, 1))
    assert len(plan) == biases + sum(lora.values()) + sum(adapters) + norms
    assert plan.cost(sites) == parameters
    assert parameters in Budget.parse("1.39‱", t5_large.total)
    load_space("s3delta-m", sites).encode(plan)


OPS_OF = {
    "all": set(OPS),
    "autopeft": {"serial", "parallel", "prefix"},
    "bipeft-s1": {"lora", "lowrank_adapter", "bias", "norm"},
    "bipeft-s2": {"serial", "parallel", "prefix"},
    "design-spaces": {"serial", "prefix", "bias", "lora"},
    "lora": {"lora"},
    "s3delta-l": {"lora"},
    "s3delta-m": {"lora", "lowrank_adapter", "bias", "norm"},
}


def test_every_preset_is_looked_at() -> None:
    assert set(OPS_OF) == set(presets())


@pytest.mark.parametrize("model", ["bert", "roberta", "t5", "gpt2", "llama", "qwen3"])
def test_every_preset_applies_in_full_to_every_architecture(model: str) -> None:
    with torch.device("meta"):
        sites = ModelMap.from_model(AutoModel.from_config(tiny_config(model))).sites
    layers = {(site.stack, site.layer) for site in sites.values() if site.layer is not None}
    for name, ops in OPS_OF.items():
        space = load_space(name, sites)
        assert set(space.ops) == ops
        for op in ops - {"norm"}:
            where = {(sites[c.site].stack, sites[c.site].layer) for c in space.choices if c.op == op}
            assert where >= layers, f"{name}: {op} is missing from a layer"
        space.dearest().check(sites)
