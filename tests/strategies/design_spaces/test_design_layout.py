from dataclasses import replace

import pytest

from fake_sites import fake_sites
from peftscout.cost import price
from peftscout.errors import SpaceError
from peftscout.strategies.design_spaces import load_design_space
from peftscout.strategies.design_spaces.layout import Layer, Method, group_number, layout

METHODS = {m.name: m for m in load_design_space("chen2023-s0").methods_defined}


def layout_of(kind: str, **shape) -> object:
    return layout(fake_sites(kind, **shape), METHODS.values())


def test_layers_are_numbered_through_the_encoder_and_then_the_decoder():
    there = layout_of("encoder_decoder", layers=3)
    assert [str(layer) for layer in there.layers] == [f"{s}.{i}" for s in ("encoder", "decoder") for i in range(3)]
    assert there.segments == (6,)


def test_the_encoder_comes_first_whatever_the_order_of_the_sites():
    sites = dict(reversed(fake_sites("encoder_decoder", layers=2).items()))
    there = layout(sites, METHODS.values())
    assert there.layers == (Layer("encoder", 0), Layer("encoder", 1), Layer("decoder", 0), Layer("decoder", 1))


def test_stacks_can_be_grouped_each_for_itself():
    sites = fake_sites("encoder_decoder", layers=5)
    assert layout(sites, METHODS.values(), "per_stack").segments == (5, 5)


def test_sites_outside_of_the_blocks_belong_to_no_layer():
    there = layout_of("decoder", layers=2)
    assert not any("final_norm" in site for cell in there.cells.values() for site in cell.sites)


def test_on_bert_the_four_methods_are_what_their_papers_say():
    there = layout_of("encoder", layers=2)
    sites = {method: there.cells[1, method].sites for method in METHODS}
    assert sites["lora"] == ("layers.1.attention.q", "layers.1.attention.v")
    assert sites["adapter"] == ("layers.1.ffn",)
    assert sites["prefix"] == ("layers.1.attention",)
    places = ("attention.q", "attention.k", "attention.v", "attention.o", "attention_norm", "ffn.up", "ffn.down")
    assert set(sites["bitfit"]) == {f"layers.1.{place}" for place in (*places, "ffn_norm")}
    assert {method: there.cells[1, method].op for method in METHODS} == {
        "lora": "lora",
        "bitfit": "bias",
        "adapter": "serial",
        "prefix": "prefix",
    }


@pytest.mark.parametrize("kind", ["encoder_decoder", "decoder"])
def test_where_the_model_has_no_biases_bitfit_adds_vectors_to_all_linears(kind):
    sites = fake_sites(kind, layers=2)
    there = layout(sites, METHODS.values())
    for (layer, method), cell in there.cells.items():
        if method == "bitfit":
            inside = [s.id for s in sites.values() if Layer(s.stack, s.layer or 0) == there.layers[layer]]
            linears = [s for s in inside if sites[s].kind == "linear" and sites[s].layer is not None]
            assert list(cell.sites) == linears


def test_only_self_attention_is_adapted_unless_the_space_says_so():
    there = layout_of("encoder_decoder", layers=1)
    chosen = [site for (_, method), cell in there.cells.items() if method != "bitfit" for site in cell.sites]
    assert not any("cross_attention" in site for site in chosen)
    crossing = replace(METHODS["lora"], sites=("*.attention.{q,v}", "*.cross_attention.{q,v}"))
    decoder = layout(fake_sites("encoder_decoder", layers=1), [crossing]).cells[1, "lora"]
    assert len(decoder.sites) == 4


@pytest.mark.parametrize("kind", ["encoder", "encoder_decoder", "decoder"])
def test_a_cell_costs_what_its_sites_cost_at_every_size(kind):
    sites = fake_sites(kind, layers=2, width=48, heads=4, kv_heads=2)
    for cell in layout(sites, METHODS.values()).cells.values():
        for size in range(1, cell.largest + 1):
            exact = sum(price(sites[site], cell.op).at(size) for site in cell.sites)
            assert cell.fixed + cell.per_size * size == exact
        assert cell.least <= cell.most


def test_grouped_query_attention_and_unequal_widths_are_priced_as_they_are():
    llama = layout_of("decoder", layers=1, width=32, heads=4, kv_heads=2)
    assert llama.cells[0, "prefix"].per_size == 2 * 2 * 8
    assert llama.cells[0, "lora"].per_size == (32 + 32) + (32 + 16)
    assert llama.cells[0, "lora"].largest == 16  # v is narrower than q


def test_a_method_without_a_size_has_only_a_fixed_cost():
    bitfit = layout_of("encoder", layers=1).cells[0, "bitfit"]
    assert (bitfit.per_size, bitfit.largest) == (0, 1)
    assert bitfit.least == bitfit.most == bitfit.fixed == 4 * 32 + 64 + 32 + 2 * 32


def test_other_ops_can_be_named():
    methods = [
        Method("ia3", "scale", ("*.attention.{k,v}", "*.ffn.down")),
        Method("lnfit", "norm", ("*_norm",)),
        Method("scaled_parallel", "parallel", ("*.ffn",)),
        Method("s3delta", "lowrank_adapter", ("*.attention", "*.ffn")),
    ]
    there = layout(fake_sites("encoder", layers=1), methods)
    assert [there.cells[0, m.name].op for m in methods] == ["scale", "norm", "parallel", "lowrank_adapter"]
    assert there.absent == ()


def test_a_method_with_no_site_anywhere_is_absent_and_says_so():
    methods = [METHODS["lora"], Method("moe", "lora", ("*.experts.*",))]
    there = layout(fake_sites("encoder", layers=2), methods)
    assert there.absent == ("moe",)
    assert there.filling(1, ("lora", "moe")) == "layers.1 has no site for moe"
    assert there.filling(1, ("lora",)).cells == (there.cells[1, "lora"],)


def test_the_space_says_which_ops_may_be_at_which_sites():
    allowed = {("layers.0.attention.q", "lora"), ("layers.1.attention.v", "lora")}
    there = layout(fake_sites("encoder", layers=3), METHODS.values(), allowed=allowed)
    assert {key: cell.sites for key, cell in there.cells.items()} == {
        (0, "lora"): ("layers.0.attention.q",),
        (1, "lora"): ("layers.1.attention.v",),
    }
    assert there.filling(2, ("lora",)) == "layers.2 has no site for lora"


def test_a_model_without_layers_and_a_space_without_sites_are_refused():
    norm = {k: s for k, s in fake_sites("decoder").items() if s.layer is None}
    with pytest.raises(SpaceError, match="no site inside a layer"):
        layout(norm, METHODS.values())
    with pytest.raises(
        SpaceError, match="none of the methods lora, bitfit, adapter, prefix has a site .* space allows"
    ):
        layout(fake_sites("encoder"), METHODS.values(), allowed=set())


def test_groups_are_named_from_one():
    assert [group_number(label, 3) for label in ("G1", "G3")] == [0, 2]
    for wrong in ("G0", "G4", "g1", "1", "G", "G1 "):
        with pytest.raises(SpaceError, match="there are G1 to G3"):
            group_number(wrong, 3)
