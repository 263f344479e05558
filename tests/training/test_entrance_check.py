from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    AlbertConfig,
    AlbertForSequenceClassification,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BartConfig,
    BartForSequenceClassification,
)

from adapted import stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.backbone import quiet_loading
from peftscout.plan import Plan
from peftscout.training.entrance_check import find_entrance
from peftscout.training.frozen_prefix import Entrance, FrozenPrefix, frozen_prefix
from prefix_cases import LAYERS, LEFT_PADDED, ONE_STACK, deep_model, padded, prefix_of, ragged_rows, tuned_from
from tiny_models import EOS, PAD, VOCABULARY, tiny_model


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
@pytest.mark.parametrize("name", ONE_STACK)
def test_models_of_one_stack_may_be_entered_at_every_depth(name: str, attention: str) -> None:
    model = deep_model(name)
    model.set_attn_implementation(attention)
    model_map = ModelMap.from_model(model)
    for depth in range(1, LAYERS + 1):
        prefix = prefix_of(model_map, depth)
        assert find_entrance(model, prefix, padded(ragged_rows())) == Entrance(prefix, None)


@pytest.mark.parametrize("name", LEFT_PADDED)
def test_rotary_positions_may_be_padded_at_the_left(name: str) -> None:
    model = deep_model(name)
    prefix = prefix_of(ModelMap.from_model(model), 1)
    assert find_entrance(model, prefix, padded(ragged_rows(), "left")) == Entrance(prefix, None)


def test_a_real_encoder_may_be_entered_at_every_depth(minilm_path: Path) -> None:
    with quiet_loading():
        model = AutoModelForSequenceClassification.from_pretrained(minilm_path, use_safetensors=True).eval()
    model_map = ModelMap.from_model(model)
    batch = padded(ragged_rows((40, 8, 25)), extra=8)
    for depth in range(1, model_map.stacks["layers"] + 1):
        prefix = prefix_of(model_map, depth)
        assert find_entrance(model, prefix, batch) == Entrance(prefix, None)


def test_a_real_decoder_may_be_entered_at_either_side(shared_models: Path) -> None:
    with quiet_loading():
        folder = shared_models / "stories260k-llama"
        model = AutoModelForCausalLM.from_pretrained(folder, use_safetensors=True).eval()
    model_map = ModelMap.from_model(model)
    for side in ("left", "right"):
        for depth in range(1, model_map.stacks["layers"] + 1):
            prefix = prefix_of(model_map, depth)
            assert find_entrance(model, prefix, padded(ragged_rows((40, 8, 25)), side)) == Entrance(prefix, None)


def test_an_adapted_model_in_training_may_be_entered_too() -> None:
    model = deep_model("bert", hidden_dropout_prob=0.3)
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, tuned_from(model_map, 2), model_map)).train()
    prefix = prefix_of(model_map, 2)
    assert find_entrance(adapted, prefix, padded(ragged_rows())) == Entrance(prefix, None)
    assert adapted.training


def test_a_language_model_may_be_entered_though_its_outputs_at_padding_change() -> None:
    model = tiny_model("llama", "lm", num_hidden_layers=LAYERS).requires_grad_(False)
    prefix = prefix_of(ModelMap.from_model(model), 2)
    assert find_entrance(model, prefix, padded(ragged_rows())) == Entrance(prefix, None)


def test_rows_without_padding_need_no_mask() -> None:
    model = deep_model("bert")
    prefix = prefix_of(ModelMap.from_model(model), 2)
    batch = {"input_ids": padded(ragged_rows((7, 7, 7)))["input_ids"]}
    assert find_entrance(model, prefix, batch) == Entrance(prefix, None)


def test_positions_that_count_from_the_left_edge_may_not_be_padded_there() -> None:
    model = deep_model("gpt2")
    reason = find_entrance(model, prefix_of(ModelMap.from_model(model), 1), padded(ragged_rows(), "left"))
    assert isinstance(reason, str)
    assert "depend on padding" in reason


def test_a_head_that_reads_a_padded_position_is_refused() -> None:
    model = deep_model("bert")  # its pooler reads the first position
    reason = find_entrance(model, prefix_of(ModelMap.from_model(model), 1), padded(ragged_rows(), "left"))
    assert isinstance(reason, str)
    assert "padded positions matter" in reason


@pytest.mark.parametrize("depth", [1, 2])
@pytest.mark.parametrize("name", ["t5", "t5_gated"])
def test_position_biases_that_come_from_the_first_block_are_refused(name: str, depth: int) -> None:
    model = deep_model(name)
    reason = find_entrance(model, prefix_of(ModelMap.from_model(model), depth), padded(ragged_rows()))
    assert isinstance(reason, str)
    assert "its blocks hand on more than hidden states" in reason


