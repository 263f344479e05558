"""The plans that were ranked first are trained, from fresh weights and from warm ones, and never in vain."""

from __future__ import annotations

from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from contract import drive, problem
from test_one_shot_strategy import TRAINING, Counting, Disk

from peftscout.errors import DivergedSupernetError, StudyError, SupernetMemoryError
from peftscout.gates import Modules
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.plan import Plan
from peftscout.strategies.scout_checks import Ranked, ScoutChecks
from peftscout.strategies.scout_options import ScoutOptions


class Ranking(Counting):
    """A search whose ranking is given."""

    def __init__(self, modules: Modules, plans: list[Plan]) -> None:
        super().__init__(modules, np.zeros(modules.costs.shape), 0)
        self.plans = plans

    def ranking(self) -> list[Ranked]:
        return [Ranked(f"plan {n}", plan) for n, plan in enumerate(self.plans)]


def checks(*, trials: int | None = 20, plans: int = 4, baseline_at: int | None = None, lr_scales=(1.0,), **options):
    p = problem(trials=trials, space="lora", budget=2000, lr_scales=lr_scales)
    modules = Modules(p.space)
    ranked = [modules.plan({m: 0}) for m in range(plans)]
    if baseline_at is not None:
        ranked[baseline_at] = p.baseline

    @contextmanager
    def opened(training):
        assert training is TRAINING
        yield Disk()

    p = replace(p, one_shot=opened)
    search = Ranking(modules, ranked)
    return p, ScoutChecks(p, TRAINING, search, ScoutOptions(**options)), ranked


def scored(scores: dict[tuple[int, bool], float], ranked: list[Plan], default: float = 0.5):
    """Answers by (place in the ranking, warm)."""

    def answer(p, request: Evaluate) -> Outcome:
        place = ranked.index(request.plan) if request.plan in ranked else -1
        return Outcome(State.DONE, 1, scores.get((place, bool(request.initial)), default))

    return answer


def asked(p, s, ranked, answer, capacity: int = 1) -> list[tuple[int, bool]]:
    requests = drive(lambda _: s, p, answer, capacity)[1:]
    return [(ranked.index(r.plan), bool(r.initial)) for r in requests]


def test_the_first_plan_is_trained_from_fresh_weights_and_from_those_of_the_supernet() -> None:
    p, s, ranked = checks(checks=2)
    fresh, warm = drive(lambda _: s, p)[1:]
    assert fresh.plan == warm.plan == ranked[0]
    assert (fresh.initial, warm.initial) == ("", f"slice {ranked[0].digest}")
    assert (fresh.label, warm.label) == ("plan 0", "plan 0, warm")


@pytest.mark.parametrize("warm_wins", [False, True])
def test_the_plans_after_it_start_as_the_better_one_did(warm_wins: bool) -> None:
    p, s, ranked = checks(checks=5)
    answer = scored({(0, warm_wins): 0.9}, ranked)
    assert asked(p, s, ranked, answer)[:4] == [(0, False), (0, True), (1, warm_wins), (2, warm_wins)]


def test_the_last_check_tries_the_best_plan_the_other_way_round() -> None:
    """So a warm start is never taken over a better one from scratch that nobody tried."""
    p, s, ranked = checks(checks=5)
    answer = scored({(0, True): 0.7, (1, True): 0.9}, ranked)
    assert asked(p, s, ranked, answer) == [(0, False), (0, True), (1, True), (2, True), (1, False)]


def test_where_the_best_plan_had_both_the_last_check_goes_to_the_next_plan() -> None:
    p, s, ranked = checks(checks=5)
    assert asked(p, s, ranked, scored({(0, True): 0.9}, ranked))[-1] == (3, True)


def test_on_a_tie_fresh_weights_are_preferred() -> None:
    p, s, ranked = checks(checks=3)
    assert asked(p, s, ranked, scored({}, ranked))[2] == (1, False)


def test_a_single_check_is_from_fresh_weights() -> None:
    for options in ({"trials": 2}, {"checks": 1}):
        p, s, ranked = checks(**options)
        assert asked(p, s, ranked, scored({}, ranked)) == [(0, False)]


