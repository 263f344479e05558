"""One-shot searches: what a differentiable strategy sees of a supernet, and how its result becomes evaluations.

A strategy drives a `OneShot` step by step and never sees a model: the engine supplies one with a supernet behind it,
tests one with a formula. When the search is over, its result is asked for as an ordinary evaluation, and so are a few
alternatives of nearly the same value.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from itertools import islice
from typing import Any, Literal, Protocol

import numpy as np

from peftscout.errors import ConfigError, SpaceError
from peftscout.gates import Floats, Gates, Kept, Modules, Step, WeightTraining
from peftscout.outcome import Evaluate, Outcome
from peftscout.plan import Plan
from peftscout.strategies.base import Problem
from peftscout.strategies.knapsack import knapsack

Split = Literal["train", "validation"]
"""The two halves of the training rows: one for the weights, one for the gates. Neither is the search split."""

ALTERNATIVE_NOISE = 0.3
"""Standard deviation of the log of the factor on every value, from which the alternatives are selected."""

_ATTEMPTS = 20


class OneShot(Protocol):
    """Every choice of a space at once, weights shared."""

    modules: Modules

    def step(self, gates: Gates, split: Split, *, gate_gradients: bool, update_weights: bool) -> Step:
        """Pass over the next batch of ``split``, forward and backward, weights' gradients cleared before.

        Args:
            gates: where every module stands.
            split: where the batch is from; a step that updates weights is one on ``train``.
            gate_gradients: whether `Step.on` and `Step.size` are wanted, of closed modules too (`Gates.probed`).
                Without, closed modules are skipped, and both are zero.
            update_weights: whether one optimiser step follows; closed modules are left alone.
        """
        ...

    def held_out_loss(self, gates: Gates, rows: int) -> float:
        """Return the mean loss on up to ``rows`` rows of ``validation``, always the same; infinity where it diverges.

        A forward pass without dropout: no batch is drawn and no weight moved.
        """
        ...

    def split(self, train: Gates, validation: Gates) -> tuple[Step, Step]:
        """Pass once over training rows and validation rows together, then step on the weights; return what each says.

        It is ``step(validation, "validation", gate_gradients=True, update_weights=False)`` and
        ``step(train, "train", gate_gradients=False, update_weights=True)`` on the rows of one batch: a row is computed
        with the gates of its half, gates see validation rows only, and weights training rows only.
        """
        ...

    def unrolled(self, gates: Gates) -> Step:
        """Return DARTS' second-order gate gradients (Liu et al., 2019, eq. 7 and 8), weights left as they are.

        On the next batch of ``validation``, and on the batch of ``train`` that the next step on it will see.
        """
        ...

    def keep(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any]) -> None:
        """Save the strategy's own state with that of weights, optimiser and data order, all or nothing."""
        ...

    def resume(self) -> Kept | None:
        """Return what was kept last, everything else being back where it was then; ``None``: start afresh."""
        ...

    def keep_slice(self, plan: Plan) -> str:
        """Keep the weights of ``plan`` for evaluations to start from; return their name (`Evaluate.initial`)."""
        ...

    def log(self, event: Mapping[str, Any]) -> None:
        """Append to the event log; saved with the next `keep`."""
        ...


OneShotFactory = Callable[[WeightTraining], AbstractContextManager[OneShot]]
"""Opens the supernet of the problem's space; on leaving, the backbone is given back as it was."""


class Search(Protocol):
    """The state of a differentiable search, advanced one iteration at a time."""

    @property
    def iteration(self) -> int:
        """Iterations done."""
        ...

    @property
    def finished(self) -> bool:
        """Whether nothing is left to do."""
        ...

    def advance(self, one_shot: OneShot) -> None:
        """Do one iteration."""
        ...

    def select(self) -> dict[int, int]:
        """Return the level of every module of the final structure; within the budget."""
        ...

    def values(self) -> Floats:
        """Return what every level is worth, ``[modules, levels]``: what the alternatives are selected by."""
        ...

    def save(self) -> Kept:
        """Return everything that `load` needs to go on to the same result."""
        ...

    def load(self, kept: Kept) -> None:
        """Take up a saved search."""
        ...


