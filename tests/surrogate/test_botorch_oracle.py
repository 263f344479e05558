"""The closed form and the Gaussian process against BoTorch and GPyTorch, where the extra ``botorch`` is installed."""

from __future__ import annotations

import numpy as np
import pytest

from peftscout.surrogate.acquisition import Acquisition, Front
from peftscout.surrogate.ehvi import ehvi
from peftscout.surrogate.gp import GaussianProcess, Matern52
from peftscout.surrogate.staircase import Reference, Staircase, hypervolume

botorch = pytest.importorskip("botorch", reason="needs the extra: pip install peftscout[botorch]")
torch = pytest.importorskip("torch")

REFERENCE = Reference(cost=6.0, score=0.5)


def a_problem(seed: int, n: int = 25, d: int = 4):
    """Observations (X, costs, scores), and our process with hyper-parameters that are as good as any."""
    rng = np.random.default_rng(seed)
    X = rng.random((n, d))
    costs = 2.5 + 3.4 * X.mean(axis=1)
    y = 0.55 + 0.3 * X[:, 0] * (1 - X[:, 1]) + 0.01 * rng.standard_normal(n)
    return X, costs, y, GaussianProcess(X, y, Matern52(rng.uniform(0.3, 1.5, d), 0.01), 1e-4, mean=float(y.mean()))


def as_torch(gp: GaussianProcess):
    """The same process in BoTorch: no fitting, the same numbers."""
    from botorch.models import SingleTaskGP
    from gpytorch.kernels import MaternKernel, ScaleKernel

    kernel = ScaleKernel(MaternKernel(nu=2.5, ard_num_dims=gp.X.shape[1]))
    X, y = torch.tensor(gp.X), torch.tensor(gp.y[:, None])
    model = SingleTaskGP(X, y, torch.full_like(y, gp.noise), covar_module=kernel, outcome_transform=None)
    model = model.to(torch.double)
    model.covar_module.base_kernel.lengthscale = torch.tensor(gp.kernel.lengthscales)
    model.covar_module.outputscale = gp.kernel.variance
    model.mean_module.initialize(constant=gp.mean)
    return model.eval()


def with_known_cost(gp: GaussianProcess):
    """A two-objective model: the score's process, and minus the cost of `a_problem` as a known function."""
    from botorch.models import ModelList
    from botorch.models.deterministic import GenericDeterministicModel

    return ModelList(as_torch(gp), GenericDeterministicModel(lambda X: -(2.5 + 3.4 * X.mean(dim=-1, keepdim=True))))


def a_sampler(draws: int):
    """Quasi-random draws of the score; the cost has nothing to draw."""
    from botorch.sampling import ListSampler, SobolQMCNormalSampler
    from botorch.sampling.stochastic_samplers import StochasticSampler

    shape = torch.Size([draws])
    return ListSampler(SobolQMCNormalSampler(shape, seed=0), StochasticSampler(shape))


@pytest.mark.parametrize("seed", range(3))
def test_the_posterior_is_that_of_gpytorch(seed):
    _, _, _, gp = a_problem(seed)
    at = np.random.default_rng(99).random((50, 4))
    theirs = as_torch(gp).posterior(torch.tensor(at))
    mean, std = gp.posterior(at)
    np.testing.assert_allclose(mean, theirs.mean.detach().numpy().ravel(), atol=1e-6)
    np.testing.assert_allclose(std, theirs.variance.detach().numpy().ravel() ** 0.5, atol=1e-5)


@pytest.mark.parametrize("seed", range(3))
def test_the_hypervolume_is_botorchs(seed):
    from botorch.utils.multi_objective.hypervolume import Hypervolume
    from botorch.utils.multi_objective.pareto import is_non_dominated

    _, costs, y, _ = a_problem(seed)
    points = torch.tensor(np.column_stack([y, -costs]))
    front = points[is_non_dominated(points)]
    theirs = Hypervolume(torch.tensor([REFERENCE.score, -REFERENCE.cost], dtype=torch.double)).compute(front)
    assert hypervolume(costs, y, REFERENCE) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize("seed", range(4))
def test_ehvi_is_botorchs_with_the_cost_as_a_deterministic_model(seed):
    from botorch.acquisition.multi_objective.monte_carlo import qExpectedHypervolumeImprovement
    from botorch.utils.multi_objective.box_decompositions import FastNondominatedPartitioning

    _, costs, y, gp = a_problem(seed)
    corner = torch.tensor([REFERENCE.score, -REFERENCE.cost], dtype=torch.double)
    partitioning = FastNondominatedPartitioning(corner, torch.tensor(np.column_stack([y, -costs])))
    model = with_known_cost(gp)
    theirs = qExpectedHypervolumeImprovement(model, corner.tolist(), partitioning, a_sampler(2**15))
    at = np.random.default_rng(seed + 50).random((60, 4))
    ours = ehvi(*gp.posterior(at), 2.5 + 3.4 * at.mean(axis=1), Staircase.of(costs, y, REFERENCE))
    with torch.no_grad():
        expected = theirs(torch.tensor(at)[:, None]).numpy()
    relevant = expected > 0.01 * expected.max()
    np.testing.assert_allclose(ours[relevant], expected[relevant], rtol=1e-3)
    np.testing.assert_allclose(ours, expected, atol=1e-4 * expected.max())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_the_sampled_front_ranks_candidates_as_qlognehvi_does(seed):
    from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
    from botorch.sampling.get_sampler import get_sampler

    X, costs, _, gp = a_problem(seed)
    model = with_known_cost(gp)
    corner = [REFERENCE.score, -REFERENCE.cost]
    sampler = get_sampler(model.posterior(torch.tensor(X[:1])), torch.Size([512]), seed=0)
    theirs = qLogNoisyExpectedHypervolumeImprovement(model, corner, torch.tensor(X), sampler)
    nobody = (np.empty(0), np.empty(0))
    acquisition = Acquisition.of([gp], Front(costs, REFERENCE, nobody, staircase="samples", draws=256))
    at = np.random.default_rng(seed + 50).random((100, 4))
    ours = acquisition(at, 2.5 + 3.4 * at.mean(axis=1))
    with torch.no_grad():
        expected = theirs(torch.tensor(at)[:, None]).numpy()
    best = np.argsort(-expected)[:30]
    assert np.corrcoef(np.exp(ours[best]), np.exp(expected[best]))[0, 1] > 0.98
    assert ours[np.argmax(expected)] > ours.max() - 0.15
