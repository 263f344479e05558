"""The decision rule, on scores with known effects and in simulated populations with known error rates."""

import numpy as np
import pytest

from peftscout.strategies.design_spaces.decision import Comparison, compare, decide, let_go
from peftscout.strategies.design_spaces.statistics import power, standardise

ALPHA, DELTA = 0.05, 0.3


def population(effects, models: int, seed: int, correlation: float = 0.8) -> np.ndarray:
    """Scores ``[options, models]`` of standard deviation 1 whose base models correlate under every option."""
    rng = np.random.default_rng(seed)
    shared, own = rng.normal(size=models), rng.normal(size=(len(effects), models))
    return np.sqrt(correlation) * shared + np.sqrt(1 - correlation) * own + np.array(effects, dtype=float)[:, None]


def compared(scores: np.ndarray, resamples: int = 600, seed: int = 0) -> Comparison:
    return compare(standardise(scores[..., None]), ALPHA, resamples, np.random.default_rng(seed))


def decision(effects, models: int, seed: int = 0, delta: float = DELTA):
    return decide(compared(population(effects, models, seed)), delta, ALPHA)


# -- the rule ----------------------------------------------------------------------------------------------------------


def test_an_option_better_than_all_others_is_kept():
    found = decision([0, 0, 1.5], models=30)
    assert (found.verdict, found.kept) == ("decided", (2,))
    assert found.fates == ("beaten", "beaten", "kept")
    assert found.why[2] == "no other option is better by delta 0.3 SD, and every simpler one is worse"
    assert found.why[0].startswith("worse than another by 1.")


def test_on_a_tie_the_simplest_option_is_kept():
    found = decision([0, 0, 0], models=300)
    assert (found.verdict, found.kept) == ("decided", (0,))
    assert found.fates == ("kept", "passed over", "passed over")
    assert found.why[0] == "the simplest of 3 options within delta 0.3 SD of the best"


def test_a_difference_smaller_than_delta_does_not_buy_complexity():
    found = decision([0, 0.1], models=1000)
    assert compared(population([0, 0.1], 1000, 0)).p_values[0, 1] < 0.01  # significant, but it does not matter
    assert found.kept == (0,)


def test_the_same_difference_matters_when_delta_says_so():
    assert decision([0, 0.1], models=1000, delta=0.05).kept == (1,)


def test_too_few_models_leave_the_axis_open():
    found = decision([0, 0, 0], models=8, seed=1)
    assert (found.verdict, found.kept) == ("undecided", (0, 1, 2))
    assert set(found.fates) == {"open"}
    assert "another option may be better by" in found.why[0]


def test_an_undecided_axis_still_loses_the_options_that_are_beaten():
    found = decision([0, 0, -2], models=12)
    assert (found.verdict, found.kept) == ("undecided", (0, 1))
    assert found.fates[2] == "beaten"


def test_the_raw_maximum_alone_never_wins_over_a_simpler_option():
    """The paper would take option 1 in each of these; here a simpler one goes only when it is shown to be worse."""
    for seed in range(200):
        scores = population([0, 0.15], models=20, seed=seed)
        comparison = compared(scores, seed=seed)
        found = decide(comparison, DELTA, ALPHA)
        if found.kept == (1,):
            assert comparison.p_values[0, 1] <= ALPHA


def test_identical_options_are_a_tie_however_few_the_models():
    scores = np.tile(np.random.default_rng(0).normal(size=8), (3, 1))
    found = decide(compared(scores), DELTA, ALPHA)
    assert (found.verdict, found.kept) == ("decided", (0,))


def test_an_option_that_is_good_enough_after_one_that_may_be_waits():
    c = Comparison(
        means=np.array([0.0, 0.1]),
        p_values=np.array([[1, 0.4], [0.4, 1]]),
        upper_lead=np.array([[0, 0.1], [0.35, 0]]),
        probability_best=np.array([0.2, 0.8]),
        spread=0.5,
        models=12,
    )
    found = decide(c, DELTA, ALPHA)
    assert found.verdict == "undecided"
    assert found.why[1] == "within delta 0.3 SD of the best, but a simpler option may be, too"


