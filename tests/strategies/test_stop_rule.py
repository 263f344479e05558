import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from peftscout.outcome import Outcome, State
from peftscout.strategies.autopeft_pruning import Finished, StopOptions, StopRule, best_at

RUNG = 50


def outcome(cost: int, early: float, final: float) -> Outcome:
    curve = ((RUNG // 2, 0.7, None), (RUNG, 0.5, early), (2 * RUNG, 0.4, final))
    return Outcome(State.DONE, cost, final, curve=curve)


def a_rule(n: int = 20, rise: float = 0.05, noise: float = 0.005, seed: int = 0, **options) -> StopRule:
    """A rule that saw ``n`` trials whose final score is the rung's plus ``rise``; dearer trials are better."""
    rng = np.random.default_rng(seed)
    rule = StopRule(StopOptions(**options))
    for cost in np.geomspace(1e3, 1e6, n):
        final = 0.6 + 0.05 * math.log10(cost / 1e3) + 0.02 * rng.standard_normal()
        rule.learn(outcome(int(cost), final - rise + noise * rng.standard_normal(), final))
    return rule


def test_a_trial_that_cannot_reach_the_front_at_its_cost_is_stopped():
    rule = a_rule()
    assert rule.should_stop(1_000_000, RUNG, 0.50)
    assert not rule.should_stop(1_000_000, RUNG, 0.75)


def test_the_same_score_is_good_enough_for_a_cheap_plan_and_not_for_a_dear_one():
    rule = a_rule()
    assert not rule.should_stop(1_000, RUNG, 0.60)
    assert rule.should_stop(1_000_000, RUNG, 0.60)


def test_nothing_cheaper_than_everything_seen_is_stopped():
    assert not a_rule().should_stop(10, RUNG, 0.0)


def test_with_too_few_finished_trials_nothing_is_stopped():
    rule = a_rule(5)
    assert rule.rank_correlation(RUNG) is None
    assert rule.bound(RUNG, 0.1) == math.inf
    assert not rule.should_stop(1_000_000, RUNG, 0.0)


def test_a_rung_that_says_nothing_about_the_end_stops_nothing():
    rng = np.random.default_rng(3)
    rule = StopRule()
    for _ in range(40):
        rule.learn(outcome(1000, float(rng.random()), float(rng.random())))
    correlation = rule.rank_correlation(RUNG)
    assert correlation is not None
    assert correlation < 0.3
    assert not rule.should_stop(2000, RUNG, -5.0)


def test_equal_scores_have_no_rank_correlation():
    rule = StopRule()
    for _ in range(10):
        rule.learn(outcome(1000, 0.5, 0.6))
    assert rule.rank_correlation(RUNG) == 0.0


def test_a_rung_that_was_never_measured_stops_nothing():
    assert not a_rule().should_stop(1_000_000, RUNG + 1, 0.0)


def test_the_bound_is_the_score_plus_an_upper_quantile_of_the_rises_and_the_slack():
    rule = a_rule(noise=0.01, slack=0.02, quantile=0.75)
    rises = [t.score - t.at(RUNG) for t in rule.finished]
    assert rule.bound(RUNG, 0.5) == pytest.approx(0.5 + np.quantile(rises, 0.75) + 0.02)


def test_few_of_the_trials_on_the_final_front_would_have_been_stopped():
    """The price of stopping: checked on trials the rule has not seen."""
    rule, unseen = a_rule(40, seed=1), a_rule(200, seed=2).finished
    on_front = [t for t in unseen if t.score >= best_at(rule.finished, t.cost)]
    stopped = [t for t in on_front if rule.should_stop(t.cost, RUNG, t.at(RUNG))]
    wasted = [t for t in unseen if t.score < best_at(rule.finished, t.cost) - 0.03]
    saved = [t for t in wasted if rule.should_stop(t.cost, RUNG, t.at(RUNG))]
    assert len(stopped) <= 0.15 * len(on_front)
    assert len(saved) >= 0.8 * len(wasted) > 10


def test_ranking_is_within_the_cost_band():
    rule = a_rule(60, keep_share=0.5, slack=1.0, band=1.0)  # the slack turns the bound off, the ranking is left
    assert rule.should_stop(1_000_000, RUNG, 0.65)
    assert not rule.should_stop(1_000, RUNG, 0.65)


@pytest.mark.parametrize("state", [s for s in State if s is not State.DONE])
def test_trials_without_a_score_teach_nothing(state):
    rule = a_rule()
    before = list(rule.finished)
    rule.learn(Outcome(state, 5, curve=((RUNG, 0.1, 0.9),)))
    assert rule.finished == before


@given(st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1)), max_size=8), st.integers(1, 10**6))
def test_the_front_at_a_cost_is_the_best_score_that_is_no_dearer(pairs, cost):
    finished = [Finished(c, (), s) for c, s in pairs]
    assert best_at(finished, cost) == max((s for c, s in pairs if c <= cost), default=-math.inf)


@pytest.mark.parametrize("options", [{"quantile": 0.0}, {"keep_share": 2.0}, {"least_finished": 1}, {"band": 0.0}])
def test_impossible_options_are_refused(options):
    with pytest.raises(ValueError, match="must be"):
        StopOptions(**options)
