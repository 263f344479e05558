"""The wrapper of a leaf: merging, several adapters, hooks, and getting along with the code around it."""

from __future__ import annotations

import copy

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers.pytorch_utils import Conv1D

from adapted import FAMILIES, batch_of, everything, labelled, logits, stir, train
from peftscout import tuner
from peftscout.architecture import ModelMap
from peftscout.errors import TunerError
from peftscout.ops import Affine
from peftscout.plan import Plan
from peftscout.tuner import host
from peftscout.tuner.building import wrappers
from peftscout.tuner.config import PeftscoutConfig
from peftscout.tuner.layer import PeftscoutLayer, SublayerInput
from tiny_models import tiny_model

FOLDABLE = ("lora", "scale", "norm")


def built(name: str, only: tuple[str, ...] | None = None, head: str = "sequence") -> tuple[PeftModel, ModelMap, Plan]:
    model = tiny_model(name, head)  # type: ignore[arg-type]
    model_map = ModelMap.from_model(model)
    plan = everything(model_map, only=only)
    return tuner.build(model, plan, model_map), model_map, plan


@pytest.mark.parametrize("name", FAMILIES)
def test_merging_gives_the_same_outputs_and_unmerging_the_same_bits(name: str) -> None:
    adapted, _, _ = built(name, (*FOLDABLE, "bias") if name in ("bert", "roberta", "gpt2") else FOLDABLE)
    stir(adapted)
    expected, hashed = logits(adapted, batch_of()), tuner.fingerprint(adapted)
    adapted.merge_adapter()
    torch.testing.assert_close(logits(adapted, batch_of()), expected, rtol=1e-4, atol=1e-4)
    assert tuner.fingerprint(adapted) != hashed
    adapted.unmerge_adapter()
    assert tuner.fingerprint(adapted) == hashed
    assert torch.equal(logits(adapted, batch_of()), expected)


@pytest.mark.parametrize("name", FAMILIES)
def test_merge_and_unload_gives_a_plain_model_with_the_trained_head(name: str) -> None:
    adapted, _, _ = built(name, FOLDABLE)
    train(adapted, labelled(batch_of()))
    expected = logits(adapted, batch_of())
    merged = adapted.merge_and_unload(safe_merge=True)
    assert not any(isinstance(m, PeftscoutLayer) for m in merged.modules())
    torch.testing.assert_close(logits(merged, batch_of()), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("op", "site", "message"),
    [
        ("serial", "layers.0.ffn", r"layers\.0\.ffn: serial does not fold into a Linear"),
        ("prefix", "layers.0.attention", r"layers\.0\.attention: prefix does not fold"),
        ("bias", "layers.0.attention.q", r"layers\.0\.attention\.q: bias does not fold into a Linear without a bias"),
    ],
)
def test_what_does_not_fold_is_named_and_nothing_is_merged(op: str, site: str, message: str) -> None:
    model = tiny_model("llama", "sequence")
    model_map = ModelMap.from_model(model)
    adapted = tuner.build(model, Plan.of({(site, op): 1}), model_map)
    hashed = tuner.fingerprint(adapted)
    with pytest.raises(TunerError, match=message):
        adapted.merge_adapter()
    assert tuner.fingerprint(adapted) == hashed


def test_a_safe_merge_refuses_what_is_not_finite() -> None:
    adapted, _, _ = built("bert", ("lora",))
    with torch.no_grad():
        tuner.parameters_by_op(adapted)["lora"][1].fill_(float("inf"))
    hashed = tuner.fingerprint(adapted)
    with pytest.raises(TunerError, match=r"layers\.0\.attention\.q: the merged weights are not finite"):
        adapted.merge_adapter(safe_merge=True)
    assert tuner.fingerprint(adapted) == hashed


def test_disabling_a_merged_adapter_unmerges_it() -> None:
    adapted, _, _ = built("bert", ("lora",))
    stir(adapted)
    with adapted.disable_adapter():
        base = logits(adapted, batch_of())
    adapted.merge_adapter()
    with adapted.disable_adapter():
        assert torch.equal(logits(adapted, batch_of()), base)


def test_unloading_leaves_no_hook_and_the_attention_as_it_was() -> None:
    adapted, _, _ = built("bert")
    model = adapted.unload()
    assert model.config._attn_implementation == "sdpa"
    assert not any(isinstance(h, SublayerInput) for m in model.modules() for h in m._forward_pre_hooks.values())


