"""The acquisition of the search: closed-form EHVI averaged over hyper-parameters, times the probability of success."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Self

import numpy as np

from peftscout.surrogate.ehvi import log_ehvi, log_ehvi_bound, mean_log
from peftscout.surrogate.fast import FastPosterior, Float32
from peftscout.surrogate.gp import FloatArray, GaussianProcess
from peftscout.surrogate.staircase import Reference, Staircase

_LEAST_CHANCE = 0.02
"""A region of failures is avoided, not forbidden."""


@dataclass(frozen=True, eq=False)
class Member:
    """One opinion of the ensemble: a surrogate, and the staircases of the front as this surrogate sees it."""

    gp: GaussianProcess
    staircases: tuple[Staircase, ...]

    @cached_property
    def fast(self) -> FastPosterior:
        """The same posterior in single precision."""
        return FastPosterior(self.gp)


@dataclass(frozen=True, eq=False)
class Front:
    """What was observed, as the acquisition needs it.

    Attributes:
        costs: (n,) costs of the rows of the surrogates' inputs, on the cost axis.
        reference: the corner of the hypervolume; another budget is another ``reference.cost``, nothing is refitted.
        others: costs and scores of points on the front that the surrogate cannot represent (the baseline).
        staircase: where the levels of the front come from under noise: posterior ``means``, or joint posterior
            ``samples``, averaged (the NEHVI of Daulton et al. 2021 with the noise integrated by ``draws`` samples).
        draws: number of samples.
    """

    costs: FloatArray
    reference: Reference
    others: tuple[FloatArray, FloatArray]
    staircase: Literal["means", "samples"] = "means"
    draws: int = 16

    def seen_by(self, gp: GaussianProcess) -> Member:
        """Return the member of ``gp``: its own view of the front, the noise taken out."""
        if self.staircase == "means":
            views = gp.mean_at(gp.X)[None]
        else:
            views = gp.sample(gp.X, self.draws, np.random.default_rng(len(gp.y)))
        costs = np.concatenate([self.costs, self.others[0]])
        return Member(
            gp,
            tuple(Staircase.of(costs, np.concatenate([view, self.others[1]]), self.reference) for view in views),
        )


@dataclass(frozen=True, eq=False)
class Acquisition:
    """log of EHVI x P(success), for inputs and costs of candidates.

    Attributes:
        members: the ensemble.
        front: what the members' staircases were built from.
        success: a surrogate of 1 (finished) and 0 (diverged, failed, out of memory), where there were failures.
    """

    members: tuple[Member, ...]
    front: Front
    success: GaussianProcess | None = None

    @classmethod
    def of(cls, ensemble: Sequence[GaussianProcess], front: Front, success: GaussianProcess | None = None) -> Self:
        """Build the acquisition of an ensemble of surrogates over the same inputs."""
        return cls(tuple(front.seen_by(gp) for gp in ensemble), front, success)

    def __call__(self, X: FloatArray, costs: FloatArray) -> FloatArray:
        """Return log acquisition of candidates with inputs ``X`` (n, d) and ``costs`` (n,); -inf: nothing to gain."""
        parts = []
        for member in self.members:
            mean, std = member.gp.posterior(X)
            parts += [log_ehvi(mean, std, costs, staircase) for staircase in member.staircases]
        return mean_log(parts) + self._log_chance(X)

    def screened(self, X: Float32, costs: FloatArray, threshold: float) -> FloatArray:
        """Return log acquisition in single precision where it may exceed ``threshold``, -inf elsewhere.

        Candidates whose upper bound (`log_ehvi_bound` at a bound of the standard deviation) does not reach the
        threshold are dropped before their variance is computed. The threshold changes the work, never the winners.
        """
        covariances = [member.fast.covariances(X) for member in self.members]
        means, bounds = [], []
        for member, K in zip(self.members, covariances, strict=True):
            mean = member.fast.mean(X, K).astype(float)
            std = member.fast.std_bound(K).astype(float)
            means.append(mean)
            bounds += [log_ehvi_bound(mean, std, costs, staircase) for staircase in member.staircases]
        out = np.full(len(X), -np.inf)
        keep = np.flatnonzero(mean_log(bounds) > threshold)
        if not len(keep):
            return out
        parts = []
        for member, K, mean in zip(self.members, covariances, means, strict=True):
            std = member.fast.std(K[keep]).astype(float)
            parts += [log_ehvi(mean[keep], std, costs[keep], staircase) for staircase in member.staircases]
        out[keep] = mean_log(parts) + self._log_chance(X[keep].astype(float))
        return out

    def fantasise(self, X: FloatArray, costs: FloatArray) -> Self:
        """Return the acquisition as if the running candidates ``X`` (m, d) had scored their posterior means.

        The kriging believer: means stay, variances shrink and staircases rise, so with staircases of means no
        candidate becomes better than it was. Hyper-parameters stay.
        """
        front = replace(self.front, costs=np.concatenate([self.front.costs, costs]))
        believers = [member.gp.condition(X, member.gp.mean_at(X)) for member in self.members]
        return type(self)(tuple(front.seen_by(gp) for gp in believers), front, self.success)

    def within(self, reference_cost: float) -> Self:
        """Return the acquisition for another budget: the same surrogates, another right edge of the hypervolume."""
        front = replace(self.front, reference=replace(self.front.reference, cost=reference_cost))
        return type(self)(tuple(front.seen_by(member.gp) for member in self.members), front, self.success)

    def predict(self, X: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Return mean and standard deviation of the score under the ensemble's mixture, each (n,)."""
        moments = [member.gp.posterior(X) for member in self.members]
        means, variances = np.stack([m for m, _ in moments]), np.stack([s * s for _, s in moments])
        mean = means.mean(axis=0)
        return mean, np.sqrt(np.maximum(variances.mean(axis=0) + means.var(axis=0), 0.0))

    def _log_chance(self, X: FloatArray) -> FloatArray:
        if self.success is None:
            return np.zeros(len(X))
        return np.asarray(np.log(np.clip(self.success.mean_at(X), _LEAST_CHANCE, 1.0)))
