import math

import numpy as np
import pytest

from peftscout.surrogate.acquisition import Acquisition, Front
from peftscout.surrogate.ehvi import log_ehvi
from peftscout.surrogate.fast import FastPosterior
from peftscout.surrogate.fit import fit_dimension_scaled, fit_saas, fit_trend
from peftscout.surrogate.gp import GaussianProcess, Matern52
from peftscout.surrogate.staircase import Reference, Staircase

D = 6
NOBODY = (np.empty(0), np.empty(0))


def data(n: int = 40, seed: int = 0):
    rng = np.random.default_rng(seed)
    X = rng.random((n, D))
    costs = 3.0 + 3.0 * X.mean(axis=1) + 0.1 * rng.random(n)
    return X, costs, 0.6 + 0.2 * np.sin(3 * X[:, 0]) * X[:, 1] + 0.01 * rng.standard_normal(n)


def an_acquisition(fit=fit_dimension_scaled, n: int = 40, seed: int = 0, **front) -> Acquisition:
    X, costs, y = data(n, seed)
    return Acquisition.of(fit(X, y), Front(costs, Reference(6.0, 0.55), NOBODY, **front))


CANDIDATES, COSTS, _ = data(500, seed=1)


@pytest.mark.parametrize("fit", [fit_dimension_scaled, fit_saas])
def test_single_precision_agrees_with_double(fit):
    X, _, y = data(120)
    for gp in fit(X, y):
        fast = FastPosterior(gp)
        K = fast.covariances(CANDIDATES.astype(np.float32))
        mean, std = gp.posterior(CANDIDATES)
        np.testing.assert_allclose(fast.mean(CANDIDATES.astype(np.float32), K), mean, atol=2e-5)
        np.testing.assert_allclose(fast.std(K), std, atol=2e-3 * math.sqrt(gp.kernel.variance))
        assert np.all(fast.std_bound(K) >= std - 1e-5)


def test_single_precision_follows_the_prior_mean_of_another_study():
    X, _, y = data(60)
    source = fit_dimension_scaled(X, y)[0]
    few, _, scores = data(8, seed=7)
    gp = fit_dimension_scaled(few, scores, fit_trend(source, few, scores))[0]
    assert gp.trend is not None
    fast, single = FastPosterior(gp), CANDIDATES.astype(np.float32)
    np.testing.assert_allclose(fast.mean(single, fast.covariances(single)), gp.mean_at(CANDIDATES), atol=2e-5)


def test_the_acquisition_of_one_surrogate_is_its_ehvi_over_its_own_front():
    acquisition = an_acquisition()
    gp = acquisition.members[0].gp
    staircase = Staircase.of(data()[1], gp.mean_at(gp.X), Reference(6.0, 0.55))
    np.testing.assert_allclose(
        acquisition(CANDIDATES, COSTS), log_ehvi(*gp.posterior(CANDIDATES), COSTS, staircase), rtol=1e-9
    )


def test_an_ensemble_averages_what_its_members_expect():
    X, costs, y = data()
    members = fit_saas(X, y)
    front = Front(costs, Reference(6.0, 0.55), NOBODY)
    alone = [np.exp(Acquisition.of([gp], front)(CANDIDATES, COSTS)) for gp in members]
    together = np.exp(Acquisition.of(members, front)(CANDIDATES, COSTS))
    np.testing.assert_allclose(together, np.mean(alone, axis=0), rtol=1e-9)


@pytest.mark.parametrize("fit", [fit_dimension_scaled, fit_saas])
@pytest.mark.parametrize("quantile", [0.0, 0.5, 0.95])
def test_screening_drops_only_what_cannot_exceed_the_threshold(fit, quantile):
    acquisition = an_acquisition(fit)
    exact = acquisition(CANDIDATES, COSTS)
    threshold = float(np.quantile(exact[np.isfinite(exact)], quantile))
    screened = acquisition.screened(CANDIDATES.astype(np.float32), COSTS, threshold)
    above = exact > threshold + 0.01
    np.testing.assert_allclose(screened[above], exact[above], rtol=1e-3, atol=0.02)
    assert np.all(screened[exact < threshold - 0.01] < threshold)


