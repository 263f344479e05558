import math
from dataclasses import replace

import numpy as np
import pytest
from contract import StrategyContract, failing, flaky, problem
from hypothesis import given, settings
from hypothesis import strategies as st
from learning_curves import LADDER, Curves, Listed, Table, laddered, loras, search

from peftscout.outcome import Evaluate, Outcome, State
from peftscout.strategies import HalvingOptions, with_fidelity
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem
from peftscout.strategies.partial_runs import band_of
from peftscout.strategies.random import random_search
from peftscout.strategies.uniform import uniform

QUICK = AutoPeftOptions(initial=5, random_starts=8, starts=2, scan_limit=0)
FAST, MIDDLE, FULL = LADDER


def on_ladder(p: Problem) -> Problem:
    return replace(p, fidelity=laddered().fidelity)


def halved(inner, **options):
    return lambda p: with_fidelity(HalvingOptions(**options), inner, p)


halved_random = halved(random_search)


def halved_list(plans, **options):
    """A factory of halvings over a list of plans, and the inner strategies that they make."""
    made: list[Listed] = []

    def inner(p: Problem) -> Listed:
        made.append(Listed(plans, p))
        return made[-1]

    return halved(inner, **options), made


def steps_of(requests) -> list[int]:
    return [r.fidelity.steps for r in requests]


class TestRandomSearchHalved(StrategyContract):
    factory = staticmethod(lambda p: halved_random(on_ladder(p)))


class TestUniformHalved(StrategyContract):
    factory = staticmethod(lambda p: halved(uniform)(on_ladder(p)))


class TestAutoPeftHalved(StrategyContract):
    factory = staticmethod(lambda p: halved(lambda q: autopeft(q, QUICK))(on_ladder(p)))


# -- what it is for ---------------------------------------------------------------------------------------------------


def test_it_finds_as_good_a_plan_as_full_training_of_as_many_for_a_third_of_the_steps():
    ours, theirs, ratios = [], [], []
    for seed in range(8):
        halving = search(halved_random, laddered(trials=12, seed=seed, budget=3000, space="lora"), Curves(noise=0.01))
        full = search(
            random_search, laddered(trials=1 + halving.plans, seed=seed, budget=3000, space="lora"), Curves(noise=0.01)
        )
        ours.append(halving.best)
        theirs.append(full.best)
        ratios.append(full.steps / halving.steps)
    assert np.mean(ours) > np.mean(theirs) - 0.01
    assert np.median(ratios) > 2.5


def test_without_noise_the_best_of_all_plans_is_the_one_that_is_found():
    for seed in range(5):
        p = laddered(trials=12, seed=seed, budget=3000, space="lora")
        halving = search(halved_random, p, Curves())
        full = search(random_search, replace(p, trials=1 + halving.plans), Curves())
        assert halving.best == full.best


def test_for_the_same_steps_it_beats_full_training():
    ours, theirs = [], []
    for seed in range(8):
        p = laddered(trials=12, seed=seed, budget=3000, space="lora")
        ours.append(search(halved_random, p, Curves(noise=0.01)).best)
        theirs.append(search(random_search, p, Curves(noise=0.01)).best)
    assert np.mean(ours) > np.mean(theirs) + 0.01


def test_a_surrogate_is_taught_by_every_plan_and_not_by_the_survivors_alone():
    strategies = []

    def inner(p: Problem):
        strategies.append(autopeft(p, QUICK))
        return strategies[-1]

    found = search(halved(inner), laddered(trials=8, space="autopeft", budget=5000), Curves(noise=0.003))
    (surrogate,) = strategies
    best = surrogate.best_within(5000)
    assert best is not None  # it has learned: full scores alone would be too few, or only those of the best
    assert found.plans > 2 * 7
    assert {r.label for r in found.requests[1:]} >= {"autopeft", "autopeft: initial design"}


# -- the account of steps ---------------------------------------------------------------------------------------------


