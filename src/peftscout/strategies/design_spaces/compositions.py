"""Layer grouping (section 1.1 of the paper's design space): compositions of a depth under a pattern, counted exactly.

A pattern is a chain of relations between the sizes of neighbouring groups, such as ``N1 < N2 = N3 > N4`` (spindle). The
compositions of a depth that obey it form a sequence in lexicographic order, of which any member can be had by its index
without listing the others; so a uniform index is a uniform draw, however many there are.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from typing import overload

from peftscout.errors import SpaceError, nearest

Sizes = tuple[int, ...]
"""Layers in each group, first group first."""

_HOLDS: dict[str, Callable[[int, int], bool]] = {
    "<": operator.lt,
    "=": operator.eq,
    ">": operator.gt,
    "?": lambda a, b: True,
}


@dataclass(frozen=True, slots=True)
class Pattern:
    """A rule for the sizes of consecutive groups.

    Attributes:
        label: its name, such as ``spindle``.
        relations: ``<``, ``=``, ``>`` or ``?`` (anything) between each group and the next.
        shares: relative sizes of the groups in the one structure that stands for the pattern (see `canonical`).
    """

    label: str
    relations: tuple[str, ...]
    shares: tuple[int, ...]

    @property
    def groups(self) -> int:
        """Number of groups."""
        return len(self.relations) + 1

    @property
    def is_uniform(self) -> bool:
        """Whether all groups are to be of equal size."""
        return all(relation == "=" for relation in self.relations)

    def admits(self, sizes: Sizes) -> bool:
        """Return whether ``sizes`` obey the pattern; equal sizes may differ by one where the depth is not divisible."""
        if len(sizes) != self.groups or min(sizes) < 1:
            return False
        if self.is_uniform:
            return max(sizes) - min(sizes) == bool(sum(sizes) % self.groups)
        return all(_HOLDS[r](a, b) for r, a, b in zip(self.relations, sizes, sizes[1:], strict=False))


def pattern(name: str, groups: int) -> Pattern:
    """Return the named pattern for any number of groups.

    ``increasing`` N1 < N2 < ...; ``uniform`` all equal; ``decreasing`` N1 > N2 > ...; ``spindle`` N1 < N2 = ... > Ng;
    ``bottleneck`` N1 > N2 = ... < Ng; ``any`` no rule. The ends of a spindle need not match each other.

    Raises:
        SpaceError: when there is no such pattern, or it needs more groups.
    """
    least = {"uniform": 1, "any": 1, "increasing": 2, "decreasing": 2, "spindle": 3, "bottleneck": 3}
    if name not in least:
        raise SpaceError(f"no grouping pattern {name!r}{nearest(name, least)}; there are {', '.join(least)}")
    if groups < least[name]:
        raise SpaceError(f"grouping {name!r} needs at least {least[name]} groups, not {groups}")
    inner = groups - 2
    match name:
        case "increasing":
            return Pattern(name, ("<",) * (groups - 1), tuple(range(1, groups + 1)))
        case "decreasing":
            return Pattern(name, (">",) * (groups - 1), tuple(range(groups, 0, -1)))
        case "spindle":
            return Pattern(name, ("<", *("=",) * (inner - 1), ">"), (1, *(2,) * inner, 1))
        case "bottleneck":
            return Pattern(name, (">", *("=",) * (inner - 1), "<"), (2, *(1,) * inner, 2))
        case _:
            return Pattern(name, ("=" if name == "uniform" else "?",) * (groups - 1), (1,) * groups)


@dataclass(frozen=True)
class Compositions(Sequence[Sizes]):
    """Every way to cut ``depth`` layers into consecutive groups that obey ``pattern``, in lexicographic order.

    Where the pattern is uniform and the depth is not divisible, the sizes differ by at most one (near-uniform).
    """

    pattern: Pattern
    depth: int

    def __len__(self) -> int:
        return self._number

    @cached_property
    def _number(self) -> int:
        return _count(self._relations, self._least, self._most, None, self.depth)

    @overload
    def __getitem__(self, index: int) -> Sizes: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Sizes]: ...
    def __getitem__(self, index: int | slice) -> Sizes | Sequence[Sizes]:
        """Return the composition at ``index`` (unranking), or a list of them."""
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        if not -len(self) <= index < len(self):
            raise IndexError(f"composition {index} of {len(self)}")
        index %= len(self)
        sizes: list[int] = []
        relations, left = self._relations, self.depth
        for at in range(self.pattern.groups):
            previous = sizes[-1] if sizes else None
            for size in _sizes(relations[at], self._least, self._most, previous, left):
                below = _count(relations[at + 1 :], self._least, self._most, size, left - size)
                if index < below:
                    break
                index -= below
            sizes.append(size)
            left -= size
        return tuple(sizes)

    def __iter__(self) -> Iterator[Sizes]:
        return (self[i] for i in range(len(self)))

    @cached_property
    def _relations(self) -> tuple[str, ...]:
        """One relation for each group: to the group before it (the first is free)."""
        return ("?",) * self.pattern.groups if self._near_uniform else ("?", *self.pattern.relations)

    @cached_property
    def _near_uniform(self) -> bool:
        return self.pattern.is_uniform and self.depth % self.pattern.groups != 0

    @cached_property
    def _least(self) -> int:
        return max(1, self.depth // self.pattern.groups) if self._near_uniform else 1

    @cached_property
    def _most(self) -> int:
        return self.depth // self.pattern.groups + 1 if self._near_uniform else self.depth


def _sizes(relation: str, least: int, most: int, previous: int | None, left: int) -> Iterator[int]:
    """Yield the sizes that a group may have after one of size ``previous`` with ``left`` layers to share."""
    for size in range(least, min(most, left) + 1):
        if previous is None or _HOLDS[relation](previous, size):
            yield size


@cache
def _count(relations: tuple[str, ...], least: int, most: int, previous: int | None, left: int) -> int:
    """Return in how many ways ``left`` layers fill one group for each of ``relations`` after a group ``previous``."""
    if not relations:
        return int(left == 0)
    return sum(
        _count(relations[1:], least, most, size, left - size)
        for size in _sizes(relations[0], least, most, previous, left)
    )


@cache
def compositions(pattern: Pattern, depth: int) -> Compositions:
    """Return the compositions of ``depth`` under ``pattern``.

    Raises:
        SpaceError: when there is none, such as a spindle of 4 groups over 7 layers.
    """
    found = Compositions(pattern, depth)
    if not len(found):
        raise SpaceError(
            f"grouping {pattern.label!r}: {depth} layers cannot be cut into {pattern.groups} groups with "
            f"{_written(pattern)}; take fewer groups or another pattern"
        )
    return found


def _written(pattern: Pattern) -> str:
    signs = {"?": "and", "<": "<", "=": "=", ">": ">"}
    text = "N1"
    for number, relation in enumerate(pattern.relations, start=2):
        text += f" {signs[relation]} N{number}"
    return text


def canonical(pattern: Pattern, depth: int) -> Sizes:
    """Return the one structure that stands for ``pattern``: the admissible sizes nearest to its shares.

    For the spindle of 4 groups these are the proportions 1 : 2 : 2 : 1, that is (2, 4, 4, 2) for 12 layers,
    (4, 8, 8, 4) for 24 and (5, 11, 11, 5) for 32. Where no structure obeys the pattern (a model of
    2 layers under 4 groups), the shares are rounded and groups may be empty: patterns are relative to depth.
    """
    ideal = [depth * share / sum(pattern.shares) for share in pattern.shares]
    rounded = _rounded(ideal, depth)
    structures = Compositions(pattern, depth)
    if pattern.admits(rounded) or not len(structures):
        return rounded
    return min(structures, key=lambda sizes: sum((a - b) ** 2 for a, b in zip(sizes, ideal, strict=True)))


def _rounded(ideal: Sequence[float], total: int) -> Sizes:
    """Round to integers of sum ``total`` by largest remainder; of equal remainders, the later group is served first."""
    sizes = [int(value) for value in ideal]
    order = sorted(range(len(ideal)), key=lambda i: (round(ideal[i] - sizes[i], 9), i), reverse=True)
    for i in order[: total - sum(sizes)]:
        sizes[i] += 1
    return tuple(sizes)