def test_uniform_lora_is_known_and_only_its_warm_start_is_asked_for() -> None:
    p, s, ranked = checks(checks=3, baseline_at=0)
    keys = drive(lambda _: s, p, scored({(0, True): 0.9}, ranked))
    assert len({r.key for r in keys}) == len(keys)
    assert [(ranked.index(r.plan), bool(r.initial)) for r in keys[1:]] == [(0, True), (1, True), (2, True)]


def test_where_the_known_baseline_is_the_best_its_warm_start_is_the_last_check() -> None:
    p, s, ranked = checks(checks=4, baseline_at=3)
    assert asked(p, s, ranked, scored({(3, False): 0.9}, ranked))[-1] == (3, True)


def test_without_warm_starts_every_plan_is_trained_once() -> None:
    p, s, ranked = checks(checks=9, warm_start=False)
    assert asked(p, s, ranked, scored({}, ranked)) == [(n, False) for n in range(4)]


@pytest.mark.parametrize("state", [State.DIVERGED, State.FAILED])
def test_a_start_that_fails_is_not_repeated_with_the_others(state: State) -> None:
    p, s, ranked = checks(checks=4)

    def answer(p, request: Evaluate) -> Outcome:
        return Outcome(state, 1) if request.initial else Outcome(State.DONE, 1, 0.5)

    assert asked(p, s, ranked, answer)[2:] == [(1, False), (2, False)]


@pytest.mark.parametrize("capacity", [1, 2, 3, 8])
def test_at_any_capacity_no_more_is_asked_than_allowed_and_nothing_twice(capacity: int) -> None:
    p, s, ranked = checks(checks=6)
    found = asked(p, s, ranked, scored({(2, True): 0.9, (0, True): 0.8}, ranked), capacity)
    assert len(found) == len(set(found)) == 6
    assert found[:2] == [(0, False), (0, True)]
    assert found[-1] == (2, False)


def test_it_waits_where_the_next_check_depends_on_an_outcome() -> None:
    p, s, _ = checks(checks=6)
    s.tell(Evaluate(p.baseline, p.fidelity, p.seed), Outcome(State.DONE, 1, 0.5))
    fresh, warm = s.ask(8)
    assert s.ask(8) == []
    s.tell(fresh, Outcome(State.DONE, 1, 0.5))
    assert s.ask(8) == []
    s.tell(warm, Outcome(State.DONE, 1, 0.6))
    assert [bool(r.initial) for r in s.ask(8)] == [True, True, True]
    assert s.ask(8) == []  # the last one depends on these


def test_the_learning_rate_is_the_one_the_rates_were_made_for_where_it_is_allowed() -> None:
    for scales, expected in (((0.3, 1.0), 1.0), ((0.5, 2.0), 0.5)):
        p, s, _ = checks(lr_scales=scales, baseline_at=0)
        assert {r.lr_scale for r in drive(lambda _, s=s: s, p)[1:]} == {expected}


@pytest.mark.parametrize("kind", [DivergedSupernetError, SupernetMemoryError])
def test_where_the_supernet_cannot_be_trained_nothing_is_asked_for_and_it_says_why(kind) -> None:
    p, s, _ = checks()
    s.search.advance = lambda one_shot: (_ for _ in ()).throw(kind("the loss is nan: lower it"))
    assert len(drive(lambda _: s, p)) == 1
    assert s.note == "scout trains no plan: the loss is nan: lower it"
    assert s.ask(3) == []


def test_other_errors_of_the_supernet_are_not_hidden() -> None:
    p, s, _ = checks()
    s.search.advance = lambda one_shot: (_ for _ in ()).throw(StudyError("the saved search cannot be read"))
    with pytest.raises(StudyError, match="saved"):
        drive(lambda _: s, p)


def test_at_another_learning_rate_uniform_lora_is_not_known() -> None:
    p, s, ranked = checks(checks=1, lr_scales=(0.5,), baseline_at=0)
    assert asked(p, s, ranked, scored({}, ranked)) == [(0, False)]