@settings(max_examples=25, deadline=None)
@given(
    trials=st.integers(1, 14),
    seed=st.integers(0, 1000),
    workers=st.integers(1, 4),
    noise=st.sampled_from([0.0, 0.02, 0.3]),
    answer=st.sampled_from(["curves", "meaningless", "flaky", "failing"]),
    ladder=st.sampled_from([LADDER, (7, 90), (3, 10, 30, 91)]),
    eta=st.integers(2, 4),
)
def test_whatever_happens_no_request_repeats_rungs_ascend_and_the_steps_are_kept(
    trials, seed, workers, noise, answer, ladder, eta
):
    p = laddered(ladder, trials=trials, seed=seed, budget=3000, lr_scales=(0.5, 1.0))
    answers = {"curves": Curves(noise), "meaningless": Curves(meaningless=True), "flaky": flaky, "failing": failing}
    found = search(halved_random if eta == 3 else halved(random_search, eta=eta), p, answers[answer], workers)
    keys = [r.key for r in found.requests]
    assert len(keys) == len(set(keys))
    assert found.steps <= trials * ladder[-1]
    assert all(0 < r.plan.cost(p.sites) <= 3000 for r in found.requests)
    assert all(r.fidelity.rungs == ladder for r in found.requests)
    by_plan: dict[tuple[str, float], list[int]] = {}
    for request in found.requests:
        by_plan.setdefault((request.plan.digest, request.lr_scale), []).append(request.fidelity.steps)
    assert all(asked == sorted(set(asked)) for asked in by_plan.values())
    if answer in ("curves", "meaningless") and trials > 1:
        assert found.finished
        assert found.steps > (trials - 2) * ladder[-1]


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 100), answer=st.sampled_from([Curves(0.02), Curves(meaningless=True), flaky]), data=st.data()
)
def test_a_search_that_was_cut_off_anywhere_goes_on_as_it_would_have(seed, answer, data):
    p = laddered(trials=10, seed=seed, budget=3000)
    whole = search(halved_random, p, answer)
    cut = data.draw(st.integers(0, len(whole.requests) - 1))
    again = halved_random(p)
    again.tell(whole.requests[0], whole.outcomes[0])
    for n in range(1, len(whole.requests)):
        (request,) = again.ask(1)
        assert request == whole.requests[n]
        recalled = Outcome.from_json(whole.outcomes[n].to_json()) if n <= cut else answer(p, request)
        again.tell(request, recalled)
    assert not again.ask(1)


@pytest.mark.parametrize("trials", [2, 3, 5])
def test_a_small_budget_still_trains_a_plan_to_the_end(trials):
    found = search(halved_random, laddered(trials=trials, budget=3000, space="lora"), Curves(noise=0.02))
    assert len(found.finished) >= 1
    assert found.plans == 1 if trials == 2 else found.plans > trials - 1


def test_one_trial_is_the_baseline():
    assert not halved_random(laddered(trials=1)).ask(4)


def test_without_a_limit_of_trials_an_exhausted_space_is_trained_to_the_end():
    found = search(halved(uniform), laddered(trials=None, budget=5000), Curves())
    assert found.plans == len(found.finished) == 4


def test_the_inner_strategy_plans_for_as_many_trials_as_halving_begins():
    factory, made = halved_list([])
    factory(laddered(trials=8))
    assert made[0].problem.trials == 1 + 7 * 90 * 9 // (9 * 10 + 3 * 20 + 60)
    factory(laddered(trials=None))
    assert made[1].problem.trials is None


# -- the rule ---------------------------------------------------------------------------------------------------------


def best_first(plans) -> Table:
    """Each plan is worse than the one before, at every rung."""
    return Table({plan: [0.5 + 0.01 * n - 0.001 * k for k in range(3)] for n, plan in enumerate(plans)})


def test_the_best_third_of_a_rung_goes_on_and_is_asked_for_before_new_plans():
    p = laddered(trials=30)
    plans = loras(p, *[1024] * 12)
    found = search(halved_list(plans)[0], p, best_first(plans))
    order = [(plans.index(r.plan), r.fidelity.steps) for r in found.requests[1:15]]
    assert order == [
        *[(0, 10), (1, 10), (2, 10), (0, 30)],
        *[(3, 10), (4, 10), (5, 10), (1, 30)],
        *[(6, 10), (7, 10), (8, 10), (2, 30), (0, 90)],
        (9, 10),
    ]


def test_a_plan_that_can_go_to_the_end_comes_before_one_that_can_leave_the_lowest_rung():
    p = laddered(trials=60)
    plans = loras(p, *[1024] * 12)
    strategy, answer = halved_list(plans)[0](p), best_first(plans)
    for capacity, steps in ((9, FAST), (3, MIDDLE)):
        batch = list(strategy.ask(capacity))
        assert steps_of(batch) == [steps] * capacity
        batch += strategy.ask(3) if steps == MIDDLE else []  # three more begin: twelve, of which four may go on
        for request in batch:
            strategy.tell(request, answer(p, request))
    assert [(plans.index(r.plan), r.fidelity.steps) for r in strategy.ask(2)] == [(0, FULL), (3, MIDDLE)]


