import re
from dataclasses import replace

import numpy as np
from contract import StrategyContract, failing, flaky, usefulness
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_curves import LADDER, Curves, Listed, laddered, loras, search

from peftscout.outcome import Evaluate, Outcome, State
from peftscout.strategies import EarlyStopOptions, with_fidelity
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem, trials_used
from peftscout.strategies.random import random_search
from peftscout.strategies.stop_rule import Course
from peftscout.strategies.uniform import uniform

QUICK = AutoPeftOptions(initial=5, random_starts=8, starts=2, scan_limit=0)
FAST, MIDDLE, FULL = LADDER
CLEAR = Curves(noise=0.002)


def on_ladder(p: Problem) -> Problem:
    return replace(p, fidelity=laddered().fidelity)


def stopping(inner, **options):
    return lambda p: with_fidelity(EarlyStopOptions(**options), inner, p)


stopping_random = stopping(random_search)


class TestRandomSearchStopped(StrategyContract):
    factory = staticmethod(lambda p: stopping_random(on_ladder(p)))


class TestUniformStopped(StrategyContract):
    factory = staticmethod(lambda p: stopping(uniform)(on_ladder(p)))


class TestAutoPeftStopped(StrategyContract):
    factory = staticmethod(lambda p: stopping(lambda q: autopeft(q, QUICK))(on_ladder(p)))


def problem_of(**options) -> Problem:
    return laddered(**{"trials": 40, "budget": 3000, "space": "lora"} | options)


def runs_of(requests) -> dict[str, list[int]]:
    """Steps asked for, by plan, without the baseline."""
    runs: dict[str, list[int]] = {}
    for request in requests[1:]:
        runs.setdefault(request.course, []).append(request.fidelity.steps)
    return runs


# -- what it is for ---------------------------------------------------------------------------------------------------


def test_for_the_same_steps_more_plans_are_tried_and_none_the_worse_is_found():
    ours, theirs, plans = [], [], []
    for seed in range(4):
        found = search(stopping_random, problem_of(seed=seed), CLEAR)
        plain = search(random_search, problem_of(seed=seed), CLEAR)
        ours.append(found.best)
        theirs.append(plain.best)
        plans.append(found.plans / plain.plans)
        assert found.steps <= plain.steps
    assert np.mean(plans) > 1.3
    assert np.mean(ours) >= np.mean(theirs)


def test_what_is_stopped_is_not_on_the_front_that_full_training_would_have_found():
    p = problem_of(trials=60)
    found = search(stopping_random, p, CLEAR)
    final = {r.plan: usefulness(r.plan, p) for r in found.requests}
    stopped = {plan for plan in final if not any(r.plan == plan and r.fidelity.full for r in found.requests)}
    finished = [(r.plan.cost(p.sites), usefulness(r.plan, p)) for r in found.finished]
    assert len(stopped) > 10
    beaten = [any(c <= plan.cost(p.sites) and s >= final[plan] for c, s in finished) for plan in stopped]
    assert np.mean(beaten) > 0.9


def test_while_nothing_is_known_every_run_goes_to_its_end_in_one_piece():
    found = search(stopping_random, problem_of(trials=6), CLEAR)
    assert [r.fidelity.steps for r in found.requests] == [FULL] * 6
    assert found.strategy.note is None


def test_a_run_that_is_not_stopped_goes_on_from_the_rung_where_it_was_halted():
    found = search(stopping_random, problem_of(), CLEAR)
    runs = runs_of(found.requests).values()
    assert any(len(steps) == 1 and steps[0] < FULL for steps in runs)
    assert any(len(steps) > 1 and steps[-1] == FULL for steps in runs)
    assert all(steps == sorted(set(steps)) for steps in runs)


def test_rungs_that_say_nothing_stop_nothing():
    found = search(stopping_random, problem_of(trials=25), Curves(meaningless=True))
    assert len(found.finished) >= 22


def test_the_correlation_is_told_when_stopping_begins():
    found = search(stopping_random, problem_of(), CLEAR)
    assert found.strategy.note.startswith("runs that cannot enter the front are stopped after 10 or 30 steps from now")
    told = re.search(r"rank correlation with the end after 10 steps: ([\d.]+) over (\d+) plans", found.strategy.note)
    assert float(told[1]) >= 0.5
    assert int(told[2]) >= 8


def test_stopping_is_given_up_and_that_is_told_when_the_rungs_turn_out_to_mislead():
    p = problem_of(trials=60)
    strategy = stopping_random(p)
    ended = 0

    def turning(problem: Problem, request: Evaluate) -> Outcome:
        nonlocal ended
        ended += 1
        return (CLEAR if ended < 20 else Curves(meaningless=True))(problem, request)

    strategy = search(stopping_random, p, turning).strategy
    assert strategy.note.startswith("no run is stopped from now on; rank correlation with the end after 10 steps:")


