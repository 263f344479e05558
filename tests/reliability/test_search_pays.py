"""R25: on a problem whose optimum is known, no search is worse than drawing at random, nor than what everyone uses.

Equal trials, equal budget, fixed seeds. That it is better on real tasks is measured (docs/search_quality.md), not
asserted here.
"""

from __future__ import annotations

import numpy as np
import pytest

from figures import record
from peftscout.cost import OPS
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.plan import Plan
from peftscout.strategies import make_strategy
from peftscout.strategies.base import Problem
from strategies.contract import done, drive, problem, usefulness

SEEDS = range(4)
TRIALS = 24
CASES = {
    "autopeft": ("autopeft", {"initial": 8, "random_starts": 32, "starts": 4}),
    "design-spaces": ("all", {"models": 4, "least_models": 2, "reference": 4}),
}
"""Strategy -> the space that it searches, and options that make it quick. Supernets have theirs in tests/strategies."""


def on(space: str, seed: int = 0) -> Problem:
    return problem(budget=3000, trials=TRIALS, seed=seed, space=space)


def best(strategy: str, space: str, seed: int, options: dict[str, int] | None = None) -> float:
    p = on(space, seed)
    requests = drive(lambda q: make_strategy(strategy, q, options or {}), p, done)
    assert len(requests) <= TRIALS
    return max(usefulness(request.plan, p) for request in requests)


@pytest.mark.parametrize("strategy", CASES)
def test_a_search_is_not_worse_than_random_plans_beyond_noise_nor_than_the_default(strategy):
    space, options = CASES[strategy]
    ours, chance = (
        np.array([best(name, space, seed, given) for seed in SEEDS])
        for name, given in ((strategy, options), ("random", None))
    )
    noise = 2 * (chance.std(ddof=1) + ours.std(ddof=1)) / np.sqrt(len(SEEDS))
    assert ours.mean() >= chance.mean() - noise
    assert min(ours.min(), chance.min()) >= usefulness(on(space).baseline, on(space))
    record("searches held against random search and the default", len(SEEDS))


def worth(plan: Plan, p: Problem) -> float:
    """In (0, 1): some placements help and others harm, whatever they cost, so that using a budget up is not enough."""
    number = {site: n for n, site in enumerate(p.sites)}
    total = sum(
        ((number[place.site] * 37 + OPS.index(place.op) * 5) % 11 / 5 - 0.8)
        * np.sqrt(p.sites[place.site].out_features * place.size)
        for place in plan
    )
    return float(1 / (1 + np.exp(-total / 60)))


def test_where_modules_can_harm_a_model_of_the_scores_beats_drawing_at_random():
    def found(strategy: str, seed: int, options: dict[str, int] | None = None) -> float:
        def answer(p: Problem, request: Evaluate) -> Outcome:
            return Outcome(State.DONE, request.plan.cost(p.sites), worth(request.plan, p))

        p = on("autopeft", seed)
        requests = drive(lambda q: make_strategy(strategy, q, options or {}), p, answer)
        return max(worth(request.plan, p) for request in requests)

    ours = np.mean([found("autopeft", seed, CASES["autopeft"][1]) for seed in SEEDS])
    chance = np.mean([found("random", seed) for seed in SEEDS])
    assert ours > chance > worth(on("autopeft").baseline, on("autopeft"))
    record("searches held against random search and the default", len(SEEDS))


def test_the_yardstick_can_tell_good_from_bad():
    p = on("all")
    assert usefulness(p.space.cheapest(), p) < 0.9 * usefulness(p.baseline, p)