def test_no_more_than_one_in_eta_goes_on_while_plans_are_begun():
    for eta in (2, 3, 4):
        found = search(
            halved(random_search, eta=eta, band_factor=math.inf),
            laddered(trials=20, budget=3000, space="lora"),
            Curves(),
        )
        last_new = max(n for n, r in enumerate(found.requests) if r.fidelity.steps == FAST)
        at = {s: sum(r.fidelity.steps == s for r in found.requests[1 : last_new + 1]) for s in LADDER}
        # a plan that falls back when better ones come has had its turn already
        assert at[MIDDLE] <= 1.5 * at[FAST] / eta + 1
        assert at[FULL] <= 1.5 * at[MIDDLE] / eta + 1


@pytest.mark.parametrize(("rank_by", "best"), [("loss", 0), ("score", 2)])
def test_plans_are_ranked_by_loss_or_by_score(rank_by, best):
    p = laddered(trials=30)
    plans = loras(p, 1024, 1024, 1024)

    def answer(problem, request):
        n = plans.index(request.plan) if request.plan in plans else 0
        cost = request.plan.cost(problem.sites)
        return Outcome(State.DONE, cost, 0.5 + 0.1 * n, {"accuracy": 0.5 + 0.1 * n, "loss": 0.5 + 0.1 * n})

    found = search(halved_list(plans, rank_by=rank_by)[0], p, answer)
    assert found.requests[4].fidelity.steps == MIDDLE
    assert found.requests[4].plan == plans[best]


def test_without_a_loss_it_is_ranked_by_score():
    p = laddered(trials=12, seed=1, budget=3000, space="lora")
    assert search(halved_random, p, Curves(without_loss=True)).requests == search(halved_random, p, Curves()).requests


def test_a_loss_that_is_not_finite_is_the_worst():
    p = laddered(trials=30)
    plans = loras(p, 1024, 1024, 1024)
    table = Table({plans[0]: [0.5] * 3, plans[1]: [0.6] * 3, plans[2]: [0.7] * 3})

    def answer(problem, request):
        outcome = table(problem, request)
        return replace(outcome, metrics={"loss": math.nan}) if request.plan == plans[0] else outcome

    assert search(halved_list(plans)[0], p, answer).requests[4].plan == plans[1]


def test_on_a_tie_the_cheaper_plan_goes_on_and_then_the_one_that_began_first():
    p = laddered(trials=30)
    for costs, best in ([1920, 1280, 1536], 1), ([1536, 1280, 1280], 1):
        plans = loras(p, *costs)
        found = search(halved_list(plans)[0], p, Table(dict.fromkeys(plans, [0.5] * 3)))
        assert found.requests[4].plan == plans[best]


@pytest.mark.parametrize("state", [s for s in State if s is not State.DONE])
def test_a_plan_without_a_score_is_never_asked_for_again_and_does_not_count_in_its_rung(state):
    p = laddered(trials=30)
    plans = loras(p, *[1024] * 4)
    table = Table({plans[0]: [state] * 3, plans[1]: [0.5, state, 0.5], plans[2]: [0.6] * 3, plans[3]: [0.7] * 3})
    requests = search(halved_list(plans)[0], p, table).requests[1:]
    asked = [(plans.index(r.plan), r.fidelity.steps) for r in requests]
    assert asked == [(0, 10), (1, 10), (2, 10), (3, 10), (1, 30), (2, 90), (3, 90)]


# -- bands ------------------------------------------------------------------------------------------------------------


@given(cost=st.integers(1, 10**9), budget=st.integers(1, 10**9), factor=st.sampled_from([1.5, 2, 4, 10, math.inf]))
def test_a_band_is_counted_down_from_the_budget(cost, budget, factor):
    cost = min(cost, budget)
    band = band_of(cost, budget, factor)
    assert cost * factor**band <= budget if band else True
    assert cost * factor ** (band + 1) > budget


def test_bands_are_a_factor_of_four_wide():
    assert [band_of(c, 6400, 4.0) for c in (6400, 1601, 1600, 401, 400, 1)] == [0, 0, 1, 1, 2, 6]


def cheap_and_dear(p: Problem):
    """Twelve dear plans, and six cheap ones which are all worse."""
    plans = loras(p, *[1920] * 12, *[128] * 6)
    mixed = [plan for pair in zip(plans[:6], plans[12:], strict=True) for plan in pair] + plans[6:12]
    losses = {plan: [0.3 + 0.01 * n + (0.3 if plan in plans[12:] else 0)] * 3 for n, plan in enumerate(mixed)}
    return mixed, plans[12:], Table(losses)


