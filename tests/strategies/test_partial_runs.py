import math
from dataclasses import replace

import pytest
from learning_curves import LADDER, laddered, loras

from peftscout.outcome import Evaluate, Outcome, State
from peftscout.strategies.partial_runs import PartialRuns, at_rung

FAST, MIDDLE, FULL = LADDER


def done(score: float, **metrics: float) -> Outcome:
    return Outcome(State.DONE, 1024, score, metrics)


def begun(count: int = 1, rank_by="loss", **arguments):
    p = laddered(**arguments)
    runs = PartialRuns(p, rank_by)
    lowest = replace(p.fidelity, steps=FAST)
    requests = [runs.begin(Evaluate(plan, lowest, p.seed)) for plan in loras(p, *[1024] * count)]
    return runs, requests


def test_a_run_is_running_then_paused_then_finished():
    runs, (request,) = begun()
    run = runs.of(request)
    for steps in LADDER:
        assert (run.running, run.paused, run.finished) == (True, False, False)
        assert runs.tell(request, done(0.5, loss=0.5)) is run
        assert (run.running, run.paused, run.finished) == (False, steps != FULL, steps == FULL)
        if steps != FULL:
            request = runs.go_on(run, LADDER[LADDER.index(steps) + 1])
    assert not run.failed
    assert [run.has(steps) for steps in (*LADDER, 50)] == [True, True, True, False]


@pytest.mark.parametrize("state", [s for s in State if s is not State.DONE])
def test_a_run_without_a_score_has_failed_and_is_not_paused(state):
    runs, (request,) = begun()
    run = runs.tell(request, Outcome(state, 1024))
    assert run.failed
    assert (run.paused, run.running, run.finished, run.has(FAST)) == (False, False, False, False)


def test_a_rung_costs_its_increment_and_the_baseline_has_the_first_trial():
    runs, (request,) = begun(trials=5)
    assert runs.left == 4 * FULL - FAST
    run = runs.tell(request, done(0.5))
    again = runs.go_on(run, MIDDLE)
    assert runs.left == 4 * FULL - MIDDLE
    assert again == replace(request, fidelity=replace(request.fidelity, steps=MIDDLE))
    assert runs.of(again) is run


def test_without_a_limit_of_trials_steps_never_run_out():
    runs, _ = begun(trials=None)
    assert runs.left == math.inf


def test_plans_at_another_learning_rate_are_other_runs():
    runs, (request,) = begun()
    other = replace(request, lr_scale=3.0)
    assert runs.of(other) is None
    runs.begin(other)
    assert len(runs) == 2
    assert runs.of(other) is not runs.of(request)


def test_an_outcome_of_no_run_is_kept_nowhere():
    runs, _ = begun()
    p = laddered()
    assert runs.tell(Evaluate(p.baseline, p.fidelity, p.seed), done(0.5)) is None
    assert len(runs) == 1


def test_the_rank_is_by_loss_then_cost_then_order():
    runs, requests = begun(3)
    told = [runs.tell(r, done(0.5, loss=loss)) for r, loss in zip(requests, (0.4, 0.3, 0.3), strict=True)]
    told[2].cost = 512
    assert sorted(told, key=lambda run: runs.rank_key(run, FAST)) == [told[2], told[1], told[0]]
    told[2].cost = told[1].cost
    assert sorted(told, key=lambda run: runs.rank_key(run, FAST)) == [told[1], told[2], told[0]]


def test_from_the_first_outcome_without_a_loss_it_is_by_score_for_all():
    runs, (first, second) = begun(2)
    run = runs.tell(first, done(0.9, loss=0.7))
    assert runs.value(run, FAST) == 0.7
    runs.tell(second, done(0.8))
    assert runs.value(run, FAST) == -0.9


def test_a_failure_has_no_loss_and_changes_nothing():
    runs, (first, second) = begun(2)
    run = runs.tell(first, done(0.9, loss=0.7))
    runs.tell(second, Outcome(State.DIVERGED, 1024))
    assert runs.value(run, FAST) == 0.7


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_ranks_last(loss):
    runs, (request,) = begun()
    assert runs.value(runs.tell(request, done(0.9, loss=loss)), FAST) == math.inf


def test_the_outcome_at_a_rung_is_read_off_the_curve():
    p = laddered()
    request = Evaluate(p.baseline, p.fidelity, p.seed)
    outcome = replace(done(0.9, loss=0.1), curve=((FAST, 0.7, 0.4), (MIDDLE, 0.5, None), (FULL, 0.3, 0.9)))
    early, score = at_rung(request, outcome, FAST)
    assert (early.fidelity.steps, early.fidelity.rungs, early.plan) == (FAST, LADDER, p.baseline)
    assert (score.state, score.score, score.cost, score.steps) == (State.DONE, 0.4, 1024, FAST)
    assert at_rung(request, outcome, MIDDLE) == (request, outcome)  # no score there
    failed = Outcome(State.FAILED, 1024, curve=((FAST, 0.7, 0.4),))
    assert at_rung(request, failed, FAST) == (request, failed)
