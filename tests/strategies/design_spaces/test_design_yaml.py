import textwrap

import pytest

from peftscout.errors import SpaceError
from peftscout.strategies.design_spaces import yaml as yaml_module
from peftscout.strategies.design_spaces.axes import DesignSpace
from peftscout.strategies.design_spaces.layout import Method
from peftscout.strategies.design_spaces.yaml import load_design_space, parse_design_space, presets, to_yaml

OWN = """
name: mine
about: a test
groups: 3
numbering: per_stack
methods:
  houlsby: {op: serial, sites: ["*.attention", "*.ffn"], weight: 2}
  bitfit: {op: bias, sites: ["*"], biased_only: true, otherwise: ["*.ffn.*"]}
axes:
  grouping: [uniform, {name: hourglass, relations: "> <", shares: [2, 1, 2]}]
  allocation: [uniform, {name: steep, slopes: [0.6, 0.9]}]
  tunable: [[G1, G2, G3], [G3, G1]]
  methods:
    each_group: every_subset
    G2: [[bitfit], [bitfit, houlsby]]
order: [methods.G2, methods.G1, methods.G3, tunable, allocation, grouping]
"""


def changed(old: str, new: str) -> str:
    assert old in OWN
    return OWN.replace(old, new)


def test_a_space_of_ones_own_is_read_as_written():
    space = parse_design_space(OWN)
    assert (space.name, space.about, space.groups, space.numbering) == ("mine", "a test", 3, "per_stack")
    assert space.methods_defined == (
        Method("houlsby", "serial", ("*.attention", "*.ffn"), weight=2.0),
        Method("bitfit", "bias", ("*",), True, ("*.ffn.*",)),
    )
    assert [p.label for p in space.grouping] == ["uniform", "hourglass"]
    assert (space.grouping[1].relations, space.grouping[1].shares) == ((">", "<"), (2, 1, 2))
    assert [(a.low, a.high) for a in space.allocation] == [(0.0, 0.0), (0.6, 0.9)]
    assert [t.label for t in space.tunable] == ["all groups", "G1+G3"]
    assert [[s.label for s in sets] for sets in space.methods] == [
        ["houlsby", "bitfit", "houlsby+bitfit"],
        ["bitfit", "houlsby+bitfit"],
        ["houlsby", "bitfit", "houlsby+bitfit"],
    ]
    assert space.order[0] == "methods.G2"


def test_writing_and_reading_gives_the_same_space():
    for space in (parse_design_space(OWN), *map(load_design_space, presets())):
        assert parse_design_space(to_yaml(space)) == space


def test_a_narrowed_space_is_written_with_what_is_left():
    kept = load_design_space("chen2023-s0").keep("grouping", ["spindle"]).keep("methods.G1", ["lora+adapter"])
    assert parse_design_space(to_yaml(kept)) == kept


def test_every_preset_can_be_read_and_says_what_it_is():
    found = presets()
    assert set(found) == {*(f"chen2023-s{n}" for n in range(5)), "s4-model", "s4-3b-model"}
    assert all(found.values())
    assert all(isinstance(load_design_space(name), DesignSpace) for name in found)


def test_each_space_of_the_paper_is_the_one_before_with_one_more_decision():
    spaces = [load_design_space(f"chen2023-s{n}") for n in range(5)]
    decided = [set(space.axes) - set(space.open_axes) for space in spaces]
    assert decided[0] == set()
    assert [decided[n + 1] - decided[n] for n in range(3)] == [{"grouping"}, {"allocation"}, {"tunable"}]
    assert decided[4] == set(spaces[0].axes)
    assert all(a.methods_defined == spaces[0].methods_defined for a in spaces)


def test_the_published_models_have_their_published_methods():
    def sets(name: str) -> list[set[str]]:
        return [set(options[0].names) for options in load_design_space(name).methods]

    a, p, b, lo = "adapter", "prefix", "bitfit", "lora"
    assert sets("s4-model") == sets("chen2023-s4") == [{a, lo}, {a, p}, {a, p, b}, {p, b, lo}]
    assert sets("s4-3b-model") == [{p, lo}, {a, lo}, {p, b, lo}, {a, p, b}]


def test_a_file_extends_a_preset_or_another_file_beside_it(tmp_path):
    (tmp_path / "base.yaml").write_text("extends: chen2023-s0\naxes: {allocation: [uniform]}\n")
    (tmp_path / "mine.yaml").write_text("extends: base.yaml\nabout: mine\naxes: {grouping: [spindle]}\n")
    (tmp_path / "deeper.yaml").write_text("extends: ./mine.yaml\naxes: {grouping: [uniform]}\n")
    space = load_design_space(tmp_path / "mine.yaml")
    assert space.open_axes == load_design_space("chen2023-s2").open_axes
    assert (space.name, space.about) == ("mine", "mine")
    assert load_design_space(str(tmp_path / "deeper.yaml")).grouping[0].label == "uniform"


def test_files_that_extend_each_other_are_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("extends: b.yaml\n")
    (tmp_path / "b.yaml").write_text("extends: a.yaml\n")
    with pytest.raises(SpaceError, match=r"b.yaml: extends .*a.yaml, which extends it"):
        load_design_space(tmp_path / "a.yaml")


def test_another_number_of_groups_leaves_out_what_needs_more_of_them():
    space = load_design_space("chen2023-s0", groups=2)
    assert space.groups == 2
    assert [p.label for p in space.grouping] == ["uniform", "increasing", "decreasing"]
    assert [t.label for t in space.tunable] == ["all groups", "G1", "G2"]
    assert space.order == space.axes


