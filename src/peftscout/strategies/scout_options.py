"""The options of scout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from peftscout.errors import ConfigError
from peftscout.gates import WeightTraining

Measure = Literal["difference", "removal", "opening", "fisher", "saliency"]

MEASURES: tuple[Measure, ...] = ("difference", "removal", "opening", "fisher", "saliency")
"""How the worth of a level follows from what was seen at its gate; see `GateSlopes.values`."""


@dataclass(frozen=True, slots=True)
class ScoutOptions:
    """Options of the `scout` strategy.

    Attributes:
        fraction: steps of the supernet, as a share of those of one evaluation.
        steps: steps of the supernet, in the place of ``fraction``.
        learning_rate: of the supernet's weights; ``None``: the study's own rates of each op.
        lr_scale: factor on all learning rates of the supernet, head included. Below 1, because all that is open moves
            at once, and overshoots together at the rates of a single plan.
        last_rate: share of the learning rate that is left at the end: the supernet sees the first part of a training.
        weight_decay: of the supernet's weights.
        clip: largest norm of their gradient.
        held_out: share of the training rows that the supernet does not see: the ladder is ranked on them.
        open_from: each step draws the share of modules that are on, evenly between this
        open_to: and this.
        measure: of what a level is worth. ``difference``: the loss without it less the loss with it, from the slopes at
            both ends; ``removal`` and ``opening``: from one end alone; ``fisher``: from the squared slope;
            ``saliency``: sum abs(theta * gradient).
        memory: share of the steps after which a slope counts 1/e of a new one.
        ladder: budgets for which a plan is made, as shares of the budget; 1 is always among them.
        alternatives: plans at the whole budget besides the result, from values that are shaken a little.
        shrinks: how often modules are dropped that no budget of interest chooses.
        shrink_from: share of the steps before the first time; the last time is at the middle of what is left.
        slack_from: budgets of interest go up to so many times the budget the first time,
        slack_to: and to so many times the last time.
        ranking_rows: most held-out rows for the ranking.
        checks: most evaluations that are asked for.
        warm_start: whether plans are also trained on from their weights in the supernet, and not only from fresh ones.
        keep_every: iterations between two saves.

    Raises:
        ConfigError: on an impossible value.
    """

    fraction: float = 0.5
    steps: int | None = None
    learning_rate: float | None = None
    lr_scale: float = 0.3
    last_rate: float = 0.5
    weight_decay: float = 0.0
    clip: float = 1.0
    held_out: float = 0.2
    open_from: float = 0.5
    open_to: float = 1.0
    measure: Measure = "difference"
    memory: float = 0.3
    ladder: tuple[float, ...] = (1.0, 0.71, 0.5, 0.35, 0.25)
    alternatives: int = 3
    shrinks: int = 4
    shrink_from: float = 0.3
    slack_from: float = 8.0
    slack_to: float = 2.0
    ranking_rows: int = 128
    checks: int = 4
    warm_start: bool = True
    keep_every: int = 50

    def __post_init__(self) -> None:
        if self.measure not in MEASURES:
            raise ConfigError(f"measure {self.measure!r}: must be one of {', '.join(MEASURES)}")
        for name in ("fraction", "clip", "memory", "lr_scale"):
            if not getattr(self, name) > 0:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be above 0")
        for name in ("steps", "learning_rate"):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} {value!r}: must be above 0")
        for name in ("weight_decay", "alternatives", "shrinks"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must not be below 0")
        for name in ("checks", "keep_every", "ranking_rows"):
            if not getattr(self, name) >= 1:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be at least 1")
        for name in ("held_out", "shrink_from"):
            if not 0 < getattr(self, name) < 1:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must be between 0 and 1")
        if not 0 <= self.last_rate <= 1:
            raise ConfigError(f"last_rate {self.last_rate!r}: must be within 0 and 1")
        if not 0 < self.open_from <= self.open_to <= 1:
            raise ConfigError(f"open_from {self.open_from!r}, open_to {self.open_to!r}: must rise within 0 and 1")
        if not self.slack_from >= self.slack_to >= 1:
            raise ConfigError(f"slack_from {self.slack_from!r}, slack_to {self.slack_to!r}: must fall, to 1 or more")
        self._check_ladder()

    def _check_ladder(self) -> None:
        rungs = self.ladder
        if not isinstance(rungs, list | tuple) or not all(isinstance(r, int | float) and 0 < r <= 1 for r in rungs):
            raise ConfigError(f"ladder {rungs!r}: must be a list of shares of the budget, above 0 and up to 1")
        object.__setattr__(self, "ladder", tuple(sorted({1.0, *map(float, rungs)}, reverse=True)))

    def training(self, steps: int, seed: int) -> WeightTraining:
        """Return how the weights of the supernet are trained."""
        return WeightTraining(
            steps, self.learning_rate, self.weight_decay, self.clip, seed, saliency=self.measure == "saliency",
            lr_scale=self.lr_scale, last_rate=self.last_rate, held_out=self.held_out,
        )  # fmt: skip

    def steps_of(self, one_training: int) -> int:
        """Return the steps of the supernet, where one evaluation has ``one_training``."""
        return self.steps or max(1, round(self.fraction * one_training))

    def shrinks_at(self, steps: int) -> dict[int, float]:
        """Return after how many of ``steps`` modules are dropped -> the slack of that time."""
        if not self.shrinks:
            return {}
        first, last = self.shrink_from, (1 + self.shrink_from) / 2
        times: dict[int, float] = {}
        for n in range(self.shrinks):
            way = n / max(1, self.shrinks - 1)
            at = max(1, round(steps * (first + (last - first) * way)))
            times[at] = self.slack_from * (self.slack_to / self.slack_from) ** way
        return times
