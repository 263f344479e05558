"""The options of AutoPEFT, with the constants of the paper and its release by name."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from peftscout.errors import ConfigError
from peftscout.surrogate.gp import FloatArray


@dataclass(frozen=True, slots=True)
class AutoPeftOptions:
    """Options of the `autopeft` strategy.

    Attributes:
        initial: outcomes of the initial design, the baseline among them; ``None``: a quarter of the trials, within 4 to
            20. The paper draws 100 of 200.
        surrogate: ``map`` (dimension-scaled priors) or ``saas`` (sparse axes, averaged over four values of tau).
        summaries: whether the surrogate also sees active layers, log cost, first and last active layer.
        staircase: the front's levels under noise: posterior ``means`` or averaged posterior ``samples``.
        cost_axis: ``log`` (every decade counts the same) or ``linear`` (the release).
        reference_score: floor of the hypervolume, such as the score of the majority class; ``None``: a quantile of the
            initial design. The release has 0.7 for every task.
        reference_quantile: which quantile that is.
        reference_margin: how far the reference cost lies above the budget, as a share of it.
        scan_limit: spaces with up to this many points are scanned whole.
        starts: climbers of the local search. The release has 10.
        random_starts: random points among which the climbers' starts are chosen.
        outlier_fence: scores more than this many interquartile ranges below the lower quartile are pulled in for the
            surrogate: that a run collapsed matters, not how deep.

    Raises:
        ConfigError: on an impossible value.
    """

    initial: int | None = None
    surrogate: Literal["map", "saas"] = "map"
    summaries: bool = True
    staircase: Literal["means", "samples"] = "means"
    cost_axis: Literal["log", "linear"] = "log"
    reference_score: float | None = None
    reference_quantile: float = 0.1
    reference_margin: float = 0.25
    scan_limit: int = 10_000_000
    starts: int = 12
    random_starts: int = 96
    outlier_fence: float = 3.0

    def __post_init__(self) -> None:
        choices = {"surrogate": ("map", "saas"), "staircase": ("means", "samples"), "cost_axis": ("log", "linear")}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be {' or '.join(allowed)}")
        at_least = {"starts": 1, "random_starts": 1, "scan_limit": 0, "reference_margin": 0, "outlier_fence": 0}
        if self.initial is not None:
            at_least["initial"] = 2
        for name, least in at_least.items():
            if not getattr(self, name) >= least:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be at least {least}")
        if self.scan_limit >= 2**32:
            raise ConfigError(f"scan_limit {self.scan_limit}: must be below 2^32; larger spaces are searched locally")
        if not 0 <= self.reference_quantile <= 1:
            raise ConfigError(f"reference_quantile {self.reference_quantile}: must be within 0 and 1")
        if self.reference_score is not None and not math.isfinite(self.reference_score):
            raise ConfigError(f"reference_score {self.reference_score}: must be a finite number")

    @property
    def least_scores(self) -> int:
        """Scores without which no surrogate is fitted."""
        return 3

    def initial_for(self, trials: int | None) -> int:
        """Return how many outcomes the initial design has."""
        if self.initial is not None:
            return self.initial
        return 20 if trials is None else min(20, max(4, round(trials / 4)))

    def axis(self, costs: NDArray[np.int64] | FloatArray) -> FloatArray:
        """Return ``costs`` in parameters on the cost axis: log10, or as they are."""
        return np.asarray(np.log10(costs.astype(float)) if self.cost_axis == "log" else costs.astype(float))

    def reference_cost(self, budget: int) -> float:
        """Return the right edge of the hypervolume for a budget, on the cost axis."""
        edge = budget * (1.0 + self.reference_margin)
        return math.log10(edge) if self.cost_axis == "log" else edge

    def pull_in(self, scores: FloatArray) -> FloatArray:
        """Return ``scores`` with those far below the rest raised to the fence."""
        low, high = np.quantile(scores, (0.25, 0.75))
        return np.asarray(np.maximum(scores, low - self.outlier_fence * (high - low)))


PAPER = AutoPeftOptions(
    initial=100,
    surrogate="saas",
    summaries=False,
    staircase="samples",
    cost_axis="linear",
    reference_score=0.7,
    reference_margin=0.0,
    scan_limit=0,
    starts=10,
)
"""The constants of the paper and its release, as far as they make sense within a budget: the reference cost of the
release is 26 % of the backbone; here it is the budget. Scores are fractions, 0.7 is the release's 70 %."""
