"""AutoPEFT: multi-objective Bayesian optimisation over plans (Zhou et al., TACL 2024), with the cost known exactly.

The problem is the paper's: a Pareto front of score and trainable parameters. The search is its Bayesian optimisation
(initial design, sparse-axis or dimension-scaled Gaussian process, expected hypervolume improvement, discrete
maximisation), rebuilt where the release is wrong or wasteful. What differs, and why (numbers: dossier AutoPEFT):

* What is asked is what the surrogate is told: the release trains the start of its local search and records the end
  (5.1-1). Here a point is decoded once, and outcomes are looked up by their plan.
* The cost has no model: EHVI is closed form with the exact cost (6.3), instead of Monte Carlo over a second GP.
* The cost axis is log10 (5.1-4): on the linear axis the interesting cheap decades are 6 % of the hypervolume.
* The reference score is that of the majority class on the search split, where nobody knows it a low quantile of the
  initial design, and never changes (5.1-2, 5.1-3); the release fixes 0.7 for every task, above the scores of some.
* Scores are standardised, not rank-transformed: ranks forget how much better the best point is (5.1-5). Scores far
  below the rest (collapsed runs) are pulled in to a fence.
* Hyper-parameters are maximum a posteriori, averaged over a few, instead of NUTS: 10 to 50 times cheaper, same ranking
  of unseen plans (6.2).
* The acquisition is maximised exactly by scanning small spaces; larger ones by true one-exchange local search from many
  starts (the release walks randomly).
* The initial design is spread over the cost axis and follows the budget; plans above it are never asked for.
* The reference cost lies a little above the budget, so that a plan which uses the whole budget still counts.
* Failed and diverged runs are survived (5.1-7): no number is made up for them, their region is avoided. Runs that were
  stopped at a rung teach the surrogate what was expected of them, and never enter the front.
* What another study observed of the same problem is known from the start (`Problem.observed`); what it observed of
  another task is a prior (`Problem.related`).
* Requests are a function of the outcomes told, whatever was asked in between (5.1-6), and no request is repeated.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from peftscout.errors import SpaceError
from peftscout.outcome import Evaluate, Outcome
from peftscout.plan import Plan
from peftscout.strategies.autopeft_design import cost_limit, limited_draw, spread_design
from peftscout.strategies.autopeft_model import Model, Requests, Told, on_front, points_of, usable_prior
from peftscout.strategies.autopeft_options import PAPER, AutoPeftOptions
from peftscout.strategies.base import Evaluated, Problem, trials_used
from peftscout.surrogate.acquisition import Acquisition
from peftscout.surrogate.features import Encoder, Points
from peftscout.surrogate.maximise import Candidates, Ranking, exchanges, local_search, scan

__all__ = ["PAPER", "AutoPeft", "AutoPeftOptions", "Recommendation", "autopeft"]

DEFAULTS = AutoPeftOptions()

ROUNDING = 1e-9
"""Slack for sums of shares of trials."""

ATTEMPTS = 50
"""Repeated draws of the design after which the space is taken to be nearly used up and is enumerated."""


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A plan, and what the surrogate expects of it.

    Attributes:
        plan: within the parameters asked for.
        lr_scale: factor on the learning rate that goes with it.
        cost: exact, in parameters.
        mean: expected score; noise taken out where it was evaluated.
        std: standard deviation of that expectation.
        score: the score that was observed; ``None`` when it was not evaluated.
    """

    plan: Plan
    lr_scale: float
    cost: int
    mean: float
    std: float
    score: float | None


def autopeft(problem: Problem, options: AutoPeftOptions = DEFAULTS, prior: Sequence[Evaluated] = ()) -> AutoPeft:
    """Return the AutoPEFT strategy.

    Args:
        problem: what is to be solved.
        options: see `AutoPeftOptions`; `PAPER` has the constants of the paper.
        prior: requests and outcomes of another study over the same space (``problem.related`` where there are none):
            its front opens the initial design, and its surrogate, scaled to the scores seen here, is the prior mean.

    Raises:
        SpaceError: when nothing in the space fits the budget.
    """
    return AutoPeft(problem, options, prior)


