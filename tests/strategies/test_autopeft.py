import dataclasses
import math
from importlib import import_module

import numpy as np
import pytest
from contract import StrategyContract, done, drive, usefulness
from hypothesis import given, settings
from hypothesis import strategies as st

from fake_sites import fake_sites
from peftscout.errors import SpaceError
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget
from peftscout.space import load_space
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import lora_on_query_value
from peftscout.surrogate.staircase import Reference, hypervolume
from small_spaces import autopeft_space, layerwise_space

QUICK = AutoPeftOptions(initial=5, random_starts=24, starts=4, scan_limit=20_000)


def quick(problem):
    return autopeft(problem, QUICK)


def on(space, *, share: float = 0.5, trials: int | None = 16, seed: int = 0, lr_scales=(1.0,)) -> Problem:
    """A problem on ``space`` with a share of its dearest plan as budget."""
    budget = int(share * space.dearest().cost(space.sites))
    bound = Budget(budget, str(budget))
    baseline = lora_on_query_value(space.sites, bound).plan
    return Problem(space.sites, space, bound, baseline, Fidelity(10), trials, seed, lr_scales)


def noisy(problem: Problem, request: Evaluate) -> Outcome:
    rng = np.random.default_rng(int(request.key, 16))
    return Outcome(
        State.DONE,
        request.plan.cost(problem.sites),
        usefulness(request.plan, problem) + 0.003 * float(rng.standard_normal()),
    )


def volume(problem: Problem, requests) -> float:
    """Hypervolume of the noise-free scores over log cost."""
    costs = np.log10([r.plan.cost(problem.sites) for r in requests])
    scores = np.array([usefulness(r.plan, problem) for r in requests])
    return hypervolume(costs, scores, Reference(math.log10(1.25 * problem.budget.parameters), 0.0))


class TestAutoPeft(StrategyContract):
    factory = staticmethod(quick)


# -- what is proposed -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [autopeft_space(), layerwise_space()], ids=lambda s: s.name)
def test_everything_proposed_is_what_its_vector_decodes_to(space):
    """The release trains other configurations than it tells its model about."""
    p = on(space)
    for request in drive(quick, p, noisy)[1:]:
        assert space.decode(space.encode(request.plan)) == request.plan
        assert 0 < request.plan.cost(p.sites) <= p.budget.parameters


@settings(max_examples=5)
@given(seed=st.integers(0, 1000), share=st.sampled_from([0.02, 0.2, 1.0]))
def test_no_plan_is_repeated_empty_or_above_the_budget(seed, share):
    p = on(autopeft_space(), share=share, seed=seed, trials=12)
    requests = drive(quick, p, noisy, capacity=3)
    assert len({r.plan for r in requests}) == len(requests) == 12
    assert all(0 < r.plan.cost(p.sites) <= p.budget.parameters for r in requests)


def test_a_small_space_is_searched_to_its_end_and_no_further():
    p = on(layerwise_space(1), share=0.3, trials=None)
    strategy = quick(p)
    seen = []
    while batch := strategy.ask(4):
        seen += [r.plan for r in batch]
        for r in batch:
            strategy.tell(r, noisy(p, r))
    affordable = [
        plan
        for plan in (p.space.decode((a, b)) for a in range(5) for b in range(5))
        if 0 < plan.cost(p.sites) <= p.budget.parameters and plan != p.baseline
    ]
    assert set(seen) == set(affordable)
    assert len(seen) == len(affordable)


@pytest.mark.parametrize("choice", [{"surrogate": "saas"}, {"staircase": "samples"}, {"cost_axis": "linear"}])
def test_every_variant_of_the_surrogate_and_the_front_searches(choice):
    p = on(autopeft_space(), trials=10)
    requests = drive(lambda q: autopeft(q, dataclasses.replace(QUICK, **choice)), p, noisy, capacity=2)
    assert len({r.plan for r in requests}) == 10
    assert all(0 < r.plan.cost(p.sites) <= p.budget.parameters for r in requests)


