"""The four components of a PEFT design as data, and a design space: the options that each of them has.

Components (section 3.1 of Chen et al. 2023): layer **grouping**, **allocation** of trainable parameters over the
layers, **tunable** groups, and the **methods** of each group (the paper: strategy assignment). An axis is one
component, or the methods of one group: ``grouping``, ``allocation``, ``tunable``, ``methods.G1``, ``methods.G2``, ...

The options of an axis are listed from the simplest on: where a comparison ends in a tie, the first one is kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations

from peftscout.errors import SpaceError, nearest
from peftscout.strategies.design_spaces.compositions import Pattern
from peftscout.strategies.design_spaces.layout import Method, Numbering, group_number


@dataclass(frozen=True, slots=True)
class Allocation:
    """How the trainable parameters of a layer change with its depth.

    The weights of the layers are a linear ramp from ``1 - slope`` at the first to ``1 + slope`` at the last one; the
    slope of a design is drawn from ``[low, high]``. The paper names the three directions and not its ramp.

    Attributes:
        label: its name, such as ``increasing``.
        low: slope nearest to uniform.
        high: slope farthest from uniform, of the same sign; in (-1, 1).
    """

    label: str
    low: float
    high: float

    def slope(self, position: float) -> float:
        """Return the slope at ``position`` in [0, 1] of the range; 0.5 is the one that stands for the allocation."""
        return self.low + (self.high - self.low) * position


ALLOCATIONS: dict[str, Allocation] = {
    "uniform": Allocation("uniform", 0.0, 0.0),
    "increasing": Allocation("increasing", 0.25, 0.75),
    "decreasing": Allocation("decreasing", -0.25, -0.75),
}
"""The allocations of the paper, with slopes of ours."""


@dataclass(frozen=True, slots=True)
class Tunable:
    """Which groups get modules at all; the others stay frozen.

    Attributes:
        groups: positions of the groups, ascending from 0.
        of: number of groups there are.
    """

    groups: tuple[int, ...]
    of: int

    @property
    def label(self) -> str:
        """Such as ``G1+G2``, or ``all groups``."""
        return "all groups" if len(self.groups) == self.of else "+".join(f"G{g + 1}" for g in self.groups)


@dataclass(frozen=True, slots=True)
class MethodSet:
    """The methods that every layer of a group gets, side by side.

    Attributes:
        names: of the methods, in the order in which the space defines them.
    """

    names: tuple[str, ...]

    @property
    def label(self) -> str:
        """Such as ``adapter+lora``."""
        return "+".join(self.names)


AxisOption = Pattern | Allocation | Tunable | MethodSet
"""One option of one axis. Each has a ``label``, unique on its axis."""


@dataclass(frozen=True, slots=True)
class Design:
    """One option for each component. Structures, slopes and sizes are still open (see `genotype`)."""

    grouping: Pattern
    allocation: Allocation
    tunable: Tunable
    methods: tuple[MethodSet, ...]

    def with_option(self, axis: str, option: AxisOption) -> Design:
        """Return the design with ``option`` on ``axis``."""
        match option:
            case Pattern():
                return replace(self, grouping=option)
            case Allocation():
                return replace(self, allocation=option)
            case Tunable():
                return replace(self, tunable=option)
            case MethodSet():
                at = group_number(axis.removeprefix("methods."), len(self.methods))
                return replace(self, methods=(*self.methods[:at], option, *self.methods[at + 1 :]))

    def __str__(self) -> str:
        sets = "; ".join(f"G{g + 1}: {self.methods[g].label}" for g in self.tunable.groups)
        return f"{self.grouping.label}, {self.allocation.label} allocation, {self.tunable.label}, {sets}"


@dataclass(frozen=True)
class DesignSpace:
    """The options that each axis has, and the order in which the axes are decided.

    Attributes:
        name: such as ``chen2023-s0``.
        methods_defined: what the methods are; their order is the order of simplicity.
        grouping: patterns of the group sizes.
        allocation: of parameters over layers.
        tunable: sets of groups that get modules.
        methods: for each group, its sets of methods.
        order: names of the axes in the order in which they are decided; axes with one option are fixed.
        numbering: see `layout.Numbering`.
        about: for people: what it is and where it comes from.
    """

    name: str
    methods_defined: tuple[Method, ...]
    grouping: tuple[Pattern, ...]
    allocation: tuple[Allocation, ...]
    tunable: tuple[Tunable, ...]
    methods: tuple[tuple[MethodSet, ...], ...]
    order: tuple[str, ...]
    numbering: Numbering = "one_axis"
    about: str = ""

    def __post_init__(self) -> None:
        for axis in self.axes:
            labels = [option.label for option in self.options(axis)]
            if not labels:
                raise SpaceError(f"design space {self.name!r}: {axis} has no options")
            if twice := next((label for label in labels if labels.count(label) > 1), None):
                raise SpaceError(f"design space {self.name!r}: {axis} has the option {twice!r} twice")
        for axis in self.order:
            self.options(axis)
        if missing := [a for a in self.axes if a not in self.order and len(self.options(a)) > 1]:
            raise SpaceError(f"design space {self.name!r}: 'order' leaves out {missing[0]}, which has several options")

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.methods)

    @property
    def axes(self) -> tuple[str, ...]:
        """Names of all axes."""
        return axis_names(self.groups)

    def options(self, axis: str) -> Sequence[AxisOption]:
        """Return the options of ``axis``, simplest first.

        Raises:
            SpaceError: when there is no such axis.
        """
        match axis:
            case "grouping":
                return self.grouping
            case "allocation":
                return self.allocation
            case "tunable":
                return self.tunable
            case _ if axis in self.axes:
                return self.methods[group_number(axis.removeprefix("methods."), self.groups)]
        raise SpaceError(
            f"design space {self.name!r}: no axis {axis!r}{nearest(axis, self.axes)}; there are {', '.join(self.axes)}"
        )

    def keep(self, axis: str, labels: Sequence[str]) -> DesignSpace:
        """Return the sub-space in which ``axis`` has only the options with ``labels``.

        Raises:
            SpaceError: when the axis or one of the options does not exist.
        """
        known = {option.label: option for option in self.options(axis)}
        for label in labels:
            if label not in known:
                raise SpaceError(f"{axis}: no option {label!r}{nearest(label, known)}; there are {', '.join(known)}")
        return self.with_axis(axis, [option for label, option in known.items() if label in labels])

    def with_axis(self, axis: str, options: Sequence[AxisOption]) -> DesignSpace:
        """Return the space with ``options`` on ``axis``."""
        match axis:
            case "grouping":
                return replace(self, grouping=tuple(o for o in options if isinstance(o, Pattern)))
            case "allocation":
                return replace(self, allocation=tuple(o for o in options if isinstance(o, Allocation)))
            case "tunable":
                return replace(self, tunable=tuple(o for o in options if isinstance(o, Tunable)))
            case _:
                at = group_number(axis.removeprefix("methods."), self.groups)
                sets = tuple(o for o in options if isinstance(o, MethodSet))
                return replace(self, methods=(*self.methods[:at], sets, *self.methods[at + 1 :]))

    @property
    def first(self) -> Design:
        """The design of the first (simplest) option on every axis."""
        return Design(self.grouping[0], self.allocation[0], self.tunable[0], tuple(sets[0] for sets in self.methods))

    @property
    def open_axes(self) -> tuple[str, ...]:
        """Axes with more than one option left."""
        return tuple(axis for axis in self.axes if len(self.options(axis)) > 1)


def axis_names(groups: int) -> tuple[str, ...]:
    """Return the names of the axes of a space with ``groups`` groups, in the order of the paper."""
    return ("grouping", "allocation", "tunable", *(f"methods.G{g + 1}" for g in range(groups)))


def every_subset(names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Return the non-empty subsets of ``names``: fewer members first, then in the order of ``names``."""
    return tuple(subset for size in range(1, len(names) + 1) for subset in combinations(names, size))