# -- what the inner strategy is told ----------------------------------------------------------------------------------


def test_the_inner_strategy_is_told_each_plan_once_at_the_fidelity_that_it_asked_for():
    p = problem_of()
    made: list[Listed] = []

    def inner(q: Problem) -> Listed:
        made.append(Listed(loras(q, *[64 * (1 + n % 20) for n in range(60)]), q))
        return made[-1]

    search(stopping(inner), p, CLEAR)
    (listed,) = made
    told = [r for r, _ in listed.told]
    assert len({r.key for r in told}) == len(told)
    assert {r.fidelity for r in told} == {p.fidelity}
    states = [o.state for _, o in listed.told]
    assert states.count(State.PRUNED) > 5
    assert all(o.curve and o.steps < FULL for _, o in listed.told if o.state is State.PRUNED)


def test_a_stopped_run_takes_its_share_of_the_trials():
    p = problem_of()
    request = Evaluate(p.baseline, p.fidelity, 0)
    assert trials_used(request, Outcome(State.PRUNED, 5, steps=FAST)) == FAST / FULL
    assert trials_used(request, Outcome(State.DIVERGED, 5, steps=FAST)) == 1
    assert trials_used(request, Outcome(State.PRUNED, 5)) == 1


def test_the_surrogate_is_taught_by_runs_that_were_stopped_and_they_never_count_as_evaluated():
    p = laddered(trials=40, space="autopeft", budget=5000)
    strategies = []

    def inner(q: Problem):
        strategies.append(autopeft(q, QUICK))
        return strategies[-1]

    found = search(stopping(inner), p, CLEAR)
    (surrogate,) = strategies
    stopped = surrogate._model.stopped(surrogate._known)
    assert stopped
    assert found.plans > 39
    misses = [abs(expected - usefulness(told.request.plan, p)) for told, expected in stopped]
    at_the_rung = [
        abs(Course.of(told.outcome).rungs[told.outcome.steps] - usefulness(told.request.plan, p)) for told, _ in stopped
    ]
    assert np.median(misses) < 0.3 * np.median(at_the_rung)
    best = surrogate.best_within(5000)
    assert best.score is not None
    assert best.plan in {r.plan for r in found.finished}


# -- whatever happens -------------------------------------------------------------------------------------------------


@settings(max_examples=20, deadline=None)
@given(
    trials=st.integers(1, 25),
    seed=st.integers(0, 1000),
    workers=st.integers(1, 4),
    answer=st.sampled_from([CLEAR, Curves(noise=0.3), Curves(meaningless=True), flaky, failing]),
    ladder=st.sampled_from([LADDER, (7, 90), (3, 10, 30, 91)]),
)
def test_no_request_repeats_rungs_ascend_and_the_steps_are_kept(trials, seed, workers, answer, ladder):
    p = laddered(ladder, trials=trials, seed=seed, budget=3000, lr_scales=(0.5, 1.0))
    found = search(stopping(random_search, least_plans=4), p, answer, workers)
    keys = [r.key for r in found.requests]
    assert len(keys) == len(set(keys))
    assert found.steps <= trials * ladder[-1]
    assert all(0 < r.plan.cost(p.sites) <= 3000 for r in found.requests)
    assert all(steps == sorted(set(steps)) for steps in runs_of(found.requests).values())
    if isinstance(answer, Curves):
        assert found.steps > (trials - 1) * ladder[-1]


@settings(max_examples=6, deadline=None)
@given(seed=st.integers(0, 100), answer=st.sampled_from([CLEAR, Curves(meaningless=True), flaky]), data=st.data())
def test_a_search_that_was_cut_off_anywhere_goes_on_as_it_would_have(seed, answer, data):
    p = problem_of(trials=20, seed=seed)
    whole = search(stopping_random, p, answer)
    cut = data.draw(st.integers(0, len(whole.requests) - 1))
    again = stopping_random(p)
    again.tell(whole.requests[0], whole.outcomes[0])
    for n in range(1, len(whole.requests)):
        (request,) = again.ask(1)
        assert request == whole.requests[n]
        again.tell(request, Outcome.from_json(whole.outcomes[n].to_json()) if n <= cut else answer(p, request))
    assert not again.ask(1)


def test_what_another_study_observed_teaches_the_rule_before_the_first_run():
    p = problem_of()
    source = search(random_search, p, CLEAR)
    taught = replace(p, seed=1, observed=tuple(zip(source.requests, source.outcomes, strict=True)))
    found = search(stopping_random, taught, CLEAR)
    assert found.requests[1].fidelity.steps == FAST
