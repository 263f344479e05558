"""Spaces as YAML: the published counts of the presets, ties, and every way to get a file wrong."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from hypothesis import example, given
from hypothesis import strategies as st

from fake_sites import Kind, fake_sites
from peftscout.cost import ops_at
from peftscout.errors import SpaceError
from peftscout.space import Space, load_space, parse_space, presets

T5_LARGE = fake_sites("encoder_decoder", layers=24, width=1024, ffn=4096, heads=16)
BERT_BASE = fake_sites("encoder", layers=12, width=768, ffn=3072, heads=12)
SMALL = fake_sites("encoder")
KINDS: tuple[Kind, ...] = ("encoder", "encoder_decoder", "decoder")


def _ops(space: Space) -> dict[str, int]:
    return dict(Counter(choice.op for choice in space.choices))


def _rules(*rules: str) -> str:
    return "rules:\n" + "".join(f"  - {rule}\n" for rule in rules)


# -- presets ----------------------------------------------------------------------------------------------------------


def test_the_presets_are_those_of_the_published_systems_and_say_what_they_are() -> None:
    described = presets()
    assert list(described) == [
        "all", "autopeft", "bipeft-s1", "bipeft-s2", "design-spaces", "lora", "s3delta-l", "s3delta-m",
    ]  # fmt: skip
    assert all(len(text) > 20 for text in described.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", presets())
def test_every_preset_applies_to_every_kind_of_model(name: str, kind: Kind) -> None:
    sites = fake_sites(kind)
    space = load_space(name, sites)
    assert space.name == name
    assert space.cardinality() > 10
    assert space.contains(space.cheapest())
    space.dearest().check(sites)
    order = list(sites)
    assert [order.index(c.site) for c in space.choices] == sorted(order.index(c.site) for c in space.choices)


@pytest.mark.parametrize(
    ("name", "ops", "dearest"),
    [
        ("bipeft-s1", {"lora": 288, "lowrank_adapter": 96, "bias": 410, "norm": 122}, 9_493_504),
        ("s3delta-m", {"lora": 288, "lowrank_adapter": 96, "bias": 410, "norm": 122}, 1_881_088),
        ("s3delta-l", {"lora": 288}, 884_736),
        ("bipeft-s2", {"serial": 48, "parallel": 48, "prefix": 48}, 48 * (2 * 17_416 + 16_384)),
        ("lora", {"lora": 384}, 32 * (24 * (6 + 10) * 2_048 + 48 * 2 * (5_120 - 2_048))),
        ("autopeft", {"serial": 48, "parallel": 48, "prefix": 48}, None),
    ],
)
def test_presets_have_the_published_counts_on_t5_large(name: str, ops: dict[str, int], dearest: int | None) -> None:
    space = load_space(name, T5_LARGE)
    assert _ops(space) == ops
    if dearest is not None:
        assert space.dearest().cost(T5_LARGE) == dearest


def test_s3delta_spaces_allow_size_1_alone_and_bipeft_1_4_8() -> None:
    assert {c.sizes for c in load_space("s3delta-m", T5_LARGE).choices} == {(1,)}
    sizes = {c.op: c.sizes for c in load_space("bipeft-s1", T5_LARGE).choices}
    assert sizes == {"lora": (1, 4, 8), "lowrank_adapter": (1, 4, 8), "bias": (1,), "norm": (1,)}


@pytest.mark.parametrize("name", ["bipeft-s1", "s3delta-m"])
def test_of_cross_attention_the_s1_positions_hold_the_norm_alone(name: str) -> None:
    crossed = {c.site.split(".", 2)[2] for c in load_space(name, T5_LARGE).choices if "cross" in c.site}
    assert crossed == {"cross_attention_norm"}


def test_autopeft_on_bert_base_has_the_published_grid_and_number_of_plans() -> None:
    space = load_space("autopeft", BERT_BASE)
    assert space.cardinality() == 5_446_350
    assert len(space.variables) == 15
    assert [v.values for v in space.variables[:3]] == [(0, 1, 3, 6, 12, 24, 48, 96, 192, 384, 768)] * 3


def test_autopeft_on_a_model_of_24_layers_and_width_1024_has_the_size_that_the_paper_gives() -> None:
    space = load_space("autopeft", fake_sites("encoder", layers=24, width=1024, ffn=4096, heads=16))
    assert space.cardinality() == (12**3 - 1) * (2**24 - 1)


def test_autopeft_switches_the_layers_of_encoder_and_decoder_apart() -> None:
    space = load_space("autopeft", fake_sites("encoder_decoder", layers=2))
    switches = [v.name for v in space.variables if v.kind == "switch"]
    assert switches == ["encoder.0", "encoder.1", "decoder.0", "decoder.1"]


def test_design_spaces_allow_every_size_that_fits() -> None:
    space = load_space("design-spaces", BERT_BASE)
    assert {c.sizes for c in space.choices if c.op != "bias"} == {tuple(range(1, 769))}
    assert {c.site.rpartition(".")[2] for c in space.choices if c.op == "lora"} == {"q", "v"}


def test_lora_preset_gives_every_linear_layer_a_rank_of_its_own() -> None:
    space = load_space("lora", T5_LARGE)
    assert {c.site for c in space.choices} == {s.id for s in T5_LARGE.values() if s.kind == "linear"}
    assert len(space.variables) == len(space.choices)


def test_all_holds_every_op_at_every_site_that_can_hold_it() -> None:
    assert len(load_space("all", SMALL).choices) == sum(len(ops_at(site)) for site in SMALL.values())


def test_a_fused_projection_counts_as_q_and_v() -> None:
    fused = {
        id_.replace("attention.q", "attention.qkv"): site
        for id_, site in SMALL.items()
        if not id_.endswith((".k", ".v"))
    }
    fused = {id_: replace(site, id=id_, role="qkv" if site.role == "q" else site.role) for id_, site in fused.items()}
    lora = [c.site for c in load_space("design-spaces", fused).choices if c.op == "lora"]
    assert lora == ["layers.0.attention.qkv", "layers.1.attention.qkv"]


def test_presets_apply_to_models_without_a_dense_ffn_but_not_to_nothing() -> None:
    attention_only = {id_: site for id_, site in SMALL.items() if ".ffn" not in id_}
    assert _ops(load_space("bipeft-s2", attention_only)) == {"prefix": 2}
    norms_only = {id_: site for id_, site in SMALL.items() if site.kind == "norm"}
    with pytest.raises(SpaceError, match="'bipeft-s2': none of its rules applies to this model"):
        load_space("bipeft-s2", norms_only)


def test_an_unknown_preset_is_refused_with_the_nearest_and_the_list() -> None:
    with pytest.raises(SpaceError, match=r"no space preset 'autopet' \(did you mean 'autopeft'\?\); presets: all"):
        load_space("autopet", SMALL)


# -- files ------------------------------------------------------------------------------------------------------------


def test_a_file_is_read_like_a_preset_and_named_after_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text(_rules("{op: lora, sites: ['*.q'], sizes: [1, 2]}"))
    for given_path in (path, str(path)):
        assert load_space(given_path, SMALL).name == "mine"
    path.write_text("name: other\n" + _rules("{op: lora, sites: ['*.q'], sizes: [1, 2]}"))
    assert load_space(path, SMALL).name == "other"


@pytest.mark.parametrize("name", ["missing.yaml", "./folder/lora", "sub/missing.yml"])
def test_a_missing_file_is_refused(name: str) -> None:
    with pytest.raises(SpaceError, match=r"cannot be read: .*No such file"):
        load_space(name, SMALL)


def test_a_folder_or_a_file_that_is_not_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00rules")
    for path in (tmp_path, tmp_path / "binary.yaml"):
        with pytest.raises(SpaceError, match="cannot be read"):
            load_space(path, SMALL)


def test_messages_name_the_file_and_the_line(tmp_path: Path) -> None:
    path = tmp_path / "mine.yaml"
    path.write_text("rules:\n  - op: lora\n    sites: ['*.q']\n    size: [1]\n")
    with pytest.raises(SpaceError, match=r"mine\.yaml:4: unknown key 'size' \(did you mean 'sizes'\?\); known: op, "):
        load_space(path, SMALL)


# -- sizes and ties ---------------------------------------------------------------------------------------------------


def test_sizes_that_do_not_fit_a_site_are_left_out_at_that_site_alone() -> None:
    grouped = fake_sites("decoder", width=32, heads=4, kv_heads=1)
    space = parse_space(_rules("{op: lora, sites: ['*.attention.{q,k}'], sizes: [4, 8, 16]}"), grouped)
    assert {c.site.rpartition(".")[2]: c.sizes for c in space.choices} == {"q": (4, 8, 16), "k": (4, 8)}


def test_sizes_that_do_not_fit_one_of_the_tied_sites_are_left_out_at_all_of_them() -> None:
    grouped = fake_sites("decoder", width=32, heads=4, kv_heads=1)
    space = parse_space(_rules("{op: lora, sites: ['*.attention.{q,k}'], sizes: [4, 8, 16], size_tie: all}"), grouped)
    assert {c.sizes for c in space.choices} == {(4, 8)}
    assert len(space.variables) == 1


def test_a_site_at_which_no_size_fits_is_left_out() -> None:
    grouped = fake_sites("decoder", width=32, heads=4, kv_heads=1)
    space = parse_space(_rules("{op: lora, sites: ['*.attention.{q,k}'], sizes: [16]}"), grouped)
    assert {c.site.rpartition(".")[2] for c in space.choices} == {"q"}


def test_tied_sizes_of_which_none_fits_everywhere_are_refused_with_the_narrow_site() -> None:
    grouped = fake_sites("decoder", width=32, heads=4, kv_heads=1)
    text = _rules("{op: lora, sites: ['*.attention.{q,k}'], sizes: [16], size_tie: all}")
    with pytest.raises(SpaceError, match=r"space:2: no size fits layers\.0\.attention\.k, where lora is at most 8"):
        parse_space(text, grouped)


@pytest.mark.parametrize(
    ("tie", "variables"),
    [
        ("site", 8),
        ("layer", 2),
        ("all", 1),
        ("anything", 1),
        ("rank of {role}", 4),
        ("{stack} {layer} {role}", 8),
        ("{op}", 1),
    ],
)
def test_sizes_are_tied_as_asked(tie: str, variables: int) -> None:
    rule = f"{{op: lora, sites: ['*.attention.*'], sizes: [1, 2], size_tie: '{tie}'}}"
    space = parse_space(_rules(rule), SMALL)
    assert len(space.choices) == 8
    assert len(space.variables) == variables


def test_layer_ties_keep_ops_and_stacks_apart() -> None:
    sites = fake_sites("encoder_decoder", layers=1)
    space = parse_space(
        _rules(
            "{op: serial, sites: ['*.ffn', '*.attention'], sizes: [1, 2], size_tie: layer}",
            "{op: parallel, sites: ['*.ffn'], sizes: [4], size_tie: layer}",
        ),
        sites,
    )
    assert {v.name for v in space.variables} == {
        "encoder.0:serial", "decoder.0:serial", "encoder.0:parallel", "decoder.0:parallel",
    }  # fmt: skip


@pytest.mark.parametrize(("switch", "switches"), [("none", 0), ("layer", 2), ("all", 1), ("lora of {layer}", 2)])
def test_switches_are_shared_as_asked(switch: str, switches: int) -> None:
    rule = f"{{op: lora, sites: ['*.attention.*'], sizes: [1, 2], switch: '{switch}'}}"
    space = parse_space(_rules(rule), SMALL)
    assert sum(v.kind == "switch" for v in space.variables) == switches


def test_a_layer_switch_is_shared_by_all_ops_of_the_layer() -> None:
    space = parse_space(
        _rules(
            "{op: serial, sites: ['*.ffn'], sizes: [1], switch: layer}",
            "{op: bias, sites: ['*.ffn.*'], switch: layer}",
        ),
        SMALL,
    )
    assert [v.name for v in space.variables if v.kind == "switch"] == ["layers.0", "layers.1"]


def test_rules_that_share_a_size_must_allow_the_same_sizes() -> None:
    text = _rules(
        "{op: lora, sites: ['*.q'], sizes: [1, 2], size_tie: r}",
        "{op: lora, sites: ['*.v'], sizes: [1, 4], size_tie: r}",
    )
    with pytest.raises(SpaceError, match=r"share the size variable 'r' but allow the sizes \(1, 2\) and \(1, 4\)"):
        parse_space(text, SMALL)


def test_an_unknown_placeholder_is_refused_with_the_nearest() -> None:
    text = _rules("{op: lora, sites: ['*.q'], sizes: [1], size_tie: 'r{rol}'}")
    with pytest.raises(SpaceError, match=r"space:2: unknown placeholder \{rol\} \(did you mean 'role'\?\); possible"):
        parse_space(text, SMALL)


def test_two_rules_for_the_same_op_at_the_same_site_are_refused_with_both_lines() -> None:
    text = _rules("{op: lora, sites: ['*.q'], sizes: [1]}", "{op: lora, sites: ['*'], sizes: [2]}")
    with pytest.raises(SpaceError, match=r"space:3: lora at layers\.0\.attention\.q is .* by the rule at space:2"):
        parse_space(text, SMALL)


def test_a_rule_leaves_alone_what_it_excepts() -> None:
    text = _rules("{op: lora, sites: ['*'], except: ['*.ffn.*', 'layers.0.*', 'nothing'], sizes: [1]}")
    assert [c.site for c in parse_space(text, SMALL).choices] == [f"layers.1.attention.{x}" for x in "qkvo"]


# -- what matches nothing ---------------------------------------------------------------------------------------------


def test_a_pattern_that_matches_no_site_is_refused_with_the_nearest_site() -> None:
    text = _rules("{op: lora, sites: ['*.q', 'layers.1.atention.v'], sizes: [1]}")
    with pytest.raises(
        SpaceError,
        match=r"space:2: 'layers\.1\.atention\.v' matches no site of this model \(did you mean 'layers\.1\.att",
    ):
        parse_space(text, SMALL)


def test_a_pattern_that_matches_only_sites_of_the_wrong_kind_is_refused() -> None:
    text = _rules("{op: prefix, sites: ['*.ffn'], sizes: [1]}")
    with pytest.raises(SpaceError, match=r"'\*\.ffn' matches 2 sites \(layers\.0\.ffn, \.\.\.\), but none"):
        parse_space(text, SMALL)


def test_an_optional_rule_may_match_nothing_but_a_whole_space_may_not() -> None:
    optional = "{op: lora, sites: ['*.cross_attention.*'], sizes: [1], optional: true}"
    space = parse_space(_rules(optional, "{op: norm, sites: ['*']}"), SMALL)
    assert space.ops == ("norm",)
    with pytest.raises(SpaceError, match="none of its rules applies to this model"):
        parse_space(_rules(optional), SMALL)


# -- malformed files --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "expected 'name:' and 'rules:', found nothing"),
        ("- a", "found a list"),
        ("just text", "found text"),
        ("rule: []", r"space:1: unknown key 'rule' \(did you mean 'rules'\?\)"),
        ("name: x", "space:1: 'rules' must be a list of at least one rule, not nothing"),
        ("name: x\nrules: {}", "space:2: 'rules' must be a list of at least one rule, not a mapping"),
        ("rules: []", "at least one rule"),
        ("name: 3\nrules: [{op: bias, sites: ['*']}]", "space:1: 'name' must be text, not 3"),
        ("rules:\n  - text", "a rule has the keys op, sites, .*; found text"),
        (_rules("{sites: ['*']}"), "space:2: a rule needs the key 'op'"),
        (_rules("{op: bias}"), "space:2: a rule needs the key 'sites'"),
        (_rules("{op: lroa, sites: ['*'], sizes: [1]}"), r"space:2: unknown op 'lroa' \(did you mean 'lora'\?\)"),
        (_rules("{op: [lora], sites: ['*'], sizes: [1]}"), "'op' must be text"),
        (_rules("{op: bias, sites: '*'}"), "'sites' must be a list of patterns"),
        (_rules("{op: bias, sites: []}"), "'sites' must be a list of patterns"),
        (_rules("{op: bias, sites: [3]}"), "'sites' must be a list of patterns"),
        (_rules("{op: bias, sites: ['*'], except: x}"), "'except' must be a list of patterns"),
        (_rules("{op: bias, sites: ['*'], sizes: [1]}"), "bias has no size: leave 'sizes' out"),
        (_rules("{op: lora, sites: ['*']}"), "lora needs either 'sizes' or 'halvings_of: width'"),
        (_rules("{op: lora, sites: ['*'], sizes: [1], halvings_of: width}"), "lora needs either"),
        (_rules("{op: lora, sites: ['*'], halvings_of: depth}"), "'halvings_of' can only be 'width', not 'depth'"),
        (_rules("{op: lora, sites: ['*'], sizes: []}"), "'sizes' must be whole numbers from 1, ascending"),
        (_rules("{op: lora, sites: ['*'], sizes: [0, 1]}"), "'sizes' must be"),
        (_rules("{op: lora, sites: ['*'], sizes: [2, 1]}"), "'sizes' must be"),
        (_rules("{op: lora, sites: ['*'], sizes: [1, 1]}"), "'sizes' must be"),
        (_rules("{op: lora, sites: ['*'], sizes: [1.0]}"), "'sizes' must be"),
        (_rules("{op: lora, sites: ['*'], sizes: [true]}"), "'sizes' must be"),
        (_rules("{op: lora, sites: ['*'], sizes: some}"), "'sizes' must be"),
        (_rules("{op: lora, sites: ['*'], sizes: [1], switch: off}"), "'switch' must be text, not False"),
        (_rules("{op: lora, sites: ['*'], sizes: [1], size_tie: 1}"), "'size_tie' must be text, not 1"),
        (_rules("{op: lora, sites: ['*'], sizes: [1], optional: maybe}"), "'optional' is true or false, not 'maybe'"),
        (_rules("{op: lora, sites: ['{a'], sizes: [1]}"), "a '{' without its '}'"),
        ("rules: [\n", r"space:2: .*expected"),
        ("rules: []\nrules: []", "space:2: the key 'rules' is there twice"),
        (_rules("{op: bias, op: norm, sites: ['*']}"), "space:2: the key 'op' is there twice"),
        ("1: 2", "space:1: the key 1 is not text"),
        ("rules: !!python/object/apply:os.system [x]", r"space:1: could not determine a constructor for the tag"),
        ("rules: &r [*r]", "space:1: found unconstructable recursive node"),
        ("a: 2024-99-99", "space: not readable as YAML"),
        ("a: " + "9" * 5000, "space: not readable as YAML"),
        ("\x00", "not readable as YAML"),
    ],
)
def test_a_malformed_space_is_refused_with_its_line(text: str, message: str) -> None:
    with pytest.raises(SpaceError, match=message):
        parse_space(text, SMALL)


@given(st.text(alphabet=st.characters(codec="utf-8"), max_size=80))
@example("[" * 1500)
@example("rules: " + "{a: " * 1000)
def test_any_text_is_a_space_or_a_space_error(text: str) -> None:
    with pytest.raises(SpaceError):
        parse_space(text, SMALL)


values = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 40) | st.sampled_from(["lora", "bias", "*", "*.q", "any", "{"]),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=4,
)
keys = ["op", "sites", "except", "sizes", "halvings_of", "size_tie", "switch", "optional", "extra"]


@given(st.lists(st.dictionaries(st.sampled_from(keys), values, max_size=7), max_size=3))
def test_any_rules_are_a_space_or_a_space_error(rules: list[dict[str, object]]) -> None:
    try:
        space = parse_space(yaml.safe_dump({"rules": rules}), SMALL)
    except SpaceError:
        return
    assert space.cardinality() >= 1
