"""After a trial the backbone is what it was, bit for bit, with nothing left behind."""

from __future__ import annotations

import copy
import gc
import weakref
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from torch import nn
from transformers import PreTrainedModel

from adapted import FAMILIES, batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.tuner.layer import PeftscoutLayer
from tiny_models import tiny_model


def everything_about(model: nn.Module) -> dict[str, Any]:
    """Types, attributes, hooks, modes and flags of every module; configs by value."""
    return {
        name: (
            type(module),
            sorted(vars(module)),
            [len(vars(module)[hooks]) for hooks in sorted(vars(module)) if hooks.endswith("_hooks")],
            module.training,
            [(key, p.requires_grad, p.grad is None) for key, p in module.named_parameters(recurse=False)],
            module.config._attn_implementation if isinstance(module, PreTrainedModel) else None,
        )
        for name, module in model.named_modules()
    }


@pytest.mark.parametrize("name", FAMILIES)
def test_training_and_resetting_gives_the_same_backbone_back(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    batch = batch_of()
    hashed, about, outputs = tuner.fingerprint(model), everything_about(model), logits(model, batch)
    adapted = tuner.build(model, everything(model_map), model_map)
    tuner.check_gradients(adapted, everything(model_map), labelled(batch))
    adapted.train()
    train(adapted, labelled(batch))
    assert tuner.fingerprint(model) != hashed
    assert tuner.reset(adapted) is model
    assert tuner.fingerprint(model) == hashed
    assert everything_about(model) == about
    assert torch.equal(logits(model, batch), outputs)


@pytest.mark.parametrize("name", ["bert", "t5"])
def test_many_trials_of_different_plans_leave_no_trace(name: str) -> None:
    model = tiny_model(name, "sequence")
    model_map = ModelMap.from_model(model)
    hashed, about = tuner.fingerprint(model), everything_about(model)
    for trial in range(24):
        ops = (("lora",), ("prefix",), ("parallel", "serial"), ("norm", "bias", "scale"))[trial % 4]
        tuner.reset(tuner.build(model, everything(model_map, only=ops), model_map, seed=trial))
    assert tuner.fingerprint(model) == hashed
    assert everything_about(model) == about


def test_the_same_trial_after_others_gives_the_same_result() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)

    def trial(seed: int) -> list[float]:
        adapted = tuner.build(model, everything(model_map), model_map, seed=seed)
        losses = train(adapted, labelled(batch_of()))
        tuner.reset(adapted)
        return losses

    first = trial(0)
    assert trial(1) != first
    assert trial(0) == first


def test_frozen_and_trained_parts_and_modes_come_back_as_they_were() -> None:
    model = tiny_model("bert", "sequence")
    model.bert.embeddings.requires_grad_(False)
    model.train()
    model.bert.encoder.layer[0].eval()
    model_map, about = ModelMap.from_model(model), everything_about(model)
    adapted = tuner.build(model, everything(model_map), model_map).eval()
    assert tuner.reset(adapted) is model
    assert everything_about(model) == about


def test_an_eager_backbone_stays_eager() -> None:
    model = tiny_model("llama", "sequence", attn_implementation="eager")
    model_map = ModelMap.from_model(model)
    before = logits(model, batch_of())
    adapted = tuner.build(model, everything(model_map, only=("prefix",)), model_map)
    assert model.config._attn_implementation == "peftscout_eager"
    tuner.reset(adapted)
    assert model.config._attn_implementation == "eager"
    assert torch.equal(logits(model, batch_of()), before)


def test_resetting_under_gradient_checkpointing_takes_pefts_hook_off_the_embeddings() -> None:
    model = tiny_model("bert", "sequence")
    model.gradient_checkpointing_enable()
    model_map, hooks = ModelMap.from_model(model), len(model.get_input_embeddings()._forward_hooks)
    adapted = tuner.build(model, everything(model_map), model_map)
    assert len(model.get_input_embeddings()._forward_hooks) == hooks + 1
    tuner.reset(adapted)
    assert len(model.get_input_embeddings()._forward_hooks) == hooks
    model.disable_input_require_grads()  # transformers still finds its own hook
    assert len(model.get_input_embeddings()._forward_hooks) == 0


def test_the_adapters_are_freed_when_the_model_was_reset() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, everything(model_map), model_map)
    adapted(**labelled(batch_of())).loss.backward()
    layers = [weakref.ref(m) for m in adapted.modules() if isinstance(m, PeftscoutLayer)]
    tuner.reset(adapted)
    del adapted
    gc.collect()
    assert layers
    assert not any(ref() for ref in layers)


def test_a_loaded_adapter_can_be_reset_too(tmp_path: Any) -> None:
    model = tiny_model("gpt2", "sequence")
    model_map = ModelMap.from_model(model)
    hashed, about = tuner.fingerprint(model), everything_about(model)
    tuner.build(model, everything(model_map), model_map).save_pretrained(tmp_path)
    fresh = tiny_model("gpt2", "sequence")
    tuner.reset(PeftModel.from_pretrained(fresh, tmp_path))
    assert (tuner.fingerprint(fresh), everything_about(fresh)) == (hashed, about)


def test_a_merged_model_can_be_reset() -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    hashed = tuner.fingerprint(model)
    adapted = stir(tuner.build(model, everything(model_map, only=("lora", "norm")), model_map))
    adapted.merge_adapter()
    assert tuner.fingerprint(tuner.reset(adapted)) == hashed


def test_an_adapted_model_of_somebody_else_is_not_reset() -> None:
    stock = get_peft_model(tiny_model("bert", "sequence"), LoraConfig(target_modules=["query"]))
    with pytest.raises(TunerError, match="a LoraModel was not built by peftscout"):
        tuner.reset(stock)


def test_the_fingerprint_sees_values_names_and_dtypes_of_parameters_and_buffers() -> None:
    def changed(change: Any) -> str:
        model = copy.deepcopy(original)
        with torch.no_grad():
            change(model)
        return tuner.fingerprint(model)

    original = nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))
    prints = [
        tuner.fingerprint(original),
        changed(lambda m: m[0].weight[0, 0].add_(1e-6)),
        changed(lambda m: m[1].running_mean.add_(1e-6)),
        changed(lambda m: m.bfloat16()),
        changed(lambda m: m.append(nn.Linear(2, 1))),
        changed(lambda m: m[0].weight[0, 0].copy_(float("nan"))),
    ]
    assert len(set(prints)) == len(prints)
    assert tuner.fingerprint(copy.deepcopy(original)) == prints[0]


def test_minus_zero_is_not_zero_to_the_fingerprint() -> None:
    one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        one.weight.fill_(0.0)
        other.weight.fill_(-0.0)
    assert tuner.fingerprint(one) != tuner.fingerprint(other)
