"""Adapters go through peft's and transformers' own savers and loaders, exactly."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM, AutoPeftModelForSequenceClassification, PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapted import FAMILIES, batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.plan import Plan
from tiny_models import Head, tiny_model


def trained(name: str, head: Head = "sequence") -> tuple[PeftModel, Plan]:
    model = tiny_model(name, head)
    model_map = ModelMap.from_model(model)
    plan = everything(model_map)
    settings = tuner.OpSettings(lora_scale=2.0, adapter_activation="gelu", parallel_scale=4.0)
    adapted = tuner.build(model, plan, model_map, settings=settings)
    if head == "sequence":
        train(adapted, labelled(batch_of()))
    return stir(adapted, scale=0.05), plan


@pytest.mark.parametrize("adapter_name", ["default", "another"])
@pytest.mark.parametrize("name", [*FAMILIES, "t5_gated"])
def test_a_saved_adapter_loads_exactly_under_any_name(name: str, adapter_name: str, tmp_path: Path) -> None:
    adapted, plan = trained(name)
    expected = logits(adapted, batch_of(padding=2))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model(name, "sequence"), tmp_path, adapter_name=adapter_name)
    assert torch.equal(logits(loaded, batch_of(padding=2)), expected)
    tuner.check_built(loaded, plan)
    assert {file.name for file in tmp_path.iterdir()} == {
        "README.md",
        "adapter_config.json",
        "adapter_model.safetensors",
    }


def test_an_adapter_of_another_name_saves_and_loads_from_its_subfolder(tmp_path: Path) -> None:
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = stir(tuner.build(model, everything(model_map), model_map, adapter_name="mine"))
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert", "sequence"), tmp_path / "mine", adapter_name="yours")
    assert torch.equal(logits(loaded, batch_of()), logits(adapted, batch_of()))


def test_a_loaded_adapter_can_be_trained_on(tmp_path: Path) -> None:
    adapted, plan = trained("llama")
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("llama", "sequence"), tmp_path, is_trainable=True)
    tuner.check_built(loaded, plan)
    tuner.check_gradients(loaded, plan, labelled(batch_of()))
    losses = train(loaded, labelled(batch_of()), steps=5)
    assert losses[-1] < losses[0]


def test_the_saved_file_holds_the_plan_and_the_head_and_nothing_of_the_backbone(tmp_path: Path) -> None:
    adapted, plan = trained("bert")
    adapted.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    head = sum(p.numel() for p in tuner.parameters_by_op(adapted)["head"])
    sites = ModelMap.from_model(tiny_model("bert", "sequence")).sites
    assert sum(t.numel() for t in tensors.values()) == plan.cost(sites) + head
    assert not any("base_layer" in key for key in tensors)


def test_a_missing_tensor_does_not_load_in_silence(tmp_path: Path) -> None:
    adapted, _ = trained("bert")
    adapted.save_pretrained(tmp_path)
    tensors = load_file(tmp_path / "adapter_model.safetensors")
    gone = next(key for key in tensors if key.endswith("prefix_keys"))
    del tensors[gone]
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    with pytest.warns(UserWarning, match=r"missing adapter keys.*prefix_keys"):
        PeftModel.from_pretrained(tiny_model("bert", "sequence"), tmp_path)


def test_the_wrong_backbone_is_refused_by_the_name_of_the_site(tmp_path: Path) -> None:
    adapted, _ = trained("bert")
    adapted.save_pretrained(tmp_path)
    with pytest.raises(TunerError, match=r"layers\.0\.attention\.\w: lora: a LlamaForSequenceClassification has no"):
        PeftModel.from_pretrained(tiny_model("llama", "sequence"), tmp_path)


def saved_base(name: str, head: Head, folder: Path) -> PreTrainedModel:
    model = tiny_model(name, head)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize("name", ["bert", "t5", "qwen3"])
def test_the_auto_classes_of_peft_load_base_and_adapter_at_once(name: str, tmp_path: Path) -> None:
    base = saved_base(name, "sequence", tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model_map = ModelMap.from_model(base)
    adapted = stir(tuner.build(base, everything(model_map), model_map))
    adapted.save_pretrained(tmp_path / "adapter")
    loaded = AutoPeftModelForSequenceClassification.from_pretrained(tmp_path / "adapter")
    torch.testing.assert_close(logits(loaded.eval(), batch_of()), logits(adapted, batch_of()))


def test_a_causal_model_loads_through_its_auto_class_and_generates(tmp_path: Path) -> None:
    base = saved_base("llama", "lm", tmp_path / "base")
    base.name_or_path = str(tmp_path / "base")
    model_map = ModelMap.from_model(base)
    adapted = stir(tuner.build(base, everything(model_map), model_map))
    adapted.save_pretrained(tmp_path / "adapter")
    prompt, greedy = batch_of(length=5), {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    expected = adapted.generate(**prompt, **greedy)
    by_peft = AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(by_peft.generate(**prompt, **greedy), expected)
    by_transformers = AutoModelForCausalLM.from_pretrained(tmp_path / "adapter")
    assert torch.equal(by_transformers.generate(**prompt, **greedy), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_transformers_load_adapter_gives_the_same_outputs(name: str, tmp_path: Path) -> None:
    adapted, _ = trained(name)
    expected = logits(adapted, batch_of())
    adapted.save_pretrained(tmp_path)
    model = tiny_model(name, "sequence")
    model.load_adapter(str(tmp_path))
    torch.testing.assert_close(logits(model.eval(), batch_of()), expected)


def test_loading_onto_the_meta_device_first_gives_the_same_outputs(tmp_path: Path) -> None:
    adapted, _ = trained("bert")
    adapted.save_pretrained(tmp_path)
    loaded = PeftModel.from_pretrained(tiny_model("bert", "sequence"), tmp_path, low_cpu_mem_usage=True)
    assert torch.equal(logits(loaded, batch_of()), logits(adapted, batch_of()))


LOAD = """
import sys
import peftscout
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification
folder, *names = sys.argv[1:]
batch, outputs = load_file(folder + "/batch.safetensors"), {}
for name in names:
    base = AutoModelForSequenceClassification.from_pretrained(f"{folder}/{name}/base")
    model = PeftModel.from_pretrained(base, f"{folder}/{name}/adapter").eval()
    with torch.no_grad():
        outputs[name] = model(**batch).logits
