"""The one cost formula, against hand counts and published numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.cost import OPS, SIZELESS, Price, largest_size, lowrank_bottleneck, ops_at, price
from peftscout.errors import PlanError
from peftscout.sites import Site

T5_LARGE = fake_sites("encoder_decoder", layers=24, width=1024, ffn=4096, heads=16)
BERT_BASE = fake_sites("encoder", layers=12, width=768, ffn=3072, heads=12)
LLAMA = fake_sites("decoder", layers=2, width=64, ffn=128, heads=4, kv_heads=2)
ANY_SITE = st.sampled_from([*BERT_BASE.values(), *LLAMA.values(), *fake_sites("encoder_decoder").values()])


@pytest.mark.parametrize(
    ("site", "op", "size", "parameters"),
    [
        # the counts of the S3Delta and BIPEFT papers on T5-large
        ("encoder.0.attention.q", "lora", 1, 2_048),
        ("encoder.0.ffn.up", "lora", 8, 8 * 5_120),
        ("decoder.5.ffn.down", "lora", 4, 4 * 5_120),
        ("encoder.0.attention.q", "bias", 1, 1_024),
        ("encoder.0.ffn.up", "bias", 1, 4_096),
        ("decoder.0.cross_attention_norm", "bias", 1, 1_024),
        ("decoder.final_norm", "norm", 1, 1_024),
        ("encoder.0.ffn", "lowrank_adapter", 1, 3_168),
        ("encoder.0.ffn", "lowrank_adapter", 4, 9_504),
        ("encoder.0.attention", "lowrank_adapter", 8, 17_952),
        ("encoder.0.ffn", "serial", 1, 3_073),
        ("encoder.0.ffn", "serial", 4, 9_220),
        ("encoder.0.ffn", "parallel", 8, 17_416),
        ("encoder.0.attention", "prefix", 10, 10 * 2 * 1_024),
        ("encoder.0.attention.v", "scale", 1, 1_024),
    ],
)
def test_prices_on_t5_large_are_the_published_ones(site: str, op: str, size: int, parameters: int) -> None:
    assert price(T5_LARGE[site], op).at(size) == parameters


def test_uniform_configurations_of_bert_base_cost_what_autopeft_counts() -> None:
    def total(op: str, size: int, end: str) -> int:
        return sum(price(site, op).at(size) for site in BERT_BASE.values() if site.id.endswith(end))

    assert total("prefix", 10, ".attention") == 184_320
    assert total("lora", 8, ".attention.q") + total("lora", 8, ".attention.v") == 294_912
    assert total("serial", 48, ".ffn") == 884_736 + 12 * (48 + 768)  # AutoPEFT leaves the biases out, we do not


def test_a_norm_with_a_bias_trains_weight_and_bias() -> None:
    norm = BERT_BASE["layers.0.ffn_norm"]
    assert price(norm, "norm").at(1) == 2 * 768
    assert price(replace(norm, has_bias=False), "norm").at(1) == 768


def test_a_prefix_is_as_wide_as_the_keys_and_values() -> None:
    attention = LLAMA["layers.0.attention"]
    assert attention.attention is not None
    assert price(attention, "prefix").at(3) == 3 * 2 * (2 * 16)  # 2 of the 4 heads, 16 wide


def test_a_parallel_adapter_reads_the_width_that_enters_and_a_serial_one_the_width_that_leaves() -> None:
    site = replace(LLAMA["layers.0.ffn"], in_features=10, out_features=20)
    assert price(site, "serial").at(3) == 3 * 20 + 3 + 20 * 3 + 20
    assert price(site, "parallel").at(3) == 3 * 10 + 3 + 20 * 3 + 20


@given(ANY_SITE, st.integers(1, 64))
def test_every_price_is_positive_and_rises_with_the_size(site: Site, size: int) -> None:
    for op in ops_at(site):
        p = price(site, op)
        assert 0 < p.at(size) < p.at(size + 1)


@given(st.integers(0, 5_000), st.integers(1, 5_000), st.integers(0, 10**9))
def test_the_largest_size_within_a_budget_fits_and_the_next_does_not(fixed: int, per_size: int, budget: int) -> None:
    p = Price(fixed, per_size)
    size = p.largest_within(budget)
    assert size == 0 or p.at(size) <= budget
    assert p.at(size + 1) > budget


def test_ops_sit_only_where_they_can() -> None:
    assert ops_at(BERT_BASE["layers.0.attention.q"]) == ("lora", "bias", "scale")
    assert ops_at(BERT_BASE["layers.0.attention_norm"]) == ("bias", "norm")
    assert ops_at(BERT_BASE["layers.0.attention"]) == ("serial", "parallel", "lowrank_adapter", "prefix")
    assert ops_at(BERT_BASE["layers.0.ffn"]) == ("serial", "parallel", "lowrank_adapter")
    assert ops_at(replace(BERT_BASE["layers.0.ffn"], input_module=None)) == ("serial", "lowrank_adapter")


@given(ANY_SITE)
def test_ops_at_a_site_are_in_canonical_order_and_all_priced(site: Site) -> None:
    ops = ops_at(site)
    assert list(ops) == [op for op in OPS if op in ops]
    for op in set(OPS) - set(ops):
        with pytest.raises(PlanError, match=site.id):
            price(site, op)
        with pytest.raises(PlanError, match=site.id):
            largest_size(site, op)


@given(ANY_SITE)
def test_the_largest_size_is_the_narrower_side_and_1_without_a_size(site: Site) -> None:
    for op in ops_at(site):
        if op in SIZELESS:
            assert largest_size(site, op) == 1
        elif op == "lowrank_adapter":
            assert largest_size(site, op) == lowrank_bottleneck(site) == max(1, site.out_features // 32)
        else:
            assert largest_size(site, op) == min(site.in_features, site.out_features)


def test_an_unknown_op_is_named_with_the_nearest_one() -> None:
    with pytest.raises(PlanError, match=r"layers\.0\.attention\.q: unknown op 'lroa' \(did you mean 'lora'\?\)"):
        price(BERT_BASE["layers.0.attention.q"], "lroa")


def test_an_op_at_the_wrong_site_is_refused_with_what_is_possible() -> None:
    with pytest.raises(PlanError, match="cannot sit at a norm .* possible: bias, norm"):
        price(BERT_BASE["layers.0.ffn_norm"], "lora")
