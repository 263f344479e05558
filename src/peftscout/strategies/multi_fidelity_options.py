"""How much training plans get in a search: options of successive halving and of the one-epoch baseline."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise

from peftscout.errors import ConfigError
from peftscout.outcome import Fidelity
from peftscout.strategies.partial_runs import RankBy

LEAST_STEPS = 10
"""Steps below which the default ladder has no rung: warm-up and noise are all that would be ranked."""


@dataclass(frozen=True, slots=True)
class HalvingOptions:
    """Options of successive halving (`peftscout.strategies.halving`).

    Attributes:
        eta: one in ``eta`` plans goes on at each rung, to ``eta`` times the steps.
        r_min: least steps of the lowest rung; ``None``: full / eta^2, which makes three rungs, but at least 10.
        rank_by: ``loss`` (validation loss) or ``score`` (main metric).
        band_factor: plans are compared within bands of cost, each this factor wide, counted down from the budget.
        least_agreement: rank correlation between consecutive rungs below which, by more than its standard error, no
            more plans are stopped.
        least_plans: plans that must have been through both rungs before that is judged.

    Raises:
        ConfigError: on an impossible value.
    """

    eta: int = 3
    r_min: int | None = None
    rank_by: RankBy = "loss"
    band_factor: float = 4.0
    least_agreement: float = 0.5
    least_plans: int = 8

    def __post_init__(self) -> None:
        _require_rank_by(self.rank_by)
        _require_whole("eta", self.eta, 2)
        _require_whole("least_plans", self.least_plans, 4)
        if self.r_min is not None:
            _require_whole("r_min", self.r_min, 1)
        if not self.band_factor > 1:
            raise ConfigError(f"band_factor {self.band_factor!r}: must be above 1; inf puts all plans into one band")
        if not -1 <= self.least_agreement <= 1:
            raise ConfigError(f"least_agreement {self.least_agreement!r}: must be within -1 and 1; -1 never judges")

    def ladder(self, fidelity: Fidelity, epoch_steps: int) -> Fidelity:
        """Return the full fidelity on its ladder: full / eta^k steps, down to ``r_min``. An epoch plays no part.

        Raises:
            ConfigError: when there is no room for a rung below the full training.
        """
        full = fidelity.steps
        least = self.r_min or max(LEAST_STEPS, full / self.eta**2)
        rungs = [full]
        while (lower := full / self.eta ** len(rungs)) >= least:
            rungs.append(round(lower))
        if len(rungs) < 2:
            needed = math.ceil((self.r_min or LEAST_STEPS) * self.eta)
            raise ConfigError(
                f"fidelity halving: {full} steps are too few for a rung of {math.ceil(least)} steps, eta {self.eta}: "
                f"give steps >= {needed}, a lower r_min, or fidelity: full"
            )
        return replace(fidelity, rungs=tuple(reversed(rungs)))

    def plans_within(self, steps: float, rungs: tuple[int, ...]) -> int:
        """Return how many plans are begun with ``steps`` when one in ``eta`` goes on at each rung."""
        increments = [rungs[0], *(high - low for low, high in pairwise(rungs))]
        each = sum(Fraction(increment, self.eta**k) for k, increment in enumerate(increments))
        return int(Fraction(steps) / each)


@dataclass(frozen=True, slots=True)
class OneEpochOptions:
    """Options of the one-epoch baseline (`peftscout.strategies.one_epoch`).

    Attributes:
        keep: K, plans that are trained to the end; fewer where the trials do not allow as many.
        rank_by: ``loss`` (validation loss) or ``score`` (main metric).

    Raises:
        ConfigError: on an impossible value.
    """

    keep: int = 3
    rank_by: RankBy = "loss"

    def __post_init__(self) -> None:
        _require_rank_by(self.rank_by)
        _require_whole("keep", self.keep, 1)

    def ladder(self, fidelity: Fidelity, epoch_steps: int) -> Fidelity:
        """Return the full fidelity on the ladder of one epoch and the full training.

        Raises:
            ConfigError: when the full training is no longer than an epoch.
        """
        if not 1 <= epoch_steps < fidelity.steps:
            raise ConfigError(
                f"fidelity one-epoch: an epoch has {epoch_steps} steps and the full training {fidelity.steps}: "
                f"give steps > {epoch_steps}, or fidelity: halving"
            )
        return replace(fidelity, rungs=(epoch_steps, fidelity.steps))


FidelityOptions = HalvingOptions | OneEpochOptions
"""What decides how much training plans get; ``None`` in its place: all get the full training."""


def _require_rank_by(value: object) -> None:
    if value not in ("loss", "score"):
        raise ConfigError(f"rank_by {value!r}: must be loss or score")


def _require_whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} {value!r}: must be a whole number from {least}")
