"""Prefixes through transformers' attention interface: backends, families, and models that do not use it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModel,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    Gemma2Config,
    PreTrainedModel,
)
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from adapted import batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.plan import Plan
from peftscout.tuner import attention_functions
from peftscout.tuner.attention_functions import ROW, Row, is_registered, switched_on
from tiny_models import tiny_model


def with_prefix(model: PreTrainedModel) -> tuple[PreTrainedModel, ModelMap, Plan]:
    model_map = ModelMap.from_model(model)
    return model, model_map, everything(model_map, only=("prefix",))


def off_by_one(scores: Tensor) -> Tensor:
    return scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))


def test_a_prefix_in_bert_is_an_attention_of_its_own_that_is_added() -> None:
    """Recomputed by hand in the one layer that has it."""
    model, model_map, _ = with_prefix(tiny_model("bert"))
    plan = Plan.of({("layers.1.attention", "prefix"): 3})
    seen: dict[str, Tensor] = {}
    attention = model.encoder.layer[1].attention
    attention.self.query.register_forward_hook(lambda m, a, out: seen.update(query=out))
    attention.output.dense.register_forward_pre_hook(lambda m, a: seen.update(context=a[0]))
    logits(model, batch_of())
    plain = seen["context"]
    adapted = stir(tuner.build(model, plan, model_map), scale=1.0)
    logits(adapted, batch_of())
    params = attention.self.key.parameters_of("default", "prefix")
    queries = seen["query"].view(3, -1, 4, 8)
    scores = torch.einsum("bqhd,hpd->bqhp", queries, params["keys"]) / 8**0.5
    expected = plain + torch.einsum("bqhp,hpd->bqhd", off_by_one(scores), params["values"]).flatten(2)
    torch.testing.assert_close(seen["context"], expected)


@pytest.mark.parametrize("name", ["bert", "roberta", "gpt2", "llama", "qwen3"])
def test_eager_and_sdpa_give_the_same(name: str) -> None:
    outputs = []
    for implementation in ("sdpa", "eager"):
        model, model_map, plan = with_prefix(tiny_model(name, attn_implementation=implementation))
        adapted = stir(tuner.build(model, plan, model_map))
        assert model.config._attn_implementation == f"peftscout_{implementation}"
        outputs.append(logits(adapted, batch_of(padding=2)))
    torch.testing.assert_close(outputs[0][:, :9], outputs[1][:, :9], rtol=1e-4, atol=1e-4)


def test_attentions_can_be_returned_from_an_eager_backbone() -> None:
    model, model_map, plan = with_prefix(tiny_model("bert", attn_implementation="eager"))
    adapted = tuner.build(model, plan, model_map)
    with torch.no_grad():
        attentions = adapted(**batch_of(), output_attentions=True).attentions
    assert [tuple(a.shape) for a in attentions] == [(3, 4, 9, 9)] * 2


def test_the_scores_of_t5_are_not_scaled_and_neither_are_those_of_its_prefix() -> None:
    """T5's queries carry the scale in their weights; a prefix that divided again would be four times too flat."""
    model, model_map, _ = with_prefix(tiny_model("t5"))
    plan = Plan.of({("encoder.0.attention", "prefix"): 2})
    adapted = stir(tuner.build(model, plan, model_map), scale=1.0)
    seen: dict[str, Tensor] = {}
    attention = model.encoder.block[0].layer[0].SelfAttention
    attention.q.register_forward_hook(lambda m, a, out: seen.update(query=out))
    attention.o.register_forward_pre_hook(lambda m, a: seen.update(context=a[0]))
    batch = {**batch_of(), "decoder_input_ids": batch_of()["input_ids"]}
    with adapted.disable_adapter():
        logits(adapted, batch)
    plain = seen["context"]
    logits(adapted, batch)
    params = attention.k.parameters_of("default", "prefix")
    scores = torch.einsum("bqhd,hpd->bqhp", seen["query"].view(3, -1, 4, 6), params["keys"])
    expected = plain + torch.einsum("bqhp,hpd->bqhd", off_by_one(scores), params["values"]).flatten(2)
    torch.testing.assert_close(seen["context"], expected)


def test_lengths_may_differ_from_layer_to_layer_and_layers_may_have_none() -> None:
    model, model_map, _ = with_prefix(tiny_model("llama", "sequence", num_hidden_layers=4))
    plan = Plan.of({("layers.0.attention", "prefix"): 7, ("layers.3.attention", "prefix"): 1})
    adapted = tuner.build(model, plan, model_map)
    tuner.check_built(adapted, plan)
    tuner.check_gradients(adapted, plan, labelled(batch_of()))
    assert plan.cost(model_map.sites) == 2 * (7 + 1) * 2 * 8
    losses = train(adapted, labelled(batch_of()), steps=8)
    assert losses[-1] < losses[0]


def test_a_plan_without_a_prefix_leaves_the_attention_implementation_alone() -> None:
    model = tiny_model("bert")
    model_map = ModelMap.from_model(model)
    tuner.build(model, everything(model_map, only=("lora",)), model_map)
    assert model.config._attn_implementation == "sdpa"


def test_a_model_that_bypasses_the_interface_is_refused_by_name_and_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model, model_map, plan = with_prefix(tiny_model("bert"))
    monkeypatch.setattr(type(model), "_can_set_attn_implementation", lambda *_: False)  # as DeBERTa, Falcon, MPT
    with pytest.raises(TunerError, match=r"layers\.0\.attention: prefix: .* AttentionInterface; leave prefix out"):
        tuner.build(model, plan, model_map)
    assert model.config._attn_implementation == "sdpa"
    assert not hasattr(model, "peft_config")


