"""Roles of about 60 model types, built from their default configs on the meta device.

The expected values are written down from the modelling code of transformers, not from the output of peftscout: what a
block consists of, how many blocks there are, how many heads of which size. Beside them stands an invariant that needs
no table: every parameter of a block belongs to a site or to something that is reported as left out.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import pytest
import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForSequenceClassification,
    PreTrainedModel,
    T5Config,
    T5ForConditionalGeneration,
)

from peftscout.architecture import ModelMap
from peftscout.errors import ArchitectureError
from peftscout.sites import Site


@dataclass(frozen=True)
class Block:
    """What one block consists of, each field as words: the sites are ``attention.q``, ..., ``ffn_norm``, ``ffn``."""

    attention: str = ""
    ffn: str = ""
    norms: str = "attention ffn"
    inner_norms: str = ""
    cross: str = ""
    shared: str = ""
    prefix: bool = True

    @property
    def sites(self) -> set[str]:
        parts = {
            "attention": self.attention,
            "cross_attention": self.cross,
            "ffn": self.ffn,
            "shared_ffn": self.shared,
        }
        linears = {f"{part}.{role}" for part, roles in parts.items() for role in roles.split()}
        sublayers = {part for part, roles in parts.items() if roles and part != "shared_ffn"}
        norms = {f"{name}_norm" for name in self.norms.split()}
        inner = {f"attention.{name}_norm" for name in self.inner_norms.split()}
        return linears | sublayers | norms | inner

    @property
    def prefixes(self) -> set[str]:
        own = {"attention"} if self.attention and self.prefix else set()
        return own | ({"cross_attention"} if self.cross else set())


@dataclass(frozen=True)
class Stack:
    """A stack of equal blocks, but for ``others`` (layer -> block)."""

    blocks: int
    block: Block
    others: Mapping[int, Block] = field(default_factory=dict)
    final_norm: bool = True


QKVO, FUSED, GATED, FUSED_GATED = "q k v o", "qkv o", "gate up down", "gate_up down"
BERT = Block(QKVO, "up down")
GPT2 = Block(FUSED, "up down")
LLAMA = Block(QKVO, GATED)
DECODER = Block(QKVO, "up down", norms="attention cross_attention ffn", cross=QKVO)
GEMMA2 = Block(QKVO, GATED, norms="attention attention_post ffn ffn_post")
MOE = Block(QKVO)
MLA = Block("q_a q_b kv_a kv_b o", GATED, inner_norms="q_a kv_a", prefix=False)


def inline(block: Block) -> Block:
    """The same block in a model file that computes attention itself: no prefix can get in."""
    return replace(block, prefix=False)


def encoder(blocks: int, block: Block = BERT) -> dict[str, Stack]:
    return {"layers": Stack(blocks, block, final_norm=False)}


def decoder(blocks: int, block: Block = LLAMA, others: Mapping[int, Block] | None = None) -> dict[str, Stack]:
    return {"layers": Stack(blocks, block, others or {})}


def seq2seq(blocks: int, gated: bool = False, final_norm: bool = True, local: bool = False) -> dict[str, Stack]:
    ffn = GATED if gated else "up down"
    return {
        "encoder": Stack(blocks, replace(BERT, ffn=ffn, prefix=not local), final_norm=final_norm),
        "decoder": Stack(blocks, replace(DECODER, ffn=ffn), final_norm=final_norm),
    }


MODELS: dict[str, dict[str, Stack]] = {
    # encoders with the norm after the sublayer
    "bert": encoder(12),
    "roberta": encoder(12),
    "xlm-roberta": encoder(12),
    "camembert": encoder(12),
    "electra": encoder(12),
    "distilbert": encoder(6),
    "albert": encoder(1),  # one block, applied 12 times
    "deberta": encoder(12, inline(GPT2)),  # fused in_proj
    "deberta-v2": encoder(24, inline(BERT)),
    "ernie": encoder(12),
    "layoutlm": encoder(12),
    "mpnet": encoder(12, inline(BERT)),
    "wav2vec2": encoder(12),
    # encoders with the norm before the sublayer
    "modernbert": decoder(22, Block(FUSED, FUSED_GATED), {0: Block(FUSED, FUSED_GATED, norms="ffn")}),
    "vit": decoder(12, BERT),
    "clip_text_model": decoder(12, BERT),
    # encoder-decoders
    "t5": seq2seq(6),
    "mt5": seq2seq(8, gated=True),
    "umt5": seq2seq(8, gated=True),
    "longt5": seq2seq(6, local=True),
    "bart": seq2seq(12, final_norm=False),
    "mbart": seq2seq(12),
    "pegasus": seq2seq(12),
    "m2m_100": seq2seq(12),
    "marian": seq2seq(12, final_norm=False),
    "blenderbot-small": seq2seq(8, final_norm=False),
    "whisper": seq2seq(4),
    # decoders with a plain FFN
    "gpt2": decoder(12, GPT2),
    "gptj": decoder(28, inline(replace(BERT, norms="attention"))),  # attention and FFN in parallel, one norm
    "gpt_neo": decoder(24, inline(BERT)),
    "gpt_neox": decoder(44, GPT2),
    "gpt_bigcode": decoder(12, GPT2),
    "opt": decoder(12, BERT),
    "bloom": decoder(2, inline(GPT2)),
    "falcon": decoder(32, inline(replace(GPT2, norms="attention"))),
    "mpt": decoder(24, inline(GPT2)),
    "codegen": decoder(28, inline(replace(GPT2, norms="attention"))),
    "xglm": decoder(24, inline(BERT)),
    "phi": decoder(24, replace(BERT, norms="attention")),
    "starcoder2": decoder(30, BERT),
    # decoders with a gated FFN
    "llama": decoder(32),
    "mistral": decoder(32),
    "gemma": decoder(28),
    "gemma2": decoder(26, GEMMA2),
    "gemma3_text": decoder(26, replace(GEMMA2, inner_norms="q k")),
    "qwen2": decoder(32),
    "qwen3": decoder(32, replace(LLAMA, inner_norms="q k")),
    "olmo": {"layers": Stack(32, replace(LLAMA, norms=""), final_norm=False)},  # its norms have no weights
    "olmo2": decoder(32, replace(LLAMA, inner_norms="q k")),
    "olmo3": decoder(32, replace(LLAMA, inner_norms="q k")),
    "smollm3": decoder(36),
    "stablelm": decoder(32),
    "granite": decoder(32),
    "cohere": decoder(40, replace(LLAMA, norms="attention")),
    "cohere2": decoder(40, replace(LLAMA, norms="attention")),
    "phi3": decoder(32, Block(FUSED, FUSED_GATED)),
    "glm": decoder(40, Block(QKVO, FUSED_GATED)),
    "glm4": decoder(40, replace(GEMMA2, ffn=FUSED_GATED)),
    # mixtures of experts
    "mixtral": decoder(32, MOE),
    "qwen3_moe": decoder(24, replace(MOE, inner_norms="q k")),
    "qwen2_moe": decoder(24, replace(MOE, shared=GATED)),
    "gpt_oss": decoder(36, MOE),
    "llama4_text": decoder(48, replace(MOE, shared=GATED)),
    "deepseek_v3": decoder(61, replace(MLA, ffn="", shared=GATED), dict.fromkeys(range(3), MLA)),
    # linear attention in three of four blocks; a state-space mixer beside attention
    "qwen3_5_text": decoder(
        32,
        Block(ffn=GATED, norms="mixer ffn"),
        dict.fromkeys(range(3, 32, 4), replace(LLAMA, inner_norms="q k")),
    ),
    "qwen3_next": decoder(
        48,
        Block(shared=GATED, norms="mixer ffn"),
        dict.fromkeys(range(3, 48, 4), replace(MOE, shared=GATED, inner_norms="q k")),
    ),
    "falcon_h1": decoder(32),
}

LEFT_OUT = {
    "mixtral": {"mlp"},
    "qwen3_moe": {"mlp"},
    "qwen2_moe": {"mlp", "mlp.shared_expert_gate"},
    "gpt_oss": {"mlp"},
    "llama4_text": {"feed_forward", "feed_forward.router"},
    "deepseek_v3": {"mlp"},
    "qwen3_5_text": {"linear_attn"},
    "qwen3_next": {"linear_attn", "mlp", "mlp.shared_expert_gate"},
    "falcon_h1": {"mamba"},
}
"""Paths in a block that are reported as no sites. All others have nothing to leave out."""

BESIDE_PROJECTIONS = {"relative_attention_bias", "q_bias", "v_bias", "sinks"}
"""Parameters and embeddings inside attention modules that are no projection and no norm."""

HEADS = {  # query heads, key/value heads, size of a head
    "bert": (12, 12, 64),
    "electra": (4, 4, 64),
    "albert": (64, 64, 64),
    "modernbert": (12, 12, 64),
    "mt5": (6, 6, 64),
    "whisper": (6, 6, 64),
    "gpt2": (12, 12, 64),
    "gpt_bigcode": (12, 1, 64),  # multi-query: one head of keys in the fused projection
    "gpt_neox": (64, 64, 96),
    "llama": (32, 32, 128),
    "mistral": (32, 8, 128),
    "gemma": (16, 16, 256),  # 16 * 256 > hidden 3072
    "gemma2": (8, 4, 256),
    "phi3": (32, 32, 96),
    "glm": (32, 2, 128),
    "starcoder2": (24, 2, 128),
    "gpt_oss": (64, 8, 64),
    "qwen3_next": (16, 2, 256),  # q_proj is twice as wide: half of it is a gate
    "qwen3_5_text": (16, 4, 256),
}


@cache
def mapped(name: str) -> tuple[PreTrainedModel, ModelMap]:
    with torch.device("meta"):
        model = AutoModel.from_config(CONFIG_MAPPING[name]())
    return model, ModelMap.from_model(model)


def names_by_layer(model_map: ModelMap, stack: str) -> dict[int, list[str]]:
    layers: dict[int, list[str]] = {}
    for site in model_map.sites.values():
        if site.stack == stack and site.layer is not None:
            layers.setdefault(site.layer, []).append(site.id.removeprefix(f"{stack}.{site.layer}."))
    return layers


def left_out(model_map: ModelMap) -> set[str]:
    """Paths in a block named by the notes, without those that are about prefixes."""
    return {note.split(": ")[1] for note in model_map.skipped if not note.endswith("no prefix")}


def test_at_least_55_model_types_are_checked() -> None:
    assert len(MODELS) >= 55


@pytest.mark.parametrize("name", MODELS)
def test_every_block_has_the_sites_that_its_modelling_code_says(name: str) -> None:
    _, model_map = mapped(name)
    expected = MODELS[name]
    assert dict(model_map.stacks) == {stack: own.blocks for stack, own in expected.items()}
    for site in model_map.sites.values():
        assert site.layer is None or site.module.startswith(model_map.blocks[site.stack][site.layer] + ".")
    for stack, own in expected.items():
        layers = names_by_layer(model_map, stack)
        assert sorted(layers) == list(range(own.blocks))
        for layer, names in layers.items():
            block = own.others.get(layer, own.block)
            assert set(names) == block.sites, f"{stack}.{layer}"
            prefixes = {n for n in names if model_map.sites[f"{stack}.{layer}.{n}"].attention is not None}
            assert prefixes == block.prefixes, f"{stack}.{layer}"
        assert (f"{stack}.final_norm" in model_map.sites) == own.final_norm
    assert left_out(model_map) == LEFT_OUT.get(name, set())


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_of_a_block_belongs_to_a_site_or_is_reported(name: str) -> None:
    model, model_map = mapped(name)
    covered = {site.module for site in model_map.sites.values()}
    blocks = {path_of_block(site, model_map) for site in model_map.sites.values() if site.layer is not None}
    skipped = left_out(model_map)
    for block in blocks:
        for parameter, _ in model.get_submodule(block).named_parameters():
            module, _, leaf = parameter.rpartition(".")
            known = f"{block}.{module}" in covered or {leaf, module.rpartition(".")[2]} & BESIDE_PROJECTIONS
            assert known or any(parameter.startswith(f"{path}.") for path in skipped), f"{block}.{parameter}"


def path_of_block(site: Site, model_map: ModelMap) -> str:
    """Path of the block that holds ``site``: what the modules of its sites have in common."""
    own = [s.module.split(".") for s in model_map.sites.values() if (s.stack, s.layer) == (site.stack, site.layer)]
    common = []
    for parts in zip(*own, strict=False):
        if len(set(parts)) > 1:
            break
        common.append(parts[0])
    return ".".join(common)


@pytest.mark.parametrize("name", MODELS)
def test_every_site_tells_the_shape_of_its_module(name: str) -> None:
    model, model_map = mapped(name)
    for site in model_map.sites.values():
        module = model.get_submodule(site.module)
        bias = getattr(module, "bias", None)
        assert site.has_bias == (bias is not None), site.id
        assert bias is None or bias.numel() == site.out_features, site.id
        if site.kind == "linear":
            assert module.weight.numel() == site.in_features * site.out_features, site.id
        elif site.kind == "norm":
            assert module.weight.shape == (site.out_features,), site.id
        else:
            assert site.input_module is not None
            entry = next(s for s in model_map.sites.values() if s.module == site.input_module)
            end = next(s for s in model_map.sites.values() if s.module == site.module)
            assert (entry.kind, end.kind, end.role) == ("linear", "linear", "down" if site.role == "ffn" else "o")
            assert (site.in_features, site.out_features) == (entry.in_features, end.out_features)
            assert site.in_features == site.out_features, f"{site.id}: a sublayer keeps the hidden width"


@pytest.mark.parametrize("name", MODELS)
def test_the_parameters_are_those_of_the_model(name: str) -> None:
    model, model_map = mapped(name)
    assert model_map.total == model.num_parameters()
    assert model_map.head == ()
    assert model_map.model_type == model.config.model_type


@pytest.mark.parametrize("name", HEADS)
def test_heads_are_those_of_the_config(name: str) -> None:
    _, model_map = mapped(name)
    geometry = {(a.heads, a.kv_heads, a.head_size) for s in model_map.sites.values() if (a := s.attention) is not None}
    assert geometry == {HEADS[name]}


@pytest.mark.parametrize("name", MODELS)
def test_key_module_is_below_the_attention_module_and_as_wide_as_the_heads(name: str) -> None:
    model, model_map = mapped(name)
    widths = {s.module: s.out_features for s in model_map.sites.values() if s.kind == "linear"}
    roles = {s.module: s.role for s in model_map.sites.values() if s.kind == "linear"}
    for site in model_map.sites.values():
        if (attention := site.attention) is None:
            continue
        assert attention.key_module.startswith(f"{attention.module}.")
        assert model.get_submodule(attention.key_module) is not None
        keys, queries = attention.kv_heads * attention.head_size, attention.heads * attention.head_size
        expected = {"k": keys, "kv": 2 * keys, "qkv": queries + 2 * keys}[roles[attention.key_module]]
        assert widths[attention.key_module] == expected, site.id


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        # NemotronLayerNorm1P multiplies by 1 + weight and has a bias
        ("nemotron", {"num_key_value_heads": 8, "num_hidden_layers": 2}, Block(QKVO, "up down")),
        ("ministral", {"head_dim": 128, "num_hidden_layers": 2}, LLAMA),
        ("bitnet", {"num_hidden_layers": 2}, replace(LLAMA, inner_norms="attn_sub", norms="attention ffn ffn.ffn_sub")),
        ("stablelm", {"num_hidden_layers": 2, "use_parallel_residual": True}, replace(LLAMA, norms="attention")),
        ("falcon", {"num_hidden_layers": 2, "new_decoder_architecture": True, "num_kv_heads": 71}, inline(GPT2)),
        (
            "deepseek_v3",
            {"num_hidden_layers": 1, "q_lora_rank": None},
            replace(MLA, attention="q kv_a kv_b o", inner_norms="kv_a"),
        ),
    ],
)
def test_variants_that_the_default_config_does_not_show(name: str, changes: dict[str, Any], expected: Block) -> None:
    with torch.device("meta"):
        model_map = ModelMap.from_model(AutoModel.from_config(CONFIG_MAPPING[name](**changes)))
    assert set(names_by_layer(model_map, "layers")[0]) == expected.sites


def test_gemma4_alternates_head_sizes_and_leaves_its_per_layer_inputs_alone() -> None:
    _, model_map = mapped("gemma4_text")
    sizes = [model_map.sites[f"layers.{n}.attention"].attention.head_size for n in range(6)]  # type: ignore[union-attr]
    assert sizes == [256] * 5 + [512]
    assert {"layers.0.ffn.up", "layers.0.ffn.down", "layers.0.post_per_layer_input_norm"} <= set(model_map.sites)
    assert left_out(model_map) == {"per_layer_input_gate", "per_layer_projection"}


def test_a_hybrid_whose_first_block_has_no_attention_is_mapped() -> None:
    _, model_map = mapped("qwen3_5_text")
    with_attention = [n for n in range(32) if f"layers.{n}.attention" in model_map.sites]
    assert with_attention == list(range(3, 32, 4))
    assert model_map.skipped[0].startswith("layers.0-2,4-6,8-10,")
    assert "linear_attn: linear-attention or state-space mixer" in model_map.skipped[0]


def test_a_mixture_of_experts_says_that_it_has_no_ffn_sublayer() -> None:
    _, model_map = mapped("mixtral")
    assert model_map.skipped == (
        "layers.0-31: mlp: mixture of experts: each would need its own op: not sites, no FFN sublayer",
    )


def test_deepseek_says_that_compressed_keys_take_no_prefix() -> None:
    _, model_map = mapped("deepseek_v3")
    assert (
        "layers.0-60: attention: keys come from a compressed latent (multi-head latent attention): no prefix"
        in model_map.skipped
    )
    assert model_map.sites["layers.0.attention"].input_module == "layers.0.self_attn.q_a_proj"


def test_a_cross_attention_of_gpt2_has_its_query_apart_from_keys_and_values() -> None:
    config = CONFIG_MAPPING["gpt2"](n_layer=2, add_cross_attention=True, is_decoder=True)
    with torch.device("meta"):
        model_map = ModelMap.from_model(AutoModel.from_config(config))
    site = model_map.sites["layers.0.cross_attention"]
    assert [s for s in model_map.sites if s.startswith("layers.0.cross_attention.")] == [
        "layers.0.cross_attention.q",
        "layers.0.cross_attention.kv",
        "layers.0.cross_attention.o",
    ]
    assert site.input_module == "h.0.crossattention.q_attn"
    assert site.attention is not None
    assert (site.attention.key_module, site.attention.kv_heads) == ("h.0.crossattention.c_attn", 12)
    assert "layers.0.cross_attention_norm" in model_map.sites


def test_two_towers_are_named_by_what_tells_them_apart() -> None:
    config = CONFIG_MAPPING["clip"](text_config={"num_hidden_layers": 2}, vision_config={"num_hidden_layers": 3})
    with torch.device("meta"):
        model_map = ModelMap.from_model(AutoModel.from_config(config))
    assert dict(model_map.stacks) == {"text_model": 2, "vision_model": 3}
    assert "text_model.1.attention.q" in model_map.sites
    assert "vision_model.2.ffn.down" in model_map.sites


@pytest.mark.parametrize("name", ["mamba", "mamba2", "falcon_mamba", "convnext", "resnet", "fnet", "xlnet"])
def test_models_without_projections_of_attention_are_refused(name: str) -> None:
    config = CONFIG_MAPPING[name]()
    with torch.device("meta"):
        model = AutoModel.from_config(config)
    with pytest.raises(ArchitectureError, match="is not supported"):
        ModelMap.from_model(model)


def test_longformer_is_mapped_once_its_global_projections_are_skipped() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(CONFIG_MAPPING["longformer"](num_hidden_layers=2))
    with pytest.raises(ArchitectureError, match=r"encoder\.layer\.0\.attention\.self\.query_global"):
        ModelMap.from_model(model)
    model_map = ModelMap.from_model(model, roles={r".*_global": "skip"})
    assert set(names_by_layer(model_map, "layers")[0]) == BERT.sites
    assert "layers.0-1: attention.self.query_global: skipped by role override" in model_map.skipped


def test_gemma3n_is_mapped_once_its_side_networks_are_skipped() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(CONFIG_MAPPING["gemma3n_text"](num_hidden_layers=2, num_kv_shared_layers=0))
    model_map = ModelMap.from_model(model, roles={r"(altup|laurel)\..*": "skip"})
    assert {"layers.1.ffn.gate", "layers.1.ffn.up", "layers.1.ffn.down", "layers.1.ffn"} <= set(model_map.sites)


def test_mamba_is_refused_with_the_reason() -> None:
    with torch.device("meta"):
        model = AutoModel.from_config(CONFIG_MAPPING["mamba"](num_hidden_layers=2))
    with pytest.raises(ArchitectureError) as caught:
        ModelMap.from_model(model)
    assert "MambaModel (model type 'mamba') is not supported" in str(caught.value)
    assert "no list of blocks holds attention" in str(caught.value)


# -- T5-large: the geometry that the S3Delta and BIPEFT papers count on ------------------------------------------------


@pytest.fixture(scope="module")
def t5_large() -> ModelMap:
    config = T5Config(
        vocab_size=32128, d_model=1024, d_kv=64, d_ff=4096, num_layers=24, num_decoder_layers=24, num_heads=16
    )
    with torch.device("meta"):
        return ModelMap.from_model(T5ForConditionalGeneration(config))


def test_t5_large_has_the_published_number_of_parameters(t5_large: ModelMap) -> None:
    assert t5_large.total == 737_668_096
    assert t5_large.head == ()


def test_t5_large_has_288_projections_outside_cross_attention(t5_large: ModelMap) -> None:
    assert dict(t5_large.stacks) == {"encoder": 24, "decoder": 24}
    linears = [s for s in t5_large.sites.values() if s.kind == "linear"]
    cross = [s for s in linears if ".cross_attention." in s.id]
    assert (len(linears) - len(cross), len(cross)) == (288, 96)
    assert Counter(s.role for s in linears if s not in cross) == dict.fromkeys(["q", "k", "v", "o", "up", "down"], 48)


def test_t5_large_has_122_norms(t5_large: ModelMap) -> None:
    norms = Counter((s.stack, s.role) for s in t5_large.sites.values() if s.kind == "norm")
    assert norms == {
        ("encoder", "attention_norm"): 24,
        ("encoder", "ffn_norm"): 24,
        ("encoder", "final_norm"): 1,
        ("decoder", "attention_norm"): 24,
        ("decoder", "cross_attention_norm"): 24,
        ("decoder", "ffn_norm"): 24,
        ("decoder", "final_norm"): 1,
    }
    assert sum(norms.values()) == 122


def test_t5_large_has_a_sublayer_for_each_attention_and_ffn(t5_large: ModelMap) -> None:
    sublayers = Counter((s.stack, s.role) for s in t5_large.sites.values() if s.kind == "sublayer")
    assert sublayers == {
        ("encoder", "attention"): 24,
        ("encoder", "ffn"): 24,
        ("decoder", "attention"): 24,
        ("decoder", "cross_attention"): 24,
        ("decoder", "ffn"): 24,
    }


# -- heads -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "head"),
    [
        ("bert", ("classifier",)),
        ("distilbert", ("pre_classifier", "classifier")),
        ("deberta-v2", ("pooler", "classifier")),
        ("modernbert", ("head", "classifier")),
        ("t5", ("classification_head",)),
        ("bart", ("classification_head",)),
        ("gpt2", ("score",)),
        ("llama", ("score",)),
    ],
)
def test_head_and_backbone_are_counted_apart(name: str, head: tuple[str, ...]) -> None:
    with torch.device("meta"):
        model = AutoModelForSequenceClassification.from_config(CONFIG_MAPPING[name](num_labels=3))
    model_map = ModelMap.from_model(model)
    assert model_map.head == head
    apart = sum(p.numel() for part in head for p in model.get_submodule(part).parameters())
    assert apart > 0
    assert model_map.total + apart == model.num_parameters()
    assert all(site.module.startswith(f"{model.base_model_prefix}.") for site in model_map.sites.values())
