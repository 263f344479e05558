import math

import numpy as np
import pytest
from scipy.stats import halfcauchy, lognorm

from peftscout.surrogate.fit import (
    LogNormal,
    Priors,
    dimension_scaled,
    fit_dimension_scaled,
    fit_map,
    fit_saas,
    fit_trend,
    half_cauchy_quantiles,
    log_posterior,
    sparse_axes,
)
from peftscout.surrogate.gp import GaussianProcess, Matern52

PRIORS = {"dimension-scaled": Priors(dimension_scaled(5)), "sparse": Priors(sparse_axes(0.1))}


def data(n: int = 40, d: int = 5, seed: int = 0, noise: float = 0.05):
    """Two axes matter, the others do not."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, d))
    return X, np.sin(4 * X[:, 0]) + X[:, 1] ** 2 + noise * rng.standard_normal(n)


def central_differences(function, theta, step=1e-5):
    return np.array(
        [(function(theta + step * e) - function(theta - step * e)) / (2 * step) for e in np.eye(len(theta))]
    )


@pytest.mark.parametrize("priors", PRIORS.values(), ids=PRIORS)
@pytest.mark.parametrize("seed", range(3))
def test_the_gradient_of_the_log_posterior_equals_finite_differences(priors, seed):
    X, y = data(seed=seed)
    theta = np.random.default_rng(seed).normal([0, 0, 0, 0, 0, 0, -3, 0], 0.5)
    _, gradient = log_posterior(theta, X, y, priors)
    numeric = central_differences(lambda t: log_posterior(t, X, y, priors)[0], theta)
    np.testing.assert_allclose(gradient, numeric, rtol=1e-5, atol=1e-5)


def test_the_log_likelihood_is_that_of_a_multivariate_normal():
    from scipy.stats import multivariate_normal

    X, y = data(15)
    flat = Priors(lambda log_l: (0.0, np.zeros_like(log_l)), LogNormal(0.0, 1.0), LogNormal(0.0, 1.0))
    values, truths = [], []
    for scale in (0.5, 1.0):  # the priors of variance and noise are the same in both, so the difference has none
        theta = np.array([*np.log(scale * np.ones(5)), 0.0, math.log(0.1), 0.0])
        values.append(log_posterior(theta, X, y, flat)[0])
        K = Matern52(scale * np.ones(5), 1.0)(X, X) + 0.1 * np.eye(15)
        truths.append(multivariate_normal(np.zeros(15), K).logpdf(y))
    assert values[1] - values[0] == pytest.approx(truths[1] - truths[0], abs=1e-6)


def test_the_log_normal_prior_is_scipys_up_to_a_constant():
    prior, x = LogNormal(0.3, 1.7), np.array([0.2, 1.0, 5.0])
    ours = [prior.log_density(np.log(v[None]))[0] for v in x]
    theirs = lognorm(s=1.7, scale=math.exp(0.3)).logpdf(x)
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs))


def test_the_sparse_prior_is_a_half_cauchy_on_the_inverse_squared_lengthscale():
    tau, lengths = 0.2, np.array([0.5, 2.0, 30.0])
    ours = [sparse_axes(tau)(np.log(v[None]))[0] for v in lengths]
    theirs = halfcauchy.logpdf(1 / (tau * lengths**2))
    np.testing.assert_allclose(np.diff(ours), np.diff(theirs))


def test_lengthscales_grow_with_the_root_of_the_dimension():
    small, large = dimension_scaled(4), dimension_scaled(100)
    at = np.linspace(-3, 8, 1000)

    def mode(prior):
        return at[np.argmax([prior(np.array([v]))[0] for v in at])]

    assert mode(large) - mode(small) == pytest.approx(math.log(5.0), abs=0.03)


def test_the_quantiles_of_tau_are_those_of_a_half_cauchy():
    np.testing.assert_allclose(half_cauchy_quantiles(0.1, 4), halfcauchy(scale=0.1).ppf([1 / 8, 3 / 8, 5 / 8, 7 / 8]))


@pytest.mark.parametrize("fit", [fit_dimension_scaled, fit_saas])
def test_a_fit_predicts_unseen_points_and_finds_the_axes_that_matter(fit):
    X, y = data(60)
    unseen, truth = data(200, seed=9, noise=0.0)
    for gp in fit(X, y):
        assert np.corrcoef(gp.mean_at(unseen), truth)[0, 1] > 0.97
        lengths = gp.kernel.lengthscales
        assert max(lengths[:2]) < min(lengths[2:])
        assert 0.005 < math.sqrt(gp.noise) < 0.12  # 0.05 was put in


def test_sparse_axes_give_one_member_for_each_tau():
    assert len(fit_saas(*data(20))) == 4
    assert len(fit_saas(*data(20), taus=(0.1, 1.0))) == 2


def test_a_fit_depends_on_the_data_alone():
    X, y = data()
    first, second = (fit_map(X, y, PRIORS["dimension-scaled"]) for _ in range(2))
    assert np.array_equal(first.kernel.lengthscales, second.kernel.lengthscales)
    assert first.noise == second.noise


def test_the_fit_is_in_the_units_of_the_targets():
    X, y = data()
    plain, scaled = fit_dimension_scaled(X, y)[0], fit_dimension_scaled(X, 100 * y - 40)[0]
    at = np.random.default_rng(3).random((20, 5))
    for ours, theirs, shift in zip(scaled.posterior(at), plain.posterior(at), (40, 0), strict=True):
        np.testing.assert_allclose(ours, 100 * theirs - shift, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("fit", [fit_dimension_scaled, fit_saas])
@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_or_equal_scores_are_fitted_without_error(fit, n):
    X = np.random.default_rng(0).random((n, 5))
    for gp in fit(X, np.full(n, 0.5)):
        mean, std = gp.posterior(X)
        np.testing.assert_allclose(mean, 0.5, atol=1e-3)
        assert np.all(np.isfinite(std))


def test_a_related_source_becomes_the_prior_mean_and_an_unrelated_one_does_not():
    X, y = data(80)
    source = fit_dimension_scaled(X, y)[0]
    near, scores = data(8, seed=5)
    assert fit_trend(source, near, 0.1 * scores).slope == pytest.approx(0.1, rel=0.4)
    assert fit_trend(source, near, -scores).slope == 0.0
    assert fit_trend(source, near[:1], scores[:1]).slope == 0.0


def test_a_prior_mean_from_a_related_study_makes_few_observations_predict_better():
    X, y = data(80)
    source = fit_dimension_scaled(X, y)[0]
    few, scores = data(6, seed=5)
    unseen, truth = data(200, seed=9, noise=0.0)

    def error(gp: GaussianProcess) -> float:
        return float(np.mean((gp.mean_at(unseen) - truth) ** 2))

    alone = fit_dimension_scaled(few, scores)[0]
    helped = fit_dimension_scaled(few, scores, fit_trend(source, few, scores))[0]
    assert error(helped) < 0.5 * error(alone)
