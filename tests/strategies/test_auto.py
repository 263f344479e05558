"""Scout first, then AutoPEFT with what scout learnt, for as long as something improves."""

from __future__ import annotations

from dataclasses import replace

import pytest
from contract import StrategyContract, done, drive, problem
from test_scout import with_toy

from peftscout.errors import ConfigError, DivergedSupernetError
from peftscout.gates import Modules
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.strategies import check_fidelity, check_learns_from_others, make_strategy
from peftscout.strategies.auto import Auto, AutoOptions, auto
from peftscout.strategies.autopeft import AutoPeft

SCOUT = {"steps": 9, "keep_every": 4, "checks": 3, "shrinks": 1, "alternatives": 1}
QUICK = AutoOptions(scout=SCOUT, refinement={"starts": 2, "random_starts": 8}, prior_plans=16)


class TestAuto(StrategyContract):
    factory = staticmethod(lambda p: auto(with_toy(p), QUICK))


class TestAutoWithoutAPrior(StrategyContract):
    options = replace(QUICK, prior_plans=0, patience=3)
    factory = staticmethod(lambda p: auto(with_toy(p), TestAutoWithoutAPrior.options))


class TestAutoWithoutASupernet(StrategyContract):
    factory = staticmethod(lambda p: auto(p, QUICK))


def made(options: AutoOptions = QUICK, **changes) -> tuple[Auto, list[Evaluate]]:
    """Run it on a toy; return it and what it asked for, the baseline first."""
    kept = []

    def factory(p):
        kept.append(auto(with_toy(p), options))
        return kept[-1]

    requests = drive(factory, problem(**changes))
    return kept[-1], requests


def test_scout_comes_first_and_autopeft_has_the_rest_of_the_trials():
    _, requests = made(trials=9)
    assert len(requests) == 9
    labels = [r.label.split(",")[0].split(":")[0] for r in requests[1:]]
    scouted = [n for n, label in enumerate(labels) if label.startswith(("scout", "uniform"))]
    assert scouted == list(range(3))
    assert set(labels[3:]) == {"autopeft"}


def test_as_few_trials_as_scout_wants_leave_nothing_to_refine():
    _, requests = made(trials=4)
    assert not [r for r in requests if "autopeft" in r.label]


def test_what_scout_had_trained_is_not_trained_again():
    _, requests = made(trials=14)
    fresh = [r.plan.digest for r in requests if not r.initial]
    assert len(fresh) == len(set(fresh))


def test_what_was_trained_on_from_the_supernet_teaches_the_refinement_nothing_but_counts_as_a_trial():
    strategy, requests = made(trials=9)
    warm = [r for r in requests if r.initial]
    assert warm
    assert len(requests) == 9
    assert {t.request.key for t in strategy._refinement._told} == {r.key for r in requests if not r.initial}


def test_the_values_are_the_prior_of_the_refinement():
    strategy, _ = made(trials=9)
    prior = strategy._refinement._model.prior
    values, modules = strategy._scouting.search.values(), Modules(strategy._problem.space)
    assert len(prior) >= 16
    for told in prior:
        expected = sum(values[level] for level in modules.levels_of(told.request.plan).items())
        assert told.outcome.score == pytest.approx(expected)
        assert told.outcome.cost in strategy._problem.budget
    costs = sorted(told.outcome.cost for told in prior)
    assert costs[len(costs) // 4] < strategy._problem.budget.parameters / 2  # spread over the cost axis


def test_another_study_of_the_model_takes_the_place_of_the_values():
    p = problem(trials=9)
    related = tuple((r, done(p, r)) for r in drive(lambda q: make_strategy("random", q, {}), p)[1:6])
    strategy = auto(with_toy(replace(p, related=related)), QUICK)
    drive(lambda _: strategy, p)
    assert [t.request.plan for t in strategy._refinement._model.prior] == [r.plan for r, _ in related]


def test_it_ends_when_nothing_improves():
    def flat(p, request):
        return Outcome(State.DONE, request.plan.cost(p.sites), 0.5)

    options = replace(QUICK, patience=4)
    requests = drive(lambda p: auto(with_toy(p), options), problem(trials=40), flat)
    assert sum("autopeft" in r.label for r in requests) == 4


def test_an_improvement_gives_it_new_patience():
    seen = []

    def answer(p, request):
        seen.append(request)
        better = len(seen) in (7, 10)
        return Outcome(State.DONE, request.plan.cost(p.sites), 0.5 + 0.1 * better * len(seen))

    options = replace(QUICK, patience=4)
    requests = drive(lambda p: auto(with_toy(p), options), problem(trials=40), answer)
    assert len(requests) == 10 + 4


def test_a_space_with_switches_is_searched_by_autopeft_alone():
    p = with_toy(problem(trials=6))
    switched = replace(problem(space="autopeft", trials=6, budget=5000), one_shot=p.one_shot)
    requests = drive(lambda q: make_strategy("auto", q, {}), switched)
    assert len(requests) == 6
    assert all(r.label.startswith("autopeft") for r in requests[1:])


def test_a_supernet_that_diverges_leaves_everything_to_the_refinement():
    p = problem(trials=8)

    def opened(training):
        raise DivergedSupernetError("the loss is nan")

    strategy = auto(replace(p, one_shot=opened), QUICK)
    requests = drive(lambda _: strategy, p)
    assert "the loss is nan" in strategy.note
    assert all(r.label.startswith("autopeft") for r in requests[1:])
    assert len(requests) == 8
    assert not strategy._refinement._model.prior


def test_checks_that_run_are_waited_for():
    p = problem(trials=9)
    strategy = auto(with_toy(p), QUICK)
    strategy.tell(first := Evaluate(p.baseline, p.fidelity, p.seed), done(p, first))
    running = []
    while batch := strategy.ask(4):
        running += batch
    assert running
    assert not [r for r in running if "autopeft" in r.label]
    for request in running:
        strategy.tell(request, done(p, request))
    assert strategy.ask(1)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"patience": 0}, "strategy_options: patience 0: must be at least 1"),
        ({"prior_plans": -1}, "strategy_options: prior_plans -1"),
        ({"scout": {"fraction": 0}}, "strategy_options: scout: fraction 0: must be above 0"),
        ({"scout": {"fractoin": 1}}, "strategy_options: scout: .*fractoin"),
        ({"refinement": {"initial": 1}}, "strategy_options: refinement: initial 1: must be at least 2"),
    ],
)
def test_a_wrong_option_is_named_with_its_place(options, message):
    with pytest.raises(ConfigError, match=message):
        make_strategy("auto", problem(), options)


def test_it_learns_from_other_studies():
    check_learns_from_others("auto")


def test_without_a_supernet_it_is_autopeft():
    strategy = auto(problem(), QUICK)
    assert isinstance(strategy, AutoPeft)
    assert strategy.options.starts == 2


def test_on_rungs_it_is_autopeft_because_scout_has_none():
    assert check_fidelity("halving", "auto", {}) is not None
    rungs = Fidelity(9, rungs=(3, 9))
    assert isinstance(auto(with_toy(replace(problem(), fidelity=rungs)), QUICK), AutoPeft)