def test_two_adapters_can_be_held_switched_between_and_deleted() -> None:
    adapted, model_map, plan = built("bert")
    stir(adapted)
    first = logits(adapted, batch_of())
    other = everything(model_map, size=1, only=("lora", "parallel", "prefix"))
    config = PeftscoutConfig.for_plan(other, model_map.sites, tuner.OpSettings(), 5, model_map.head)
    adapted.add_adapter("second", config)
    assert torch.equal(logits(adapted, batch_of()), first)
    adapted.set_adapter("second")
    tuner.check_built(adapted, other)
    tuner.check_gradients(adapted, other, labelled(batch_of()))
    second = logits(stir(adapted), batch_of())
    assert not torch.allclose(first, second, atol=1e-3)
    adapted.set_adapter("default")
    tuner.check_built(adapted, plan)
    assert torch.equal(logits(adapted, batch_of()), first)
    adapted.delete_adapter("second")
    assert torch.equal(logits(adapted, batch_of()), first)
    assert not any("second" in key for key, _ in adapted.named_parameters())


def test_the_input_of_a_sublayer_is_forgotten_after_use_even_when_adapters_are_off() -> None:
    adapted, _, _ = built("llama", ("parallel",))
    taps = [layer.sublayer_input for _, layer in wrappers(adapted)]
    assert len(taps) == 4
    logits(adapted, batch_of())
    assert all(tap is not None and tap.take() is None for tap in taps)
    with adapted.disable_adapter():
        logits(adapted, batch_of())
    assert all(tap is not None and tap.take() is None for tap in taps)


def test_a_parallel_adapter_that_saw_no_input_says_so() -> None:
    adapted, _, _ = built("bert", ("parallel",))
    layer = adapted.get_base_model().bert.encoder.layer[0].output.dense
    with pytest.raises(TunerError, match=r"layers\.0\.ffn: parallel: nothing went through .*intermediate\.dense"):
        layer(torch.zeros(1, 48))


def test_parallel_and_lora_can_meet_at_the_first_leaf_of_a_sublayer() -> None:
    """The hook sits on the leaf under the wrapper, whichever of the two was put there first."""
    model = tiny_model("bert", "sequence")
    model_map = ModelMap.from_model(model)
    plan = Plan.of({("layers.0.ffn.up", "lora"): 2, ("layers.0.ffn", "parallel"): 2})
    adapted = stir(tuner.build(model, plan, model_map))
    tuner.check_gradients(adapted, plan, labelled(batch_of()))
    hooks = adapted.get_base_model().bert.encoder.layer[0].intermediate.dense.base_layer._forward_pre_hooks
    assert [type(hook) for hook in hooks.values()] == [SublayerInput]


def test_a_wrapper_answers_for_the_leaf() -> None:
    adapted, _, _ = built("gpt2")
    layer = adapted.get_base_model().transformer.h[0].attn.c_attn
    assert isinstance(layer, PeftscoutLayer)
    assert layer.nf == 96
    assert layer.weight is layer.base_layer.weight
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = layer.no_such_thing
    assert copy.deepcopy(layer).nf == 96


@pytest.mark.parametrize("leaf", [nn.Linear(3, 2), Conv1D(2, 3), nn.LayerNorm(4), nn.RMSNorm(4)], ids=repr)
def test_an_affine_part_is_written_as_it_was_read(leaf: nn.Module) -> None:
    before = copy.deepcopy(leaf.state_dict())
    affine = host.read_affine(leaf)
    host.write_affine(leaf, affine)
    assert all(torch.equal(before[key], value) for key, value in leaf.state_dict().items())
    doubled = Affine(affine.weight * 2, None if affine.bias is None else affine.bias + 1)
    x = torch.randn(5, host.features(leaf)[0])
    with torch.no_grad():
        y, bias = leaf(x), 0 if affine.bias is None else affine.bias.clone()
        host.write_affine(leaf, doubled)
        torch.testing.assert_close(leaf(x), 2 * (y - bias) + bias + (0 if affine.bias is None else 1))


def test_only_leaves_carry_ops_and_quantised_weights_are_not_merged_into() -> None:
    with pytest.raises(TunerError, match="a Sequential cannot carry ops"):
        host.features(nn.Sequential())
    quantised = nn.Module()
    quantised.weight = nn.Parameter(torch.zeros(2, 2, dtype=torch.uint8), requires_grad=False)
    with pytest.raises(TunerError, match="quantised weights cannot be merged into"):
        host.read_affine(quantised)
