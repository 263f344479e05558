"""Each op against its formula, written out another way; folding; settings."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from op_cases import generic, initial, site_for, tensors_for
from peftscout.errors import ConfigError
from peftscout.ops import OPS, Affine, OpSettings, apply
from peftscout.ops.base import ACTIVATIONS
from peftscout.sites import Attention

PLAIN = OpSettings()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


def linear_with(weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
    return functional.linear(x, weight, bias)


@pytest.mark.parametrize("rank", [1, 4, 8])
def test_the_scale_of_lora_is_the_same_at_every_rank(rank: int) -> None:
    site = site_for("lora")
    x, y = tensors_for("lora", site)
    params = generic("lora", site, rank)
    expected = y + 16.0 * x @ (params["B"] @ params["A"]).T
    torch.testing.assert_close(
        apply(OPS["lora"], params, x, y, OpSettings(lora_scale=16.0)), expected, rtol=1e-4, atol=1e-4
    )


def test_lora_starts_as_in_peft_with_a_within_the_bounds_of_kaiming() -> None:
    a = initial("lora", site_for("lora", 400, 8), 8)["A"]
    bound = 1 / math.sqrt(400)
    assert bound * 0.95 < a.abs().max() <= bound
    assert abs(a.mean()) < bound / 10


@pytest.mark.parametrize("op", ["lora", "bias", "scale"])
@pytest.mark.parametrize("has_bias", [True, False])
def test_folding_into_a_projection_is_the_same_function(op: str, has_bias: bool) -> None:
    site = site_for(op, has_bias=has_bias)
    x, _ = tensors_for(op, site)
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(site.out_features, site.in_features, generator=generator)
    bias = torch.randn(site.out_features, generator=generator) if has_bias else None
    params = generic(op, site, 1)
    folded = OPS[op].fold(params, Affine(weight, bias), PLAIN)
    if op == "bias" and not has_bias:
        assert folded is None
        return
    assert folded is not None
    assert (folded.bias is None) == (bias is None)
    expected = apply(OPS[op], params, x, linear_with(weight, bias, x), PLAIN)
    torch.testing.assert_close(linear_with(folded.weight, folded.bias, x), expected, rtol=1e-4, atol=1e-5)


def test_folding_one_after_the_other_is_applying_one_after_the_other() -> None:
    site = site_for("lora")
    x, _ = tensors_for("lora", site)
    host = Affine(torch.randn(8, 12), torch.randn(8))
    y = linear_with(host.weight, host.bias, x)
    for op in ("lora", "bias", "scale"):
        params = generic(op, site, 1)
        y = apply(OPS[op], params, x, y, PLAIN)
        folded = OPS[op].fold(params, host, PLAIN)
        assert folded is not None
        host = folded
    torch.testing.assert_close(linear_with(host.weight, host.bias, x), y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8)], ids=["LayerNorm", "RMSNorm"])
def test_folding_into_a_norm_is_the_same_function_even_where_its_weight_is_zero(norm: nn.Module) -> None:
    has_bias = isinstance(norm, nn.LayerNorm)
    with torch.no_grad():
        for parameter in norm.parameters():
            parameter.normal_()
        norm.weight[0] = 0.0
    x = torch.randn(2, 5, 8)
    params = generic("norm", site_for("norm", has_bias=has_bias))
    expected = apply(OPS["norm"], params, x, norm(x), PLAIN)
    folded = OPS["norm"].fold(params, Affine(norm.weight, getattr(norm, "bias", None)), PLAIN)
    assert folded is not None
    with torch.no_grad():
        norm.weight.copy_(folded.weight)
        if folded.bias is not None:
            norm.bias.copy_(folded.bias)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("op", ["serial", "parallel", "lowrank_adapter", "prefix"])
def test_what_is_not_linear_does_not_fold(op: str) -> None:
    assert OPS[op].fold(generic(op, site_for(op)), Affine(torch.eye(8), None), PLAIN) is None


def test_a_norm_without_a_bias_trains_none() -> None:
    assert set(initial("norm", site_for("norm", has_bias=False))) == {"s"}
    assert set(initial("norm", site_for("norm", has_bias=True))) == {"s", "t"}


def test_the_serial_adapter_reads_the_output_and_the_parallel_one_the_input() -> None:
    site = site_for("serial", in_features=8, out_features=8)
    x, y = tensors_for("serial", site)
    params = generic("serial", site, 3)
    hidden = functional.relu(functional.linear(y, params["D"], params["d"]))
    expected = y + functional.linear(hidden, params["U"], params["u"])
    torch.testing.assert_close(apply(OPS["serial"], params, x, y, PLAIN), expected)
    hidden = functional.relu(functional.linear(x, params["D"], params["d"]))
    expected = y + 4 * functional.linear(hidden, params["U"], params["u"])
    torch.testing.assert_close(apply(OPS["parallel"], params, x, y, OpSettings(parallel_scale=4.0)), expected)


def test_the_lowrank_adapter_is_a_serial_one_with_factorised_matrices() -> None:
    site = site_for("lowrank_adapter", 64, 64)
    x, y = tensors_for("lowrank_adapter", site)
    low = generic("lowrank_adapter", site, 1)
    full = {"D": low["D2"] @ low["D1"], "d": low["d"], "U": low["U2"] @ low["U1"], "u": low["u"]}
    settings = OpSettings(adapter_activation="gelu_new")
    expected = apply(OPS["serial"], full, x, y, settings)
    torch.testing.assert_close(apply(OPS["lowrank_adapter"], low, x, y, settings), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("op", ["lora", "serial", "parallel", "lowrank_adapter", "prefix"])
def test_a_product_never_starts_at_the_saddle_where_both_factors_are_zero(op: str) -> None:
    pairs = {
        "lora": [("A", "B")],
        "serial": [("D", "U")],
        "parallel": [("D", "U")],
        "lowrank_adapter": [("U1", "U2"), ("D1", "D2")],
        "prefix": [("keys", "values")],
    }[op]
    start = initial(op, site_for(op, 64, 64), 1)
    assert all(start[one].any() or start[other].any() for one, other in pairs)


@pytest.mark.parametrize(("heads", "kv_heads"), [(4, 4), (4, 2), (6, 1)])
def test_the_prefix_is_a_softmax_of_its_own_with_an_empty_slot_shared_in_groups(heads: int, kv_heads: int) -> None:
    site = site_for("prefix")
    object.__setattr__(site, "attention", Attention("m", "m.k", heads, kv_heads, 3))
    x, y = tensors_for("prefix", site)
    params = generic("prefix", site, 5)
    expected = y.clone()
    for head in range(heads):
        group = head // (heads // kv_heads)
        weights = torch.einsum("bqd,pd->bqp", x[:, head], params["keys"][group]).exp()
        expected[:, :, head] += weights @ params["values"][group] / (1 + weights.sum(-1, keepdim=True))
    torch.testing.assert_close(apply(OPS["prefix"], params, x, y, PLAIN), expected, rtol=1e-4, atol=1e-5)


def test_a_prefix_of_one_has_use_for_its_key() -> None:
    site = site_for("prefix")
    x, y = tensors_for("prefix", site)
    params = {name: t.requires_grad_() for name, t in generic("prefix", site, 1).items()}
    apply(OPS["prefix"], params, x, y, PLAIN).square().sum().backward()
    assert params["keys"].grad is not None
    assert params["keys"].grad.abs().min() > 0


def test_a_key_that_no_query_likes_is_as_good_as_absent() -> None:
    """Nested prefixes in a supernet: masking the rest is the small prefix, masking all is none."""
    site = site_for("prefix")
    x = tensors_for("prefix", site)[0].abs()
    y = tensors_for("prefix", site)[1]
    params = generic("prefix", site, 5)
    for kept in (0, 2):
        masked = {"keys": params["keys"].clone(), "values": params["values"]}
        masked["keys"][:, kept:] = -1e4
        expected = apply(OPS["prefix"], OPS["prefix"].shrink(params, kept), x, y, PLAIN) if kept else y
        torch.testing.assert_close(apply(OPS["prefix"], masked, x, y, PLAIN), expected)


def test_a_gate_on_the_prefix_is_nothing_but_other_values() -> None:
    """LLaMA-Adapter's gate g: g times the prefix with values v is the prefix with values g v."""
    site = site_for("prefix")
    x, y = tensors_for("prefix", site)
    params = generic("prefix", site, 5)
    gated = y + 0.3 * OPS["prefix"].delta(params, x, y, PLAIN)
    folded = {"keys": params["keys"], "values": 0.3 * params["values"]}
    torch.testing.assert_close(apply(OPS["prefix"], folded, x, y, PLAIN), gated)


