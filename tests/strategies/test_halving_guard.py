"""The guard of successive halving: what happens when the rungs turn out to rank differently."""

from learning_curves import LADDER, Curves, Listed, Table, laddered, loras, search

from peftscout.outcome import State
from peftscout.strategies import HalvingOptions, with_fidelity
from peftscout.strategies.autopeft import AutoPeftOptions, autopeft
from peftscout.strategies.base import Problem
from peftscout.strategies.halving import SuccessiveHalving
from peftscout.strategies.random import random_search

QUICK = AutoPeftOptions(initial=5, random_starts=8, starts=2, scan_limit=0)
FAST, MIDDLE, FULL = LADDER


def halved(inner, **options):
    return lambda p: with_fidelity(HalvingOptions(**options), inner, p)


def halved_list(plans):
    """A factory of halvings over a list of plans, and the inner strategies that they make."""
    made: list[Listed] = []

    def inner(p: Problem) -> Listed:
        made.append(Listed(plans, p))
        return made[-1]

    return halved(inner), made


def guarded(p: Problem, answer, **options) -> SuccessiveHalving:
    strategy = search(halved(random_search, **options), p, answer).strategy
    assert isinstance(strategy, SuccessiveHalving)
    return strategy


def test_rungs_that_say_nothing_of_each_other_turn_halving_off_and_it_says_so():
    tripped = [
        guarded(laddered(trials=30, seed=s, budget=3000, space="lora"), Curves(meaningless=True)).note for s in range(8)
    ]
    assert sum(note is not None for note in tripped) >= 7
    assert "no plan is stopped any more: the ranks of " in next(note for note in tripped if note)


def test_rungs_that_agree_leave_it_on():
    noisy = [guarded(laddered(trials=30, seed=s, budget=3000, space="lora"), Curves(noise=0.003)) for s in range(8)]
    assert all(strategy.note is None for strategy in noisy)
    agreement = noisy[0].agreement(FAST, MIDDLE)
    assert agreement.correlation > 0.7
    assert agreement.plans >= 8


def test_it_is_not_judged_below_the_least_number_of_plans_nor_below_the_least_agreement():
    p = laddered(trials=30, seed=3, budget=3000, space="lora")
    assert guarded(p, Curves(meaningless=True)).note is not None
    assert guarded(p, Curves(meaningless=True), least_plans=1000).note is None
    assert guarded(p, Curves(meaningless=True), least_agreement=-1).note is None


def turned_round(p: Problem, count: int = 40):
    """Plans of which each is better than the one before at the lowest rung, and worse at the others."""
    plans = loras(p, *[64 * (16 + n % 8) for n in range(count)])
    return plans, Table({plan: [0.8 - 0.01 * n, 0.3 + 0.01 * n, 0.3 + 0.01 * n] for n, plan in enumerate(plans)})


def test_once_it_is_off_every_plan_goes_to_the_end_the_paused_ones_first():
    p = laddered(trials=60, budget=2048)
    plans, table = turned_round(p)
    factory, made = halved_list(plans)
    found = search(factory, p, table)
    assert found.strategy.note is not None
    assert found.plans == len(found.finished) == len(plans)
    begun = [n for n, r in enumerate(found.requests) if r.fidelity.steps == FAST]
    directly = [
        n
        for n, r in enumerate(found.requests)
        if n and r.fidelity.full and r.plan not in {found.requests[m].plan for m in begun}
    ]
    assert len(begun) < len(plans)
    assert directly == list(range(len(found.requests) - len(directly), len(found.requests)))
    assert len(made) == 2


def test_once_it_is_off_the_inner_strategy_begins_again_at_full_training_with_what_is_known():
    p = laddered(trials=60, budget=2048)
    plans, table = turned_round(p)
    factory, made = halved_list(plans)
    search(factory, p, table)
    again = made[1]
    assert again.problem.fidelity == p.fidelity
    assert again.told[0][0].plan == p.baseline
    assert all(r.fidelity == p.fidelity and outcome.done for r, outcome in again.told)
    assert {r.plan for r, _ in again.told} == {*plans, p.baseline}


class OneByOne(Listed):
    """Proposes the next plan only when it was told of the one before, and takes no note of what it did not ask for."""

    awaited = None

    def ask(self, capacity):
        if self.awaited is not None:
            return []
        (request,) = super().ask(1) or [None]
        self.awaited = request
        return [] if request is None else [request]

    def tell(self, request, outcome):
        super().tell(request, outcome)
        if request == self.awaited:
            self.awaited = None


def test_an_inner_strategy_that_waits_for_what_it_asks_for_is_answered_from_what_is_known():
    p = laddered(trials=60, budget=2048)
    plans, table = turned_round(p)
    found = search(halved(lambda q: OneByOne(plans, q)), p, table)
    assert found.strategy.note is not None
    assert found.plans == len(found.finished) == len(plans)


def test_a_surrogate_survives_that_halving_is_turned_off():
    p = laddered(trials=12, space="autopeft", budget=5000)
    found = search(halved(lambda q: autopeft(q, QUICK), least_plans=4), p, Curves(meaningless=True))
    assert found.strategy.note is not None
    assert len(found.finished) > 4
    assert found.steps <= 12 * FULL


def test_a_failure_on_the_way_is_a_failure_of_full_training_too():
    p = laddered(trials=60, budget=2048)
    plans, table = turned_round(p)
    losses = dict(table.losses) | {plans[0]: [State.DIVERGED] * 3, plans[1]: [0.9, 0.9, State.DIVERGED]}
    factory, made = halved_list(plans)
    search(factory, p, Table(losses))
    failed = [r for r, outcome in made[1].told if outcome.state is State.DIVERGED]
    assert {r.plan for r in failed} == {plans[0], plans[1]}
    assert {r.fidelity for r in failed} == {p.fidelity}