class AutoPeft:
    """The strategy (see the module for the method). Its state is what was asked and what was told, nothing else."""

    def __init__(self, problem: Problem, options: AutoPeftOptions = DEFAULTS, prior: Sequence[Evaluated] = ()) -> None:
        _require_affordable(problem)
        self.problem = problem
        self.options = options
        self._encoder = Encoder(problem.space, problem.lr_scales, options.summaries)
        self._requests = Requests(problem, self._encoder)
        self._model = Model(self._requests, options, usable_prior(self._requests, prior or problem.related))
        self._candidates = Candidates(self._encoder, problem.budget.parameters, options.axis)
        self._initial = options.initial_for(problem.trials)
        self._observed = [self._requests.told(request, outcome) for request, outcome in problem.observed]
        self._told: list[Told] = []
        self._running: dict[str, Evaluate] = {}
        self._used: set[str] = {problem.baseline.digest, *(self._identity(request) for request, _ in problem.observed)}
        given = options.reference_score
        self._reference_score = problem.reference_score if given is None else given
        self._designed: list[Evaluate] = []
        self._design_is_dry = False
        self._ranked: tuple[int, Acquisition, Ranking] | None = None
        self._random_starts: dict[int, Points] = {}
        self._fix_reference_score()

    # -- the contract -------------------------------------------------------------------------------------------------

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return up to ``capacity`` new requests: of the initial design, then where expected improvement is largest."""
        requests: list[Evaluate] = []
        while len(requests) < capacity and not (self._out_of_trials or self._design_is_asked):
            request = self._next_of_design() if self._designing else self._next_of_model()
            if request is None:
                break
            self._running[request.key] = request
            self._used.add(self._identity(request))
            requests.append(request)
        return requests

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of an outcome: of a request of ours, of the baseline, or (on replay) of one never asked here."""
        self._running.pop(request.key, None)
        self._used.add(self._identity(request))
        self._told.append(self._requests.told(request, outcome))
        self._fix_reference_score()

    # -- what was found -----------------------------------------------------------------------------------------------

    @property
    def reference_score(self) -> float | None:
        """The floor of the hypervolume: as given by the options or the problem, or set once when the initial design is
        told; ``None`` before."""
        return self._reference_score

    def _fix_reference_score(self) -> None:
        if self._reference_score is None and not self._designing:
            scores = [told.outcome.score for told in self._known if told.outcome.score is not None]
            self._reference_score = float(np.quantile(scores, self.options.reference_quantile))

    @property
    def _known(self) -> list[Told]:
        """What was told here, after what another study observed."""
        return [*self._observed, *self._told]

    def best_within(self, parameters: int) -> Recommendation | None:
        """Return the evaluated plan of at most ``parameters`` with the highest expected score; ``None`` without one.

        A budget query: any number of budgets can be asked about after one search. The plan is one of the space.
        """
        evaluated = [told for told in self._model.learnable(self._known) if told.outcome.cost <= parameters]
        if self._designing or not evaluated:
            return None
        acquisition, _ = self._knowledge()
        mean, std = acquisition.predict(self._encoder(points_of(evaluated)))
        best = int(np.argmax(mean))
        request, outcome = evaluated[best].request, evaluated[best].outcome
        return Recommendation(
            request.plan, request.lr_scale, outcome.cost, float(mean[best]), float(std[best]), outcome.score
        )

    def propose_within(self, parameters: int) -> Recommendation | None:
        """Return the new plan most worth evaluating when no more than ``parameters`` may be spent.

        The reference cost moves to ``parameters``; nothing is trained or fitted again. ``None`` during the initial
        design, and when nothing new is left.
        """
        limit = min(parameters, self.problem.budget.parameters)
        if self._designing or self.problem.space.cheapest().cost(self.problem.sites) > limit:
            return None
        acquisition = self._knowledge()[0].within(self.options.reference_cost(limit))
        request = self._first_new(self._maximise(acquisition, Candidates(self._encoder, limit, self.options.axis)))
        point = None if request is None else self._requests.point_of(request)
        if request is None or point is None:
            return None
        mean, std = acquisition.predict(self._encoder(point[None]))
        cost = request.plan.cost(self.problem.sites)
        return Recommendation(request.plan, request.lr_scale, cost, float(mean[0]), float(std[0]), None)

    def expectation(self, request: Evaluate) -> tuple[float, float] | None:
        """Return mean and standard deviation of the score that evaluating ``request`` would show, noise included.

        ``None`` during the initial design, and for a plan outside of the space.
        """
        point = self._requests.point_of(request)
        if self._designing or self._reference_score is None or point is None:
            return None
        acquisition = self._model.acquisition(self._told, self._reference_score)
        mean, std = acquisition.predict(self._encoder(point[None]))
        noise = float(np.mean([member.gp.noise for member in acquisition.members]))
        return float(mean[0]), float(np.hypot(std[0], np.sqrt(noise)))

    # -- initial design -----------------------------------------------------------------------------------------------

    @property
    def _out_of_trials(self) -> bool:
        """Whether the trials are used up: one for the baseline, those told and those running."""
        own = [told for told in self._told if told.request.plan != self.problem.baseline]
        used = 1 + sum(trials_used(told.request, told.outcome) for told in own) + len(self._running)
        return self.problem.trials is not None and used > self.problem.trials - 1 + ROUNDING

    @property
    def _designing(self) -> bool:
        """Whether the surrogate has too little to go on: fewer outcomes than planned, or hardly a score among them."""
        known = self._known
        return len(known) < self._initial or len(self._model.learnable(known)) < self.options.least_scores

    @property
    def _design_is_asked(self) -> bool:
        """Whether the rest of the design is running: more of it would be asked for without knowing what it taught."""
        return self._designing and bool(self._running) and len(self._known) + len(self._running) >= self._initial

    @cached_property
    def _design(self) -> Iterator[Points]:
        """The points of the initial design, without end; at most half of it is from the front of the other study.

        Of that front the best score comes first, then points evenly spread over it.
        """
        fitting = on_front([told for told in self._model.prior if told.outcome.cost in self.problem.budget])
        count = min(len(fitting), max(1, self._initial // 2))
        spread = np.unique(np.linspace(len(fitting) - 1, 0, count).round().astype(int))[::-1] if count else ()
        seeds = [point for i in spread if (point := fitting[i].point) is not None]
        return spread_design(self._encoder, self.problem.budget, self.problem.seed, seeds)

    def _next_of_design(self) -> Evaluate | None:
        """Return the first request of the design that was not used; the design does not depend on what was asked."""
        for n in itertools.count():
            if n == len(self._designed):
                fresh = self._draw_design()
                if fresh is None:
                    return self._first_unused()
                self._designed.append(fresh)
            if self._is_new(self._designed[n]):
                return self._designed[n]
        return None

    def _draw_design(self) -> Evaluate | None:
        """Return a request that is not in the design yet; ``None`` once only repetitions come."""
        known = {self._identity(request) for request in self._designed} | {self.problem.baseline.digest}
        attempts = 0 if self._design_is_dry else ATTEMPTS
        for point in itertools.islice(self._design, attempts):
            request = self._requests.at(point, "autopeft: initial design")
            if self._identity(request) not in known:
                return request
        self._design_is_dry = True
        return None

    def _first_unused(self) -> Evaluate | None:
        """Return the first plan of a small space that was not used: for spaces that are nearly used up."""
        if self._encoder.combinations > self.options.scan_limit:
            return None
        for index in self._candidates.indices.astype(np.int64):
            request = self._requests.at(self._encoder.points_at(index[None])[0], "autopeft")
            if self._is_new(request):
                return request
        return None

    # -- model --------------------------------------------------------------------------------------------------------

    def _knowledge(self) -> tuple[Acquisition, Ranking]:
        """Fit and maximise, once for each state of knowledge. Running requests are not in it."""
        if self._ranked is None or self._ranked[0] != len(self._told):
            assert self._reference_score is not None
            acquisition = self._model.acquisition(self._known, self._reference_score)
            self._ranked = (len(self._told), acquisition, self._maximise(acquisition, self._candidates))
        return self._ranked[1:]

    def _next_of_model(self) -> Evaluate | None:
        """Return the new request of largest acquisition, running ones taken to score what is expected of them.

        With staircases of means, believing the running requests only lowers the acquisition. So after a scan, the
        ranking made without them bounds everything outside its head: the best of the head, looked at again, is the
        best of all unless it falls below that bound.
        """
        acquisition, ranking = self._knowledge()
        running = [
            point for request in self._running.values() if (point := self._requests.point_of(request)) is not None
        ]
        if running:
            acquisition = acquisition.fantasise(*self._candidates.inputs(np.stack(running)))
            head = self._looked_at_again(acquisition, ranking)
            bounded = head.bound is not None and self.options.staircase == "means"
            if bounded and (request := self._first_new(head, least=head.bound)) is not None:
                return request
            ranking = self._maximise(acquisition, self._candidates)
        return self._first_new(ranking) or self._next_of_design()

    def _looked_at_again(self, acquisition: Acquisition, ranking: Ranking) -> Ranking:
        values = self._candidates.evaluate(acquisition, ranking.points)
        order = np.argsort(-values, kind="stable")
        return Ranking(ranking.points[order], values[order], ranking.bound)

    def _maximise(self, acquisition: Acquisition, candidates: Candidates) -> Ranking:
        climbed = local_search(acquisition, candidates, self._starts(candidates.limit), self.options.starts)
        if self._encoder.combinations > self.options.scan_limit:
            return climbed
        return scan(acquisition, candidates, climbed)

    def _starts(self, limit: int) -> Points:
        """Return points to climb from: random ones over the cost axis, and the front with its neighbours."""
        best = points_of(on_front(self._model.learnable(self._known)))
        return np.concatenate([self._random_points(limit), best, *(exchanges(self._encoder, point) for point in best)])

    def _random_points(self, limit: int) -> Points:
        """Return random points, their costs spread evenly over the log-cost axis; the same in every round."""
        if limit not in self._random_starts:
            cheapest = self.problem.space.cheapest().cost(self.problem.sites)
            rng, n = np.random.default_rng([self.problem.seed, 2]), self.options.random_starts
            limits = [cost_limit((k + 0.5) / n, cheapest, limit) for k in range(n)]
            self._random_starts[limit] = np.stack([limited_draw(self._encoder, bound, rng) for bound in limits])
        return self._random_starts[limit]

    def _first_new(self, ranking: Ranking, least: float | None = None) -> Evaluate | None:
        """Return the best request of ``ranking`` that was not used; none whose value is below ``least``."""
        for point, value in zip(ranking.points, ranking.values, strict=True):
            if least is not None and value < least:
                return None
            request = self._requests.at(point, "autopeft")
            if self._is_new(request):
                return request
        return None

    # -- what was used ------------------------------------------------------------------------------------------------

    def _identity(self, request: Evaluate) -> str:
        """What must not be evaluated twice; the baseline's plan is the engine's, at every learning rate.

        Another study may have had another seed, and a run that was stopped a lower rung: they are known all the same.
        """
        if request.plan == self.problem.baseline:
            return request.plan.digest
        return replace(request, fidelity=self.problem.fidelity, seed=self.problem.seed).key

    def _is_new(self, request: Evaluate) -> bool:
        return self._identity(request) not in self._used


def _require_affordable(problem: Problem) -> None:
    cheapest = problem.space.cheapest()
    cost = cheapest.cost(problem.sites)
    if cost not in problem.budget:
        raise SpaceError(
            f"space {problem.space.name!r}: nothing fits into {problem.budget}; the cheapest plan ({cheapest}) costs "
            f"{cost:,} parameters"
        )