def test_the_learning_rate_is_searched_along():
    p = on(layerwise_space(2), trials=40, lr_scales=(0.3, 1.0, 3.0))

    def likes_high_rates(problem, request):
        score = usefulness(request.plan, problem) + 0.2 * math.log10(request.lr_scale)
        return Outcome(State.DONE, request.plan.cost(problem.sites), score)

    requests = drive(quick, p, likes_high_rates)[1:]
    assert {r.lr_scale for r in requests[:12]} == {0.3, 1.0, 3.0}
    assert np.mean([r.lr_scale == 3.0 for r in requests[-15:]]) > 0.7
    assert len({r.key for r in requests}) == len(requests)


def test_the_plan_of_the_baseline_is_never_asked_for_at_any_learning_rate():
    space = load_space("lora", fake_sites())
    p = on(space, lr_scales=(0.5, 1.0, 2.0))
    p = dataclasses.replace(p, baseline=space.cheapest())
    assert space.cheapest() not in {r.plan for r in drive(quick, p, noisy)[1:]}


def test_a_budget_below_the_cheapest_plan_is_refused_before_anything_is_asked():
    p = on(autopeft_space())
    with pytest.raises(SpaceError, match=r"nothing fits into 3 parameters; the cheapest plan .* costs"):
        autopeft(dataclasses.replace(p, budget=Budget(3, "3")))


# -- determinism and replay -------------------------------------------------------------------------------------------


def test_another_seed_gives_another_search():
    first, second = (drive(quick, on(autopeft_space(), seed=s), noisy)[1:] for s in (0, 1))
    assert first[0].plan != second[0].plan or first[1].plan != second[1].plan


@pytest.mark.parametrize("space", [autopeft_space(), layerwise_space()], ids=lambda s: s.name)
def test_being_told_any_prefix_without_asking_gives_the_same_next_request(space):
    p = on(space)
    whole = drive(quick, p, noisy)
    for cut in range(1, len(whole)):
        resumed = quick(p)
        for request in whole[:cut]:
            resumed.tell(request, noisy(p, request))
        assert list(resumed.ask(1)) == [whole[cut]]


def test_requests_lost_in_a_crash_are_the_first_to_be_asked_again():
    p = on(autopeft_space())
    whole = drive(quick, p, noisy)[:9]

    def after_nine():
        strategy = quick(p)
        for request in whole:
            strategy.tell(request, noisy(p, request))
        return strategy

    running = list(after_nine().ask(3))
    assert list(after_nine().ask(3)) == running
    assert list(after_nine().ask(1)) == running[:1]


def test_asking_one_by_one_or_at_once_is_the_same():
    p = on(autopeft_space())
    for told in (3, 9):
        whole = drive(quick, p, noisy)[:told]
        one, many = quick(p), quick(p)
        for request in whole:
            one.tell(request, noisy(p, request))
            many.tell(request, noisy(p, request))
        assert [r for _ in range(3) for r in one.ask(1)] == list(many.ask(3))


def test_no_more_than_the_design_is_asked_for_before_it_taught_anything():
    p = on(autopeft_space(), trials=30)
    strategy = quick(p)
    first = Evaluate(p.baseline, p.fidelity, p.seed)
    strategy.tell(first, noisy(p, first))
    designed = list(strategy.ask(16))
    assert len(designed) == QUICK.initial - 1
    assert not strategy.ask(16)
    for request in designed:
        strategy.tell(request, noisy(p, request))
    assert {r.label for r in strategy.ask(16)} == {"autopeft"}


def test_running_requests_are_not_asked_again_and_steer_the_next_elsewhere():
    p = on(autopeft_space(), trials=None)
    strategy = quick(p)
    for request in drive(quick, p, noisy, limit=9):
        strategy.tell(request, noisy(p, request))
    batch = strategy.ask(6)
    assert len({r.plan for r in batch}) == 6
    assert len({r.plan.cost(p.sites) for r in batch}) > 1


