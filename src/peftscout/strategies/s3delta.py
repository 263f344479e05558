"""S3Delta (Hu et al., "Sparse Structure Search for Delta Tuning", NeurIPS 2022), also known as S3PET.

Every module has a gate, drawn near 0 or 1 with a probability p whose expected cost is the budget at all times (shifted
global sigmoid). Structure and weights are trained in turns, the structure by DARTS' second-order gradient. The result
takes modules by descending p while they fit.

The paper has one size a module. Here each size of a module has a gate of its own, so that any space will do: the gates
of a module's sizes add up, and the result takes at most one of them. Other deviations from the release: the structure
is that of the last iteration and not of the best soft-gated one, which may be from before the gates moved; the scale
of LoRA is the study's, not 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

from peftscout.errors import ConfigError
from peftscout.gates import Floats, Gates, Kept, Modules, Step, WeightTraining
from peftscout.strategies.adam import Adam
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.knapsack import greedy, knapsack
from peftscout.strategies.one_shot import OneShot, OneShotStrategy, above_zero
from peftscout.strategies.shifted_sigmoid import (
    concrete,
    probabilities,
    through_competition,
    through_concrete,
    through_sigmoid,
)

MARGIN = 1e-7
"""The expected cost is B (1 - this), as in the release."""


@dataclass(frozen=True, slots=True)
class S3DeltaOptions:
    """Options of the `s3delta` strategy. Defaults are the paper's, unless said otherwise.

    Attributes:
        steps: iterations; ``None``: as many as one evaluation has steps. The paper's are 1 to 40 epochs of half of the
            training rows.
        learning_rate: of the supernet's weights; ``None``: the study's own rates of each op. The paper has 3e-4.
        weight_decay: of the supernet's weights.
        clip: largest norm of their gradient, and of that of alpha.
        gate_learning_rate: of AdamW on alpha, falling linearly to 0.
        gate_weight_decay: of that AdamW.
        beta: scale of the sigmoid.
        estimator: of the gradient at alpha. ``unrolled``: DARTS' second order, five passes an iteration, as in the
            paper. ``bilevel``: first order, two passes. ``split``: first order, one pass over rows of both halves.
        validation_share: of the rows of a batch of ``split``; the others are for the weights.
        competition: whether raising one probability lowers the others.
        selection: ``greedy`` by p (the paper) or ``knapsack`` on the values p n.
        log_every: iterations between two entries of the event log.
        alternatives: plans asked for besides the result.
        keep_every: iterations between two saves.
        warm_start: whether the results are trained on from their weights in the supernet, not from fresh ones.

    Raises:
        ConfigError: on an impossible value.
    """

    steps: int | None = None
    learning_rate: float | None = None
    weight_decay: float = 0.0
    clip: float = 2.0
    gate_learning_rate: float = 0.1
    gate_weight_decay: float = 0.0
    beta: float = 1.0
    estimator: Literal["unrolled", "bilevel", "split"] = "unrolled"
    validation_share: float = 0.25
    competition: bool = True
    selection: Literal["greedy", "knapsack"] = "greedy"
    log_every: int = 10
    alternatives: int = 3
    keep_every: int = 50
    warm_start: bool = False

    def __post_init__(self) -> None:
        if self.selection not in ("greedy", "knapsack"):
            raise ConfigError(f"selection {self.selection!r}: must be greedy or knapsack")
        if self.estimator not in ("unrolled", "bilevel", "split"):
            raise ConfigError(f"estimator {self.estimator!r}: must be unrolled, bilevel or split")
        if not 0 < self.validation_share < 1:
            raise ConfigError(f"validation_share {self.validation_share!r}: must be between 0 and 1")
        positive = ("clip", "gate_learning_rate", "beta", "log_every", "keep_every")
        for name in ("steps", "learning_rate", *positive):
            if (value := getattr(self, name)) is not None and not value > 0:
                raise ConfigError(f"{name} {value!r}: must be above 0")
        for name in ("weight_decay", "gate_weight_decay", "alternatives"):
            if not getattr(self, name) >= 0:
                raise ConfigError(f"{name} {getattr(self, name)!r}: must not be below 0")


PAPER = S3DeltaOptions(learning_rate=3e-4, alternatives=0)
"""The constants of the paper and its release."""


def s3delta(problem: Problem, options: S3DeltaOptions | None = None) -> Strategy:
    """Return the strategy that searches by S3Delta and asks for its result and a few alternatives.

    Raises:
        ConfigError: when the problem comes without a supernet.
        SpaceError: when the space has switches, or nothing fits into the budget.
    """
    o = options or S3DeltaOptions()
    steps = o.steps or problem.fidelity.steps
    search = S3DeltaSearch(Modules(problem.space), problem.budget.parameters, steps, problem.seed, o)
    training = WeightTraining(
        steps, o.learning_rate, o.weight_decay, o.clip, problem.seed, validation_share=o.validation_share
    )
    return OneShotStrategy(
        problem,
        training,
        search,
        label="s3delta",
        alternatives=o.alternatives,
        keep_every=o.keep_every,
        warm_start=o.warm_start,
    )


class S3DeltaSearch:
    """The state of the search. Letters as in the paper: alpha, zeta, p, n, B.

    Args:
        modules: of the space.
        budget: B. Where the whole space fits, there is nothing to search.
        steps: iterations.
        seed: of the gates.
        options: see there.
    """

    def __init__(self, modules: Modules, budget: int, steps: int, seed: int, options: S3DeltaOptions) -> None:
        self.modules, self.B, self.steps, self.seed, self.o = modules, budget, steps, seed, options
        self.n = modules.costs[modules.allowed].astype(np.float64)  # of every size of every module in a row
        self.alpha: Floats = np.zeros(len(self.n))
        self.adam = Adam(
            self.alpha.shape, options.gate_learning_rate, weight_decay=options.gate_weight_decay, decoupled=True
        )
        self.iteration = 0

    @property
    def finished(self) -> bool:
        """Whether all steps are done, or everything fits."""
        return self.iteration >= self.steps or self.modules.costs.max(1).sum() <= self.B

    @property
    def p(self) -> Floats:
        """5.2: the probability of each gate, ``[gates]``; 1 where all gates fit."""
        bound = self.B * (1 - MARGIN)
        if bound >= self.n.sum():
            return np.ones_like(self.n)
        # Modules above the budget can never be chosen, and B may be below the cheapest size of a pair: spread what is.
        return probabilities(self.alpha, self.n, max(bound, float(self.n.min())), self.o.beta)

    def advance(self, one_shot: OneShot) -> None:
        """5.4: step on alpha with validation rows, and on the weights with training rows."""
        p = self.p
        z = concrete(p, self._uniform(0))
        if self.o.estimator == "split":
            train, seen = one_shot.split(self._weight_gates(), self.gates(z))
            self._learn(p, z, seen)
        else:
            if self.o.estimator == "unrolled":
                seen = one_shot.unrolled(self.gates(z))
            else:
                seen = one_shot.step(self.gates(z), "validation", gate_gradients=True, update_weights=False)
            self._learn(p, z, seen)
            train = one_shot.step(self._weight_gates(), "train", gate_gradients=False, update_weights=True)
        self.iteration += 1
        if self.iteration % self.o.log_every == 0 or self.finished:
            self._log(one_shot, train, seen)

    def _learn(self, p: Floats, z: Floats, seen: Step) -> None:
        """Step on alpha, from the gradient at the gates ``z`` that were drawn with ``p``."""
        gradient = self._at_alpha(p, z, self.at_gates(seen, z))
        gradient *= min(1.0, self.o.clip / max(float(np.linalg.norm(gradient)), 1e-12))
        self.alpha = self.adam.step(self.alpha, gradient, rate_factor=1 - self.iteration / self.steps)

    def _weight_gates(self) -> Gates:
        return self.gates(concrete(self.p, self._uniform(1)))

    def _uniform(self, stream: int) -> Floats:
        """5.3: one u for all passes of a step on alpha (common random numbers), another for the step on the weights."""
        return np.random.default_rng([self.seed, self.iteration, stream]).random(len(self.n))

    # -- a gate for every size ----------------------------------------------------------------------------------------

    def gates(self, z: Floats) -> Gates:
        """Return module gates that amount to the sum of the gates ``z`` of its sizes, each on its own op."""
        spread = self._spread(z)
        on = spread.sum(1)
        return Gates(on, spread / np.maximum(on, 1e-30)[:, None])

    def at_gates(self, seen: Step, z: Floats) -> Floats:
        """Return the gradient at z from that at the module gates: on = sum z, size = z / on."""
        gates = self.gates(z)
        inner = seen.size - (seen.size * gates.size).sum(1, keepdims=True)
        gradient = seen.on[:, None] + inner / np.maximum(gates.on, 1e-30)[:, None]
        return np.asarray(gradient[self.modules.allowed])

    def _spread(self, values: Floats) -> Floats:
        spread = np.zeros(self.modules.costs.shape)
        spread[self.modules.allowed] = values
        return spread

    def _at_alpha(self, p: Floats, z: Floats, upstream: Floats) -> Floats:
        gradient = through_concrete(p, z, upstream)
        if self.o.competition:
            gradient = through_competition(p, gradient)
        return through_sigmoid(p, gradient, self.o.beta)

    # -- the result ---------------------------------------------------------------------------------------------------

    def values(self) -> Floats:
        """Return p n, ``[modules, levels]``: taking sizes by descending p is the greedy rule for these values."""
        return above_zero(self._spread(self.p * self.n), self.modules)

    def select(self) -> dict[int, int]:
        """5.5: take sizes by descending p while they fit, at most one of a module; or the knapsack."""
        if self.o.selection == "knapsack" or self.modules.costs.max(1).sum() <= self.B:
            return knapsack(self.modules.costs, self.values(), self.B)
        p = np.where(self.modules.allowed, self._spread(self.p), -np.inf)
        best = p.argmax(1)  # of a module's sizes the most probable one; it may be taken, or none
        rows = np.arange(len(best))
        fits = self.modules.costs[rows, best] <= self.B
        taken = greedy(self.modules.costs[rows, best], np.where(fits, p[rows, best], -np.inf), self.B)
        if not taken.any():
            return knapsack(self.modules.costs, self.values(), self.B)
        return {int(m): int(best[m]) for m in np.flatnonzero(taken)}

    def _log(self, one_shot: OneShot, train: Step, validation: Step) -> None:
        p = self._spread(self.p)
        one_shot.log(
            {
                "iteration": self.iteration,
                "expected_size": float((p * self.modules.costs).sum()),
                "budget": self.B,
                "loss": {"train": train.loss, "validation": validation.loss},
                "probabilities": {
                    module.name: [float(x) for x in row[: len(module.sizes)]]
                    for module, row in zip(self.modules, p, strict=True)
                },
            }
        )

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self) -> Kept:
        """Return the whole state; the random streams follow from seed and iteration."""
        return Kept({"alpha": self.alpha, **self.adam.state("alpha")}, {"iteration": self.iteration})

    def load(self, kept: Kept) -> None:
        """Take up a `save`."""
        self.alpha, self.iteration = kept.arrays["alpha"].copy(), kept.facts["iteration"]
        self.adam.load("alpha", kept.arrays)
