"""Lowering to stock LoRA and to a merged checkpoint, in one process; across processes see test_export."""

from __future__ import annotations

import re
from pathlib import Path

import peft
import pytest
import torch
from peft import LoraConfig, PeftModel, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer

from adapted import FAMILIES, batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.plan import Plan
from peftscout.tuner.lowering import to_composite, to_merged, to_stock_ia3, to_stock_ln_tuning, to_stock_lora
from tiny_models import tiny_model


def adapted_with(name: str, plan: Plan | None = None, scale: float = 2.0, **changes: object) -> tuple[PeftModel, Plan]:
    model = tiny_model(name, "sequence", **changes)
    model_map = ModelMap.from_model(model)
    plan = plan or everything(model_map, only=("lora",))
    adapted = tuner.build(model, plan, model_map, settings=tuner.OpSettings(lora_scale=scale))
    return stir(adapted), plan


def as_stock(adapted: PeftModel, name: str, lower=to_stock_lora, **changes: object) -> PeftModel:
    config, weights = lower(adapted)
    stock = peft.get_peft_model(tiny_model(name, "sequence", **changes), config)
    report = set_peft_model_state_dict(stock, weights)
    assert not report.unexpected_keys
    return stock.eval()


@pytest.mark.parametrize("name", [*FAMILIES, "t5_gated"])
def test_stock_lora_gives_the_same_outputs_and_trains_as_many_parameters(name: str) -> None:
    adapted, _ = adapted_with(name)
    train(adapted, labelled(batch_of()))
    stock = as_stock(adapted, name)
    torch.testing.assert_close(logits(stock, batch_of(padding=1)), logits(adapted, batch_of(padding=1)))
    ours = sum(p.numel() for group in tuner.parameters_by_op(adapted).values() for p in group)
    theirs = sum(
        p.numel() for key, p in stock.named_parameters() if "lora_" in key or ".modules_to_save.default." in key
    )
    assert theirs == ours


def test_every_rank_has_its_alpha_so_that_the_scale_is_the_same_everywhere() -> None:
    adapted, plan = adapted_with("llama", scale=16.0)
    assert len({p.size for p in plan}) > 1
    config, _ = to_stock_lora(adapted)
    assert config.rank_pattern.keys() == config.alpha_pattern.keys() != set()
    stock = as_stock(adapted, "llama")
    layers = {key: m for key, m in stock.named_modules() if isinstance(m, LoraLayer)}
    assert len(layers) == len(plan)
    assert {m.scaling["default"] for m in layers.values()} == {16.0}


def test_layer_one_is_never_mistaken_for_layer_eleven() -> None:
    plan = Plan.of({("layers.1.attention.q", "lora"): 3, ("layers.11.attention.q", "lora"): 1})
    adapted, _ = adapted_with("bert", plan, num_hidden_layers=12)
    config, _ = to_stock_lora(adapted)
    paths = [key for key, _ in tiny_model("bert", "sequence", num_hidden_layers=12).named_modules()]
    hit = [p for p in paths if re.fullmatch(config.target_modules, p)]
    assert hit == [f"bert.encoder.layer.{n}.attention.self.query" for n in (1, 11)]
    stock = as_stock(adapted, "bert", num_hidden_layers=12)
    assert torch.equal(logits(stock, batch_of()), logits(adapted, batch_of()))


def test_one_rank_everywhere_needs_no_patterns() -> None:
    plan = Plan.of({(f"layers.{n}.attention.{role}", "lora"): 4 for n in (0, 1) for role in "qv"})
    config, _ = to_stock_lora(adapted_with("bert", plan)[0])
    assert (config.r, config.lora_alpha) == (4, 8)
    assert config.rank_pattern == config.alpha_pattern == {}


@pytest.mark.parametrize("scale", [0.3, 1.0, 16.0])
def test_the_scale_is_kept_to_the_last_bit_that_counts(scale: float) -> None:
    adapted, _ = adapted_with("gpt2", scale=scale)
    torch.testing.assert_close(logits(as_stock(adapted, "gpt2"), batch_of()), logits(adapted, batch_of()))


OTHER_FORMS = {"ln_tuning": (to_stock_ln_tuning, ("norm",)), "ia3": (to_stock_ia3, ("scale",))}