def run(search: Search, one_shot: OneShot, keep_every: int) -> None:
    """Bring ``search`` to its end, from where it was kept last."""
    if (kept := one_shot.resume()) is not None:
        search.load(kept)
    while not search.finished:
        search.advance(one_shot)
        if search.finished or search.iteration % keep_every == 0:
            one_shot.keep(*search.save())


class OneShotStrategy:
    """A strategy that searches on a supernet when it is first asked, then asks for the result and its alternatives.

    Args:
        problem: with a `one_shot`.
        training: of the supernet's weights.
        search: a fresh search.
        label: of the requests.
        alternatives: how many at most.
        keep_every: iterations between two saves.
        warm_start: whether the results are trained on from the supernet's weights, and not from fresh ones.

    Raises:
        ConfigError: when the problem comes without a supernet.
        SpaceError: when nothing fits into the budget.
    """

    def __init__(
        self,
        problem: Problem,
        training: WeightTraining,
        search: Search,
        *,
        label: str,
        alternatives: int,
        keep_every: int,
        warm_start: bool = False,
    ) -> None:
        require_affordable(problem)
        if problem.one_shot is None:
            raise ConfigError(f"strategy {label!r}: needs a supernet, which this problem comes without")
        self._problem, self._open, self._training = problem, problem.one_shot, training
        self._search, self._label = search, label
        self._alternatives, self._keep_every, self._warm_start = alternatives, keep_every, warm_start
        self._requests: Iterator[Evaluate] | None = None

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return the next results; the first call is the one-shot search."""
        if self._requests is None:
            with self._open(self._training) as one_shot:
                run(self._search, one_shot, self._keep_every)
                results = list(self._results())
                if self._warm_start:
                    results = [replace(result, initial=one_shot.keep_slice(result.plan)) for result in results]
            self._requests = iter(results)
        return list(islice(self._requests, capacity))

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Nothing follows from it: the supernet has decided."""

    def _results(self) -> Iterator[Evaluate]:
        p = self._problem
        lr_scale = 1.0 if 1.0 in p.lr_scales else p.lr_scales[0]
        left = 1 + self._alternatives if p.trials is None else min(1 + self._alternatives, p.trials - 1)
        asked = {p.baseline.digest} if lr_scale == 1.0 else set()
        for name, plan in self._plans():
            if left <= 0:
                return
            if plan.digest not in asked:
                asked.add(plan.digest)
                left -= 1
                yield Evaluate(plan, p.fidelity, p.seed, lr_scale, name)

    def _plans(self) -> Iterator[tuple[str, Plan]]:
        """The result, then selections by values that are shaken a little: near to it where it is clear, far where not.

        Selections may repeat.
        """
        p, modules = self._problem, Modules(self._problem.space)
        yield self._label, modules.plan(self._search.select())
        values = self._search.values()
        for n in range(self._alternatives * _ATTEMPTS):
            noise = np.random.default_rng([p.seed, n]).standard_normal(values.shape)
            selected = knapsack(modules.costs, values * np.exp(ALTERNATIVE_NOISE * noise), p.budget.parameters)
            if selected:
                yield f"{self._label}, alternative", modules.plan(selected)


def require_affordable(problem: Problem) -> None:
    """Raise a SpaceError unless some module fits into the budget."""
    cheapest = problem.space.cheapest()
    if (cost := cheapest.cost(problem.sites)) not in problem.budget:
        raise SpaceError(
            f"space {problem.space.name!r}: nothing fits into {problem.budget}; the cheapest plan ({cheapest}) costs "
            f"{cost:,} parameters"
        )


def above_zero(values: Floats, modules: Modules) -> Floats:
    """Return ``values`` with -inf where there is no such level, and next to nothing where there is no value.

    So a selection uses up the budget, by the cheapest means, rather than leave a part of it to nobody.
    """
    tiny = 1e-12 * max(float(values.max(initial=0.0)), 1e-12) * modules.costs / modules.costs.max()
    return np.where(modules.allowed, np.maximum(values, tiny), -np.inf)
