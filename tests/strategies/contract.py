"""The contract that every strategy keeps, run against a closed-form objective. Not a test module by itself."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from fake_sites import fake_sites
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan
from peftscout.space import load_space
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.uniform import lora_on_query_value

Factory = Callable[[Problem], Strategy]
Answer = Callable[[Problem, Evaluate], Outcome]


def problem(
    kind: str = "encoder", *, budget: int = 2000, trials: int = 12, seed: int = 0, space: str = "all", lr_scales=(1.0,)
) -> Problem:
    sites = fake_sites(kind)
    bound = Budget(budget, str(budget))
    baseline = lora_on_query_value(sites, bound).plan
    return Problem(sites, load_space(space, sites), bound, baseline, Fidelity(10), trials, seed, lr_scales)


def usefulness(plan: Plan, problem: Problem) -> float:
    """A closed-form score in (0, 1): each placement is worth something known, with diminishing returns."""
    worth = {site: 0.5 + (i * 37 % 11) / 11 for i, site in enumerate(problem.sites)}
    total = sum(worth[p.site] * np.sqrt(problem.sites[p.site].out_features * p.size) for p in plan)
    return float(total / (100 + total))


def done(problem: Problem, request: Evaluate) -> Outcome:
    return Outcome(State.DONE, request.plan.cost(problem.sites), usefulness(request.plan, problem))


def flaky(problem: Problem, request: Evaluate) -> Outcome:
    """Every state in turn, decided by the request alone."""
    state = list(State)[int(request.key, 16) % len(State)]
    cost = request.plan.cost(problem.sites)
    return done(problem, request) if state is State.DONE else Outcome(state, cost, message="on purpose")


def failing(problem: Problem, request: Evaluate) -> Outcome:
    return Outcome(State.FAILED, request.plan.cost(problem.sites), message="on purpose")


def drive(
    factory: Factory, problem: Problem, answer: Answer = done, capacity: int = 1, limit: int = 400
) -> list[Evaluate]:
    """Run a strategy as the engine does and return every request, the baseline first."""
    strategy = factory(problem)
    first = Evaluate(problem.baseline, problem.fidelity, problem.seed)
    strategy.tell(first, answer(problem, first))
    requests = [first]
    while len(requests) < min(limit, problem.trials or limit):
        batch = list(strategy.ask(min(capacity, (problem.trials or limit) - len(requests))))
        if not batch:
            break
        assert len(batch) <= capacity
        requests += batch
        for request in batch:
            strategy.tell(request, answer(problem, request))
    return requests


class StrategyContract:
    """Subclass it and give `factory`: every strategy promises this."""

    factory: Factory

    def run(self, *args, **kwargs) -> list[Evaluate]:
        return drive(type(self).factory, *args, **kwargs)

    def test_no_plan_is_above_the_budget_or_empty(self):
        for kind in ("encoder", "encoder_decoder", "decoder"):
            for budget in (300, 2000, 20_000):
                p = problem(kind, budget=budget)
                for request in self.run(p)[1:]:
                    assert 0 < request.plan.cost(p.sites) <= budget

    def test_the_same_request_is_never_asked_twice(self):
        for answer in (done, flaky):
            keys = [r.key for r in self.run(problem(trials=25), answer)]
            assert len(keys) == len(set(keys))

    def test_the_same_seed_gives_the_same_requests(self):
        assert self.run(problem(seed=3)) == self.run(problem(seed=3))

    def test_the_seed_is_the_seed_of_every_request(self):
        assert {r.seed for r in self.run(problem(seed=3))} == {3}

    def test_it_resumes_from_any_prefix_of_the_ledger(self):
        p = problem(trials=8)
        whole = self.run(p, flaky)
        for cut in range(1, len(whole)):
            strategy = type(self).factory(p)
            strategy.tell(whole[0], flaky(p, whole[0]))
            replayed: list[Evaluate] = [whole[0]]
            while len(replayed) < cut + 1 and len(replayed) < len(whole):
                (request,) = strategy.ask(1)
                replayed.append(request)
                strategy.tell(request, flaky(p, request))
            assert replayed == whole[: len(replayed)]

    def test_outcomes_in_any_order_are_replayed_from_the_ledger(self):
        """What was asked for, after how many outcomes, and their order are enough: questions in vain leave no trace."""
        p = problem(trials=9)
        live, course = type(self).factory(p), list[Evaluate | int]()
        first = Evaluate(p.baseline, p.fidelity, p.seed)
        live.tell(first, flaky(p, first))
        running, rng = list[Evaluate](), np.random.default_rng(0)
        while True:
            asked = list(live.ask(3 - len(running))) if len(running) < 3 else []
            course += asked
            running += asked
            if not running or len(course) > 60:
                break
            ended = int(rng.integers(len(running)))
            live.tell(running[ended], flaky(p, running[ended]))
            course.append(ended)
            del running[ended]
        assert any(isinstance(step, Evaluate) for step in course)
        again = type(self).factory(p)
        again.tell(first, flaky(p, first))
        running, place = [], 0
        while place < len(course):
            step = course[place]
            if isinstance(step, int):
                request = running.pop(step)
                again.tell(request, flaky(p, request))
                place += 1
                continue
            at_once = [s for s in course[place:] if not isinstance(s, int)]
            end = next((n for n, s in enumerate(course[place:]) if isinstance(s, int)), len(at_once))
            assert list(again.ask(end)) == course[place : place + end]
            running += course[place : place + end]  # type: ignore[arg-type]
            place += end

    def test_failed_diverged_and_pruned_outcomes_do_not_stop_it(self):
        assert len(self.run(problem(trials=15), flaky)) > 1
        assert len(self.run(problem(trials=6), failing)) > 1

    def test_it_hands_out_no_more_than_the_capacity_and_the_trials(self):
        requests = self.run(problem(trials=9), capacity=4)
        assert len(requests) <= 9

    def test_it_ends_when_everything_was_asked(self):
        p = problem(budget=140, trials=None, space="s3delta-l")
        assert len(self.run(p, limit=300)) < 300
