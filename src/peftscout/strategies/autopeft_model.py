"""What AutoPEFT believes after the outcomes it was told: observations, surrogates and the acquisition."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from peftscout.errors import SpaceError
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.strategies.autopeft_options import AutoPeftOptions
from peftscout.strategies.base import Evaluated, Problem
from peftscout.strategies.stop_rule import Course
from peftscout.surrogate.acquisition import Acquisition, Front
from peftscout.surrogate.features import Encoder, Points
from peftscout.surrogate.fit import fit_dimension_scaled, fit_saas, fit_trend
from peftscout.surrogate.gp import FloatArray, GaussianProcess, Matern52
from peftscout.surrogate.staircase import Reference, front

FITS = {"map": fit_dimension_scaled, "saas": fit_saas}

FAILURES = frozenset({State.DIVERGED, State.OUT_OF_MEMORY, State.FAILED, State.INFEASIBLE})
"""States that speak against a region of the space. A pruned run does not: it was merely not good enough."""

NEAREST_RISES = 5
"""Full trainings that say how much a run would still have risen."""

LEAST_RISES = 3
"""Full trainings with a score at a rung, without which nothing is inferred from runs that were stopped there."""


@dataclass(frozen=True)
class Told:
    """A request with its outcome.

    Attributes:
        request: what was evaluated.
        outcome: what became of it.
        point: the request as a point of the space; ``None`` where the space cannot express it (the baseline).
    """

    request: Evaluate
    outcome: Outcome
    point: Points | None


@dataclass(frozen=True)
class Requests:
    """Requests and points of one problem: the same thing in two forms, and one function for each direction.

    Attributes:
        problem: what is to be solved.
        encoder: what points mean.
    """

    problem: Problem
    encoder: Encoder

    def at(self, point: Points, label: str) -> Evaluate:
        """Return the request of ``point``."""
        plan = self.problem.space.decode(point[:-1])
        lr_scale = self.problem.lr_scales[int(point[-1])]
        return Evaluate(plan, self.problem.fidelity, self.problem.seed, lr_scale, label)

    def point_of(self, request: Evaluate) -> Points | None:
        """Return the point of ``request``, ``None`` where the space or the learning rates do not have it."""
        if request.lr_scale not in self.problem.lr_scales:
            return None
        try:
            vector = self.problem.space.encode(request.plan)
        except SpaceError:
            return None
        return np.array([*vector, self.problem.lr_scales.index(request.lr_scale)], dtype=np.int64)

    def told(self, request: Evaluate, outcome: Outcome) -> Told:
        """Return ``request`` and ``outcome`` with the point they belong to."""
        return Told(request, outcome, self.point_of(request))

    def is_full(self, told: Told) -> bool:
        """Whether there is a score, of a full evaluation."""
        return told.outcome.done and told.request.fidelity == self.problem.fidelity


def costs_and_scores(told: Sequence[Told]) -> tuple[FloatArray, FloatArray]:
    """Return the costs in parameters and the scores of finished evaluations, each (n,)."""
    return (
        np.array([t.outcome.cost for t in told], dtype=float),
        np.array([t.outcome.score for t in told], dtype=float),
    )


def points_of(told: Sequence[Told]) -> Points:
    """Return the points of evaluations that have one, (n, variables + 1)."""
    return np.stack([t.point for t in told if t.point is not None])


def on_front(told: Sequence[Told]) -> list[Told]:
    """Return those finished evaluations that no other beats on both cost and score, the cheapest first."""
    return [told[i] for i in front(*costs_and_scores(told))]


@dataclass(frozen=True)
class Model:
    """Turns what was told into an acquisition.

    Attributes:
        requests: the problem, and what points mean.
        options: see `AutoPeftOptions`.
        prior: finished evaluations of another study, in this space.
    """

    requests: Requests
    options: AutoPeftOptions
    prior: tuple[Told, ...] = ()

    def learnable(self, told: Sequence[Told]) -> list[Told]:
        """Return full evaluations with a score whose plan is in the space."""
        return [t for t in told if t.point is not None and self.requests.is_full(t)]

    def stopped(self, told: Sequence[Told]) -> list[tuple[Told, float]]:
        """Return the runs that were stopped at a rung, each with the final score that is expected of it.

        Without them the surrogate would know nothing of where runs are not worth finishing, and propose it again. What
        is expected is the score at the rung plus the median rise from there to the end, of those full trainings that
        stood nearest at the rung.
        """
        ended = [Course.of(t.outcome) for t in self.learnable(told)]
        expected = []
        for t in told:
            rungs = Course.of(t.outcome).rungs
            if t.point is None or t.outcome.state is not State.PRUNED or not rungs:
                continue
            last = max(rungs)
            rises = {c.rungs[last]: c.score - c.rungs[last] for c in ended if c.score is not None and last in c.rungs}
            nearest = sorted(rises, key=lambda score: abs(score - rungs[last]))[:NEAREST_RISES]
            if len(nearest) >= LEAST_RISES:
                expected.append((t, rungs[last] + float(np.median([rises[score] for score in nearest]))))
        return expected

    def acquisition(self, told: Sequence[Told], reference_score: float) -> Acquisition:
        """Fit the surrogates to everything in ``told`` and return the acquisition that follows.

        A plan outside the space (the baseline) enters the front with its observed score, not the surrogate.
        """
        o, budget = self.options, self.requests.problem.budget
        inside, stopped = self.learnable(told), self.stopped(told)
        outside = [t for t in told if t.point is None and self.requests.is_full(t)]
        costs, scores = costs_and_scores(inside)
        costs = np.concatenate([costs, [float(t.outcome.cost) for t, _ in stopped]])
        scores = np.concatenate([scores, [score for _, score in stopped]])
        X, y = self.requests.encoder(points_of([*inside, *(t for t, _ in stopped)])), o.pull_in(scores)
        trend = None if self._source is None else fit_trend(self._source, X, y)
        ensemble = FITS[o.surrogate](X, y, trend)
        outside_costs, outside_scores = costs_and_scores(outside)
        seen = Front(
            costs=o.axis(costs),
            reference=Reference(o.reference_cost(budget.parameters), reference_score),
            others=(o.axis(outside_costs), outside_scores),
            staircase=o.staircase,
        )
        return Acquisition.of(ensemble, seen, self._success(told, ensemble[0].kernel.lengthscales))

    def _success(self, told: Sequence[Told], lengthscales: FloatArray) -> GaussianProcess | None:
        """Return a surrogate of finishing at all, on the same distances as the score; ``None`` when all finished.

        Regression on labels 1 and 0. Its prior mean is the share of successes, two pseudo-successes included.
        """
        ended = [t for t in told if t.point is not None and (t.outcome.done or t.outcome.state in FAILURES)]
        labels = np.array([float(t.outcome.done) for t in ended])
        if labels.all():
            return None
        rate = float((labels.sum() + 2.0) / (len(labels) + 2.0))
        X = self.requests.encoder(points_of(ended))
        return GaussianProcess(X, labels, Matern52(lengthscales, variance=0.25), noise=0.05, mean=rate)

    @cached_property
    def _source(self) -> GaussianProcess | None:
        """The surrogate of the other study; ``None`` where it has too little."""
        if len(self.prior) < self.options.least_scores:
            return None
        X = self.requests.encoder(points_of(self.prior))
        return fit_dimension_scaled(X, self.options.pull_in(costs_and_scores(self.prior)[1]))[0]


def usable_prior(requests: Requests, prior: Sequence[Evaluated]) -> tuple[Told, ...]:
    """Return what to learn from another study: finished evaluations at its highest fidelity, of plans in the space."""
    told = [requests.told(request, outcome) for request, outcome in prior if outcome.done]
    highest = max((t.request.fidelity.steps for t in told), default=0)
    return tuple(t for t in told if t.point is not None and t.request.fidelity.steps == highest)
