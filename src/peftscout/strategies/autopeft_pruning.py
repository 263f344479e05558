"""When a running trial can be stopped: its optimistic bound cannot enter the front at its known cost.

The cost of a trial is known before it starts. So at a rung (a step at which the score is measured) it is known which
score it would have to reach: the staircase P at its cost. From finished trials it is known how much scores still rise
after that rung. Where even a large rise is not enough, the rest of the training changes nothing (dossier AutoPEFT,
section 6.4). Raw scores are never compared across costs: that would stop every small plan.

Pure: the engine asks `StopRule.should_stop` at each evaluation of a running trial, and `learn`s finished outcomes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from scipy.stats import spearmanr

from peftscout.outcome import Outcome
from peftscout.surrogate.gp import FloatArray
from peftscout.surrogate.staircase import Reference, Staircase


@dataclass(frozen=True, slots=True)
class StopOptions:
    """Options of the stop rule.

    Attributes:
        quantile: of the rises seen after a rung: what counts as optimistic.
        slack: added to the bound, in units of score: the noise of one evaluation.
        least_finished: finished trials with a score at the rung without which nothing is stopped.
        least_correlation: Spearman correlation of rung and final score below which the rule turns itself off.
        band: width in decades of cost within which scores are ranked (`keep_share`).
        keep_share: of the trials in its cost band, a trial at a rung must be among this share; 1 turns ranking off.
    """

    quantile: float = 0.9
    slack: float = 0.0
    least_finished: int = 6
    least_correlation: float = 0.3
    band: float = 0.5
    keep_share: float = 1.0

    def __post_init__(self) -> None:
        for name in ("quantile", "keep_share"):
            if not 0 < getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)}: must be within 0 and 1")
        if self.least_finished < 2 or self.band <= 0 or self.slack < 0:
            raise ValueError("least_finished must be at least 2, band above 0, slack at least 0")


@dataclass(frozen=True, slots=True)
class Finished:
    """A trial that ran to its end: its cost, its score at each rung, its final score."""

    cost: int
    rungs: tuple[tuple[int, float], ...]
    score: float

    def at(self, step: int) -> float | None:
        """Return the score at the rung ``step``, ``None`` where it was not measured."""
        return dict(self.rungs).get(step)


@dataclass
class StopRule:
    """Decides at rungs; learns from finished trials.

    Attributes:
        options: see `StopOptions`.
        finished: what was learned, in order.
    """

    options: StopOptions = field(default_factory=StopOptions)
    finished: list[Finished] = field(default_factory=list)

    def learn(self, outcome: Outcome) -> None:
        """Take note of an outcome; those without a final score teach nothing."""
        if outcome.score is not None:
            rungs = tuple((step, score) for step, _, score in outcome.curve if score is not None)
            self.finished.append(Finished(outcome.cost, rungs, outcome.score))

    def rank_correlation(self, step: int) -> float | None:
        """Return the Spearman correlation of the scores at ``step`` and at the end; ``None`` with too few to tell."""
        measured = self._measured(step)
        if len(measured) < self.options.least_finished:
            return None
        early, final = zip(*measured, strict=True)
        if len(set(early)) == 1 or len(set(final)) == 1:
            return 0.0
        return float(spearmanr(early, final).statistic)

    def is_on(self, step: int) -> bool:
        """Whether the rung ``step`` says enough about the end to stop trials there."""
        correlation = self.rank_correlation(step)
        return correlation is not None and correlation >= self.options.least_correlation

    def bound(self, step: int, score: float) -> float:
        """Return the optimistic final score of a trial with ``score`` at ``step``; infinite while the rule is off."""
        if not self.is_on(step):
            return math.inf
        rises = [final - early for early, final in self._measured(step)]
        return score + float(np.quantile(rises, self.options.quantile)) + self.options.slack

    def should_stop(self, cost: int, step: int, score: float) -> bool:
        """Return whether a trial of ``cost`` with ``score`` at ``step`` is not worth finishing."""
        if not self.is_on(step):
            return False
        return self.bound(step, score) <= self._front_at(cost) or not self._ranks_high(cost, step, score)

    def _measured(self, step: int) -> list[tuple[float, float]]:
        """(score at the rung, final score) of the finished trials that were measured there."""
        return [(early, trial.score) for trial in self.finished if (early := trial.at(step)) is not None]

    def _front_at(self, cost: int) -> float:
        """P(cost): the best final score seen at no more than this cost; -inf where nothing is as cheap."""
        return best_at(self.finished, cost)

    def _ranks_high(self, cost: int, step: int, score: float) -> bool:
        """Whether the score is among the best ``keep_share`` of the finished trials of about the same cost."""
        peers = [
            early
            for trial in self.finished
            if (early := trial.at(step)) is not None and abs(math.log10(trial.cost / cost)) <= self.options.band / 2
        ]
        if self.options.keep_share == 1 or len(peers) < self.options.least_finished:
            return True
        return score >= float(np.quantile(peers, 1.0 - self.options.keep_share))


def best_at(finished: Sequence[Finished], cost: int) -> float:
    """Return the staircase of the final scores at ``cost``."""
    if not finished:
        return -math.inf
    costs: FloatArray = np.array([trial.cost for trial in finished], dtype=float)
    scores: FloatArray = np.array([trial.score for trial in finished])
    staircase = Staircase.of(costs, scores, Reference(math.inf, -math.inf))
    return float(staircase(np.array([cost], dtype=float))[0])