def test_a_batch_taken_from_one_scan_is_that_of_a_scan_for_each_request(monkeypatch):
    """The shortcut of the head of the ranking is exact: without a bound, every request is maximised anew."""
    p = on(autopeft_space(4), trials=None)
    history = drive(quick, p, noisy, limit=10)

    def batch():
        strategy = quick(p)
        for request in history:
            strategy.tell(request, noisy(p, request))
        return list(strategy.ask(4))

    quickly = batch()
    module = import_module(autopeft.__module__)
    exact = module.scan
    monkeypatch.setattr(module, "scan", lambda *a: dataclasses.replace(exact(*a), bound=None))
    assert batch() == quickly


# -- outcomes that are no scores --------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [s for s in State if s is not State.DONE])
def test_an_outcome_without_a_score_never_enters_the_surrogate(state):
    p = on(autopeft_space())
    strategy, twin = quick(p), quick(p)
    history = drive(quick, p, noisy)[:8]
    for request in history:
        strategy.tell(request, noisy(p, request))
        twin.tell(request, noisy(p, request))
    (request,) = strategy.ask(1)
    strategy.tell(request, Outcome(state, request.plan.cost(p.sites), message="on purpose"))
    best, without = (s.best_within(p.budget.parameters) for s in (strategy, twin))
    assert best == without
    assert strategy.ask(1)[0].plan != request.plan


def test_a_region_where_runs_diverge_is_left(monkeypatch):
    space = autopeft_space()
    column = [v.name for v in space.variables].index("parallel")

    def is_large(request):
        return space.contains(request.plan) and space.encode(request.plan)[column] >= 3

    def diverges(problem, request):
        cost = request.plan.cost(problem.sites)
        return Outcome(State.DIVERGED, cost, message="nan") if is_large(request) else noisy(problem, request)

    def diverged_runs() -> int:
        problems = [on(space, share=1.0, trials=25, seed=seed) for seed in (0, 1)]
        return sum(is_large(r) for p in problems for r in drive(quick, p, diverges)[5:])

    with_avoidance = diverged_runs()
    monkeypatch.setattr("peftscout.strategies.autopeft_model.Model._success", lambda *a: None)
    assert with_avoidance < 0.7 * diverged_runs()


def test_when_everything_fails_the_design_goes_on():
    p = on(autopeft_space(), trials=15)
    requests = drive(quick, p, lambda q, r: Outcome(State.FAILED, r.plan.cost(q.sites), message="x"))
    assert len(requests) == 15


def test_a_score_of_a_cheaper_fidelity_is_not_mixed_with_full_ones():
    p = on(autopeft_space())
    strategy, twin = quick(p), quick(p)
    for request in drive(quick, p, noisy)[:8]:
        strategy.tell(request, noisy(p, request))
        twin.tell(request, noisy(p, request))
    (request,) = twin.ask(1)
    cheap = dataclasses.replace(request, fidelity=Fidelity(2))
    strategy.tell(cheap, Outcome(State.DONE, request.plan.cost(p.sites), 0.999))
    assert strategy.best_within(p.budget.parameters) == twin.best_within(p.budget.parameters)


# -- reference and budget queries -------------------------------------------------------------------------------------


def test_the_reference_score_is_set_when_the_design_is_told_and_never_moves():
    p = on(autopeft_space(), trials=20)
    strategy = quick(p)
    first = Evaluate(p.baseline, p.fidelity, p.seed)
    strategy.tell(first, done(p, first))
    scores, seen = [done(p, first).score], []
    while batch := strategy.ask(1):
        outcome = noisy(p, batch[0])
        strategy.tell(batch[0], outcome)
        scores.append(outcome.score)
        seen.append(strategy.reference_score)
    assert seen[:3] == [None] * 3
    assert set(seen[3:]) == {float(np.quantile(scores[:5], 0.1))}


def test_a_given_reference_score_stands_from_the_start():
    p = on(autopeft_space())
    strategy = autopeft(p, dataclasses.replace(QUICK, reference_score=0.3))
    assert strategy.reference_score == 0.3
    for request in drive(quick, p, noisy):
        strategy.tell(request, noisy(p, request))
    assert strategy.reference_score == 0.3


