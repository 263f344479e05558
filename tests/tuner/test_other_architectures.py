"""The contract once more, in short, on peculiar architectures: shared blocks, fused projections, experts, ..."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import transformers
from transformers import CONFIG_MAPPING, AutoModel, PreTrainedModel

from adapted import batch_of, everything, logits, stir
from peftscout import tuner
from peftscout.architecture import ModelMap

COMMON = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 100,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
    "bos_token_id": 2,
    "eos_token_id": 1,
    "initializer_range": 0.2,
}
GROUPED = {"num_key_value_heads": 2, "head_dim": 8}
BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "init_std": 0.2,
}
NAMES = ("vocab_size", "pad_token_id", "max_position_embeddings")

PECULIAR: dict[str, dict[str, Any]] = {
    "albert": {**COMMON, "embedding_size": 16},  # one block, used by every layer
    "distilbert": {"dim": 32, "n_layers": 2, "n_heads": 4, "hidden_dim": 48, **{k: COMMON[k] for k in NAMES}},
    "modernbert": {**COMMON, "cls_token_id": 2, "sep_token_id": 1, "local_attention": 8},  # fused, local and global
    "gemma3_text": {**COMMON, **GROUPED, "sliding_window": 4},  # norms of 1 + w, on queries and keys too
    "phi3": {**COMMON, "num_key_value_heads": 2},  # fused qkv and gate_up
    "gpt_neox": COMMON,  # fused qkv with heads interleaved, parallel residual
    "bart": {**{k: COMMON[k] for k in NAMES}, **BART},  # projections wrapped twice, cross-attention
    "olmo2": {**COMMON, "num_key_value_heads": 2},  # norms after, not before
    "gpt_oss": {**COMMON, **GROUPED, "num_local_experts": 2, "num_experts_per_tok": 1},  # attention sinks, eager
    "mixtral": {**COMMON, **GROUPED, "num_local_experts": 2},  # experts are no sites
    "falcon": COMMON,  # no attention interface, so no prefix
    "deepseek_v3": {
        **COMMON,
        "q_lora_rank": 16,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 16,
    },  # latent attention
}


@pytest.fixture(autouse=True)
def _quiet() -> Any:
    before = transformers.logging.get_verbosity()
    transformers.logging.set_verbosity_error()
    yield
    transformers.logging.set_verbosity(before)


def peculiar(name: str) -> tuple[PreTrainedModel, ModelMap, dict[str, torch.Tensor]]:
    torch.manual_seed(0)
    model = AutoModel.from_config(CONFIG_MAPPING[name](**PECULIAR[name])).eval()
    batch = batch_of()
    if model.config.is_encoder_decoder:
        batch["decoder_input_ids"] = batch["input_ids"][:, :5]
    return model, ModelMap.from_model(model), batch


@pytest.mark.parametrize("name", PECULIAR)
def test_everything_at_once_is_a_no_op_at_first_reached_by_gradients_and_leaves_no_trace(name: str) -> None:
    model, model_map, batch = peculiar(name)
    plan = everything(model_map)
    before, hashed = logits(model, batch), tuner.fingerprint(model)
    adapted = tuner.build(model, plan, model_map)
    tuner.check_built(adapted, plan)
    assert torch.equal(logits(adapted, batch), before)
    tuner.check_gradients(adapted, plan, batch)
    assert not torch.allclose(logits(stir(adapted), batch), before, atol=1e-2)
    assert tuner.fingerprint(tuner.reset(adapted)) == hashed
    assert torch.equal(logits(model, batch), before)


@pytest.mark.parametrize("name", PECULIAR)
def test_what_folds_merges_into_the_same_function(name: str) -> None:
    model, model_map, batch = peculiar(name)
    adapted = stir(tuner.build(model, everything(model_map, only=("lora", "scale", "norm")), model_map))
    expected = logits(adapted, batch)
    torch.testing.assert_close(logits(adapted.merge_and_unload(), batch), expected, rtol=1e-4, atol=1e-4)


def test_a_block_that_layers_share_is_adapted_and_counted_once() -> None:
    model, model_map, _ = peculiar("albert")
    plan = everything(model_map)
    adapted = tuner.build(model, plan, model_map)
    assert {placement.site.split(".")[1] for placement in plan} == {"0"}
    assert sum(p.numel() for p in adapted.parameters() if p.requires_grad) == plan.cost(model_map.sites)


def test_backbones_that_prefer_eager_attention_keep_it() -> None:
    model, model_map, _ = peculiar("gpt_oss")
    assert model.config._attn_implementation == "eager"
    tuner.build(model, everything(model_map), model_map)
    assert model.config._attn_implementation == "peftscout_eager"