def test_one_option_is_decided_for():
    assert decide(compared(population([0], 8, 0)), DELTA, ALPHA).kept == (0,)


def test_the_comparison_does_not_depend_on_the_order_of_the_models():
    scores = population([0, 0.5, 0.2], 10, 3)
    shuffled = scores[:, np.random.default_rng(0).permutation(10)]
    one, other = compared(scores), compared(shuffled)
    assert one.means == pytest.approx(other.means)
    assert one.p_values == pytest.approx(other.p_values)  # exact at up to 12 models


def test_many_options_get_enough_flips_to_beat_one_another():
    found = compared(population([0] * 14 + [2.0], 30, 0), resamples=200)
    assert (found.p_values[:14, 14] <= ALPHA).all()


# -- simulated populations ---------------------------------------------------------------------------------------------


def rate(event, simulations: int) -> float:
    return float(np.mean([event(seed) for seed in range(simulations)]))


@pytest.mark.parametrize(("options", "models"), [(2, 8), (2, 24), (5, 24)])
def test_on_a_null_axis_an_option_is_called_worse_about_as_often_as_alpha(options, models):
    """Family-wise: any of the pairs. Two options are the nominal case; with more, Holm errs on the safe side."""

    def any_beaten(seed: int) -> bool:
        comparison = compared(population([0] * options, models, seed), seed=seed)
        return bool((comparison.p_values <= ALPHA).any())

    error = rate(any_beaten, 500)
    assert error <= 0.075  # 0.05 and 2.5 standard errors of 500 simulations
    if options == 2:
        assert error >= 0.025


def test_skewed_scores_do_not_break_the_level():
    def any_beaten(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        scores = rng.exponential(size=20) + 0.5 * rng.exponential(size=(4, 20))
        return bool((compared(scores, seed=seed).p_values <= ALPHA).any())

    assert rate(any_beaten, 300) <= 0.085


@pytest.mark.parametrize(("difference", "models"), [(0.4, 24), (0.5, 24), (0.5, 16)])
def test_a_known_effect_is_found_with_the_power_stated(difference, models):
    def found(seed: int) -> bool:
        return bool(compared(population([0, difference], models, seed), seed=seed).p_values[0, 1] <= ALPHA)

    stated = power(models, np.sqrt(2 * (1 - 0.8)), difference)
    assert rate(found, 300) == pytest.approx(stated, abs=0.07)


def test_an_option_worse_by_more_than_delta_is_kept_with_probability_alpha_at_most():
    """The hardest case: the simplest options are just more than delta below the best."""

    def wrong(seed: int) -> bool:
        found = decide(compared(population([0, 0, 0, 0, 0.31], 24, seed), seed=seed), DELTA, ALPHA)
        return found.verdict == "decided" and found.kept != (4,)

    assert rate(wrong, 300) <= 0.05 + 0.03


def test_the_truly_best_option_stays_in_the_space():
    """Decided for or left open; it is lost only where it is beaten or where a tie goes to a simpler one."""

    def lost(seed: int) -> bool:
        return 3 not in decide(compared(population([0, 0.2, 0.1, 0.6, 0.3], 24, seed), seed=seed), DELTA, ALPHA).kept

    assert rate(lost, 200) <= 0.05


# -- letting go at a low rung ------------------------------------------------------------------------------------------


def test_halving_lets_go_of_the_clearly_worse_half_only():
    comparison = compared(population([0, 2, 1.9, -1], 16, 0))
    assert let_go(comparison, 0.5) == (1, 2)


def test_what_is_not_clearly_worse_goes_on():
    assert let_go(compared(population([0] * 6, 8, 1)), 0.5) == tuple(range(6))


def test_where_nothing_differs_an_option_is_let_go_in_fewer_than_one_of_twenty_cases():
    """Each option, that is; the guard is per option, since what it protects is the best one."""
    gone = [5 - len(let_go(compared(population([0] * 5, 12, seed), seed=seed), 0.5)) for seed in range(200)]
    assert np.mean(gone) / 5 <= 0.05


def test_two_options_go_on_at_least():
    assert let_go(compared(population([0, 9], 16, 0)), 0.5) == (0, 1)
    assert len(let_go(compared(population([0, 3, 6, 9], 16, 0)), 0.01)) == 2
