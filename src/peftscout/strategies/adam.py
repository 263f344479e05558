"""Adam for the handful of numbers that a strategy itself descends on; models are trained with torch's."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from peftscout.gates import Floats

EPSILON = 1e-8


class Adam:
    """Adam (Kingma & Ba, 2015) on one array.

    Args:
        shape: of the array.
        rate: learning rate.
        betas: decay of the two moments.
        weight_decay: times the array, added to the gradient (L2) or, ``decoupled``, taken off it directly (AdamW).
        decoupled: see there.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        rate: float,
        betas: tuple[float, float] = (0.9, 0.999),
        weight_decay: float = 0.0,
        decoupled: bool = False,
    ) -> None:
        self.rate, self.betas, self.weight_decay, self.decoupled = rate, betas, weight_decay, decoupled
        self._steps = 0
        self._mean: Floats = np.zeros(shape)
        self._square: Floats = np.zeros(shape)

    def step(self, values: Floats, gradient: Floats, rate_factor: float = 1.0) -> Floats:
        """Return ``values`` after one step."""
        rate, (b1, b2) = self.rate * rate_factor, self.betas
        if self.decoupled:
            values = values * (1 - rate * self.weight_decay)
        else:
            gradient = gradient + self.weight_decay * values
        self._steps += 1
        self._mean = b1 * self._mean + (1 - b1) * gradient
        self._square = b2 * self._square + (1 - b2) * gradient**2
        mean, square = self._mean / (1 - b1**self._steps), self._square / (1 - b2**self._steps)
        return np.asarray(values - rate * mean / (np.sqrt(square) + EPSILON))

    def state(self, prefix: str) -> dict[str, np.ndarray]:
        """Return the moments and the number of steps, named with ``prefix``."""
        return {
            f"{prefix}.mean": self._mean,
            f"{prefix}.square": self._square,
            f"{prefix}.steps": np.array(self._steps),
        }

    def load(self, prefix: str, arrays: Mapping[str, np.ndarray]) -> None:
        """Take up a `state`."""
        self._mean, self._square = arrays[f"{prefix}.mean"].copy(), arrays[f"{prefix}.square"].copy()
        self._steps = int(arrays[f"{prefix}.steps"])