save_file(outputs, folder + "/out.safetensors")
"""


@pytest.mark.slow
def test_one_import_of_peftscout_is_all_that_a_fresh_process_needs(tmp_path: Path) -> None:
    expected = {}
    for name in FAMILIES:
        saved_base(name, "sequence", tmp_path / name / "base")
        adapted, _ = trained(name)
        adapted.save_pretrained(tmp_path / name / "adapter")
        expected[name] = logits(adapted, batch_of())
    save_file(batch_of(), tmp_path / "batch.safetensors")
    command = [sys.executable, "-c", LOAD, str(tmp_path), *FAMILIES]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    there = load_file(tmp_path / "out.safetensors")
    for name in FAMILIES:
        torch.testing.assert_close(there[name], expected[name], rtol=1e-5, atol=1e-5)


def test_an_adapter_saved_by_this_version_keeps_its_form(tmp_path: Path) -> None:
    """A change of names or fields would break every adapter out there: raise the schema when this must change."""
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = Plan.of({("layers.0.attention.q", "lora"): 1, ("layers.0.attention", "prefix"): 2})
    tuner.build(model, plan, model_map).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = {"plan", "sites", "settings", "seed", "schema", "target_modules", "modules_to_save", "peft_type"}
    assert ours <= set(config)
    assert (config["schema"], config["peft_type"]) == (1, "PEFTSCOUT")
    assert config["plan"] == plan.to_json()
    assert sorted(load_file(tmp_path / "adapter_model.safetensors")) == [
        "base_model.model.bert.encoder.layer.0.attention.self.key.peftscout_prefix_keys",
        "base_model.model.bert.encoder.layer.0.attention.self.key.peftscout_prefix_values",
        "base_model.model.bert.encoder.layer.0.attention.self.query.peftscout_lora_A",
        "base_model.model.bert.encoder.layer.0.attention.self.query.peftscout_lora_B",
        "base_model.model.classifier.bias",
        "base_model.model.classifier.weight",
    ]