def test_an_encoder_without_position_biases_may_be_entered() -> None:
    config = BartConfig(
        vocab_size=VOCABULARY, d_model=32, encoder_layers=3, decoder_layers=2, encoder_attention_heads=4,
        decoder_attention_heads=4, encoder_ffn_dim=48, decoder_ffn_dim=48, max_position_embeddings=64,
        pad_token_id=PAD, eos_token_id=EOS, bos_token_id=2, num_labels=2, init_std=0.2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = BartForSequenceClassification(config).eval()
    model_map = ModelMap.from_model(model)
    plan = Plan.of({("encoder.2.attention.q", "lora"): 1, ("decoder.0.attention.q", "lora"): 1})
    prefix = frozen_prefix(plan, model_map)
    assert prefix is not None
    assert isinstance(find_entrance(model, prefix, padded(ragged_rows())), Entrance)


def test_shared_blocks_are_refused() -> None:
    config = AlbertConfig(
        vocab_size=VOCABULARY, embedding_size=16, hidden_size=32, num_hidden_layers=3, num_attention_heads=4,
        intermediate_size=48, max_position_embeddings=64, pad_token_id=PAD,
    )  # fmt: skip
    model = AlbertForSequenceClassification(config).eval()
    model_map = ModelMap.from_model(model)
    assert frozen_prefix(Plan.of({("layers.0.attention.q", "lora"): 1}), model_map) is None
    every = frozen_prefix(Plan.of({}), model_map)
    assert every is not None
    reason = find_entrance(model, every, padded(ragged_rows()))
    assert reason == "the blocks below 1 do not run one after the other, each once"


# --- what no family of transformers does, but another might ----------------------------------------------------------


class Stub(nn.Module):
    """Embeddings, two blocks that return what ``form`` makes of their hidden states, and the mean as outputs."""

    def __init__(self, form: Any = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.embed = nn.Embedding(VOCABULARY, 8)
        self.blocks = nn.ModuleList([StubBlock(form), StubBlock(None)])

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
        hidden = self.embed(input_ids)
        for block in self.blocks:
            out = block(hidden_states=hidden)
            hidden = out[0] if isinstance(out, tuple) else out
        return (self.pooled(hidden, attention_mask[..., None]),)

    def pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
        return (hidden * real).sum(1) / real.sum(1)


class StubBlock(nn.Module):
    def __init__(self, form: Any) -> None:
        super().__init__()
        self.linear = nn.Linear(8, 8)
        self.form = form

    def forward(self, hidden_states: Tensor) -> Any:
        out = torch.tanh(self.linear(hidden_states))
        return self.form(out) if self.form else out


PREFIX = FrozenPrefix("layers", ("blocks.0",))


@pytest.mark.parametrize(
    ("form", "items"), [(None, None), (lambda h: (h,), 1), (lambda h: (h, None), 2), (lambda h: (h, h.sum()), 2)]
)
def test_hidden_states_by_name_and_in_tuples_are_found(form: Any, items: int | None) -> None:
    assert find_entrance(Stub(form), PREFIX, padded(ragged_rows())) == Entrance(PREFIX, items)


def test_blocks_that_return_different_things_are_refused() -> None:
    reason = find_entrance(
        Stub(lambda h: (h,)), FrozenPrefix("layers", ("blocks.0", "blocks.1")), padded(ragged_rows())
    )
    assert reason == "the blocks below 2 do not all return the same number of things"


def test_a_mean_over_padding_is_refused() -> None:
    class OverAll(Stub):
        def pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
            return hidden.mean(1)

    reason = find_entrance(OverAll(), PREFIX, padded(ragged_rows()))
    assert isinstance(reason, str)
    assert "padded positions matter" in reason


def test_rows_that_see_each_other_are_refused() -> None:
    class Mixing(Stub):
        def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor]:
            self.blocks[0].form = lambda h: h + h.sum((0, 1), keepdim=True)
            return super().forward(input_ids, attention_mask)

    reason = find_entrance(Mixing(), PREFIX, padded(ragged_rows()))
    assert isinstance(reason, str)
    assert "other rows" in reason


def test_hidden_states_of_another_length_than_the_tokens_are_refused() -> None:
    class Pooling(Stub):
        def pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
            return hidden.mean(1)

    reason = find_entrance(Pooling(lambda h: h[:, ::2]), PREFIX, padded(ragged_rows()))
    assert reason == "hidden states are (6, 6, 8), token ids (6, 12)"


def test_outputs_that_are_no_numbers_are_refused() -> None:
    class Broken(Stub):
        def pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
            return hidden.sum(1) / 0 * 0

    reason = find_entrance(Broken(), PREFIX, padded(ragged_rows()))
    assert isinstance(reason, str)
    assert "inf" in reason


def test_whatever_a_model_raises_is_a_reason() -> None:
    class Fussy(Stub):
        def pooled(self, hidden: Tensor, real: Tensor) -> Tensor:
            raise NotImplementedError("not today")

    model = Fussy().train()
    reason = find_entrance(model, PREFIX, padded(ragged_rows()))
    assert reason == "the forward pass fails when it is entered above block 0: not today"
    assert model.training
    assert not any("forward" in vars(module) for module in model.modules())
