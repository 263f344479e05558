from dataclasses import replace

import numpy as np
import pytest
from contract import StrategyContract, failing, flaky
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_curves import Curves, Listed, Table, laddered, loras, search

from peftscout.outcome import Evaluate, State
from peftscout.strategies import OneEpochOptions, with_fidelity
from peftscout.strategies.random import random_search
from peftscout.strategies.uniform import uniform

EPOCH, FULL = LADDER = (30, 90)


def kept(inner, **options):
    return lambda p: with_fidelity(OneEpochOptions(**options), inner, p)


best_of_random = kept(random_search)


def lora_problem(**arguments):
    return laddered(LADDER, **{"budget": 3000, "space": "lora"} | arguments)


class TestOneEpoch(StrategyContract):
    factory = staticmethod(lambda p: best_of_random(replace(p, fidelity=lora_problem().fidelity)))


class TestUniformForOneEpoch(StrategyContract):
    factory = staticmethod(lambda p: kept(uniform)(replace(p, fidelity=lora_problem().fidelity)))


# -- the rule ---------------------------------------------------------------------------------------------------------


def test_every_plan_runs_for_an_epoch_and_then_the_best_three_run_to_the_end_the_best_first():
    p = lora_problem(trials=10)
    plans = loras(p, *[1024] * 8)
    losses = (0.5, 0.3, 0.6, 0.4, 0.7, 0.2, 0.8, 0.9)
    table = Table({plan: [loss, 1 - loss] for plan, loss in zip(plans, losses, strict=True)})
    requests = search(kept(lambda q: Listed(plans, q)), p, table).requests[1:]
    assert [(plans.index(r.plan), r.fidelity.steps) for r in requests] == [
        *[(n, EPOCH) for n in range(8)],
        *[(n, FULL) for n in (5, 1, 3)],
    ]


@pytest.mark.parametrize("keep", [1, 2, 5])
def test_so_many_are_kept_as_asked_for(keep):
    found = search(kept(random_search, keep=keep), lora_problem(trials=12), Curves())
    assert len(found.finished) == keep


def test_the_rest_of_the_trials_goes_into_new_plans():
    found = search(best_of_random, lora_problem(trials=12), Curves())
    assert found.plans == (11 * FULL - 3 * (FULL - EPOCH)) // EPOCH
    assert found.steps == 12 * FULL


@pytest.mark.parametrize(("trials", "finished"), [(1, 0), (2, 1), (3, 2), (4, 3), (5, 3)])
def test_no_more_are_kept_than_the_trials_allow(trials, finished):
    found = search(best_of_random, lora_problem(trials=trials), Curves())
    assert len(found.finished) == finished
    assert found.steps <= trials * FULL


@pytest.mark.parametrize(("rank_by", "best"), [("loss", 0), ("score", 1)])
def test_plans_are_ranked_by_loss_or_by_score(rank_by, best):
    p = lora_problem(trials=10)
    plans = loras(p, 1024, 1024)

    def answer(problem, request):
        outcome = Table({plans[0]: [0.2, 0.2], plans[1]: [0.4, 0.4]})(problem, request)
        return replace(outcome, score=1 - outcome.score)

    found = search(kept(lambda q: Listed(plans, q), keep=1, rank_by=rank_by), p, answer)
    assert [r.plan for r in found.finished] == [plans[best]]


def test_the_next_best_takes_the_place_of_one_that_failed_where_there_are_steps_left():
    p = lora_problem(trials=10)
    plans = loras(p, *[1024] * 4)
    table = Table({plan: [0.1 * n, State.DIVERGED if n == 0 else 0.1 * n] for n, plan in enumerate(plans)})
    found = search(kept(lambda q: Listed(plans, q), keep=2), p, table)
    assert [r.plan for r in found.finished] == plans[1:3]


