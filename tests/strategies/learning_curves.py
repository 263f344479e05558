"""Simulated training: learning curves with a known end, run by the engine's rules. Not a test module by itself."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from contract import problem, usefulness

from peftscout.outcome import Evaluate, Fidelity, Outcome, State
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
        steps, full = request.fidelity.steps, problem.fidelity.steps
        cost = request.plan.cost(problem.sites)
        of_plan = np.random.default_rng([int(request.plan.digest, 16), 0])
        of_run = np.random.default_rng([int(request.plan.digest, 16), 1, steps])
        end = usefulness(request.plan, problem)
        speed = math.exp(self.speeds * of_plan.standard_normal())
        learned = 1 - math.exp(-4 * speed * steps / full)
        loss = 1 - end * learned + self.noise * of_run.standard_normal()
        if self.meaningless and steps < full:
            loss = float(of_run.uniform())
        metrics = {"accuracy": 1 - loss} if self.without_loss else {"accuracy": 1 - loss, "loss": loss}
        curve = tuple((rung, None, 1 - loss) for rung in request.fidelity.rungs if rung <= steps)
        return Outcome(State.DONE, cost, 1 - loss, metrics, steps=steps, curve=curve)


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