def test_more_groups_than_written_get_axes_of_their_own_at_the_end():
    space = load_design_space("chen2023-s0", groups=6)
    assert space.order[-2:] == ("methods.G5", "methods.G6")
    assert len(space.tunable) == 1 + 2 * 4 + 6  # all, the runs of 5, 4, 3 and 2 from either end, single groups


def test_one_group_has_nothing_to_group():
    space = load_design_space("chen2023-s0", groups=1)
    assert [p.label for p in space.grouping] == ["uniform"]
    assert [t.label for t in space.tunable] == ["all groups"]


def test_options_that_name_a_group_must_fit_another_number_of_groups():
    with pytest.raises(SpaceError, match="axes.tunable: no group 'G4'; there are G1 to G3"):
        load_design_space("chen2023-s3", groups=3)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("about:", "abuot:", r"abuot: unknown key .did you mean 'about'"),
        ("groups: 3", "groups: three", "groups: a whole number from 1, not 'three'"),
        ("groups: 3", "groups: 0", "groups: a whole number from 1, not 0"),
        ("groups: 3\n", "", "groups: is needed"),
        ("numbering: per_stack", "numbering: both", "numbering: one of one_axis, per_stack, not 'both'"),
        ("op: serial", "op: serail", "methods.houlsby.op: unknown op 'serail'.*did you mean 'serial'"),
        ("weight: 2", "weight: -1", "methods.houlsby.weight: a number above 0, not -1"),
        ("weight: 2", "size: 2", "methods.houlsby.size: unknown key"),
        ('sites: ["*"]', "sites: []", "methods.bitfit.sites: expected a list of at least one entry"),
        ('sites: ["*"]', 'sites: "*"', "methods.bitfit.sites: expected a list"),
        ("biased_only: true", "biased_only: 1", "methods.bitfit.biased_only: true or false, not 1"),
        ("[uniform, {name: hour", "[unifrom, {name: hour", r"axes.grouping\[0\]: no grouping pattern 'unifrom'"),
        ('relations: "> <"', 'relations: "> <="', "axes.grouping.1..relations: '<=' is none of < = > ?"),
        ('relations: "> <", shares: [2, 1, 2]', 'relations: ">"', "'hourglass' is for 2 groups, there are 3"),
        ("shares: [2, 1, 2]", "shares: [2, 1]", "shares: 3 whole numbers from 1"),
        ("allocation: [uniform,", "allocation: [level,", "no allocation 'level'"),
        ("slopes: [0.6, 0.9]", "slopes: [0.6, 1.0]", "two numbers between -1 and 1"),
        ("slopes: [0.6, 0.9]", "slopes: steep", "two numbers between -1 and 1"),
        ("[G3, G1]]", "[G3, G4]]", "axes.tunable: no group 'G4'; there are G1 to G3"),
        ("G2: [[bitfit]", "G2: [[bitfti]", "axes.methods.G2: unknown method 'bitfti'.*did you mean 'bitfit'"),
        ("    G2: [[", "    G7: [[", "axes.methods.G7: unknown key"),
        ("    each_group: every_subset\n", "", "axes.methods.G1: is needed, or each_group"),
        ("grouping]\n", "groping]\n", "order: unknown axis 'groping'.*did you mean 'grouping'"),
        ("allocation, grouping]", "allocation]", "'order' leaves out grouping, which has several options"),
        ("  tunable: [[G1, G2, G3], [G3, G1]]\n", "", "axes.tunable: is needed"),
        ("name: mine", "name: mine\nname: yours", "mine.yaml:3: the key 'name' is there twice"),
        ("name: mine", "name: [", "mine.yaml"),
        ("name: mine", "1: mine", "the key 1 is not text"),
    ],
)
def test_what_is_wrong_in_a_file_is_named_with_its_place(old, new, message, tmp_path):
    with pytest.raises(SpaceError, match=message):
        parse_design_space(changed(old, new), "mine.yaml")


@pytest.mark.parametrize("text", ["", "- a\n- b", "spindle"])
def test_a_file_that_is_no_mapping_is_refused(text):
    with pytest.raises(SpaceError, match="expected a mapping with name, about"):
        parse_design_space(text)


def test_an_unknown_preset_is_refused_with_the_nearest_and_a_missing_file_by_name(tmp_path):
    with pytest.raises(SpaceError, match="no design space 's4-modle'.*did you mean 's4-model'"):
        load_design_space("s4-modle")
    with pytest.raises(SpaceError, match=r"none.yaml' cannot be read"):
        load_design_space(tmp_path / "none.yaml")
    with pytest.raises(SpaceError, match="no design space 'chen'"):
        parse_design_space("extends: chen")


def test_the_example_in_the_documentation_is_a_design_space():
    text = textwrap.dedent(yaml_module.__doc__.partition("::\n")[2].partition("``ends_and_singles``")[0])
    space = parse_design_space(text)
    assert (space.name, space.groups) == ("my-space", 4)
    assert [p.label for p in space.grouping] == ["uniform", "spindle", "hourglass"]
    assert space.grouping[-1].admits((5, 1, 1, 5))
    assert space.allocation[-1].slope(0.0) == 0.6
    assert [len(sets) for sets in space.methods] == [
        15,
        15,
        15,
        1,
    ]  # adapter and prefix are those of the extended space


def test_a_grouping_without_a_rule_can_be_an_option():
    space = parse_design_space("extends: chen2023-s0\naxes: {grouping: [uniform, any]}\n")
    assert [p.label for p in space.grouping] == ["uniform", "any"]
    assert space.grouping[1].admits((1, 7, 1, 3))


def test_nothing_in_a_file_is_run():
    with pytest.raises(SpaceError, match="could not determine a constructor"):
        parse_design_space("name: !!python/object/apply:os.getcwd []")