def test_a_cheap_plan_is_not_stopped_by_dear_ones_that_are_better():
    p = laddered(trials=9)
    plans, cheap, table = cheap_and_dear(p)
    in_bands = search(halved_list(plans)[0], p, table)
    together = search(halved_list(plans, band_factor=math.inf)[0], p, table)
    assert cheap[0] in {r.plan for r in in_bands.finished}  # the best of them
    assert not set(cheap) & {r.plan for r in together.finished}


def test_the_steps_that_bring_the_best_of_every_band_to_the_end_are_held_back():
    p = laddered(trials=4, budget=2000)
    plans = loras(p, 1984, 448, 64, *[1984] * 20)  # three bands; those who come later are all dear
    table = Table({plan: [0.5 - 0.01 * n] * 3 for n, plan in enumerate(plans)})
    found = search(halved_list(plans)[0], p, table)
    assert {band_of(r.plan.cost(p.sites), 2000, 4.0) for r in found.finished} == {0, 1, 2}


def test_what_is_left_at_the_end_goes_to_each_band_in_turn_the_best_first():
    p = laddered(trials=30)
    plans = loras(p, 1024, 1024, 128, 128)
    table = Table({plan: [loss] * 3 for plan, loss in zip(plans, (0.6, 0.5, 0.8, 0.7), strict=True)})
    ends = [r for r in search(halved_list(plans)[0], p, table).requests[1:] if r.fidelity.full]
    assert [plans.index(r.plan) for r in ends] == [1, 3, 0, 2]


# -- what the inner strategy hears ------------------------------------------------------------------------------------


def test_the_inner_strategy_has_the_problem_of_the_lowest_rung_and_hears_of_every_plan_there_at_once():
    p = laddered(trials=12)
    plans = loras(p, *[1024] * 9)
    factory, made = halved_list(plans)
    found = search(factory, p, best_first(plans))
    (inner,) = made
    assert inner.problem.fidelity == replace(p.fidelity, steps=FAST)
    told = inner.told[1:]
    assert [r.plan for r, _ in told] == plans
    assert all(r.fidelity.steps == outcome.steps == FAST for r, outcome in told)
    assert max(steps_of(found.requests)) == FULL


def test_of_the_baseline_it_hears_the_score_at_the_lowest_rung():
    p = laddered()
    factory, made = halved_list([])
    baseline = Evaluate(p.baseline, p.fidelity, p.seed)
    outcome = Curves()(p, baseline)
    factory(p).tell(baseline, outcome)
    ((request, early),) = made[0].told
    assert request == replace(baseline, fidelity=replace(p.fidelity, steps=FAST))
    assert early.score == outcome.curve[0][2] < outcome.score


@pytest.mark.parametrize("state", [State.DONE, State.DIVERGED])
def test_a_baseline_without_a_score_there_is_told_as_it_is(state):
    p = laddered()
    factory, made = halved_list([])
    told = Evaluate(p.baseline, p.fidelity, p.seed), Outcome(state, 100, 0.5 if state is State.DONE else None)
    factory(p).tell(*told)
    assert made[0].told == [told]


# -- many workers -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [2, 5, 16])
def test_many_workers_find_about_what_one_finds(workers):
    p = laddered(trials=12, budget=3000, space="lora")
    one, many = (search(halved_random, p, Curves(noise=0.01), n) for n in (1, workers))
    assert many.steps <= 12 * FULL
    assert abs(many.best - one.best) < 0.05


def test_at_the_end_free_workers_do_not_wait_for_each_other():
    p = laddered(trials=30)
    plans = loras(p, *[1024] * 2)
    strategy = halved_list(plans)[0](p)
    for request in strategy.ask(2):
        strategy.tell(request, Curves()(p, request))
    assert steps_of(strategy.ask(5)) == [FULL, FULL]


def test_paused_plans_are_not_taken_to_the_end_while_others_are_still_on_their_way():
    p = laddered(trials=30)
    plans = loras(p, *[1024] * 2)
    strategy = halved_list(plans)[0](p)
    first, second = strategy.ask(2)
    strategy.tell(first, Curves()(p, first))
    assert not strategy.ask(1)
    strategy.tell(second, Curves()(p, second))
    assert strategy.ask(1)


def test_the_contract_problem_is_the_one_that_is_put_on_a_ladder():
    assert replace(laddered(), fidelity=problem().fidelity) == problem()
