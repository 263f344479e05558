"""Whether rows may share a sequence is tested on the model: what is contaminated is refused, with the reason."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from adapted import everything
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.backbone import quiet_loading
from peftscout.plan import Plan
from peftscout.training.packing_check import why_not_packed
from tiny_models import tiny_model

ROW = torch.randint(3, 100, (20,), generator=torch.Generator().manual_seed(0)).tolist()

CONTAMINATED = {
    "opt": {"ffn_dim": 48, "max_position_embeddings": 64, "word_embed_proj_dim": 32},
    "bloom": {"n_layer": 2, "n_head": 4},
    "falcon": {"alibi": True},
    "mpt": {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 64},
    "xglm": {"d_model": 32, "attention_heads": 4, "ffn_dim": 48, "num_layers": 2, "max_position_embeddings": 64},
}
"""Decoders whose positions or masks do not follow ``position_ids``."""


def adapted(model: Any, ops: tuple[str, ...] | None = None) -> Any:
    model.requires_grad_(False)
    model_map = ModelMap.from_model(model)
    return tuner.build(model, everything(model_map, only=ops), model_map)


@pytest.mark.parametrize(
    "name", ["gpt2", "gpt_neox", "llama", "mistral", "qwen3", "gemma", "phi", "mixtral", "qwen2_moe"]
)
def test_decoders_pack_with_every_op_and_stay_as_they_are(name: str) -> None:
    model = adapted(tiny_model(name, "lm")).train()
    before = tuner.trainable_state(model)
    assert why_not_packed(model, ROW) == ""
    assert model.training
    assert all(torch.equal(tensor, before[key]) for key, tensor in tuner.trainable_state(model).items())
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CONTAMINATED)
def test_decoders_that_do_not_tell_rows_apart_are_refused(name: str, dtype: torch.dtype) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 100}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            CONFIG_MAPPING[name](**{**sizes, **CONTAMINATED[name]}, initializer_range=0.2, init_std=0.2)
        )
    assert "differ from those of each by itself" in why_not_packed(adapted(model.to(dtype), ("lora",)), ROW)


def test_a_real_decoder_packs(shared_models: Path) -> None:
    with quiet_loading():
        model = AutoModelForCausalLM.from_pretrained(shared_models / "stories260k-llama", use_safetensors=True)
    assert why_not_packed(adapted(model), ROW) == ""


def test_a_model_in_half_precision_packs() -> None:
    assert why_not_packed(adapted(tiny_model("llama", "lm").to(torch.bfloat16), ("lora", "prefix")), ROW) == ""


def test_an_encoder_is_refused() -> None:
    assert "differ" in why_not_packed(adapted(tiny_model("bert", "lm"), ("lora",)), ROW)


def test_a_leak_that_is_smaller_than_rounding_is_found() -> None:
    model = tiny_model("llama", "lm")

    def leak(module: Any, args: Any, output: torch.Tensor) -> torch.Tensor:
        return output + 1e-7 * output.mean(1, keepdim=True)

    model.model.layers[0].mlp.register_forward_hook(leak)
    assert why_not_packed(adapted(model, ("lora",)), ROW) == (
        "outputs of a row depend on the tokens of another row in its sequence"
    )


def test_a_window_that_packing_would_lift_is_found_in_a_long_row() -> None:
    """A model that passes a window only with a mask: its outputs are others where rows are longer than that."""
    model = tiny_model("mistral", "lm")
    plain = model.model.forward

    def without_window(*args: Any, **kwargs: Any) -> Any:
        model.config.sliding_window = 8 if kwargs.get("attention_mask") is not None else 64
        return plain(*args, **kwargs)

    model.model.forward = without_window
    assert "differ" in why_not_packed(adapted(model, ("lora",)), ROW)


def test_a_model_without_positions_among_its_inputs_is_refused_with_the_error() -> None:
    model = tiny_model("llama", "lm")
    plain = model.forward
    model.forward = lambda input_ids, attention_mask=None: plain(input_ids=input_ids, attention_mask=attention_mask)
    reason = why_not_packed(adapted(model, ("lora",)), ROW)
    assert reason.startswith("the forward pass fails with several rows in a sequence: TypeError")


def test_rows_of_a_few_tokens_do_not_tell() -> None:
    model = tiny_model("gpt2", "lm").requires_grad_(False)
    model_map = ModelMap.from_model(model)
    built = tuner.build(model, Plan.of({("layers.0.ffn.down", "lora"): 1}), model_map)
    assert why_not_packed(built, ROW[:5]) == "rows of 5 tokens are too short to tell"
    assert why_not_packed(built, ROW[:6]) == ""
