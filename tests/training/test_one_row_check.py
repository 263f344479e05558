"""Which row a head reads, and whether the last block may be cut down to it: probed, tested, refused with a reason."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoModelForSequenceClassification, PreTrainedModel

from adapted import everything, labelled, stir
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.training import one_row as one_row_module
from peftscout.training.one_row import one_row
from peftscout.training.one_row_check import Reading, find_one_row, one_row_is_exact, read_position, variants
from peftscout.tuner.attention_functions import Row
from pooled_heads import POOLED, Pool, last_attended, pooling, ragged
from tiny_models import EOS, PAD, tiny_model


def found(model: PreTrainedModel, batch: dict[str, Tensor] | None = None) -> Reading:
    return find_one_row(model, ModelMap.from_model(model), batch or ragged())


# --- what heads read -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("name", POOLED)
def test_the_position_that_the_head_of_transformers_reads_is_found(name: str, side: str) -> None:
    assert found(tiny_model(name, "sequence"), ragged(side)) == Reading(POOLED[name])


def test_it_is_found_on_an_adapted_model_too() -> None:
    model = tiny_model("qwen3", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map), model_map))
    assert find_one_row(adapted, model_map, ragged()) == Reading("last_not_pad")


def test_a_head_that_reads_the_last_attended_position_is_told_from_one_that_looks_for_padding() -> None:
    assert found(pooling(last_attended, "llama")) == Reading("last")
    assert found(pooling(last_attended, "bert"), ragged("left")) == Reading("last")


def test_padding_with_the_token_that_ends_a_text_is_read_as_the_head_reads_it() -> None:
    model = tiny_model("gpt2", "sequence", pad_token_id=EOS)
    batch = ragged()
    batch["input_ids"][batch["attention_mask"] == 0] = EOS
    assert found(model, batch) == Reading("last_not_pad")


def test_the_last_index_is_the_last_position_where_padding_is_on_the_left() -> None:
    model = pooling(lambda hidden, ids, mask: hidden[:, -1])
    assert found(model, ragged("left")) == Reading("last")
    assert found(model, ragged("right")).position is None


def test_a_full_batch_is_enough_to_find_the_position() -> None:
    assert found(tiny_model("llama", "sequence"), ragged(lengths=(8, 8, 8))) == Reading("last_not_pad")
    assert found(tiny_model("bert", "sequence"), ragged(lengths=(6,))) == Reading("first")


def test_multiple_choice_reads_the_first_position_of_every_choice() -> None:
    batch = {name: tensor.view(2, 3, -1) for name, tensor in ragged(lengths=(9, 4, 7, 2, 9, 5)).items()}
    assert found(tiny_model("roberta", "multiple_choice"), batch) == Reading("first")


def test_labels_do_not_matter() -> None:
    batch = {**ragged(), "labels": torch.tensor([7, 8, 9])}  # no such classes: a loss on them would raise
    assert found(tiny_model("bert", "sequence"), batch) == Reading("first")
    assert found(tiny_model("bert", "sequence"), labelled(ragged())) == Reading("first")


# --- heads that read something else ----------------------------------------------------------------------------------


def mean(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return (hidden * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)


def first_and_second(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 0] + 1e-3 * hidden[:, 1]


def nothing(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return 0 * hidden[:, 0]


def end_of_text(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden[torch.arange(len(ids)), (ids == EOS).int().argmax(-1)]


def second(hidden: Tensor, ids: Tensor, mask: Tensor) -> Tensor:
    return hidden[:, 1]


@pytest.mark.parametrize("family", ["bert", "llama"])
@pytest.mark.parametrize(
    ("pool", "reason"),
    [
        (mean, "the head reads 4 to 9 positions"),
        (first_and_second, "the head reads 2 positions"),
        (nothing, "the head reads 0 positions"),
        (end_of_text, "not always the first or the last"),
        (second, "not always the first or the last"),
    ],
)
def test_a_head_that_reads_anything_else_is_refused(pool: Pool, reason: str, family: str) -> None:
    reading = found(pooling(pool, family))
    assert reading.position is None
    assert reason in reading.reason


@pytest.mark.parametrize("name", ["bert", "gpt2"])
def test_language_models_and_base_models_read_every_position(name: str) -> None:
    for head in ("lm", "base"):
        assert "positions of a text" in found(tiny_model(name, head)).reason  # type: ignore[arg-type]


def test_two_stacks_are_refused() -> None:
    assert found(tiny_model("t5", "sequence")) == Reading(
        None, "TunerError: there are 2 stacks of blocks (encoder, decoder), not one"
    )


def test_a_block_that_layers_share_is_refused() -> None:
    config = CONFIG_MAPPING["albert"](
        vocab_size=100,
        embedding_size=16,
        hidden_size=32,
        num_attention_heads=4,
        num_hidden_layers=3,
        intermediate_size=48,
    )
    reading = found(AutoModelForSequenceClassification.from_config(config).eval())
    assert reading.position is None
    assert re.search(r"albert_layers\.0 runs 3 times in a forward pass", reading.reason)


def test_texts_that_are_too_short_to_tell_are_named() -> None:
    reading = found(pooling(last_attended), ragged(lengths=(1, 1)))
    assert reading.position is None
    assert "too short to tell" in reading.reason


def test_whatever_a_model_raises_is_a_reason() -> None:
    reading = found(tiny_model("llama", "sequence", pad_token_id=None))
    assert reading == Reading(None, "ValueError: Cannot handle batch sizes > 1 if no padding token is defined.")
    with pytest.raises(ValueError, match="no padding token"):
        read_position(model := tiny_model("llama", "sequence", pad_token_id=None), ModelMap.from_model(model), ragged())


# --- the self-test ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POOLED)
def test_a_wrong_row_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = Row.of

    def neighbour(row: Row, x: Tensor, dim: int = 1) -> Tensor:
        return right(row, x if x.shape[dim] == 1 else x.roll(-1, dim), dim)

    monkeypatch.setattr(Row, "of", neighbour)
    reading = found(tiny_model(name, "sequence"))
    assert reading.position is None
    assert re.fullmatch(r"the logits differ by \S+ with one row \(at most \S+ is rounding\)", reading.reason)


def test_a_mask_that_is_not_cut_right_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from peftscout.tuner import attention_functions

    monkeypatch.setattr(attention_functions, "_mask_of", lambda *arguments: None)
    assert "the logits differ" in found(tiny_model("bert", "sequence")).reason


def test_a_wrong_position_is_caught() -> None:
    model = tiny_model("gpt2", "sequence")
    model_map = ModelMap.from_model(model)
    assert one_row_is_exact(model, model_map, "last_not_pad", ragged()) is None
    for position in ("first", "last"):
        reason = one_row_is_exact(model, model_map, position, ragged())  # type: ignore[arg-type]
        assert reason is not None
        assert "differ" in reason


def test_values_that_are_not_finite_are_no_match() -> None:
    model = tiny_model("bert", "sequence")
    with torch.no_grad():
        model.classifier.bias.fill_(torch.nan)
    reason = one_row_is_exact(model, ModelMap.from_model(model), "first", ragged())
    assert reason is not None
    assert "differ by nan" in reason


def test_logits_of_another_shape_are_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("bert", "lm")
    monkeypatch.setattr(one_row_module._Cut, "leave_block", lambda self, block, args, output: output[:, :1])
    reason = one_row_is_exact(model, ModelMap.from_model(model), "first", ragged())
    assert reason == "the logits have the shape (3, 1, 100) instead of (3, 9, 100) with one row"


def test_a_cut_that_raises_is_off_with_what_it_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(self: Any, block: Any, args: Any, kwargs: Any) -> None:
        raise IndexError("no such row")

    monkeypatch.setattr(one_row_module._Cut, "enter_block", broken)
    model = tiny_model("llama", "sequence")
    assert found(model) == Reading(None, "IndexError: no such row")
    assert model.config._attn_implementation == "sdpa"
    assert not model.model.layers[-1]._forward_pre_hooks


def test_weights_in_bf16_are_given_their_own_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    model = tiny_model("llama", "sequence").to(torch.bfloat16)
    assert found(model) == Reading("last_not_pad")
    monkeypatch.setattr(Row, "of", lambda row, x, dim=1: x.narrow(dim, 0, 1))
    assert "differ" in found(model).reason


@pytest.mark.parametrize(("name", "position"), [("deberta-v2", "first"), ("bloom", "last_not_pad")])
def test_attention_outside_the_interface_is_computed_whole_and_the_rest_is_cut(name: str, position: str) -> None:
    sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 48}
    more = {"n_head": 4, "n_layer": 2} if name == "bloom" else {"relative_attention": True, "pos_att_type": ["c2p"]}
    config = CONFIG_MAPPING[name](vocab_size=100, pad_token_id=PAD, **sizes, **more)
    torch.manual_seed(0)
    model = AutoModelForSequenceClassification.from_config(config).eval()
    model_map = ModelMap.from_model(model)
    assert all(site.attention is None for site in model_map.sites.values())
    assert find_one_row(model, model_map, ragged()) == Reading(position)  # type: ignore[arg-type]
    entering = []
    down = next(site for site in model_map.sites.values() if site.layer == 1 and site.role == "down")
    model.get_submodule(down.module).register_forward_pre_hook(lambda m, args: entering.append(args[0].shape[1]))
    with one_row(model, model_map, position), torch.no_grad():  # type: ignore[arg-type]
        model(**ragged())
    assert entering == [1]


def test_probing_leaves_modes_gradients_and_the_random_state_alone() -> None:
    model = tiny_model("bert", "sequence", hidden_dropout_prob=0.5).train()
    model.bert.embeddings.eval()
    modes = [module.training for module in model.modules()]
    state = torch.get_rng_state()
    assert found(model) == Reading("first")
    assert [module.training for module in model.modules()] == modes
    assert torch.equal(torch.get_rng_state(), state)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_frozen_weights_and_no_grad_around_do_not_hide_what_is_read() -> None:
    model = tiny_model("bert", "sequence").requires_grad_(False)
    with torch.no_grad():
        assert found(model) == Reading("first")


# --- variants of a batch ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("side", ["right", "left"])
def test_variants_shorten_turn_round_and_end_in_padding(side: str) -> None:
    batch = ragged(side, (5, 5, 2))
    plain, shorter, turned, ending = variants(batch, PAD)
    assert all(torch.equal(plain[name], batch[name]) for name in batch)
    assert shorter["attention_mask"].sum(1).tolist() == [4, 3, 1]
    assert shorter["input_ids"][shorter["attention_mask"] == 0].unique().tolist() == [PAD]
    edge = 0 if side == "right" else -1
    assert shorter["attention_mask"][:, edge].tolist() == [1, 1, 1]
    for row in range(3):
        own = shorter["attention_mask"][row].bool()
        assert torch.equal(turned["input_ids"][row, own], shorter["input_ids"][row, own].flip(0))
        assert ending["input_ids"][row, own][-1] == PAD
        assert torch.equal(ending["input_ids"][row, own][:-1], turned["input_ids"][row, own][:-1])


def test_variants_keep_other_inputs_and_change_no_tensor_of_the_batch() -> None:
    batch = {**labelled(ragged()), "token_type_ids": torch.ones(3, 9, dtype=torch.long)}
    before = {name: tensor.clone() for name, tensor in batch.items()}
    made = list(variants(batch, PAD))
    assert all(variant.keys() == {"input_ids", "attention_mask", "token_type_ids"} for variant in made)
    assert all(torch.equal(batch[name], before[name]) for name in batch)


def test_without_a_padding_token_no_variant_ends_in_one() -> None:
    made = list(variants({"input_ids": ragged(lengths=(4, 4))["input_ids"]}, None))
    assert len(made) == 3
    assert made[1]["attention_mask"].sum(1).tolist() == [3, 2]
