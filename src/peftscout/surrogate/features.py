"""What the Gaussian process sees of a candidate: its levels on a log scale, and a few cheap summaries.

A **point** is a vector of the space followed by the index of a learning-rate factor (the nuisance axis; one factor: the
index is always 0). Points are rows of int64.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from peftscout.space import Choice, Space
from peftscout.surrogate.gp import FloatArray

Points = NDArray[np.int64]
"""Points, one a row: ``[n, variables + 1]``."""


@dataclass(frozen=True)
class Encoder:
    """Turns points of ``space`` into inputs of a Gaussian process, each in [0, 1].

    One input a variable: log(1 + size) / log(1 + largest) for sizes, so that absent lies next to the smallest size
    and the axis is monotone; 0 or 1 for switches. One for the learning-rate factor when there are several. With
    ``summaries``: active layers, log cost, first and last active layer.

    Attributes:
        space: what the vectors mean.
        lr_scales: what the last column of a point means.
        summaries: whether to add the four summaries.
    """

    space: Space
    lr_scales: tuple[float, ...] = (1.0,)
    summaries: bool = True

    @cached_property
    def radix(self) -> Points:
        """Number of values of each column of a point, ``[variables + 1]``."""
        return np.array([*self.space.levels, len(self.lr_scales)], dtype=np.int64)

    @cached_property
    def combinations(self) -> int:
        """Number of points, those that stand for one plan counted each."""
        return math.prod(self.radix.tolist())

    @cached_property
    def settings(self) -> tuple[Points, Points]:
        """Every (column, level) there is, as two arrays."""
        columns = np.repeat(np.arange(len(self.radix)), self.radix)
        return columns, np.concatenate([np.arange(n) for n in self.radix])

    def points_at(self, indices: NDArray[np.int64]) -> Points:
        """Return the points of these mixed-radix ``indices``, last column fastest, ``[n, variables + 1]``."""
        points = np.empty((len(indices), len(self.radix)), dtype=np.int64)
        rest = indices
        for column in reversed(range(len(self.radix))):
            rest, points[:, column] = np.divmod(rest, self.radix[column])
        return points

    def costs(self, points: Points) -> NDArray[np.int64]:
        """Return the exact cost of each point, ``[n]``; 0 is the empty plan."""
        return self.space.costs(points[:, :-1])

    def canonical(self, points: Points) -> Points:
        """Return the points with every idle variable at level 0, so that one plan is one point."""
        return np.asarray(points * self._awake(self._on(points)))

    def is_canonical(self, points: Points) -> NDArray[np.bool_]:
        """Return which points have no idle variable above level 0, ``[n]``."""
        return np.asarray(np.all((points == 0) | self._awake(self._on(points)), axis=1))

    def __call__(self, points: Points, costs: NDArray[np.int64] | None = None) -> FloatArray:
        """Return the inputs of canonical points, ``[n, inputs]``; known ``costs`` need not be computed again."""
        columns = [grid[points[:, k]] for k, grid in enumerate(self._grids)]
        if self.summaries:
            columns += self._summaries(points, self.costs(points) if costs is None else costs)
        return np.stack(columns, axis=1)

    @cached_property
    def pairs(self) -> tuple[tuple[int, int], ...]:
        """The distinct (size variable, switch) of the choices, as columns; -1 where there is no switch."""
        return tuple(dict.fromkeys((size, switch) for size, switch, _ in self._pairs))

    # -- the parts ----------------------------------------------------------------------------------------------------

    @cached_property
    def _grids(self) -> list[FloatArray]:
        """For each column that varies, the input of each of its values."""
        grids = []
        for variable in self.space.variables:
            values = np.log1p(np.array(variable.values, dtype=float))
            grids.append(values / values[-1])
        if len(self.lr_scales) > 1:
            logs = np.log(np.array(self.lr_scales))
            grids.append((logs - logs.min()) / (logs.max() - logs.min()))
        return grids

    def _summaries(self, points: Points, costs: NDArray[np.int64]) -> list[FloatArray]:
        active = self._on(points) @ self._in_layer > 0
        count = active.shape[1]
        with np.errstate(divide="ignore"):
            log_cost = np.log(costs.astype(float))
        low, high = self._log_cost_range
        summaries = [np.clip((log_cost - low) / max(high - low, 1e-9), 0.0, 1.0)]
        if count > 1:
            first, last = active.argmax(axis=1), count - 1 - active[:, ::-1].argmax(axis=1)
            summaries += [active.sum(axis=1) / count, first / (count - 1), last / (count - 1)]
        return summaries

    @cached_property
    def _log_cost_range(self) -> tuple[float, float]:
        sites = self.space.sites
        return math.log(self.space.cheapest().cost(sites)), math.log(self.space.dearest().cost(sites))

    @cached_property
    def _pairs(self) -> list[tuple[int, int, tuple[str, int] | None]]:
        """The distinct (size variable, switch or -1, layer) behind the choices; outside the layers: None."""
        at = {(v.kind, v.name): n for n, v in enumerate(self.space.variables)}

        def pair(choice: Choice) -> tuple[int, int, tuple[str, int] | None]:
            site = self.space.sites[choice.site]
            layer = None if site.layer is None else (site.stack, site.layer)
            switch = -1 if choice.switch is None else at["switch", choice.switch]
            return at["size", choice.size_variable], switch, layer

        return list(dict.fromkeys(pair(choice) for choice in self.space.choices))

    def _on(self, points: Points) -> NDArray[np.float32]:
        """Return which pairs are there, ``[n, pairs]``, as 0.0 or 1.0."""
        sizes = np.array([size for size, _, _ in self._pairs])
        switches = np.array([switch for _, switch, _ in self._pairs])
        there = points > 0
        there[:, -1] = True  # the column of the learning rate stands in where there is no switch
        return (there[:, sizes] & there[:, switches]).astype(np.float32)

    def _awake(self, on: NDArray[np.float32]) -> NDArray[np.bool_]:
        """Return which columns of the points count, ``[n, variables + 1]``."""
        return np.asarray(on @ self._touches > 0) | self._is_lr

    @cached_property
    def _touches(self) -> NDArray[np.float32]:
        """(pairs, columns): 1 where the pair hangs on the variable of that column."""
        touches = np.zeros((len(self._pairs), len(self.radix)), dtype=np.float32)
        for row, (size, switch, _) in enumerate(self._pairs):
            touches[row, size] = 1.0
            if switch >= 0:
                touches[row, switch] = 1.0
        return touches

    @cached_property
    def _is_lr(self) -> NDArray[np.bool_]:
        return np.asarray(np.arange(len(self.radix)) == len(self.radix) - 1)

    @cached_property
    def _in_layer(self) -> NDArray[np.float32]:
        """(pairs, layers): 1 where the pair sits in that layer, layers stack by stack in model order."""
        layers = {layer: n for n, layer in enumerate(self._layers)}
        inside = np.zeros((len(self._pairs), len(layers)), dtype=np.float32)
        for row, (_, _, layer) in enumerate(self._pairs):
            if layer is not None:
                inside[row, layers[layer]] = 1.0
        return inside

    @cached_property
    def _layers(self) -> list[tuple[str, int]]:
        used = {layer for _, _, layer in self._pairs}
        in_order = [(site.stack, site.layer) for site in self.space.sites.values() if site.layer is not None]
        return [layer for layer in dict.fromkeys(in_order) if layer in used]
