import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy import stats

from peftscout.strategies.design_spaces.statistics import (
    Resamples,
    detectable,
    edf,
    holm,
    kendall_tau,
    ks_distance,
    mean_bounds,
    paired_differences,
    pairs_needed,
    pairs_of,
    power,
    probability_best,
    sign_flip,
    standardise,
    upper_mean,
)


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


# -- standardising -----------------------------------------------------------------------------------------------------


def test_no_task_dominates_by_its_spread():
    scores = rng().normal(size=(3, 40, 2)) * np.array([1.0, 100.0])
    alone = [standardise(scores[..., [t]]) for t in range(2)]
    assert standardise(scores) == pytest.approx((alone[0] + alone[1]) / 2)
    assert [z.std() for z in alone] == pytest.approx([1, 1], rel=0.05)


def test_standardising_forgets_the_unit_of_a_metric():
    scores = rng().normal(size=(4, 10, 1))
    assert standardise(100 * scores + 7) == pytest.approx(standardise(scores))


def test_the_spread_is_that_within_options_so_that_large_effects_do_not_shrink_themselves():
    scores = rng().normal(size=(2, 400, 1))
    scores[1] += 50
    z = standardise(scores)
    assert z[1].mean() - z[0].mean() == pytest.approx(50, rel=0.1)


def test_a_task_in_which_all_score_the_same_counts_for_nothing():
    scores = np.dstack([np.full((2, 5), 0.5), rng().normal(size=(2, 5))])
    assert standardise(scores) == pytest.approx(standardise(scores[..., [1]]) / 2)
    assert not standardise(np.full((2, 5, 1), 0.5)).any()


def test_every_pair_of_options_is_compared_on_the_same_models():
    scores = rng().normal(size=(4, 6))
    differences = paired_differences(scores)
    assert differences.shape == (6, 6)
    for column, (i, j) in enumerate(pairs_of(4)):
        assert differences[:, column] == pytest.approx(scores[i] - scores[j])


# -- tests of significance ---------------------------------------------------------------------------------------------


def test_holm_steps_down_from_the_smallest_p_value():
    assert holm(np.array([0.01, 0.04, 0.03, 0.005])) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(p=arrays(float, st.integers(1, 20), elements=st.floats(0, 1)))
def test_holm_keeps_the_order_and_is_between_no_correction_and_bonferroni(p):
    adjusted = holm(p)
    assert (adjusted >= p).all()
    assert (adjusted <= np.minimum(1, p * len(p)) + 1e-12).all()
    assert (np.diff(adjusted[np.argsort(p, kind="stable")]) >= 0).all()


def test_few_pairs_are_flipped_in_every_way():
    differences = np.array([[1.0], [2.0], [3.0]])
    assert sign_flip(differences, flips=10, rng=rng()) == pytest.approx([2 / 8])
    assert sign_flip(np.array([[1.0], [2.0], [-3.0]]), flips=10, rng=rng()) == pytest.approx([1.0])


def test_many_pairs_agree_with_the_exact_permutation_test_of_scipy():
    differences = rng(1).normal(0.4, 1, size=(12, 3))
    ours = sign_flip(differences, flips=0, rng=rng())
    theirs = [
        stats.permutation_test((column,), np.mean, permutation_type="samples", n_resamples=np.inf).pvalue
        for column in differences.T
    ]
    assert ours == pytest.approx(theirs)


def test_random_flips_come_near_the_exact_p_value_and_never_give_zero():
    differences = rng(2).normal(0.3, 1, size=(40, 4))
    differences[:, 0] += 5
    p = sign_flip(differences, flips=20_000, rng=rng())
    assert p[0] == 1 / 20_001
    t = stats.ttest_1samp(differences[:, 1:], 0).pvalue
    assert p[1:] == pytest.approx(t, abs=0.02)


def test_no_difference_at_all_has_the_p_value_one():
    assert sign_flip(np.zeros((20, 2)), 500, rng()).tolist() == [1, 1]


def test_the_sign_flip_test_keeps_its_level():
    rejections = [(sign_flip(rng(s).normal(size=(15, 1)), 400, rng(s))[0] <= 0.05) for s in range(1500)]
    assert 0.03 <= np.mean(rejections) <= 0.07


# -- bootstrap ---------------------------------------------------------------------------------------------------------


def test_resamples_keep_the_values_of_a_model_together():
    values = rng().normal(size=(10, 1)) * np.array([[1.0, -1.0]])
    means = Resamples.draw(10, 200, rng()).means(values)
    assert means[:, 0] == pytest.approx(-means[:, 1])


