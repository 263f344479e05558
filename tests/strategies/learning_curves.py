"""Simulated training: learning curves with a known end, run by the engine's rules. Not a test module by itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations

import numpy as np
from contract import problem, usefulness

from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.strategies.base import Problem, Strategy

LADDER = (10, 30, 90)
Answer = Callable[[Problem, Evaluate], Outcome]


def laddered(ladder: tuple[int, ...] = LADDER, **arguments) -> Problem:
    """The problem of the contract suite, its fidelity the full one on a ladder."""
    return replace(problem(**arguments), fidelity=Fidelity(ladder[-1], rungs=ladder))


@dataclass(frozen=True)
class Curves:
    """Validation losses that fall from 1 towards ``1 - usefulness`` of the plan, with a speed of the plan's own.

    Attributes:
        noise: standard deviation of the noise on the loss of each rung.
        speeds: spread of the log of the speed: with it, curves cross.
        meaningless: the losses below the top are noise alone.
        without_loss: outcomes say nothing but the score.
    """

    noise: float = 0.0
    speeds: float = 0.0
    meaningless: bool = False
    without_loss: bool = False

    def __call__(self, problem: Problem, request: Evaluate) -> Outcome:
        steps = request.fidelity.steps
        cost = request.plan.cost(problem.sites)
        loss = self._loss(problem, request, steps)
        metrics = {"accuracy": 1 - loss} if self.without_loss else {"accuracy": 1 - loss, "loss": loss}
        passed = [rung for rung in request.fidelity.rungs if rung <= steps]
        curve = tuple((rung, None, 1 - self._loss(problem, request, rung)) for rung in passed)
        return Outcome(State.DONE, cost, 1 - loss, metrics, steps=steps, curve=curve)

    def _loss(self, problem: Problem, request: Evaluate, steps: int) -> float:
        of_plan = np.random.default_rng([int(request.plan.digest, 16), 0])
        of_run = np.random.default_rng([int(request.plan.digest, 16), 1, steps])
        if self.meaningless and steps < problem.fidelity.steps:
            return float(of_run.uniform())
        speed = math.exp(self.speeds * of_plan.standard_normal())
        learned = 1 - math.exp(-4 * speed * steps / problem.fidelity.steps)
        return 1 - usefulness(request.plan, problem) * learned + self.noise * float(of_run.standard_normal())


@dataclass(frozen=True)
class Search:
    """What a simulated search asked for, and what came of it; the baseline is first."""

    problem: Problem
    strategy: Strategy
    requests: list[Evaluate]
    outcomes: list[Outcome]

    @property
    def steps(self) -> int:
        """Steps taken when every run goes on where it was paused."""
        furthest: dict[tuple[str, float], int] = {}
        for request in self.requests:
            run = (request.plan.digest, request.lr_scale)
            furthest[run] = max(furthest.get(run, 0), request.fidelity.steps)
        return sum(furthest.values())

    @property
    def finished(self) -> list[Evaluate]:
        """Requests of full training with a score, without the baseline's."""
        pairs = zip(self.requests[1:], self.outcomes[1:], strict=True)
        return [r for r, outcome in pairs if r.fidelity.full and outcome.done]

    @property
    def plans(self) -> int:
        """Different plans, without the baseline."""
        return len({(r.plan.digest, r.lr_scale) for r in self.requests[1:]})

    @property
    def best(self) -> float:
        """Usefulness of the finished plan with the best score, as the engine chooses it."""
        pairs = zip(self.requests, self.outcomes, strict=True)
        done = [(outcome.score, r) for r, outcome in pairs if r.fidelity.full and outcome.score is not None]
        return usefulness(max(done, key=lambda row: row[0])[1].plan, self.problem)


def search(
    factory: Callable[[Problem], Strategy], problem: Problem, answer: Answer, workers: int = 1, limit: int = 2000
) -> Search:
    """Run a strategy to its end with so many workers, of which the one that began first is the first to end."""
    strategy = factory(problem)
    baseline = Evaluate(problem.baseline, problem.fidelity, problem.seed)
    first = answer(problem, baseline)
    strategy.tell(baseline, first)
    requests, outcomes, running = [baseline], [first], []
    while len(requests) < limit:
        running += strategy.ask(workers - len(running))
        if not running:
            break
        request = running.pop(0)
        requests.append(request)
        outcomes.append(answer(problem, request))
        strategy.tell(request, outcomes[-1])
    return Search(problem, strategy, requests, outcomes)


class Listed:
    """An inner strategy that proposes given plans in order and remembers what it was told."""

    def __init__(self, plans: Sequence[Plan], problem: Problem) -> None:
        self.problem = problem
        self.waiting = [Evaluate(plan, problem.fidelity, problem.seed) for plan in plans]
        self.told: list[tuple[Evaluate, Outcome]] = []

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        handed, self.waiting = self.waiting[:capacity], self.waiting[capacity:]
        return handed

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        self.told.append((request, outcome))


def loras(problem: Problem, *costs: int) -> list[Plan]:
    """Different plans of these costs: multiples of 64 (one rank at one site of attention) up to 2048."""
    sites = [s.id for s in problem.sites.values() if s.kind == "linear" and s.in_features == s.out_features]
    plans: dict[Plan, None] = {}
    for cost in costs:
        ranks = cost // 64
        splits = ((ranks - n, n, pair) for n in range(ranks // 2 + 1) for pair in combinations(sites, 2))
        candidates = (Plan.of({(a, "lora"): most, (b, "lora"): rest}) for most, rest, (a, b) in splits)
        plans[next(plan for plan in candidates if plan not in plans)] = None
    return list(plans)


@dataclass(frozen=True)
class Table:
    """Losses by plan and rung; a state in a loss's place is how the run to that rung ends."""

    losses: Mapping[Plan, Sequence[float | State]]

    def __call__(self, problem: Problem, request: Evaluate) -> Outcome:
        rungs, steps = problem.fidelity.rungs, request.fidelity.steps
        row = self.losses.get(request.plan, [0.9] * len(rungs))
        loss, cost = row[rungs.index(steps)], request.plan.cost(problem.sites)
        if isinstance(loss, State):
            return Outcome(loss, cost, message="on purpose")
        return Outcome(State.DONE, cost, 1 - loss, {"accuracy": 1 - loss, "loss": loss}, steps=steps)
