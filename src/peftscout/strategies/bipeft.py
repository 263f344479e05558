"""BIPEFT (Chang et al., Findings of EMNLP 2024): which modules, and how large, by budget-guided iterative search.

Two spaces are searched in turn on one supernet: the positions (is module m there? logits alpha) and the dimensions (at
which of its sizes? logits beta). When the ranking of the modules by sensitivity has become stable, a trigger prunes the
least sensitive ones and fixes the most settled sizes, a little each time, until the expected size is the budget.

Section numbers are those of the method. Where this deviates from the release, which has defects, it says so:

* validation sensitivity is taken from cleared gradients, and only from steps on which the gate was on (3.5);
* weights are trained at sampled sizes: under the leading size alone, units beyond it never move from where they
  started, and a larger size could not win (3.3);
* expected sizes are exact: a weighted mean of the prices, not a share of the largest one (3.7);
* the probability of a gate turns into certainty gradually and not at once, ten triggers before the end (3.7);
* pruning takes the modules in order until the reduction is reached, in the sizes that E counts. The release counts
  modules of one size whole where E expects half of them, and goes on past what does not fit: it falls behind its
  schedule, and removes small modules that matter before large ones that do not (3.8);
* sizes agree by identity (3.9);
* the result is an exact knapsack over the modules that are left and their sizes, so it is never above the budget,
  whichever way the search ended; what the budget then has room for is filled with the best of the pruned ones (3.10).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from peftscout.gates import Floats, Gates, Kept, Modules, Step, WeightTraining
from peftscout.strategies.adam import Adam
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.bipeft_options import BipeftOptions
from peftscout.strategies.knapsack import greedy, knapsack
from peftscout.strategies.one_shot import OneShot, OneShotStrategy, above_zero

PRUNED_WORTH = 1e-6
"""Factor on the value of a pruned module: it only fills what the others leave of the budget."""


def bipeft(problem: Problem, options: BipeftOptions | None = None) -> Strategy:
    """Return the strategy that searches by BIPEFT and asks for its result and a few alternatives.

    Raises:
        ConfigError: when the problem comes without a supernet.
        SpaceError: when the space has switches, or nothing fits into the budget.
    """
    o = options or BipeftOptions()
    steps = o.steps or problem.fidelity.steps
    search = BipeftSearch(Modules(problem.space), problem.budget.parameters, steps, problem.seed, o)
    training = WeightTraining(steps, o.learning_rate, o.weight_decay, o.clip, problem.seed, True, o.validation_share)
    return OneShotStrategy(
        problem,
        training,
        search,
        label="bipeft",
        alternatives=o.alternatives,
        keep_every=o.keep_every,
        warm_start=o.warm_start,
    )


class _Draw(NamedTuple):
    """Gates, and the softmax of alpha and of beta that they were drawn from."""

    gates: Gates
    p: Floats
    q: Floats


class BipeftSearch:
    """The state of the search. Letters as in the paper: alpha, beta, g, h, tau, S, z, n, E, B, T.

    Args:
        modules: of the space.
        budget: B.
        steps: most iterations.
        seed: of gates and initial logits.
        options: see there.
    """

    def __init__(self, modules: Modules, budget: int, steps: int, seed: int, options: BipeftOptions) -> None:
        self.modules, self.B, self.steps, self.seed, self.o = modules, budget, steps, seed, options
        self.iteration = 0
        M, D = modules.costs.shape
        rng = np.random.default_rng(seed)
        self.alpha: Floats = options.initial_std * rng.standard_normal((M, 2))  # column 1: keep
        self.beta: Floats = options.initial_std * rng.standard_normal((M, D))
        self.alpha_adam, self.beta_adam = (
            Adam(shape, options.gate_learning_rate, options.gate_betas, options.gate_weight_decay)
            for shape in ((M, 2), (M, D))
        )
        self.S: Floats = np.zeros(M)
        self.kept = np.ones(M, dtype=bool)  # b: not pruned
        self.fixed: NDArray[np.int64] = np.where(modules.levels == 1, 0, -1)  # the level, or -1 while it is open
        self.history: NDArray[np.bool_] = np.zeros((0, M), dtype=bool)  # indicators z, the last one last
        self.betas: Floats = np.zeros((0, M, D))  # beta after every weight step since the last trigger
        self.T = self.T_max = options.triggers_within(steps)

    @property
    def finished(self) -> bool:
        """Whether all triggers have fired, or the steps are used up."""
        return self.T == 0 or self.iteration >= self.steps

    # -- 3.4: one iteration -------------------------------------------------------------------------------------------

    def advance(self, one_shot: OneShot) -> None:
        """Step on the gates with validation rows, and on the weights with training rows; then see (3.6).

        In two passes, or, by the `split` estimator, in one.
        """
        draw = self._draw_gates()
        if self.o.estimator == "split":
            weights = self._weight_gates()
            train, validation = one_shot.split(weights, draw.gates)
            self._learn(draw, validation)
        else:
            validation = one_shot.step(draw.gates, "validation", gate_gradients=True, update_weights=False)
            self._learn(draw, validation)
            weights = self._weight_gates()
            train = one_shot.step(weights, "train", gate_gradients=False, update_weights=True)
        self._update_sensitivity(train, validation, (weights.on > 0) & (draw.gates.on > 0))
        self.iteration += 1
        if self.iteration > self.o.warmup * self.steps:
            self._watch(one_shot)

    def _draw_gates(self) -> _Draw:
        """3.3: gates of a step on alpha, on beta or on both, as `BipeftOptions.order` has it."""
        binary, dimension = self.o.trains(self.iteration, self.steps)
        g, p = self._sample(self.alpha, 0)
        h, q = self._sample(self._masked_beta(), 1)
        if not binary:
            g = np.where((self.modules.levels == 1)[:, None], g, [0.0, 1.0])  # sized modules: all that are left are on
        size = self.size_at(self.level()) if not dimension else np.where((self.fixed < 0)[:, None], h, self.settled())
        return _Draw(Gates(g[:, 1] * self.kept, size), p, q)

    def _learn(self, draw: _Draw, seen: Step) -> None:
        """3.4: step on the logits that were drawn from."""
        binary, dimension = self.o.trains(self.iteration, self.steps)
        if binary or (self.modules.levels == 1).any():
            trained = self.kept if binary else self.kept & (self.modules.levels == 1)
            upstream = np.stack([np.zeros_like(seen.on), seen.on], axis=1)
            self._descend("alpha", through_softmax(draw.p, upstream, self._tau), trained)
        if dimension:
            self._descend("beta", through_softmax(draw.q, seen.size, self._tau), self.kept & (self.fixed < 0))

    def _descend(self, name: str, gradient: Floats, trained: NDArray[np.bool_]) -> None:
        """One Adam step with the release's regulariser, on the rows that are trained."""
        logits, adam = (self.alpha, self.alpha_adam) if name == "alpha" else (self.beta, self.beta_adam)
        allowed = np.ones_like(logits, dtype=bool) if name == "alpha" else self.modules.allowed
        gradient = gradient + self.o.regulariser * regulariser_gradient(logits, allowed)
        stepped = adam.step(logits, np.where(trained[:, None] & allowed, gradient, 0.0))
        setattr(self, name, np.where(trained[:, None], stepped, logits))

    def _weight_gates(self) -> Gates:
        """3.3: weights are trained under sampled positions, and sampled sizes or those that lead."""
        g, _ = self._sample(self.alpha, 2)
        h, _ = self._sample(self._masked_beta(), 3)
        leading = self.size_at(self.level())
        sampled = self.o.sampled_sizes & (self.fixed < 0)
        return Gates(g[:, 1] * self.kept, np.where(sampled[:, None], h, leading))

    def _sample(self, logits: Floats, stream: int) -> tuple[Floats, Floats]:
        """3.1: return the gate's value and its softmax; Gumbel noise of its own for each iteration and stream."""
        if not self.o.gumbel:
            soft = softmax(logits)
            return soft, soft
        u = np.random.default_rng([self.seed, self.iteration, stream]).random(logits.shape)
        soft = softmax((logits - np.log(-np.log(np.clip(u, 1e-12, 1 - 1e-12)))) / self._tau)
        return np.asarray(np.arange(logits.shape[1]) == soft.argmax(1)[:, None], dtype=np.float64), soft

    @property
    def _tau(self) -> float:
        return self.o.temperature(self.iteration, self.steps)

    # -- 3.5: sensitivity ---------------------------------------------------------------------------------------------

    def _update_sensitivity(self, train: Step, validation: Step, on: NDArray[np.bool_]) -> None:
        """S <- 0.85 S + 0.15 s, s = s_T + c s_V, where the module was on in both passes."""
        n = self.size_of(self.level())
        s = (train.saliency + train.agreement * validation.saliency) / n
        started = self.S != 0
        smoothed = np.where(started, self.o.ema * self.S + (1 - self.o.ema) * s, s)
        self.S = np.where(on, smoothed, self.S)

    # -- 3.6: triggers ------------------------------------------------------------------------------------------------

    def _watch(self, one_shot: OneShot) -> None:
        """Take note of the indicator and of beta; trigger when the indicators have been stable."""
        z = greedy(self._ranking_size(), np.where(self.kept, self.S, -np.inf), self.B)
        self.betas = np.concatenate([self.betas, self.beta[None]])
        stable = len(self.history) > self.o.window and self.stability(z) >= self.o.threshold
        self.history = np.concatenate([self.history, z[None]])[-self.o.window - 1 :]
        if stable:
            self._trigger(one_shot)

    def stability(self, z: NDArray[np.bool_]) -> float:
        """Return the mean cosine of ``z`` with the indicators before it."""
        before = self.history[-self.o.window :]
        lengths = np.sqrt(before.sum(1) * max(1, z.sum()))
        return float(np.mean((before & z).sum(1) / np.maximum(lengths, 1.0)))

    def _trigger(self, one_shot: OneShot) -> None:
        """3.7 to 3.9: take a part of what is too much off, and fix a part of the sizes."""
        E = self.expected_size()
        reduction = (E - self.B) / self.T
        pruned = self.prune(reduction)
        self.T -= 1
        frozen = self.freeze_sizes()
        one_shot.log(
            {
                "iteration": self.iteration,
                "triggers_left": self.T,
                "expected_size": E,
                "budget": self.B,
                "reduction": reduction,
                "pruned": [self.modules[m].name for m in pruned],
                "fixed": {self.modules[m].name: self.modules[m].sizes[self.fixed[m]] for m in frozen},
                "scores": {module.name: float(s) for module, s in zip(self.modules, self.S, strict=True)},
            }
        )

    # -- 3.7: expected size -------------------------------------------------------------------------------------------

    def keep_probability(self) -> Floats:
        """P: softmax(alpha) at first, 1 for the last triggers; in between it goes from one to the other."""
        last = min(self.o.certain_triggers, self.T_max)
        certainty = 1.0 if last >= self.T else (self.T_max - self.T) / (self.T_max - last)
        return np.asarray((1 - certainty) * softmax(self.alpha)[:, 1] + certainty)

    def mean_size(self) -> Floats:
        """Return each module's size as its beta expects it: the prices, weighted."""
        w = np.where((self.fixed < 0)[:, None], softmax(self._masked_beta()), self.settled())
        return np.asarray((w * self.modules.costs).sum(1))

    def expected_sizes(self) -> Floats:
        """Return n~ = b P sum_d w_d n_d, ``[modules]``."""
        return np.asarray(self.kept * self.keep_probability() * self.mean_size())

    def expected_size(self) -> float:
        """Return E."""
        return float(self.expected_sizes().sum())

    def _ranking_size(self) -> Floats:
        """What the ranking counts: modules of one size whole, the others as expected."""
        return np.where(self.modules.levels == 1, self.modules.costs[:, 0], self.expected_sizes())

    # -- 3.8: positions -----------------------------------------------------------------------------------------------

    def prune(self, reduction: float) -> list[int]:
        """Prune from the least sensitive one on, until E is lower by ``reduction``; return which.

        The one that reaches it goes too, so E is never behind (E - B) / T a trigger, and at most one module ahead.
        Nothing when there is nothing to reduce. The last module always stays.
        """
        left = np.flatnonzero(self.kept)
        if reduction <= 0 or len(left) <= 1:
            return []
        ascending = left[np.argsort(self.S[left], kind="stable")][:-1]
        reached = np.searchsorted(np.cumsum(self.expected_sizes()[ascending]), reduction)
        pruned = ascending[: reached + 1]
        self.kept[pruned] = False
        return [int(m) for m in pruned]

    # -- 3.9: dimensions ----------------------------------------------------------------------------------------------

    def freeze_sizes(self) -> list[int]:
        """Fix the most settled sizes at their best, and return of which modules; T is decremented already."""
        open_modules = np.flatnonzero(self.kept & (self.fixed < 0))
        if len(self.betas) < 2 or self.T == 0 or not len(open_modules):
            return []
        trace = np.where(self.modules.allowed, self.betas, -np.inf)[:, open_modules]
        first, last = trace[0].argmax(1), trace[-1].argmax(1)
        agreement = float(np.mean(first == last))  # rho_d
        count = len(open_modules) if self.T == 1 else int(agreement * len(open_modules) / self.T)
        instability = self._instability(trace, self.modules.allowed[open_modules])
        frozen = open_modules[np.argsort(instability, kind="stable")[:count]]
        self.fixed[frozen] = self._masked_beta().argmax(1)[frozen]
        self.betas = self.betas[:0]
        return [int(m) for m in frozen]

    @staticmethod
    def _instability(trace: Floats, allowed: NDArray[np.bool_]) -> Floats:
        """DSI = mean_d std_t(beta_d) * KL(softmax(beta_last) || softmax(beta_first)), ``[modules]``."""
        spread = np.where(allowed, np.where(allowed, trace, 0.0).std(0), 0.0).sum(1) / allowed.sum(1)
        p, q = softmax(trace[-1]), softmax(trace[0])
        ratio = np.where(allowed, p, 1.0) / np.where(allowed, q, 1.0)
        return np.asarray(spread * (p * np.log(ratio)).sum(1))

    # -- 3.10: the result ---------------------------------------------------------------------------------------------

    def values(self) -> Floats:
        """Return S n at the best size, ``[modules, levels]``, and at any other in proportion to its probability.

        S is per parameter, so taking modules by descending S is the greedy rule for the values S n.
        """
        w = np.where((self.fixed < 0)[:, None], softmax(self._masked_beta()), self.settled())
        values = (self.S * self.size_of(self.level()) / w.max(1))[:, None] * w
        return above_zero(values * np.where(self.kept, 1.0, PRUNED_WORTH)[:, None], self.modules)

    def select(self) -> dict[int, int]:
        """Return the level of every module of the result."""
        return knapsack(self.modules.costs, self.values(), self.B)

    # -- sizes --------------------------------------------------------------------------------------------------------

    def level(self) -> NDArray[np.int64]:
        """Return the level of each module: the fixed one, or that of the largest beta."""
        return np.where(self.fixed < 0, self._masked_beta().argmax(1), self.fixed)

    def settled(self) -> Floats:
        """Return the fixed levels as one-hot rows; zero rows where nothing is fixed."""
        return self.modules.one_hot(self.fixed)

    def size_at(self, level: NDArray[np.int64]) -> Floats:
        """Return ``level`` as one-hot rows."""
        return self.modules.one_hot(level)

    def size_of(self, level: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return n at ``level``."""
        return np.take_along_axis(self.modules.costs, level[:, None], axis=1)[:, 0]

    def _masked_beta(self) -> Floats:
        return np.where(self.modules.allowed, self.beta, -np.inf)

    # -- saving -------------------------------------------------------------------------------------------------------

    def save(self) -> Kept:
        """Return the whole state; the random streams follow from seed and iteration."""
        arrays = {name: np.asarray(getattr(self, name)) for name in _ARRAYS}
        facts: dict[str, Any] = {"iteration": self.iteration, "triggers_left": self.T}
        return Kept({**arrays, **self.alpha_adam.state("alpha"), **self.beta_adam.state("beta")}, facts)

    def load(self, kept: Kept) -> None:
        """Take up a `save`."""
        for name in _ARRAYS:
            setattr(self, name, kept.arrays[name].copy())
        self.alpha_adam.load("alpha", kept.arrays)
        self.beta_adam.load("beta", kept.arrays)
        self.iteration, self.T = kept.facts["iteration"], kept.facts["triggers_left"]


_ARRAYS = ("alpha", "beta", "S", "kept", "fixed", "history", "betas")


def softmax(logits: Floats) -> Floats:
    """Return softmax over the last axis; ``-inf`` has probability 0."""
    e = np.exp(logits - logits.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))


def through_softmax(p: Floats, upstream: Floats, tau: float = 1.0) -> Floats:
    """Return the gradient at the logits of ``p = softmax(logits / tau)``, from that at p (or at its hard sample)."""
    return np.asarray(p * (upstream - (p * upstream).sum(-1, keepdims=True)) / tau)


def regulariser_gradient(logits: Floats, allowed: NDArray[np.bool_]) -> Floats:
    """Return the gradient of mean|softmax(a) - a| over the allowed entries of ``logits``."""
    p = softmax(np.where(allowed, logits, -np.inf))
    sign = np.where(allowed, np.sign(p - logits), 0.0) / allowed.sum()
    return np.asarray(through_softmax(p, sign) - sign)