def test_resamples_have_the_mean_and_the_error_of_the_sample():
    values = rng().normal(size=(50, 1))
    means = Resamples.draw(50, 20_000, rng()).means(values)
    assert means.mean() == pytest.approx(values.mean(), abs=0.01)
    assert means.std() == pytest.approx(values.std() / np.sqrt(50), rel=0.05)


@pytest.mark.parametrize("models", [8, 20])
def test_bounds_of_a_mean_hold_as_often_as_they_say_even_with_few_models(models):
    """1,500 samples at once; percentiles of the mean would miss 11 % at 8 models."""
    values = rng(3).normal(size=(models, 1500))
    low, high = mean_bounds(values, Resamples.draw(models, 1500, rng(4)), level=0.95)
    assert 0.03 <= np.mean((low > 0) | (high < 0)) <= 0.075
    assert (low < values.mean(axis=0)).all()
    assert (values.mean(axis=0) < high).all()


def test_values_that_do_not_vary_are_known_exactly_and_one_model_says_nothing():
    resamples = Resamples.draw(5, 100, rng())
    low, high = mean_bounds(np.full((5, 2), 0.25), resamples, 0.95)
    assert low.tolist() == high.tolist() == [0.25, 0.25]
    low, high = mean_bounds(np.array([[1.0]]), Resamples.draw(1, 100, rng()), 0.95)
    assert (low[0], high[0]) == (-np.inf, np.inf)


def test_the_probability_of_being_best_sums_to_one_and_ties_are_split():
    scores = np.array([[1.0, 2.0, 3.0], [1.0, 2.0, 3.0], [0.0, 0.0, 0.0]])
    assert probability_best(scores, Resamples.draw(3, 500, rng())) == pytest.approx([0.5, 0.5, 0])
    several = probability_best(rng().normal(size=(5, 12)), Resamples.draw(12, 2000, rng()))
    assert several.sum() == pytest.approx(1)


# -- populations -------------------------------------------------------------------------------------------------------


def test_the_edf_rises_to_one_in_steps_of_the_share_of_models():
    assert edf(np.array([0.3, 0.1, 0.3, 0.2])) == [(0.1, 0.25), (0.2, 0.5), (0.3, 1.0)]
    assert edf(np.array([])) == []


def test_the_upper_mean_is_that_of_the_best_fifth():
    assert upper_mean(np.arange(10.0)) == 8.5
    assert upper_mean(np.array([1.0, 5.0])) == 5
    assert upper_mean(np.arange(10.0), share=1.0) == 4.5


def test_the_distance_of_two_edfs_is_between_none_and_one():
    a = rng().normal(size=30)
    assert ks_distance(a, a) == 0
    assert ks_distance(a, a + 100) == 1


def test_rank_correlation_is_undefined_where_nothing_can_be_ranked():
    assert kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])) == 1
    assert kendall_tau(np.array([1.0, 2.0, 3.0]), np.array([3.0, 2.0, 1.0])) == -1
    assert np.isnan(kendall_tau(np.array([1.0]), np.array([1.0])))
    assert np.isnan(kendall_tau(np.array([1.0, 1.0]), np.array([1.0, 2.0])))


# -- power -------------------------------------------------------------------------------------------------------------


def test_the_pairs_needed_are_those_of_the_dossier():
    """s = 3 and a difference of 1: 141 models an arm unpaired, 28 pairs at a correlation of 0.8 (section 6.4)."""
    paired = 3 * np.sqrt(2 * (1 - 0.8))
    assert pairs_needed(paired, 1) == pytest.approx(28, abs=3)  # a little more, since the spread is estimated
    assert pairs_needed(3 * np.sqrt(2), 1) == pytest.approx(141, abs=3)


def test_the_power_at_the_pairs_needed_is_the_one_wanted():
    for wanted in (0.5, 0.8, 0.95):
        n = pairs_needed(1.0, 0.5, wanted)
        assert power(n - 1, 1.0, 0.5) < wanted <= power(n, 1.0, 0.5)


def test_the_power_is_what_simulated_tests_show():
    differences = rng(5).normal(0.5, 1, size=(20, 4000))
    shown = stats.ttest_1samp(differences, 0).pvalue <= 0.05
    assert power(20, 1.0, 0.5) == pytest.approx(shown.mean(), abs=0.025)


def test_without_a_difference_the_power_is_the_level():
    assert power(20, 1.0, 0.0) == pytest.approx(0.05)
    assert power(20, 0.0, 0.1) == 1
    with pytest.raises(ValueError, match="no number of pairs"):
        pairs_needed(1.0, 0.0)


def test_the_detectable_difference_is_found_with_the_power_wanted():
    for n in (8, 30, 100):
        assert power(n, 1.0, detectable(n, 1.0)) == pytest.approx(0.8, abs=0.02)
    assert detectable(1, 1.0) == np.inf