def test_the_sites_of_deberta_offer_no_prefix() -> None:
    config = DebertaV2Config(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        type_vocab_size=0,
    )
    model, model_map, _ = with_prefix(AutoModel.from_config(config))
    plan = everything(model_map)
    assert "prefix" not in plan.ops
    before = logits(model, batch_of())
    adapted = tuner.build(model, plan, model_map)
    tuner.check_gradients(adapted, plan, batch_of())
    assert not torch.allclose(logits(stir(adapted), batch_of()), before, atol=1e-3)


def gemma2(head: type = AutoModelForCausalLM) -> PreTrainedModel:
    config = Gemma2Config(
        vocab_size=100,
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        intermediate_size=48,
        sliding_window=4,
        pad_token_id=0,
        initializer_range=0.2,
    )
    torch.manual_seed(0)
    return head.from_config(config, attn_implementation="eager").eval()


def test_softcapped_scores_and_sliding_windows_work_with_the_eager_attention_of_the_model() -> None:
    model, model_map, plan = with_prefix(gemma2())
    before = logits(model, batch_of())
    adapted = tuner.build(model, plan, model_map)
    tuner.check_gradients(adapted, plan, batch_of())
    assert torch.equal(logits(adapted, batch_of()), before)
    assert not torch.allclose(logits(stir(adapted), batch_of()), before, atol=1e-3)


def test_norms_that_multiply_by_one_plus_their_weight_fold_exactly() -> None:
    model = gemma2(AutoModelForSequenceClassification)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.normal_(std=0.5)
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=("norm", "lora", "scale"))
    adapted = stir(tuner.build(model, plan, model_map))
    expected = logits(adapted, batch_of())
    merged = adapted.merge_and_unload()
    torch.testing.assert_close(logits(merged, batch_of()), expected, rtol=1e-4, atol=1e-4)


def test_the_names_that_transformers_knows_are_one_for_each_base() -> None:
    assert [attention_functions.name_for(base) for base in attention_functions.BASES] == [
        "peftscout_sdpa",
        "peftscout_eager",
    ]


# --- one row ---------------------------------------------------------------------------------------------------------


def test_a_row_picks_its_position_along_any_dimension() -> None:
    x = torch.arange(2 * 3 * 4 * 5).view(2, 3, 4, 5)
    assert torch.equal(Row().of(x), x[:, :1])
    assert torch.equal(Row().of(x, 2), x[:, :, :1])
    row = Row(torch.tensor([2, 0]))
    assert torch.equal(row.of(x), torch.stack([x[0, 2], x[1, 0]])[:, None])
    assert torch.equal(row.of(x, 2), torch.stack([x[0, :, 2], x[1, :, 0]])[:, :, None])
    assert all(picked.is_contiguous() for picked in (Row().of(x), Row().of(x, 2), row.of(x), row.of(x, 2)))


def test_a_row_of_what_has_one_row_is_that() -> None:
    x = torch.zeros(2, 1, 5)
    assert Row(torch.tensor([2, 0])).of(x) is x


def test_a_mask_for_all_texts_is_broadcast() -> None:
    causal = torch.ones(4, 4).tril()[None, None]
    picked = Row(torch.tensor([3, 1])).of(causal, 2)
    assert picked.squeeze().tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]


def test_a_row_sees_the_keys_up_to_itself() -> None:
    assert Row().sees(3, torch.device("cpu")).tolist() == [[[[True, False, False]]]]
    seen = Row(torch.tensor([2, 0])).sees(3, torch.device("cpu"))
    assert seen.squeeze().tolist() == [[True, True, True], [True, False, False]]


class Module(torch.nn.Module):
    """What an attention function reads of the module that calls it."""

    is_causal = True
    num_key_value_groups = 2


@pytest.mark.parametrize("with_bias", [False, True])
def test_one_query_gets_what_it_would_get_among_all(with_bias: bool) -> None:
    """Causal without a mask, grouped keys and values, a position bias: row 2 of all against row 2 alone."""
    attend = ALL_ATTENTION_FUNCTIONS["peftscout_sdpa"]
    query, key, value = (torch.randn(3, heads, 5, 4) for heads in (4, 2, 2))
    more = {"position_bias": torch.randn(1, 4, 5, 5)} if with_bias else {}
    whole, _ = attend(Module(), query, key, value, None, **more)
    index = torch.tensor([2, 0, 4])
    alone, _ = attend(Module(), query, key, value, None, **more, **{ROW: Row(index)})
    assert alone.shape == whole.shape
    rows = torch.arange(3)
    torch.testing.assert_close(alone[rows, index], whole[rows, index])
    assert torch.equal(alone, alone[:, :1].expand_as(alone))


def test_the_functions_are_on_inside_the_context_only() -> None:
    for implementation in ("sdpa", "eager"):
        model = tiny_model("llama", attn_implementation=implementation)
        assert not is_registered(model, "layers.0.self_attn")
        with switched_on(model):
            assert model.config._attn_implementation == f"peftscout_{implementation}"
            assert is_registered(model, "layers.0.self_attn")
        assert model.config._attn_implementation == implementation


def test_an_implementation_that_is_no_base_of_ours_is_left_alone() -> None:
    model = tiny_model("llama")
    model.config._attn_implementation_internal = "flash_attention_2"
    with switched_on(model):
        assert model.config._attn_implementation == "flash_attention_2"
        assert not is_registered(model, "layers.0.self_attn")
