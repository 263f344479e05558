"""When a run can be stopped at a rung: its optimistic bound cannot enter the front at its known cost.

The cost of a plan is known before it is trained. So at a rung (a step at which the score is measured) it is known which
score the run would have to reach: the staircase P at its cost. From runs that went to the end it is known how much
scores still rise after that rung. Where even a large rise is not enough, the rest of the training changes nothing
(dossier AutoPEFT, section 6.4). Raw scores are never compared across costs: that would stop every small plan.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np

from peftscout.outcome import Outcome, State
from peftscout.strategies.multi_fidelity_options import EarlyStopOptions
from peftscout.strategies.partial_runs import band_of
from peftscout.strategies.rank_agreement import Agreement, Band, rank_agreement
from peftscout.surrogate.gp import FloatArray
from peftscout.surrogate.staircase import Reference, Staircase


@dataclass(frozen=True, slots=True)
class Course:
    """What is known of one run.

    Attributes:
        cost: of its plan, in parameters.
        rungs: steps -> the best score up to there: a run keeps its best state.
        score: at the end of the full training; ``None`` where it was stopped.
    """

    cost: int
    rungs: dict[int, float]
    score: float | None

    @classmethod
    def of(cls, outcome: Outcome) -> Self:
        """Read the course of a run off the curve of its outcome; it has a final score when the outcome is done."""
        best, rungs = -math.inf, {}
        for step, _, score in outcome.curve:
            if score is not None:
                best = max(best, score)
                rungs[step] = best
        return cls(outcome.cost, rungs, outcome.score)


class StopRule:
    """Decides at rungs; learns from runs that ended and from those it stopped.

    Args:
        options: see `EarlyStopOptions`.
        budget: in parameters: bands of cost are counted down from it.
    """

    def __init__(self, options: EarlyStopOptions, budget: int) -> None:
        self.options = options
        self.courses: list[Course] = []
        self._budget = budget

    def learn(self, outcome: Outcome) -> None:
        """Take note of a full training's outcome, or of one that was pruned; others teach nothing."""
        course = Course.of(outcome)
        if outcome.done or (outcome.state is State.PRUNED and course.rungs):
            self.courses.append(course)

    def agreement(self, step: int) -> Agreement:
        """Return how well the ranks at the rung ``step`` agree with those at the end, within bands of cost.

        Stopped runs are in the early ranks, so that the correlation is that over all plans (see `rank_agreement`).
        """
        bands: dict[int, list[Course]] = defaultdict(list)
        for course in self.courses:
            if step in course.rungs:
                bands[band_of(course.cost, self._budget, self.options.band_factor)].append(course)
        return rank_agreement(_at_both(band, step) for band in bands.values())

    def is_on(self, step: int) -> bool:
        """Whether the rung ``step`` says enough about the end to stop runs there."""
        seen = self.agreement(step)
        if seen.correlation is None or seen.plans < self.options.least_plans:
            return False
        return seen.correlation >= self.options.least_correlation

    def bound(self, step: int, score: float) -> float:
        """Return the optimistic final score of a run with ``score`` at ``step``; infinite while the rule is off."""
        if not self.is_on(step):
            return math.inf
        rises = [c.score - c.rungs[step] for c in self.courses if c.score is not None and step in c.rungs]
        return score + float(np.quantile(rises, self.options.quantile)) + self.options.slack

    def should_stop(self, cost: int, step: int, score: float) -> bool:
        """Return whether a run of ``cost`` with ``score`` at ``step`` is not worth going on with."""
        if not self.is_on(step):
            return False
        return self.bound(step, score) <= best_at(self.courses, cost) or not self._ranks_high(cost, step, score)

    def _ranks_high(self, cost: int, step: int, score: float) -> bool:
        """Whether the score is among the best ``keep_share`` of its band at the rung."""
        factor = self.options.band_factor
        band = band_of(cost, self._budget, factor)
        peers = [
            c.rungs[step] for c in self.courses if step in c.rungs and band_of(c.cost, self._budget, factor) == band
        ]
        if self.options.keep_share == 1 or len(peers) < self.options.least_plans:
            return True
        return score >= float(np.quantile(peers, 1.0 - self.options.keep_share))


def best_at(courses: Sequence[Course], cost: int) -> float:
    """Return P(cost): the best final score seen at no more than ``cost``; -inf where nothing is as cheap."""
    ended = [c for c in courses if c.score is not None]
    costs: FloatArray = np.array([c.cost for c in ended], dtype=float)
    scores: FloatArray = np.array([c.score for c in ended], dtype=float)
    staircase = Staircase.of(costs, scores, Reference(math.inf, -math.inf))
    return float(staircase(np.array([cost], dtype=float))[0])


def _at_both(courses: Sequence[Course], step: int) -> Band:
    through = [n for n, course in enumerate(courses) if course.score is not None]
    late = [score for n in through if (score := courses[n].score) is not None]
    return Band([-course.rungs[step] for course in courses], through, [-score for score in late])
