"""What a level of a module is worth, from the gradients at its gate that training on the supernet gives anyway.

Units of a module come in blocks: block 0 is what the smallest size has, block j what size j has and size j - 1 has not.
The gate of a block goes from e = 0 (off) to e = 1 (on). For a block that was trained while it was on, the slope of the
loss L at e = 1 vanishes as training converges, so the usual first-order value of a removal, -L'(1), forgets the best
modules first; and -L'(0), the value of opening it, counts them twice. Along a parabola the difference is exact:

    L(0) - L(1) = -(L'(0) + L'(1)) / 2

Site dropout and random sizes show each block off at some steps and on at others. Means are taken apart for the two, so
how often a block was on does not matter. The other blocks are on or off with it: were the share of open modules drawn
evenly from 0 to 1, the mean would be the block's Shapley value in the game of lowering the loss (Owen, 1972), as far as
the parabola holds.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from peftscout.gates import Floats, Gates, Step
from peftscout.strategies.scout_options import Measure

OFF, ON = 0, 1


class GateSlopes:
    """Smoothed slopes of the loss at the gate of every block, apart for when it was off and when it was on.

    Args:
        shape: modules and levels.
        memory: steps after which a slope counts 1/e of a new one.

    Attributes:
        weight: how much was seen, ``[off and on, modules, levels]``.
        first: weighted sum of slopes, of that shape.
        second: weighted sum of their squares.
        seen_at: how often a module was on at each level, weighted, ``[modules, levels]``.
        saliency: weighted sum of `Step.saliency` at these, of that shape.
    """

    def __init__(self, shape: tuple[int, int], memory: float) -> None:
        self._decay = float(np.exp(-1 / memory))
        self.weight, self.first, self.second = (np.zeros((2, *shape)) for _ in range(3))
        self.seen_at, self.saliency = np.zeros(shape), np.zeros(shape)

    def see(self, gates: Gates, step: Step) -> None:
        """Take note of a step with hard ``gates``: each is 0 or 1, and all weight is on one size.

        Of a closed module only block 0 is seen, for which all weight has to be on its smallest size. What is not finite
        is not seen.
        """
        level = gates.size.argmax(1)
        slopes = block_slopes(step, level)
        finite = np.isfinite(slopes)
        on = gates.on > 0
        closed = ~on if gates.probed is None else ~on & gates.probed
        blocks = np.arange(slopes.shape[1])
        shown = on[:, None] & (blocks <= level[:, None])
        hidden = (on[:, None] & (blocks > level[:, None])) | (closed[:, None] & (blocks == 0))
        for name in _ARRAYS:
            setattr(self, name, getattr(self, name) * self._decay)
        at = on[:, None] & (blocks == level[:, None]) & np.isfinite(step.saliency)[:, None]
        self.seen_at += at
        self.saliency += np.where(at, step.saliency[:, None], 0.0)
        for end, seen in ((OFF, hidden), (ON, shown)):
            seen &= finite
            self.weight[end] += seen
            self.first[end] += np.where(seen, slopes, 0.0)
            self.second[end] += np.where(seen, slopes**2, 0.0)

    def mean(self, end: int) -> Floats:
        """Return the mean slope at that end, ``[modules, levels]``; 0 where it was never seen."""
        return np.asarray(self.first[end] / np.maximum(self.weight[end], 1e-30))

    def values(self, measure: Measure) -> Floats:
        """Return how much lower the loss is with a module at each level than without it, ``[modules, levels]``.

        The value of a level is the sum of those of its blocks. Of a block it is, by ``measure``:

        * ``difference``: -(L'(0) + L'(1)) / 2;
        * ``removal``: -L'(1), the first-order Taylor value;
        * ``opening``: -L'(0);
        * ``fisher``: the mean of L'(1)^2 over batches, halved: the second-order value where the first vanishes.

        By ``saliency`` it is, of the level at once, the mean of sum abs(theta * gradient) over steps at that level:
        what BIPEFT ranks by, not per parameter. It has no sign and little noise, and grows with the size.
        """
        if measure == "saliency":
            return np.asarray(self.saliency / np.maximum(self.seen_at, 1e-30))
        off, on = self.mean(OFF), self.mean(ON)
        match measure:
            case "difference":
                blocks = -(off + on) / 2
            case "removal":
                blocks = -on
            case "opening":
                blocks = -off
            case "fisher":
                blocks = self.second[ON] / np.maximum(self.weight[ON], 1e-30) / 2
        return np.asarray(blocks.cumsum(1))

    def state(self) -> dict[str, Floats]:
        """Return the arrays that `load` needs."""
        return {name: getattr(self, name) for name in _ARRAYS}

    def load(self, arrays: dict[str, Floats]) -> None:
        """Take up a `state`."""
        for name, array in arrays.items():
            setattr(self, name, array.copy())


_ARRAYS = ("weight", "first", "second", "seen_at", "saliency")


def block_slopes(step: Step, level: NDArray[np.int64]) -> Floats:
    """Return the slope at the gate of every block, ``[modules, levels]``, of modules at ``level [modules]``.

    ``Step.size`` at size j is the slope of all units of size j. ``Step.on`` is that of the units of ``level`` and of
    whatever else a module has (the output bias of an adapter, the whole of an op without sizes): that goes to block 0.
    """
    slopes = np.diff(step.size, axis=1, prepend=0.0)
    at_level = np.take_along_axis(step.size, level[:, None], axis=1)[:, 0]
    slopes[:, 0] = step.on - (at_level - step.size[:, 0])
    return slopes
