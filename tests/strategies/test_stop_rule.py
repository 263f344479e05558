import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import spearmanr

from peftscout.outcome import Outcome, State
from peftscout.strategies.multi_fidelity_options import EarlyStopOptions
from peftscout.strategies.stop_rule import Course, StopRule, best_at

RUNG = 50
BUDGET = 1_000_000


def outcome(cost: int, early: float, final: float) -> Outcome:
    curve = ((RUNG // 2, 0.7, None), (RUNG, 0.5, early), (2 * RUNG, 0.4, final))
    return Outcome(State.DONE, cost, final, curve=curve)


def pruned(cost: int, early: float) -> Outcome:
    return Outcome(State.PRUNED, cost, curve=((RUNG, 0.5, early),), steps=RUNG)


def a_rule(n: int = 20, rise: float = 0.05, noise: float = 0.005, seed: int = 0, **options) -> StopRule:
    """A rule that saw ``n`` runs whose final score is the rung's plus ``rise``; dearer plans are better."""
    rng = np.random.default_rng(seed)
    rule = StopRule(EarlyStopOptions(**options), BUDGET)
    for cost in np.geomspace(1e3, 1e6, n):
        final = 0.6 + 0.05 * math.log10(cost / 1e3) + 0.02 * rng.standard_normal()
        rule.learn(outcome(int(cost), final - rise + noise * rng.standard_normal(), final))
    return rule


def random_rule(n: int = 60, **options) -> StopRule:
    """A rule that saw runs whose rung says nothing about their end."""
    rng = np.random.default_rng(3)
    rule = StopRule(EarlyStopOptions(**options), BUDGET)
    for _ in range(n):
        rule.learn(outcome(1000, float(rng.random()), 1 + float(rng.random())))
    return rule


def test_a_run_that_cannot_reach_the_front_at_its_cost_is_stopped():
    rule = a_rule()
    assert rule.should_stop(1_000_000, RUNG, 0.50)
    assert not rule.should_stop(1_000_000, RUNG, 0.75)


def test_the_same_score_is_good_enough_for_a_cheap_plan_and_not_for_a_dear_one():
    rule = a_rule()
    assert not rule.should_stop(1_000, RUNG, 0.60)
    assert rule.should_stop(1_000_000, RUNG, 0.60)


def test_nothing_cheaper_than_everything_seen_is_stopped():
    assert not a_rule().should_stop(10, RUNG, 0.0)


def test_with_too_few_finished_runs_nothing_is_stopped():
    rule = a_rule(6)
    assert rule.agreement(RUNG).plans < rule.options.least_plans
    assert rule.bound(RUNG, 0.1) == math.inf
    assert not rule.should_stop(1_000_000, RUNG, 0.0)


def test_a_rung_that_says_nothing_about_the_end_stops_nothing():
    rule = random_rule()
    correlation = rule.agreement(RUNG).correlation
    assert correlation is not None
    assert abs(correlation) < 0.3
    assert not rule.should_stop(2000, RUNG, -5.0)


def test_the_rule_turns_itself_off_when_the_rung_no_longer_agrees_with_the_end():
    rule = a_rule()
    assert rule.is_on(RUNG)
    for course in random_rule().courses:
        rule.courses.append(course)
    assert not rule.is_on(RUNG)


def test_that_dear_plans_are_better_is_no_agreement_of_ranks():
    """Between bands the order is the cost's; a rung must say something about plans of one cost."""
    rng = np.random.default_rng(0)
    rule = StopRule(EarlyStopOptions(), BUDGET)
    for cost in np.repeat([1e3, 1e4, 1e5, 1e6], 15):
        early, final = rng.normal(0, 0.05, size=2) + math.log10(cost)
        rule.learn(outcome(int(cost), early - 1, final))
    over_all = spearmanr([c.rungs[RUNG] for c in rule.courses], [c.score for c in rule.courses]).statistic
    within = rule.agreement(RUNG).correlation
    assert over_all > 0.9
    assert abs(within) < 0.3
    assert not rule.is_on(RUNG)


def test_equal_scores_have_no_rank_correlation():
    rule = StopRule(EarlyStopOptions(), BUDGET)
    for _ in range(10):
        rule.learn(outcome(1000, 0.5, 0.6))
    assert rule.agreement(RUNG).correlation is None
    assert not rule.is_on(RUNG)


def test_a_rung_that_was_never_measured_stops_nothing():
    assert not a_rule().should_stop(1_000_000, RUNG + 1, 0.0)


def test_the_bound_is_the_score_plus_an_upper_quantile_of_the_rises_and_the_slack():
    rule = a_rule(noise=0.01, slack=0.02, quantile=0.75)
    rises = [c.score - c.rungs[RUNG] for c in rule.courses]
    assert rule.bound(RUNG, 0.5) == pytest.approx(0.5 + np.quantile(rises, 0.75) + 0.02)


def test_a_run_keeps_its_best_state_so_a_rung_counts_with_the_best_score_up_to_there():
    falling = Outcome(State.DONE, 5, 0.8, curve=((10, None, 0.8), (30, None, 0.6), (90, None, 0.7)))
    assert Course.of(falling) == Course(5, {10: 0.8, 30: 0.8, 90: 0.8}, 0.8)


def test_few_of_the_runs_on_the_final_front_would_have_been_stopped():
    """The price of stopping: checked on runs the rule has not seen."""
    rule, unseen = a_rule(40, seed=1), a_rule(200, seed=2).courses
    on_front = [c for c in unseen if c.score >= best_at(rule.courses, c.cost)]
    stopped = [c for c in on_front if rule.should_stop(c.cost, RUNG, c.rungs[RUNG])]
    wasted = [c for c in unseen if c.score < best_at(rule.courses, c.cost) - 0.03]
    saved = [c for c in wasted if rule.should_stop(c.cost, RUNG, c.rungs[RUNG])]
    assert len(stopped) <= 0.15 * len(on_front)
    assert len(saved) >= 0.8 * len(wasted) > 10


def test_ranking_is_within_the_cost_band():
    # the slack turns the bound off, the ranking is left
    rule = a_rule(60, keep_share=0.5, slack=1.0, band_factor=10.0)
    assert rule.should_stop(1_000_000, RUNG, 0.65)
    assert not rule.should_stop(1_000, RUNG, 0.65)


def test_stopped_runs_have_a_rank_at_the_rung_and_no_place_on_the_front():
    rule = a_rule(40)
    before = rule.agreement(RUNG).correlation
    for cost in np.geomspace(1e3, 1e6, 40):
        rule.learn(pruned(int(cost), 0.3))
    assert best_at(rule.courses, BUDGET) == best_at(a_rule(40).courses, BUDGET)
    after = rule.agreement(RUNG)
    assert after.plans == a_rule(40).agreement(RUNG).plans
    assert after.correlation != before


@pytest.mark.parametrize("state", [s for s in State if s not in (State.DONE, State.PRUNED)])
def test_runs_that_failed_teach_nothing(state):
    rule = a_rule()
    before = list(rule.courses)
    rule.learn(Outcome(state, 5, curve=((RUNG, 0.1, 0.9),)))
    rule.learn(Outcome(State.PRUNED, 5))
    assert rule.courses == before


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), max_size=8), st.integers(1, 10**6))
def test_the_front_at_a_cost_is_the_best_score_that_is_no_dearer(pairs, cost):
    courses = [Course(c, {}, s) for c, s in pairs]
    assert best_at(courses, cost) == max((s for c, s in pairs if c <= cost), default=-math.inf)
