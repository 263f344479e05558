"""What large models need: bfloat16, checkpointed blocks, device maps, quantised projections. On tiny ones, on a CPU."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from torch.testing._internal.two_tensor import TwoTensor
from transformers import AutoConfig

import peftscout
from adapted import batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.backbone import AUTO_CLASSES, Loading, load_model, sparing_heads
from peftscout.config import StudyConfig
from peftscout.errors import ArchitectureError, ConfigError, TunerError
from peftscout.reference import BaseReference
from peftscout.training.dropout import checkpoint, checkpointed_blocks, set_training
from peftscout.tuner.lowering import to_merged
from peftscout.tuner.resetting import plain_tensors
from tiny_models import Head, tiny_model
from tiny_task import save_tiny_model, save_tiny_writer, write_task, write_texts

QUICK: dict[str, Any] = {"trials": 2, "steps": 3, "final": {"seeds": 1, "lr_scales": [1.0]}, "progress": False}
EXACT = {"precision": "fp32", "batch_size": 8, "evaluations": 1}


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., peftscout.Result]:
    """Search a tiny model; equal configurations are searched once."""
    folder = tmp_path_factory.mktemp("large")
    data = {
        "bert": {"source": str(write_task(folder / "classes", train=40, validation=16))},
        "llama": {
            "source": str(write_texts(folder / "texts", "prompts", train=40, validation=16)),
            "kind": "causal_lm",
        },
    }
    wide = {"hidden_size": 64, "intermediate_size": 128}  # bitsandbytes packs blocks of 64
    models = {
        "bert": save_tiny_model(folder / "bert"),
        "llama": save_tiny_writer(folder / "llama", "llama"),
        "wide bert": save_tiny_model(folder / "wide-bert", **wide),
        "wide llama": save_tiny_writer(folder / "wide-llama", "llama", **wide),
    }

    def search(name: str, strategy: str = "random", checkpointing: bool = False, **options: Any) -> peftscout.Result:
        training = {**EXACT, "gradient_checkpointing": checkpointing}
        study = folder / f"{name}-{strategy}-{checkpointing}-{'-'.join(map(str, options.values()))}"[:200]
        options = {"budget": "10%", "strategy": strategy, "training": training, **QUICK, **options}
        return peftscout.search(models[name], data[name.split()[-1]], study=study, **options)

    return search


def scores(result: peftscout.Result) -> list[float]:
    assert set(result.trials["state"]) == {"done"}
    return list(result.trials["score"])


# --- bfloat16 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bert", "llama", "roberta"])
def test_on_a_bfloat16_base_all_that_is_trained_is_float32(name: str) -> None:
    model = tiny_model(name, "sequence").bfloat16()
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, everything(model_map), model_map)
    trained = {key: p.dtype for key, p in adapted.named_parameters() if p.requires_grad}
    assert any("modules_to_save" in key for key in trained)
    assert set(trained.values()) == {torch.float32}
    assert logits(adapted, batch_of()).dtype == torch.float32
    losses = train(adapted, labelled(batch_of()), steps=4)
    assert losses[-1] < losses[0]
    assert {p.dtype for p in tuner.reset(adapted).parameters()} == {torch.bfloat16}


def test_a_float32_head_starts_from_the_same_values_whatever_the_base() -> None:
    heads = []
    for dtype in (torch.float32, torch.bfloat16):
        model = tiny_model("bert", "sequence").to(dtype)
        model_map = ModelMap.from_model(model)
        adapted = tuner.build(model, everything(model_map, only=("lora",)), model_map, seed=3)
        heads.append(tuner.parameters_by_op(adapted)["head"][0].detach().clone())
    assert torch.equal(*heads)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), [("bert", "scout"), ("llama", "random")])
def test_a_bfloat16_base_is_searched_and_exported(name: str, strategy: str, searched: Any, tmp_path: Path) -> None:
    result = searched(name, strategy, dtype="bfloat16")
    scores(result)
    report = result.export(tmp_path / "out", "composite")
    assert "dtype='bfloat16'" in report.snippet
    weights = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert {t.dtype for key, t in weights.items() if "peftscout" in key} == {torch.float32}


# --- gradient checkpointing ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(("name", "strategy"), [("bert", "random"), ("llama", "bipeft")])
def test_checkpointed_blocks_change_no_score(name: str, strategy: str, searched: Any) -> None:
    assert scores(searched(name, strategy, checkpointing=True)) == scores(searched(name, strategy))


@pytest.mark.parametrize("name", ["bert", "t5", "gpt2", "llama"])
def test_checkpointed_blocks_keep_less_though_they_draw_no_dropout(name: str) -> None:
    kept = {}
    for checkpointing in (False, True):
        model = tiny_model(name, "sequence")
        model_map = ModelMap.from_model(model)
        if checkpointing:
            checkpoint(model)
        adapted = tuner.build(model, everything(model_map, only=("lora", "serial", "parallel", "prefix")), model_map)
        stir(adapted)
        set_training(adapted, "off")
        base = adapted.get_base_model()
        assert not any(m.training for m in getattr(base, base.base_model_prefix).modules() if isinstance(m, nn.Dropout))
        assert [block.training for block in checkpointed_blocks(base)] == (
            [True] * len(model_map.blocks) * 2
        ) * checkpointing
        saved: list[int] = []
        with torch.autograd.graph.saved_tensors_hooks(lambda t, s=saved: s.append(t.numel()) or t, lambda t: t):
            loss = adapted(**labelled(batch_of(rows=4, length=16))).loss
        loss.backward()
        gradients = [p.grad.clone() for group in tuner.parameters_by_op(adapted).values() for p in group]
        kept[checkpointing] = sum(saved), gradients
    assert kept[True][0] < 0.6 * kept[False][0]
    for one, other in zip(kept[True][1], kept[False][1], strict=True):
        assert torch.equal(one, other)


def test_a_model_that_cannot_be_checkpointed_is_refused() -> None:
    model = tiny_model("bert", "sequence")
    model.__class__ = type("Old", (type(model),), {"supports_gradient_checkpointing": False})
    with pytest.raises(
        ConfigError, match=r"gradient_checkpointing: transformers cannot checkpoint the blocks of a Old"
    ):
        checkpoint(model)


# --- device maps -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_device_map_is_obeyed_and_changes_no_score(searched: Any, tmp_path: Path) -> None:
    placed = searched("bert", device_map="cpu")
    assert scores(placed) == scores(searched("bert"))
    assert "device_map=" not in placed.export(tmp_path / "out").snippet


def test_weights_on_disk_are_refused(tmp_path: Path) -> None:
    save_tiny_writer(tmp_path / "m", "llama")
    reference = BaseReference(str(tmp_path / "m"), "AutoModelForCausalLM")
    place = {"model.embed_tokens": "cpu", "model.layers": "disk", "model.norm": "cpu", "model.rotary_emb": "cpu"}
    with pytest.raises(ArchitectureError, match=r"device map leaves model\.layers\.\S+ on disk"):
        load_model(reference, seed=0, device_map={**place, "lm_head": "cpu"})


# --- quantised projections -------------------------------------------------------------------------------------------


class Packed(nn.Linear):
    """A Linear of two 4-bit weights a byte, as libraries make them: a subclass with its widths, and other weights."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__(linear.in_features, linear.out_features, linear.bias is not None)
        self.bias = linear.bias
        weight = linear.weight.detach()
        self.step = nn.Buffer(weight.abs().amax() / 7)
        levels = (weight / self.step).round().clamp(-7, 7).to(torch.int8).add(8).to(torch.uint8).view(-1)
        self.weight = nn.Parameter((levels[::2] << 4 | levels[1::2])[:, None], requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        levels = torch.stack([self.weight[:, 0] >> 4, self.weight[:, 0] & 15], 1)
        weight = (levels.float() - 8).mul(self.step).view(self.out_features, self.in_features)
        return nn.functional.linear(x, weight.to(x.dtype), self.bias)


def quantised(name: str, head: Head = "lm") -> nn.Module:
    """Every projection of the blocks packed, as `from_pretrained` leaves it: T5's ``wo`` stays as it is."""
    model = tiny_model(name, head).requires_grad_(False)
    kept = tuple(model._keep_in_fp32_modules or ())
    for site in ModelMap.from_model(model).sites.values():
        if site.kind == "linear" and not (kept and site.module.endswith(kept)):
            parent, _, leaf = site.module.rpartition(".")
            setattr(model.get_submodule(parent), leaf, Packed(model.get_submodule(site.module)))
    return model


@pytest.mark.parametrize("name", ["bert", "t5_gated", "llama"])
def test_every_op_works_over_quantised_projections(name: str) -> None:
    model = quantised(name)
    model_map = ModelMap.from_model(model)
    whole = ModelMap.from_model(tiny_model(name, "lm"))
    assert (model_map.sites, model_map.total) == (whole.sites, whole.total), "packed weights count as many"
    batch = batch_of()
    batch |= {"labels": batch["input_ids"]} if name == "t5_gated" else {}
    before, hashed = logits(model, batch), tuner.fingerprint(model)
    plan = everything(model_map)
    adapted = tuner.build(model, plan, model_map)
    tuner.check_built(adapted, plan)
    tuner.check_gradients(adapted, plan, batch)
    assert torch.equal(logits(adapted, batch), before)
    losses = train(adapted, {**batch, "labels": batch["input_ids"]}, steps=6)
    assert losses[-1] < losses[0]
    assert tuner.fingerprint(tuner.reset(adapted)) == hashed


def test_merging_into_quantised_weights_is_refused_and_norms_are_not_quantised() -> None:
    model = quantised("llama", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, everything(model_map, only=("lora",)), model_map)
    with pytest.raises(TunerError, match="a Packed with quantised weights cannot be merged into; load it unquantised"):
        to_merged(adapted)
    tuner.reset(adapted)
    norms = stir(tuner.build(model, everything(model_map, only=("norm",)), model_map))
    torch.testing.assert_close(logits(to_merged(norms), batch_of()), logits(norms, batch_of()))


def test_a_tensor_made_of_others_is_hashed_by_them_and_not_merged_into() -> None:
    one, other = torch.arange(6.0).view(2, 3), torch.ones(2, 3)
    linear = nn.Linear(3, 2, bias=False)
    linear.weight = nn.Parameter(TwoTensor(one, other), requires_grad=False)
    assert [name for name, _ in plain_tensors(linear)] == ["weight.a", "weight.b"]
    first = tuner.fingerprint(linear), tuner.checksum(linear)
    other[0, 0] = 2
    assert tuner.fingerprint(linear) != first[0]
    assert tuner.checksum(linear) != first[1]
    with pytest.raises(TunerError, match="quantised weights cannot be merged into"):
        tuner.lowering.read_affine(linear)


def test_the_head_is_spared_by_the_name_that_each_library_gives_it(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(save_tiny_model(tmp_path))
    head = AUTO_CLASSES["classification"]
    assert sparing_heads({"load_in_4bit": True}, head, config)["llm_int8_skip_modules"] == ["classifier"]
    assert sparing_heads({"quant_method": "torchao"}, head, config)["modules_to_not_convert"] == ["classifier"]
    own = {"load_in_8bit": True, "llm_int8_skip_modules": ["pooler"]}
    assert sparing_heads(own, head, config) == own
    llama = AutoConfig.from_pretrained(save_tiny_writer(tmp_path / "llama", "llama"))
    assert sparing_heads({"load_in_4bit": True}, AUTO_CLASSES["causal_lm"], llama) == {"load_in_4bit": True}
    with pytest.raises(ArchitectureError, match=r"'torchaoo' is not supported \(did you mean 'torchao'\?\)"):
        sparing_heads({"quant_method": "torchaoo"}, head, config)


@pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is not None, reason="bitsandbytes is installed")
def test_a_library_that_is_missing_is_named(searched: Any) -> None:
    with pytest.raises(ArchitectureError, match="a library is missing: .*bitsandbytes"):
        searched("bert", quantization_config={"load_in_4bit": True})


INT8 = {"_type": "Int8WeightOnlyConfig", "_version": 2, "_data": {}}
LIBRARIES = {
    "bitsandbytes": [{"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}, {"load_in_8bit": True}],
    "torchao": [{"quant_method": "torchao", "quant_type": {"default": INT8}}],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", ["wide bert", "wide llama"])
@pytest.mark.parametrize(("library", "asked"), [(lib, asked) for lib, all_ in LIBRARIES.items() for asked in all_])
def test_a_base_quantised_by_a_real_library_is_searched_and_exported(
    library: str, asked: dict[str, Any], name: str, searched: Any, tmp_path: Path
) -> None:
    pytest.importorskip(library)
    result = searched(name, quantization_config=asked, dtype="bfloat16")
    scores(result)
    assert "quantization_config=" in result.export(tmp_path / "out").snippet


# --- configuration ---------------------------------------------------------------------------------------------------


def test_the_keys_are_those_of_transformers_and_all_are_off_at_first() -> None:
    base = {"model": "m", "budget": "1%", "data": {"source": "d"}}
    plain = StudyConfig.from_mapping(base)
    assert (plain.dtype, plain.device_map, plain.quantization_config) == (None, None, None)
    assert not plain.training.gradient_checkpointing
    asked = {"dtype": "bfloat16", "device_map": {"": 0}, "quantization_config": {"load_in_4bit": True}}
    assert StudyConfig.from_mapping({**base, **asked}).to_mapping().items() >= asked.items()
    with pytest.raises(ConfigError, match="dtype: input should be 'float32' or 'bfloat16', not 'float16'"):
        StudyConfig.from_mapping({**base, "dtype": "float16"})


def test_where_a_base_lies_is_nobody_elses_concern() -> None:
    loading = Loading("bfloat16", "auto", {"load_in_8bit": True})
    assert loading.kwargs == {"dtype": "bfloat16", "quantization_config": {"load_in_8bit": True}}
    assert Loading().kwargs == {}
