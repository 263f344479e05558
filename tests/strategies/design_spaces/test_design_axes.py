import pytest

from peftscout.errors import SpaceError
from peftscout.strategies.design_spaces.axes import ALLOCATIONS, MethodSet, Tunable, axis_names, every_subset
from peftscout.strategies.design_spaces.compositions import pattern
from peftscout.strategies.design_spaces.yaml import load_design_space

SPACE = load_design_space("chen2023-s0")


def test_the_options_of_s0_are_as_many_as_the_papers():
    assert [len(SPACE.options(axis)) for axis in SPACE.axes] == [5, 3, 9, 15, 15, 15, 15]


def test_axes_are_named_after_the_components_and_groups():
    assert axis_names(2) == ("grouping", "allocation", "tunable", "methods.G1", "methods.G2")
    assert SPACE.axes == SPACE.order == axis_names(4)


def test_the_tunable_sets_are_the_nine_of_the_paper_with_all_groups_first():
    labels = [option.label for option in SPACE.tunable]
    assert labels[0] == "all groups"
    assert set(labels[1:]) == {"G1", "G2", "G3", "G4", "G1+G2", "G3+G4", "G1+G2+G3", "G2+G3+G4"}


def test_method_sets_are_all_subsets_with_the_fewest_methods_first():
    sets = SPACE.methods[0]
    assert len({s.names for s in sets}) == 15
    assert [len(s.names) for s in sets] == sorted(len(s.names) for s in sets)
    assert sets[0].label == "lora"  # mergeable and the most common: the simplest
    assert sets[-1].label == "lora+bitfit+adapter+prefix"


def test_keeping_options_gives_a_sub_space_and_leaves_the_other_axes_alone():
    kept = SPACE.keep("grouping", ["spindle", "uniform"]).keep("methods.G2", ["lora"])
    assert [p.label for p in kept.grouping] == ["uniform", "spindle"]  # the order of simplicity stays
    assert [len(sets) for sets in kept.methods] == [15, 1, 15, 15]
    assert len(SPACE.grouping) == 5


def test_every_axis_can_be_narrowed():
    for axis in SPACE.axes:
        last = SPACE.options(axis)[-1].label
        kept = SPACE.keep(axis, [last])
        assert [option.label for option in kept.options(axis)] == [last]
        assert set(SPACE.open_axes) - set(kept.open_axes) == {axis}


def test_an_option_that_does_not_exist_is_refused_with_the_nearest():
    with pytest.raises(SpaceError, match="grouping: no option 'spindel'.*did you mean 'spindle'"):
        SPACE.keep("grouping", ["spindel"])
    with pytest.raises(SpaceError, match="no axis 'groupings'.*did you mean 'grouping'"):
        SPACE.keep("groupings", ["spindle"])
    with pytest.raises(SpaceError, match="no axis 'methods.G5'"):
        SPACE.options("methods.G5")


def test_a_design_takes_an_option_on_each_axis():
    design = SPACE.first
    design = design.with_option("grouping", pattern("spindle", 4))
    design = design.with_option("allocation", ALLOCATIONS["decreasing"])
    design = design.with_option("tunable", Tunable((0, 3), 4))
    design = design.with_option("methods.G4", MethodSet(("adapter", "prefix")))
    assert str(design) == "spindle, decreasing allocation, G1+G4, G1: lora; G4: adapter+prefix"


def test_slopes_are_signed_and_read_from_near_uniform_outwards():
    assert ALLOCATIONS["uniform"].slope(0.7) == 0
    assert ALLOCATIONS["increasing"].slope(0.5) == 0.5
    assert ALLOCATIONS["decreasing"].slope(0.5) == -0.5
    assert ALLOCATIONS["decreasing"].slope(0.0) == -0.25


def test_the_subsets_of_n_are_two_to_the_n_less_one():
    assert [len(every_subset("abcde"[:n])) for n in range(1, 6)] == [1, 3, 7, 15, 31]


def test_an_axis_without_options_or_with_one_twice_is_refused():
    with pytest.raises(SpaceError, match="grouping has no options"):
        SPACE.with_axis("grouping", [])
    with pytest.raises(SpaceError, match="grouping has the option 'spindle' twice"):
        SPACE.with_axis("grouping", [pattern("spindle", 4)] * 2)
