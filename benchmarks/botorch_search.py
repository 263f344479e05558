"""The same search with BoTorch: qLogNEHVI over a Gaussian process of the score and the exact cost.

For parity runs of `bo_synthetic` and `bo_speed`; needs the extra ``botorch``. The initial design, the inputs and the
cost axis are peftscout's, so that what differs is the surrogate (BoTorch's default, or its SAAS by MAP, the mean over
four tau) and the acquisition. To be affordable, every fit starts where the last one ended, and all choices are screened
with 16 Monte-Carlo samples of the front before the best 200 are compared with BoTorch's 128.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable, Mapping

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelList, SingleTaskGP
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.map_saas import EnsembleMapSaasSingleTaskGP
from botorch.sampling.get_sampler import get_sampler
from gpytorch.mlls import ExactMarginalLogLikelihood
from torch import Tensor

from bo_functions import FLOOR, Function, Levels
from peftscout.plan import Budget
from peftscout.strategies.autopeft_design import spread_design
from peftscout.surrogate.features import Encoder, Points
from peftscout.surrogate.maximise import exchanges

LOG_COST = -4
"""Column of the encoder's inputs that is the log cost on [0, 1]: the known objective is a function of it."""

Fitted = Mapping[str, Tensor]
"""Hyper-parameters by name."""

Make = Callable[[Tensor, Tensor], SingleTaskGP]
"""Inputs ``[n, d]`` and standardised scores ``[n, 1]`` -> a model that is not fitted yet."""

SCREENING_SAMPLES, SCREENED, SAMPLES, BATCH = 16, 200, 128, 256


def saas(X: Tensor, y: Tensor) -> EnsembleMapSaasSingleTaskGP:
    """Return the ensemble of sparse-axis models by MAP (Eriksson & Jankowiak 2021), for four tau."""
    return EnsembleMapSaasSingleTaskGP(X, y, num_taus=4)


def propose(
    encoder: Encoder,
    points: Points,
    scores: np.ndarray,
    seed: int,
    make: Make = SingleTaskGP,
    begin: Fitted | None = None,
) -> tuple[Points, Fitted]:
    """Return the next point, and where the fit ended, from which the next one may ``begin``.

    The point is the best of the front's one-exchange neighbours and of 2,000 random plans.
    """
    centre, spread = float(scores.mean()), float(scores.std()) or 1.0
    X = torch.tensor(encoder(points))
    model = make(X, torch.tensor((scores - centre) / spread)[:, None])
    if begin is not None:
        model.load_state_dict(begin, strict=False)
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    learnt = {name: value.detach().clone() for name, value in model.state_dict().items()}
    choices = _choices(encoder, points, scores, np.random.default_rng([seed, len(points)]))
    inputs = torch.tensor(encoder(choices))
    reference = [(FLOOR - centre) / spread, -1.05]
    for samples, kept in ((SCREENING_SAMPLES, SCREENED), (SAMPLES, 1)):
        values = _improvements(model, reference, X, inputs, samples, seed)
        best = values.argsort(descending=True, stable=True)[:kept]
        choices, inputs = choices[best.numpy()], inputs[best]
    return np.asarray(choices[0]), learnt


def _improvements(
    model: SingleTaskGP, reference: list[float], X: Tensor, inputs: Tensor, samples: int, seed: int
) -> Tensor:
    """Return qLogNEHVI (Ament et al. 2023) of each of ``inputs``, ``[choices]``."""
    both = ModelList(model, GenericDeterministicModel(lambda x: -x[..., LOG_COST : LOG_COST + 1]))
    sampler = get_sampler(both.posterior(X[:1]), torch.Size([samples]), seed=seed)
    acquisition = qLogNoisyExpectedHypervolumeImprovement(both, reference, X, sampler=sampler, prune_baseline=True)
    with torch.no_grad():
        return torch.cat([acquisition(part[:, None]) for part in inputs.split(BATCH)])


def _choices(encoder: Encoder, points: Points, scores: np.ndarray, rng: np.random.Generator) -> Points:
    order = np.argsort(encoder.costs(points), kind="stable")
    on_front = order[scores[order] >= np.maximum.accumulate(scores[order])]
    drawn = np.column_stack([encoder.space.sample_vectors(2000, rng), np.zeros(2000, dtype=np.int64)])
    near = [exchanges(encoder, point) for point in points[on_front]]
    candidates = np.unique(np.concatenate([encoder.canonical(drawn), *near]), axis=0)
    known = {p.tobytes() for p in points}
    return candidates[[p.tobytes() not in known and encoder.costs(p[None])[0] > 0 for p in candidates]]


def botorch_search(f: Function, seed: int, evaluations: int, make: Make = SingleTaskGP) -> Levels:
    """Run the search and return the vectors evaluated, in order."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(seed)
    encoder, noise = Encoder(f.space), np.random.default_rng([seed, 9])
    dearest = f.space.dearest().cost(f.space.sites)
    design = spread_design(encoder, Budget(dearest, str(dearest)), seed)
    points = list(itertools.islice(design, 20))
    scores = [f.observe(f.space.decode(p[:-1]), noise) for p in points]
    fit: Fitted | None = None
    while len(points) < evaluations:
        point, fit = propose(encoder, np.stack(points), np.array(scores), seed, make, fit)
        points.append(point)
        scores.append(f.observe(f.space.decode(point[:-1]), noise))
    return np.stack(points)[:, :-1]
