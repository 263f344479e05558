import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from peftscout.surrogate.gp import GaussianProcess, Matern52, Trend

RNG = np.random.default_rng(0)


def a_process(n: int = 12, d: int = 3, seed: int = 0, noise: float = 0.01) -> GaussianProcess:
    rng = np.random.default_rng(seed)
    X = rng.random((n, d))
    y = 0.7 + np.sin(4 * X[:, 0]) * X[:, 1] + 0.1 * rng.standard_normal(n)
    return GaussianProcess(X, y, Matern52(np.array([0.3, 0.8, 2.0])[:d], 0.5), noise, mean=0.6)


def test_the_kernel_is_the_textbook_matern_five_halves():
    kernel = Matern52(np.array([0.5, 2.0]), variance=1.7)
    a, b = np.array([[0.1, 0.9]]), np.array([[0.4, 0.2]])
    r = np.sqrt(((0.1 - 0.4) / 0.5) ** 2 + ((0.9 - 0.2) / 2.0) ** 2)
    expected = 1.7 * (1 + np.sqrt(5) * r + 5 * r**2 / 3) * np.exp(-np.sqrt(5) * r)
    assert kernel(a, b)[0, 0] == pytest.approx(expected, rel=1e-12)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(1, 15))
def test_the_posterior_is_the_textbook_formula(seed, n):
    gp = a_process(n, seed=seed)
    X = np.random.default_rng(seed + 1).random((6, 3))
    K = gp.kernel(gp.X, gp.X) + gp.noise * np.eye(n)
    k = gp.kernel(X, gp.X)
    inverse = np.linalg.inv(K)
    mean, std = gp.posterior(X)
    np.testing.assert_allclose(mean, gp.mean + k @ inverse @ (gp.y - gp.mean), atol=1e-8)
    np.testing.assert_allclose(std**2, gp.kernel.variance - np.einsum("ij,jk,ik->i", k, inverse, k), atol=1e-8)


def test_mean_alone_and_joint_agree_with_the_posterior():
    gp, X = a_process(), RNG.random((5, 3))
    mean, std = gp.posterior(X)
    joint_mean, covariance = gp.joint(X)
    np.testing.assert_allclose(gp.mean_at(X), mean)
    np.testing.assert_allclose(joint_mean, mean)
    np.testing.assert_allclose(np.sqrt(np.diag(covariance)), std, atol=1e-9)
    np.testing.assert_allclose(covariance, covariance.T, atol=1e-12)
    assert np.linalg.eigvalsh(covariance).min() > -1e-9


def test_samples_have_the_moments_of_the_joint_posterior():
    gp, X = a_process(), RNG.random((4, 3))
    samples = gp.sample(X, 40_000, np.random.default_rng(1))
    mean, covariance = gp.joint(X)
    np.testing.assert_allclose(samples.mean(axis=0), mean, atol=0.015)
    np.testing.assert_allclose(np.cov(samples.T), covariance, atol=0.015)


def test_without_noise_the_posterior_goes_through_the_observations():
    gp = a_process(noise=1e-10)
    mean, std = gp.posterior(gp.X)
    np.testing.assert_allclose(mean, gp.y, atol=1e-5)
    assert std.max() < 1e-3


def test_far_from_all_observations_the_prior_is_left():
    gp = a_process()
    mean, std = gp.posterior(np.full((1, 3), 100.0))
    assert mean[0] == pytest.approx(gp.mean)
    assert std[0] ** 2 == pytest.approx(gp.kernel.variance)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), new=st.integers(1, 4))
def test_conditioning_equals_a_posterior_from_everything_at_once(seed, new):
    rng = np.random.default_rng(seed)
    gp, X, y = a_process(seed=seed), rng.random((new, 3)), rng.random(new)
    whole = GaussianProcess(np.vstack([gp.X, X]), np.concatenate([gp.y, y]), gp.kernel, gp.noise, gp.mean)
    at = rng.random((7, 3))
    for ours, theirs in zip(gp.condition(X, y).posterior(at), whole.posterior(at), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_a_fantasy_at_the_mean_moves_no_mean_and_raises_no_variance():
    gp, X, at = a_process(), RNG.random((3, 3)), RNG.random((50, 3))
    before, after = gp.posterior(at), gp.condition(X, gp.mean_at(X)).posterior(at)
    np.testing.assert_allclose(after[0], before[0], atol=1e-8)
    assert np.all(after[1] <= before[1] + 1e-9)


def test_conditioning_leaves_the_process_as_it_was():
    gp = a_process()
    gp.condition(RNG.random((2, 3)), np.zeros(2))
    assert len(gp.y) == 12
    assert gp.cholesky.shape == (12, 12)


def test_inputs_that_are_there_twice_do_not_break_the_factorisation():
    X = np.repeat(RNG.random((4, 3)), 3, axis=0)
    gp = GaussianProcess(X, np.arange(12.0), Matern52(np.ones(3), 1.0), noise=0.0)
    assert np.all(np.isfinite(gp.posterior(X)[0]))


def test_a_trend_is_the_prior_mean_where_nothing_was_observed():
    source = a_process(30, seed=4)
    gp = GaussianProcess(np.full((1, 3), 50.0), np.array([9.0]), source.kernel, 0.01, 0.2, Trend(source, 1.5))
    X = RNG.random((5, 3))
    np.testing.assert_allclose(gp.mean_at(X), 0.2 + 1.5 * source.mean_at(X), atol=1e-9)