def test_fantasies_never_raise_the_acquisition():
    acquisition = an_acquisition()
    running = CANDIDATES[:3]
    believed = acquisition.fantasise(running, COSTS[:3])
    assert np.all(believed(CANDIDATES, COSTS) <= acquisition(CANDIDATES, COSTS) + 1e-6)


def test_a_running_candidate_is_hardly_worth_asking_again():
    acquisition = an_acquisition()
    best = int(np.argmax(acquisition(CANDIDATES, COSTS)))
    at = CANDIDATES[best : best + 1], COSTS[best : best + 1]
    assert acquisition.fantasise(*at)(*at)[0] < acquisition(*at)[0] - 1.0


def test_another_budget_is_another_edge_and_nothing_is_fitted_again():
    acquisition = an_acquisition()
    narrow = acquisition.within(4.0)
    assert [m.gp for m in narrow.members] == [m.gp for m in acquisition.members]
    values = narrow(CANDIDATES, COSTS)
    assert np.all(values[COSTS >= 4.0] == -np.inf)
    assert np.all(np.isfinite(values[COSTS < 4.0]))


def test_a_plan_that_the_surrogate_cannot_see_raises_the_front():
    X, costs, y = data()
    ensemble = fit_dimension_scaled(X, y)
    without = Acquisition.of(ensemble, Front(costs, Reference(6.0, 0.55), NOBODY))
    baseline = (np.array([3.0]), np.array([0.95]))
    given = Acquisition.of(ensemble, Front(costs, Reference(6.0, 0.55), baseline))
    assert np.all(given(CANDIDATES, COSTS) <= without(CANDIDATES, COSTS))
    assert given(CANDIDATES, COSTS).max() < without(CANDIDATES, COSTS).max() - 1.0


def test_samples_of_the_front_average_to_nearly_the_front_of_means_where_noise_is_small():
    means = np.exp(an_acquisition()(CANDIDATES, COSTS))
    samples = np.exp(an_acquisition(staircase="samples", draws=64)(CANDIDATES, COSTS))
    assert np.corrcoef(means, samples)[0, 1] > 0.98
    again = np.exp(an_acquisition(staircase="samples", draws=64)(CANDIDATES, COSTS))
    np.testing.assert_array_equal(samples, again)


def test_a_region_of_failures_is_avoided_but_not_forbidden():
    X, costs, y = data()
    ensemble = fit_dimension_scaled(X, y)
    labels = (X[:, 2] < 0.5).astype(float)
    success = GaussianProcess(X, labels, Matern52(np.full(D, 1.0), 0.25), 0.05, mean=0.7)
    front = Front(costs, Reference(6.0, 0.55), NOBODY)
    change = Acquisition.of(ensemble, front, success)(CANDIDATES, COSTS) - Acquisition.of(ensemble, front)(
        CANDIDATES, COSTS
    )
    assert np.all(change <= 1e-12)
    assert np.all(change >= math.log(0.02) - 1e-9)
    assert change[CANDIDATES[:, 2] > 0.8].mean() < change[CANDIDATES[:, 2] < 0.2].mean() - 0.5


def test_predictions_of_an_ensemble_have_the_moments_of_the_mixture():
    X, costs, y = data(20)
    members = fit_saas(X, y)
    acquisition = Acquisition.of(members, Front(costs, Reference(6.0, 0.55), NOBODY))
    mean, std = acquisition.predict(CANDIDATES)
    moments = [gp.posterior(CANDIDATES) for gp in members]
    second = np.mean([s**2 + m**2 for m, s in moments], axis=0)
    np.testing.assert_allclose(mean, np.mean([m for m, _ in moments], axis=0))
    np.testing.assert_allclose(std**2 + mean**2, second, rtol=1e-6)
