"""From plain data to a design space: every key checked, every message with the place that is wrong."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, cast

from peftscout.cost import OPS
from peftscout.errors import SpaceError, nearest
from peftscout.strategies.design_spaces.axes import (
    ALLOCATIONS,
    Allocation,
    DesignSpace,
    MethodSet,
    Tunable,
    axis_names,
    every_subset,
)
from peftscout.strategies.design_spaces.compositions import Pattern, pattern
from peftscout.strategies.design_spaces.layout import Method, Numbering, group_number

KEYS = ("name", "about", "extends", "groups", "numbering", "methods", "axes", "order")
"""Keys of a design space; see `yaml` for what they mean."""

_METHOD_KEYS = ("op", "sites", "biased_only", "otherwise", "weight")
_AXES = ("grouping", "allocation", "tunable", "methods")
_NUMBERINGS = ("one_axis", "per_stack")

Document = dict[str, Any]
"""A design space as plain data."""


def build(document: Document, source: str, groups: int | None = None) -> DesignSpace:
    """Return the design space written in ``document``, with ``groups`` groups instead of the written number.

    Raises:
        SpaceError: naming ``source``, the key and what is wrong with it.
    """
    for key in ("groups", "methods", "axes"):
        if key not in document:
            refuse(source, key, "is needed")
    written = document["groups"]
    if type(written) is not int or written < 1:
        refuse(source, "groups", f"a whole number from 1, not {written!r}")
    count = groups or written
    methods = tuple(_method(n, m, source) for n, m in expect_mapping(document["methods"], source, "methods").items())
    axes = expect_mapping(document["axes"], source, "axes")
    check_keys(axes, _AXES, source, "axes.")
    for axis in _AXES:
        if axis not in axes:
            refuse(source, f"axes.{axis}", "is needed")
    numbering = document.get("numbering", "one_axis")
    if numbering not in _NUMBERINGS:
        refuse(source, "numbering", f"one of {', '.join(_NUMBERINGS)}, not {numbering!r}")
    order = document.get("order", list(axis_names(written)))
    known = axis_names(written)
    for axis in expect_list(order, source, "order"):
        if axis not in known:
            refuse(source, "order", f"unknown axis {axis!r}{nearest(str(axis), known)}; there are {', '.join(known)}")
    # With another number of groups, the axes of the methods follow it.
    order = [a for a in order if a in axis_names(count)] + [a for a in axis_names(count) if a not in known]
    return DesignSpace(
        name=_text(document.get("name", source), source, "name"),
        methods_defined=methods,
        grouping=_groupings(axes["grouping"], count, source, skip_deeper=count != written),
        allocation=tuple(_allocation(a, source) for a in expect_list(axes["allocation"], source, "axes.allocation")),
        tunable=_tunables(axes["tunable"], count, source),
        methods=_method_sets(axes["methods"], count, [m.name for m in methods], source),
        order=tuple(order),
        numbering=cast("Numbering", numbering),
        about=_text(document.get("about", ""), source, "about"),
    )


def _method(name: str, data: object, source: str) -> Method:
    where = f"methods.{name}"
    entry = expect_mapping(data, source, where)
    check_keys(entry, _METHOD_KEYS, source, f"{where}.")
    if entry.get("op") not in OPS:
        op = entry.get("op")
        refuse(source, f"{where}.op", f"unknown op {op!r}{nearest(str(op), OPS)}; the ops are {', '.join(OPS)}")
    biased_only, weight = entry.get("biased_only", False), entry.get("weight", 1)
    if not isinstance(biased_only, bool):
        refuse(source, f"{where}.biased_only", f"true or false, not {biased_only!r}")
    if isinstance(weight, bool) or not isinstance(weight, int | float) or not weight > 0:
        refuse(source, f"{where}.weight", f"a number above 0, not {weight!r}")
    return Method(
        name,
        entry["op"],
        _texts(entry.get("sites"), source, f"{where}.sites"),
        biased_only,
        _texts(entry["otherwise"], source, f"{where}.otherwise") if "otherwise" in entry else (),
        float(weight),
    )


def _groupings(data: object, groups: int, source: str, skip_deeper: bool) -> tuple[Pattern, ...]:
    found = []
    for n, entry in enumerate(expect_list(data, source, "axes.grouping")):
        where = f"axes.grouping[{n}]"
        try:
            found.append(pattern(entry, groups) if isinstance(entry, str) else _own_pattern(entry, source, where))
        except SpaceError as error:
            if not (skip_deeper and "needs at least" in str(error)):
                raise SpaceError(f"{source}: {where}: {error}") from None
    for own in found:
        if own.groups != groups:
            refuse(source, "axes.grouping", f"{own.label!r} is for {own.groups} groups, there are {groups}")
    return tuple(found)


def _own_pattern(data: object, source: str, where: str) -> Pattern:
    entry = expect_mapping(data, source, where)
    check_keys(entry, ("name", "relations", "shares"), source, f"{where}.")
    written = _text(entry.get("relations"), source, f"{where}.relations", may_be_empty=True)
    relations = tuple(written.split())
    if wrong := [r for r in relations if r not in ("<", "=", ">", "?")]:
        refuse(source, f"{where}.relations", f"{wrong[0]!r} is none of < = > ?; write them as in '< = >'")
    shares = entry.get("shares", [1] * (len(relations) + 1))
    if (
        not isinstance(shares, list)
        or len(shares) != len(relations) + 1
        or not all(type(s) is int and s > 0 for s in shares)
    ):
        refuse(source, f"{where}.shares", f"{len(relations) + 1} whole numbers from 1, not {shares!r}")
    return Pattern(_text(entry.get("name"), source, f"{where}.name"), relations, tuple(shares))


def _allocation(data: object, source: str) -> Allocation:
    if isinstance(data, str):
        if data not in ALLOCATIONS:
            refuse(
                source,
                "axes.allocation",
                f"no allocation {data!r}{nearest(data, ALLOCATIONS)}; there are {', '.join(ALLOCATIONS)}",
            )
        return ALLOCATIONS[data]
    entry = expect_mapping(data, source, "axes.allocation")
    check_keys(entry, ("name", "slopes"), source, "axes.allocation.")
    slopes = entry.get("slopes")
    numbers = isinstance(slopes, list) and len(slopes) == 2 and all(type(s) in (int, float) for s in slopes)
    if not numbers or not all(-1 < s < 1 for s in cast("list[float]", slopes)):
        refuse(source, "axes.allocation.slopes", f"two numbers between -1 and 1, not {slopes!r}")
    low, high = cast("list[float]", slopes)
    return Allocation(_text(entry.get("name"), source, "axes.allocation.name"), float(low), float(high))


def _tunables(data: object, groups: int, source: str) -> tuple[Tunable, ...]:
    labels = [f"G{g + 1}" for g in range(groups)]
    if data == "every_subset":
        sets = list(reversed(every_subset(labels)))
    elif data == "ends_and_singles":
        runs = [(labels[:n], labels[groups - n :]) for n in range(groups, 1, -1)]
        sets = [tuple(side) for both in runs for side in both] + [(label,) for label in labels]
    else:
        sets = [_texts(entry, source, "axes.tunable") for entry in expect_list(data, source, "axes.tunable")]
    try:
        positions = [tuple(sorted({group_number(label, groups) for label in chosen})) for chosen in sets]
    except SpaceError as error:
        refuse(source, "axes.tunable", str(error))
    return tuple(Tunable(chosen, groups) for chosen in dict.fromkeys(positions))


def _method_sets(data: object, groups: int, methods: Sequence[str], source: str) -> tuple[tuple[MethodSet, ...], ...]:
    entry = expect_mapping(data, source, "axes.methods")
    labels = [f"G{g + 1}" for g in range(groups)]
    known = ("each_group", *labels)
    written = [key for key in entry if key in known]
    if not written or (len(written) < groups and "each_group" not in entry):
        missing = next(label for label in labels if label not in entry)
        refuse(source, f"axes.methods.{missing}", "is needed, or each_group")
    check_keys(entry, known, source, "axes.methods.")
    return tuple(
        _sets(entry.get(label, entry.get("each_group")), methods, source, f"axes.methods.{label}") for label in labels
    )


def _sets(data: object, methods: Sequence[str], source: str, where: str) -> tuple[MethodSet, ...]:
    if data == "every_subset":
        return tuple(MethodSet(names) for names in every_subset(methods))
    found = []
    for chosen in expect_list(data, source, where):
        for name in (names := _texts(chosen, source, where)):
            if name not in methods:
                refuse(
                    source, where, f"unknown method {name!r}{nearest(name, methods)}; there are {', '.join(methods)}"
                )
        found.append(MethodSet(tuple(name for name in methods if name in names)))
    return tuple(found)


def expect_mapping(data: object, source: str, where: str) -> Mapping[str, Any]:
    """Return ``data`` if it is a mapping, or raise a SpaceError."""
    if not isinstance(data, dict):
        refuse(source, where, f"expected 'key: value' lines, found {data!r}")
    return data


def expect_list(data: object, source: str, where: str) -> list[Any]:
    """Return ``data`` if it is a list that is not empty, or raise a SpaceError."""
    if not isinstance(data, list) or not data:
        refuse(source, where, f"expected a list of at least one entry, found {data!r}")
    return data


def _text(data: object, source: str, where: str, may_be_empty: bool = False) -> str:
    if not isinstance(data, str) or not (data or may_be_empty or where == "about"):
        refuse(source, where, f"expected text, found {data!r}")
    return data


def _texts(data: object, source: str, where: str) -> tuple[str, ...]:
    return tuple(_text(entry, source, where) for entry in expect_list(data, source, where))


def check_keys(mapping: Mapping[str, Any], known: Sequence[str], source: str, prefix: str) -> None:
    """Raise a SpaceError unless every key of ``mapping`` is ``known``."""
    for key in mapping:
        if key not in known:
            refuse(source, f"{prefix}{key}", f"unknown key{nearest(key, known)}; known: {', '.join(known)}")


def refuse(source: str, where: str, message: str) -> NoReturn:
    """Raise a SpaceError that names the source and the key."""
    raise SpaceError(f"{source}: {where}: {message}")
