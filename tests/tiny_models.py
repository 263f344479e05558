"""Tiny models from config for tests: the architectures that peftscout must get right, in miniature.

Hidden size 32, 4 heads, 2 layers (T5: 2 + 2), vocabulary 100, no dropout, weights larger than the usual 0.02 so that
every projection has a visible effect on the logits. Where the inner width of attention may differ from the hidden size
(T5, Qwen3) it does, because equal widths hide mistakes.
"""

from __future__ import annotations

from typing import Literal

import torch
from transformers import (
    CONFIG_MAPPING,
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForMaskedLM,
    AutoModelForMultipleChoice,
    AutoModelForSeq2SeqLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BertConfig,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    Qwen3Config,
    RobertaConfig,
    T5Config,
)

Head = Literal["base", "sequence", "multiple_choice", "lm"]

TINY_NAMES = ("bert", "roberta", "t5", "t5_gated", "gpt2", "llama", "qwen3")
"""The names that tests of all models go through; `tiny_config` knows ``bart`` and those of `MORE_NAMES`, too."""

MORE_NAMES = ("albert", "modernbert", "mistral", "gemma", "gpt_neox", "phi", "mixtral", "qwen2_moe", "vit")
"""Other families, by transformers' names of their types; tables go through them, most tests do not."""

VOCABULARY = 100
PAD, BOS, EOS = 0, 2, 1

_TOKENS = {"vocab_size": VOCABULARY, "pad_token_id": PAD, "bos_token_id": BOS, "eos_token_id": EOS}
_BERT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "hidden_dropout_prob": 0.0,
    "attention_probs_dropout_prob": 0.0,
    "initializer_range": 0.2,
}
_LLAMA = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 48,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
}
_T5 = {
    "d_model": 32,
    "d_kv": 6,
    "d_ff": 48,
    "num_layers": 2,
    "num_decoder_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "dropout_rate": 0.0,
    "decoder_start_token_id": PAD,
}
_BART = {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 64,
    "dropout": 0.0,
    "init_std": 0.2,
    "decoder_start_token_id": EOS,
    "forced_eos_token_id": None,
}
_GPT2 = {
    "n_embd": 32,
    "n_layer": 2,
    "n_head": 4,
    "n_inner": 48,
    "n_positions": 64,
    "resid_pdrop": 0.0,
    "embd_pdrop": 0.0,
    "attn_pdrop": 0.0,
    "initializer_range": 0.2,
}

_COMMON = {key: _BERT[key] for key in _BERT if "dropout" not in key}
_MORE: dict[str, dict[str, object]] = {
    "albert": {**_BERT, "embedding_size": 16},
    "modernbert": {**_COMMON, "cls_token_id": BOS, "sep_token_id": EOS, "local_attention": 8},
    "mistral": {**_LLAMA, "sliding_window": 8},
    "gemma": {**_LLAMA, "head_dim": 12},
    "gpt_neox": _COMMON,
    "phi": _COMMON,
    "mixtral": {**_LLAMA, "num_local_experts": 2},
    "qwen2_moe": {
        **_LLAMA,
        "num_experts": 2,
        "num_experts_per_tok": 1,
        "moe_intermediate_size": 16,
        "shared_expert_intermediate_size": 24,
    },
    "vit": {**_BERT, "image_size": 8, "patch_size": 4},
}


def tiny_config(name: str, num_labels: int = 2, **changes: object) -> PretrainedConfig:
    """Return a fresh tiny config of ``name`` (one of `TINY_NAMES`); ``changes`` go to the config as they are."""
    common = {**_TOKENS, "num_labels": num_labels}
    match name:
        case "bert":
            return BertConfig(**{**common, **_BERT, **changes})
        case "roberta":
            return RobertaConfig(**{**common, **_BERT, **changes})
        case "t5":
            return T5Config(**{**common, **_T5, **changes})
        case "t5_gated":
            return T5Config(
                **{**common, **_T5, "feed_forward_proj": "gated-gelu", "tie_word_embeddings": False, **changes}
            )
        case "bart":
            return BartConfig(**{**common, **_BART, **changes})
        case "gpt2":
            return GPT2Config(**{**common, **_GPT2, **changes})
        case "llama":
            return LlamaConfig(**{**common, **_LLAMA, **changes})
        case "qwen3":
            return Qwen3Config(**{**common, **_LLAMA, "head_dim": 12, **changes})
        case _ if name in _MORE:
            known = common if name != "vit" else {"num_labels": num_labels}
            return CONFIG_MAPPING[name](**{**known, **_MORE[name], **changes})
        case _:
            raise ValueError(f"no tiny model {name!r}; there are {', '.join((*TINY_NAMES, 'bart', *MORE_NAMES))}")


def tiny_model(
    name: str, head: Head = "base", num_labels: int = 2, seed: int = 0, **changes: object
) -> PreTrainedModel:
    """Return a tiny model with ``head`` in eval mode; the same arguments give the same weights.

    ``lm`` is the language-modelling head natural to the model: masked (bert, roberta), sequence-to-sequence (t5) or
    causal. ``multiple_choice`` exists for bert and roberta only, as in transformers.
    """
    config = tiny_config(name, num_labels, **changes)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return _auto_class(name, head).from_config(config).eval()


def _auto_class(name: str, head: Head) -> type:
    match head:
        case "base":
            return AutoModel
        case "sequence" if name == "vit":
            return AutoModelForImageClassification
        case "sequence":
            return AutoModelForSequenceClassification
        case "multiple_choice":
            return AutoModelForMultipleChoice
        case "lm" if name in ("bert", "roberta", "albert", "modernbert"):
            return AutoModelForMaskedLM
        case "lm" if name.startswith("t5") or name == "bart":
            return AutoModelForSeq2SeqLM
        case "lm":
            return AutoModelForCausalLM
        case _:
            raise ValueError(f"no head {head!r}")