@pytest.mark.parametrize("name", [*FAMILIES, "t5_gated", "bart", "gemma"])
@pytest.mark.parametrize("form", OTHER_FORMS)
def test_norms_and_scales_become_stock_adapters_that_compute_and_train_the_same(name: str, form: str) -> None:
    lower, ops = OTHER_FORMS[form]
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=ops)
    adapted = stir(tuner.build(model, plan, model_map))
    train(adapted, labelled(batch_of()))
    stock = as_stock(adapted, name, lower)
    torch.testing.assert_close(logits(stock, batch_of(padding=1)), logits(adapted, batch_of(padding=1)))
    stock.base_model.set_adapter("default")
    own = ("ia3_l", "ln_tuning_layers.default")
    trained = sum(p.numel() for key, p in stock.named_parameters() if any(part in key for part in own))
    assert trained == plan.cost(model_map.sites)


def test_a_bias_at_a_norm_goes_into_its_copy() -> None:
    plan = Plan.of({("layers.0.attention_norm", "bias"): 1, ("layers.1.ffn_norm", "norm"): 1})
    adapted, _ = adapted_with("bert", plan)
    stock = as_stock(adapted, "bert", to_stock_ln_tuning)
    torch.testing.assert_close(logits(stock, batch_of()), logits(adapted, batch_of()))


def test_what_another_form_holds_is_refused_by_name() -> None:
    adapted, _ = adapted_with("bert", Plan.of({("layers.0.attention.q", "bias"): 1}))
    with pytest.raises(TunerError, match=r"layers\.0\.attention\.q: bias cannot be written as LN tuning"):
        to_stock_ln_tuning(adapted)
    with pytest.raises(TunerError, match=r"layers\.0\.attention\.q: bias cannot be written as IA3"):
        to_stock_ia3(adapted)
    model = tiny_model("bert", "sequence")
    empty = tuner.build(model, Plan(), ModelMap.from_model(model))
    with pytest.raises(TunerError, match="a plan without scales cannot be written as IA3"):
        to_stock_ia3(empty)


def test_the_rank_of_the_whole_adapter_is_the_largest_as_servers_read_it() -> None:
    plan = Plan.of({("layers.0.attention.q", "lora"): 5, **{(f"layers.1.attention.{r}", "lora"): 2 for r in "qkv"}})
    config, _ = to_stock_lora(adapted_with("llama", plan)[0])
    assert (config.r, set(config.rank_pattern.values())) == (5, {2})


def test_conv1d_is_declared_to_peft() -> None:
    assert to_stock_lora(adapted_with("gpt2")[0])[0].fan_in_fan_out
    assert not to_stock_lora(adapted_with("bert")[0])[0].fan_in_fan_out


def test_a_plan_with_any_other_op_is_refused_by_name() -> None:
    plan = Plan.of({("layers.0.attention.q", "lora"): 1, ("layers.1.ffn", "serial"): 1})
    with pytest.raises(TunerError, match=r"layers\.1\.ffn: serial cannot be written as LoRA"):
        to_stock_lora(adapted_with("bert", plan)[0])
    model = tiny_model("bert", "sequence")
    empty = tuner.build(model, Plan(), ModelMap.from_model(model))
    with pytest.raises(TunerError, match="a plan without LoRA"):
        to_stock_lora(empty)


def test_the_weights_of_an_export_are_detached_from_the_model() -> None:
    adapted, _ = adapted_with("bert")
    config, weights = to_composite(adapted)
    assert config.inference_mode
    assert not adapted.peft_config["default"].inference_mode
    assert all(not t.requires_grad and t.is_contiguous() for t in weights.values())
    assert isinstance(to_stock_lora(adapted)[0], LoraConfig)


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_a_copy_gives_the_same_outputs_and_leaves_the_model_alone(name: str, tmp_path: Path) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map, only=("lora", "scale", "norm")), model_map))
    hashed, expected = tuner.fingerprint(adapted), logits(adapted, batch_of())
    merged = to_merged(adapted)
    torch.testing.assert_close(logits(merged, batch_of()), expected, rtol=1e-4, atol=1e-4)
    assert {key for key, _ in merged.named_parameters()} == {
        key for key, _ in tiny_model(name, "sequence").named_parameters()
    }
    assert tuner.fingerprint(adapted) == hashed


def test_what_does_not_fold_is_named_before_anything_is_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    adapted, _ = adapted_with("bert", Plan.of({("layers.1.ffn", "parallel"): 1}))
    monkeypatch.setattr("copy.deepcopy", lambda *_: pytest.fail("copied"))
    with pytest.raises(TunerError, match=r"layers\.1\.ffn: parallel does not fold into a Linear"):
        to_merged(adapted)