def test_no_place_is_taken_where_the_steps_do_not_reach():
    p = lora_problem(trials=4)
    plans = loras(p, *[1024] * 5)
    table = Table({plan: [0.1 * n, State.DIVERGED if n == 0 else 0.1 * n] for n, plan in enumerate(plans)})
    found = search(kept(lambda q: Listed(plans, q), keep=2), p, table)
    assert [r.plan for r in found.finished] == plans[1:2]
    assert found.steps == 4 * FULL


def test_a_plan_that_failed_in_its_epoch_is_not_kept():
    p = lora_problem(trials=10)
    plans = loras(p, *[1024] * 3)
    table = Table({plans[0]: [State.FAILED, 0.0], plans[1]: [0.5, 0.5], plans[2]: [0.4, 0.4]})
    found = search(kept(lambda q: Listed(plans, q), keep=2), p, table)
    assert [r.plan for r in found.finished] == [plans[2], plans[1]]


# -- what it promises -------------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    trials=st.integers(1, 10),
    seed=st.integers(0, 1000),
    workers=st.integers(1, 4),
    keep=st.integers(1, 6),
    answer=st.sampled_from([Curves(0.05), Curves(meaningless=True), flaky, failing]),
    ladder=st.sampled_from([LADDER, (1, 90), (89, 90)]),
)
def test_whatever_happens_no_request_repeats_and_the_steps_are_kept(trials, seed, workers, keep, answer, ladder):
    p = laddered(ladder, trials=trials, seed=seed, budget=3000, space="lora")
    found = search(kept(random_search, keep=keep), p, answer, workers, limit=300)
    keys = [r.key for r in found.requests]
    assert len(keys) == len(set(keys))
    assert found.steps <= trials * ladder[-1]
    assert len(found.finished) <= keep
    order = [r.fidelity.steps for r in found.requests[1:]]
    assert order == sorted(order)  # all epochs come before all full trainings


def test_a_search_that_was_cut_off_anywhere_goes_on_as_it_would_have():
    p = lora_problem(trials=6, seed=4)
    whole = search(best_of_random, p, flaky)
    again = best_of_random(p)
    again.tell(whole.requests[0], whole.outcomes[0])
    for request, outcome in zip(whole.requests[1:], whole.outcomes[1:], strict=True):
        assert again.ask(1) == [request]
        again.tell(request, outcome)
    assert not again.ask(1)


def test_free_workers_wait_for_the_last_epoch_and_then_share_the_full_trainings():
    p = lora_problem(trials=10)
    plans = loras(p, *[1024] * 4)
    strategy = kept(lambda q: Listed(plans, q))(p)
    epochs = list(strategy.ask(9))
    assert len(epochs) == 4
    for request in epochs[:-1]:
        strategy.tell(request, Curves()(p, request))
        assert not strategy.ask(1)
    strategy.tell(epochs[-1], Curves()(p, epochs[-1]))
    assert [r.fidelity.steps for r in strategy.ask(9)] == [FULL] * 3


def test_the_inner_strategy_hears_of_epochs_alone_the_baselines_included():
    made = []

    def inner(p):
        made.append(Listed(loras(p, *[1024] * 4), p))
        return made[-1]

    p = lora_problem(trials=10)
    search(kept(inner), p, Curves())
    assert made[0].problem.fidelity == replace(p.fidelity, steps=EPOCH)
    assert [r.fidelity.steps for r, _ in made[0].told] == [EPOCH] * 5
    assert made[0].told[0][0] == Evaluate(p.baseline, replace(p.fidelity, steps=EPOCH), p.seed)


def test_it_finds_better_plans_than_full_training_for_the_same_steps_when_an_epoch_tells():
    ours, theirs = [], []
    for seed in range(6):
        p = lora_problem(trials=8, seed=seed)
        ours.append(search(best_of_random, p, Curves(noise=0.01)).best)
        theirs.append(search(random_search, p, Curves(noise=0.01)).best)
    assert np.mean(ours) > np.mean(theirs)