def test_the_score_of_the_majority_class_is_the_reference_from_the_start():
    p = dataclasses.replace(on(autopeft_space()), reference_score=0.25)
    strategy = quick(p)
    assert strategy.reference_score == 0.25
    for request in drive(quick, p, noisy):
        strategy.tell(request, noisy(p, request))
    assert strategy.reference_score == 0.25
    assert autopeft(p, dataclasses.replace(QUICK, reference_score=0.3)).reference_score == 0.3


def test_the_reference_score_decides_what_is_asked():
    """Without a floor near the scores, the cheapest plans are worth most; with one, they are worth nothing."""
    p = on(autopeft_space(), share=1.0, trials=16)
    low, high = (
        np.median([r.plan.cost(p.sites) for r in drive(quick, dataclasses.replace(p, reference_score=s), noisy)[6:]])
        for s in (-2.0, 0.6)
    )
    assert low < high


def test_a_budget_query_needs_no_new_training_and_keeps_to_its_budget():
    p = on(autopeft_space(), share=1.0, trials=25)
    strategy = quick(p)
    assert strategy.best_within(p.budget.parameters) is None
    assert strategy.propose_within(p.budget.parameters) is None
    history = drive(quick, p, noisy)
    for request in history:
        strategy.tell(request, noisy(p, request))
    for limit in (p.budget.parameters, p.budget.parameters // 10):
        best, new = strategy.best_within(limit), strategy.propose_within(limit)
        assert best is not None
        assert new is not None
        assert best.cost == best.plan.cost(p.sites) <= limit
        assert 0 < new.cost == new.plan.cost(p.sites) <= limit
        affordable = [r for r in history[1:] if r.plan.cost(p.sites) <= limit]
        assert best.plan in {r.plan for r in affordable}
        assert new.plan not in {r.plan for r in history}
        top = max(usefulness(r.plan, p) for r in affordable)
        assert usefulness(best.plan, p) > top - 0.03
    assert strategy.propose_within(1) is None
    assert strategy.best_within(1) is None


def test_a_proposal_for_a_budget_query_is_no_request():
    p = on(autopeft_space(), trials=12)
    strategy = quick(p)
    for request in drive(quick, p, noisy)[:9]:
        strategy.tell(request, noisy(p, request))
    before = strategy.propose_within(p.budget.parameters)
    assert strategy.propose_within(p.budget.parameters) == before
    assert before is not None
    assert strategy.ask(1)[0].plan == before.plan


# -- transfer ---------------------------------------------------------------------------------------------------------


def test_the_front_of_another_study_opens_the_design():
    p = on(autopeft_space(), trials=20)
    source = [(r, noisy(p, r)) for r in drive(quick, p, noisy)]
    seeded = drive(lambda q: autopeft(q, QUICK, source), dataclasses.replace(p, seed=1), noisy)
    inside = [(r, o) for r, o in source if p.space.contains(r.plan)]
    best = max(inside, key=lambda pair: pair[1].score)[0].plan
    assert seeded[1].plan == best


def test_transfer_from_a_related_study_helps_early():
    p = on(layerwise_space(4), trials=30)
    source = [(r, noisy(p, r)) for r in drive(quick, p, noisy)]
    gains = []
    for seed in (7, 8, 9):
        target = dataclasses.replace(p, seed=seed, trials=9)
        helped = volume(target, drive(lambda q: autopeft(q, QUICK, source), target, noisy)[1:])
        gains.append(helped - volume(target, drive(quick, target, noisy)[1:]))
    assert np.mean(gains) > 0


def test_a_prior_of_failures_and_foreign_plans_is_no_prior():
    p = on(autopeft_space())
    baseline = Evaluate(p.baseline, p.fidelity, 0)
    useless = [(baseline, done(p, baseline)), (baseline, Outcome(State.FAILED, 5, message="x"))]
    assert drive(lambda q: autopeft(q, QUICK, useless), p, noisy) == drive(quick, p, noisy)


# -- what another study observed of the same problem ------------------------------------------------------------------


def observing(p: Problem, requests, **changes) -> Problem:
    return dataclasses.replace(p, observed=tuple((r, noisy(p, r)) for r in requests), **changes)


def test_what_was_observed_elsewhere_takes_the_place_of_the_design():
    p = on(autopeft_space(), trials=14)
    source = drive(quick, p, noisy)
    strategy = quick(observing(p, source, seed=1))
    assert strategy.reference_score is not None
    (request,) = strategy.ask(1)
    assert request.label == "autopeft"
    assert request.seed == 1


def test_what_was_observed_elsewhere_is_never_asked_again_even_under_another_seed():
    p = on(autopeft_space(), trials=14)
    source = drive(quick, p, noisy)
    asked = drive(quick, observing(p, source, seed=1), noisy)[1:]
    assert len(asked) == 13  # and costs no trial
    assert {r.plan for r in asked}.isdisjoint({r.plan for r in source})


def test_a_search_told_what_another_observed_asks_what_that_one_would_have_asked():
    p = on(autopeft_space(), trials=None)
    whole = drive(quick, p, noisy, limit=12)
    heir = quick(observing(p, whole[:9]))
    assert [heir.ask(1)[0].plan] == [whole[9].plan]


def test_a_smaller_budget_starts_from_what_a_larger_one_observed():
    p = on(autopeft_space(), share=1.0, trials=25)
    history = drive(quick, p, noisy)
    small = p.budget.parameters // 10
    strategy = quick(observing(p, history, budget=Budget(small, str(small))))
    best = strategy.best_within(small)
    assert best is not None
    assert best.plan in {r.plan for r in history if r.plan.cost(p.sites) <= small}
    (request,) = strategy.ask(1)
    assert 0 < request.plan.cost(p.sites) <= small
    larger = quick(p)
    for told in history:
        larger.tell(told, noisy(p, told))
    assert best.plan == larger.best_within(small).plan


def test_what_was_observed_elsewhere_helps_early():
    p = on(layerwise_space(4), trials=20)
    source = drive(quick, p, noisy)
    gains = []
    for seed in (7, 8, 9):
        target = dataclasses.replace(p, seed=seed, trials=6)
        heir = drive(quick, observing(target, source), noisy)[1:]
        alone = drive(quick, target, noisy)[1:]
        gains.append(volume(p, [*source, *heir]) - volume(p, [*source, *alone]))
    assert np.mean(gains) > 0


def test_a_study_of_another_task_is_a_prior_wherever_it_comes_from():
    p = on(autopeft_space(), trials=12)
    source = tuple((r, noisy(p, r)) for r in drive(quick, p, noisy))
    target = dataclasses.replace(p, seed=1)
    given = drive(lambda q: autopeft(q, QUICK, source), target, noisy)
    assert drive(quick, dataclasses.replace(target, related=source), noisy) == given


# -- it optimises -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [autopeft_space(), layerwise_space(6)], ids=lambda s: s.name)
def test_it_finds_a_better_front_than_random_plans_of_the_space(space):
    p = on(space, trials=30)
    found = drive(quick, p, noisy)[1:]
    rng = np.random.default_rng(0)
    ours = volume(p, found)
    for _ in range(5):
        drawn = []
        while len(drawn) < len(found):
            plan = space.sample(rng)
            if plan.cost(p.sites) <= p.budget.parameters or rng.random() < 0.02:
                drawn.append(space.repair(plan, p.budget, rng))
        assert ours > volume(p, [Evaluate(plan, p.fidelity, 0) for plan in drawn])


def test_the_model_finds_a_better_front_than_the_design_alone():
    p = on(layerwise_space(6), trials=40)
    designed = drive(lambda q: autopeft(q, dataclasses.replace(QUICK, initial=40)), p, noisy)
    assert volume(p, drive(quick, p, noisy)) > 1.02 * volume(p, designed)
