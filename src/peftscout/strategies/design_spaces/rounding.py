"""From shares to whole sizes: proportional shares within bounds, largest remainder, and a bounded fill. Never above.

Nothing here knows designs or layers: a `Dial` is a whole number with a unit price.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import floor, gcd

import numpy as np
from numpy.typing import ArrayLike, NDArray

_FUZZ = 1e-9
"""Below this, a difference between shares is rounding error of floating point."""


@dataclass(frozen=True, slots=True)
class Dial:
    """One size to be set.

    Attributes:
        unit: parameters of one step.
        largest: largest size; the least is 1.
        ideal: size that the design asks for, as a real number in [1, largest].
        order: of dials with equal remainders, those of lower order are served first.
    """

    unit: int
    largest: int
    ideal: float
    order: float

    @property
    def floor(self) -> int:
        """The largest size that is not above the ideal."""
        return min(self.largest, max(1, floor(self.ideal + _FUZZ)))


def proportional(total: float, weights: ArrayLike, least: ArrayLike, most: ArrayLike) -> NDArray[np.float64]:
    """Share ``total`` in proportion to ``weights`` where the bounds allow it (water-filling).

    Returns ``clip(level * weights, least, most)`` ``[n]`` at the level at which it sums to ``total``; at ``least`` or
    ``most`` throughout where ``total`` lies outside of their sums.
    """
    w, low, high = (np.asarray(a, dtype=np.float64) for a in (weights, least, most))
    if total <= low.sum():
        return low
    if total >= high.sum():
        return high
    levels = np.unique(np.concatenate([[0.0], low / w, high / w]))
    sums = np.clip(levels[:, None] * w, low, high).sum(axis=1)
    above = min(int(np.searchsorted(sums, total)), len(levels) - 1)
    below = above - 1
    # Between two neighbouring levels the sum is linear: no bound is met in between.
    level = levels[below] + (levels[above] - levels[below]) * (total - sums[below]) / (sums[above] - sums[below])
    return np.asarray(np.clip(level * w, low, high))


def whole_sizes(dials: Sequence[Dial], amount: int, tolerance: float) -> list[int]:
    """Return whole sizes whose prices sum to at most ``amount``, near the ideals and near ``amount``.

    First by largest remainder: every dial at the floor of its ideal, then one step up in the order of the remainders as
    long as it is paid for. Where that leaves more than ``tolerance`` parameters unspent, by the fullest combination of
    sizes within one step of the floor and its successor (a bounded coin problem over the distinct units), again given
    out by the largest deficit. Dials of equal unit and bounds keep the order of their ideals.

    Raises:
        ValueError: when not even size 1 everywhere is within ``amount``.
    """
    sizes = [dial.floor for dial in dials]
    left = amount - sum(size * dial.unit for size, dial in zip(sizes, dials, strict=True))
    if left < 0:
        raise ValueError(f"the sizes cost {amount - left} parameters, only {amount} are there")
    for i in _by_deficit(dials, sizes):
        if dials[i].unit <= left and sizes[i] < dials[i].largest:
            sizes[i] += 1
            left -= dials[i].unit
    return sizes if left <= tolerance else _filled(dials, sizes, amount)


def _by_deficit(dials: Sequence[Dial], sizes: Sequence[int]) -> list[int]:
    """Return the positions of the dials, largest deficit (ideal minus size) first."""
    deficit = [round(dial.ideal - size, 9) for dial, size in zip(dials, sizes, strict=True)]
    return sorted(range(len(dials)), key=lambda i: (-deficit[i], dials[i].order, i))


def _filled(dials: Sequence[Dial], sizes: Sequence[int], amount: int) -> list[int]:
    """Return sizes that fill ``amount`` best, each between one below its floor and two above."""
    least = [max(1, dial.floor - 1) for dial in dials]
    most = [min(dial.largest, dial.floor + 2) for dial in dials]
    units = sorted({dial.unit for dial in dials}, reverse=True)
    members = {unit: [i for i, dial in enumerate(dials) if dial.unit == unit] for unit in units}
    coins = [
        Coin(unit, sum(most[i] - least[i] for i in own), sum(sizes[i] - least[i] for i in own))
        for unit, own in members.items()
    ]
    counts = fill(amount - sum(size * dial.unit for size, dial in zip(least, dials, strict=True)), coins)
    result = least
    for coin, count in zip(coins, counts, strict=True):
        for _ in range(count):
            raisable = [i for i in members[coin.unit] if result[i] < most[i]]
            dial = max(raisable, key=lambda i: (round(dials[i].ideal - result[i], 9), -dials[i].order, -i))
            result[dial] += 1
    return result


@dataclass(frozen=True, slots=True)
class Coin:
    """A unit price, how many of it may be spent at most, and how many would be right."""

    unit: int
    available: int
    wanted: int


def fill(amount: int, coins: Sequence[Coin]) -> tuple[int, ...]:
    """Return how many of each coin to spend so that the sum is the largest one possible up to ``amount``.

    Exact bounded coin problem by dynamic programming: a set of reachable sums is a whole number whose bit ``s`` says
    that ``s`` is reachable, so that adding a coin to all of them is one shift. Of equal sums, the counts nearest to
    those wanted are taken, last coin first.
    """
    step = gcd(*(coin.unit for coin in coins)) if coins else 1
    limit = amount // step
    mask = (1 << (limit + 1)) - 1
    reachable = [1]
    for coin in coins:
        sums, left, lot = reachable[-1], coin.available, 1
        while left:  # lots of 1, 2, 4, ... coins make up every count
            lot = min(lot, left)
            sums |= (sums << (coin.unit // step * lot)) & mask
            left, lot = left - lot, lot * 2
        reachable.append(sums)
    rest = reachable[-1].bit_length() - 1
    counts: list[int] = []
    for coin, sums in zip(reversed(coins), reversed(reachable[:-1]), strict=True):
        unit = coin.unit // step
        possible = (n for n in range(min(coin.available, rest // unit) + 1) if sums >> (rest - n * unit) & 1)
        count = min(possible, key=lambda n: (abs(n - coin.wanted), n))
        counts.append(count)
        rest -= count * unit
    return tuple(reversed(counts))
