"""The same search with BoTorch: qLogNEHVI over a Gaussian process of the score and the exact cost.

For parity runs of `bo_synthetic` and `bo_speed`; needs the extra ``botorch``. The initial design, the inputs and the
cost axis are peftscout's, so that what differs is the surrogate (`SingleTaskGP`, or SAAS by MAP) and the acquisition.
"""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import torch
from botorch.acquisition.multi_objective.logei import qLogNoisyExpectedHypervolumeImprovement
from botorch.fit import fit_gpytorch_mll
from botorch.models import ModelList, SingleTaskGP
from botorch.models.deterministic import GenericDeterministicModel
from botorch.models.transforms import Standardize
from botorch.optim.optimize import optimize_acqf_discrete
from gpytorch.mlls import ExactMarginalLogLikelihood

from bo_functions import FLOOR, Function, Levels
from peftscout.plan import Budget
from peftscout.strategies.autopeft_design import spread_design
from peftscout.surrogate.features import Encoder, Points
from peftscout.surrogate.maximise import exchanges

LOG_COST = -4
"""Column of the encoder's inputs that is the log cost on [0, 1]: the known objective is a function of it."""


def propose(encoder: Encoder, points: Points, scores: np.ndarray, seed: int) -> Points:
    """Return the next point: the best of the front's one-exchange neighbours and of 2,000 random plans."""
    X, y = torch.tensor(encoder(points)), torch.tensor(scores)[:, None]
    model = SingleTaskGP(X, y, outcome_transform=Standardize(1))
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    both = ModelList(model, GenericDeterministicModel(lambda x: -x[..., LOG_COST : LOG_COST + 1]))
    acquisition = qLogNoisyExpectedHypervolumeImprovement(both, [FLOOR, -1.05], X, prune_baseline=True)
    choices = _choices(encoder, points, scores, np.random.default_rng([seed, len(points)]))
    inputs = torch.tensor(encoder(choices))
    best, _ = optimize_acqf_discrete(acquisition, q=1, choices=inputs, max_batch_size=512)
    return np.asarray(choices[int((inputs - best).abs().sum(dim=1).argmin())])


def _choices(encoder: Encoder, points: Points, scores: np.ndarray, rng: np.random.Generator) -> Points:
    order = np.argsort(encoder.costs(points), kind="stable")
    on_front = order[scores[order] >= np.maximum.accumulate(scores[order])]
    drawn = np.column_stack([encoder.space.sample_vectors(2000, rng), np.zeros(2000, dtype=np.int64)])
    near = [exchanges(encoder, point) for point in points[on_front]]
    candidates = np.unique(np.concatenate([encoder.canonical(drawn), *near]), axis=0)
    known = {p.tobytes() for p in points}
    return candidates[[p.tobytes() not in known and encoder.costs(p[None])[0] > 0 for p in candidates]]


def botorch_search(f: Function, seed: int, evaluations: int) -> Levels:
    """Run the search and return the vectors evaluated, in order."""
    warnings.filterwarnings("ignore")
    torch.manual_seed(seed)
    encoder, noise = Encoder(f.space), np.random.default_rng([seed, 9])
    dearest = f.space.dearest().cost(f.space.sites)
    design = spread_design(encoder, Budget(dearest, str(dearest)), seed)
    points = list(itertools.islice(design, 20))
    scores = [f.observe(f.space.decode(p[:-1]), noise) for p in points]
    while len(points) < evaluations:
        point = propose(encoder, np.stack(points), np.array(scores), seed)
        points.append(point)
        scores.append(f.observe(f.space.decode(point[:-1]), noise))
    return np.stack(points)[:, :-1]
