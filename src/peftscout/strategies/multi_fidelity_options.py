"""How much training plans get in a search: options of successive halving, early stopping, and one epoch for all."""

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
        _require_whole("least_plans", self.least_plans, 4)
        _require_rungs_and_bands(self.eta, self.r_min, self.band_factor)
        if not -1 <= self.least_agreement <= 1:
            raise ConfigError(f"least_agreement {self.least_agreement!r}: must be within -1 and 1; -1 never judges")

    def ladder(self, fidelity: Fidelity, epoch_steps: int) -> Fidelity:
        """Return the full fidelity on its ladder: full / eta^k steps, down to ``r_min``. An epoch plays no part.

        Raises:
            ConfigError: when there is no room for a rung below the full training.
        """
        return _geometric("halving", fidelity, self.eta, self.r_min)

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


@dataclass(frozen=True, slots=True)
class EarlyStopOptions:
    """Options of stopping what cannot enter the front any more (`peftscout.strategies.early_stop`).

    Attributes:
        eta: each rung has ``eta`` times the steps of the one below.
        r_min: least steps of the lowest rung; ``None``: full / eta^2, which makes three rungs, but at least 10.
        quantile: of the rises seen from a rung to the end: what counts as optimistic.
        slack: added to the optimistic bound, in units of score: the noise of one evaluation.
        least_plans: plans trained to the end, in bands of at least two, without which nothing is stopped.
        least_correlation: rank correlation of rung and end below which nothing is stopped at that rung.
        band_factor: ranks are compared within bands of cost, each this factor wide, counted down from the budget.
        keep_share: a run must also be among this share of its band at the rung; 1 leaves ranking out.

    Raises:
        ConfigError: on an impossible value.
    """

    eta: int = 3
    r_min: int | None = None
    quantile: float = 0.9
    slack: float = 0.0
    least_plans: int = 8
    least_correlation: float = 0.5
    band_factor: float = 4.0
    keep_share: float = 1.0

    def __post_init__(self) -> None:
        _require_whole("least_plans", self.least_plans, 4)
        _require_rungs_and_bands(self.eta, self.r_min, self.band_factor)
        for name in ("quantile", "keep_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be above 0, and at most 1")
        if not 0 <= self.slack < math.inf:
            raise ConfigError(f"slack {self.slack!r}: must be at least 0")
        if not -1 <= self.least_correlation <= 1:
            raise ConfigError(f"least_correlation {self.least_correlation!r}: must be within -1 and 1")

    def ladder(self, fidelity: Fidelity, epoch_steps: int) -> Fidelity:
        """Return the full fidelity on its ladder: full / eta^k steps, down to ``r_min``. An epoch plays no part.

        Raises:
            ConfigError: when there is no room for a rung below the full training.
        """
        return _geometric("early-stop", fidelity, self.eta, self.r_min)


FidelityOptions = HalvingOptions | EarlyStopOptions | OneEpochOptions
"""What decides how much training plans get; ``None`` in its place: all get the full training."""


def _geometric(name: str, fidelity: Fidelity, eta: int, r_min: int | None) -> Fidelity:
    full = fidelity.steps
    least = r_min or max(LEAST_STEPS, full / eta**2)
    rungs = [full]
    while (lower := full / eta ** len(rungs)) >= least:
        rungs.append(round(lower))
    if len(rungs) < 2:
        needed = math.ceil((r_min or LEAST_STEPS) * eta)
        raise ConfigError(
            f"fidelity {name}: {full} steps are too few for a rung of {math.ceil(least)} steps, eta {eta}: "
            f"give steps >= {needed}, a lower r_min, or fidelity: full"
        )
    return replace(fidelity, rungs=tuple(reversed(rungs)))


def _require_rungs_and_bands(eta: object, r_min: object, band_factor: float) -> None:
    _require_whole("eta", eta, 2)
    if r_min is not None:
        _require_whole("r_min", r_min, 1)
    if not band_factor > 1:
        raise ConfigError(f"band_factor {band_factor!r}: must be above 1; inf puts all plans into one band")


def _require_rank_by(value: object) -> None:
    if value not in ("loss", "score"):
        raise ConfigError(f"rank_by {value!r}: must be loss or score")


def _require_whole(name: str, value: object, least: int) -> None:
    if type(value) is not int or value < least:
        raise ConfigError(f"{name} {value!r}: must be a whole number from {least}")