def test_the_prefix_tells_queries_apart_from_the_start() -> None:
    """Keys near zero would weigh all values alike: P copies of one vector."""
    site = site_for("prefix")
    x, _ = tensors_for("prefix", site)
    keys = initial("prefix", site, 8)["keys"]
    shares = (x[:, :2] / math.sqrt(3) @ keys.mT).softmax(-1)
    assert shares.std(-1).mean() > 0.3 / 8


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_keeps_the_shape(name: str) -> None:
    x = torch.randn(2, 3)
    assert ACTIVATIONS[name](x).shape == x.shape


def test_activations_are_named_as_in_transformers() -> None:
    from transformers.activations import ACT2FN

    x = torch.linspace(-3, 3, 50)
    for name, function in ACTIVATIONS.items():
        torch.testing.assert_close(function(x), ACT2FN[name](x))


def test_an_unknown_activation_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(ConfigError, match=r"adapter_activation 'gelu_nw' \(did you mean 'gelu_new'\?\)"):
        OpSettings(adapter_activation="gelu_nw")


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("field", ["lora_scale", "serial_scale", "parallel_scale"])
def test_a_scale_that_is_no_positive_number_is_refused(field: str, value: float) -> None:
    with pytest.raises(ConfigError, match=field):
        OpSettings(**{field: value})
