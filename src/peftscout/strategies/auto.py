"""Auto, the default: scout, then AutoPEFT for as long as the trials last and something improves.

Scout's values of modules become the prior of AutoPEFT: what they say of plans drawn from the space is told to it as the
outcomes of another study, which it scales to the scores that it sees (`autopeft`, ``prior``). The plans that scout had
trained from fresh weights are known to it from the start. Where there is no supernet (a space with switches), and where
runs are stopped at rungs, which scout has none of, AutoPEFT searches alone.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from peftscout.errors import ConfigError
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.plan import Budget
from peftscout.strategies.autopeft import AutoPeft
from peftscout.strategies.autopeft_design import cost_limit
from peftscout.strategies.autopeft_options import AutoPeftOptions
from peftscout.strategies.base import Evaluated, Problem, Strategy, trials_used
from peftscout.strategies.scout import scout
from peftscout.strategies.scout_checks import ScoutChecks
from peftscout.strategies.scout_options import ScoutOptions


@dataclass(frozen=True)
class AutoOptions:
    """Options of the `auto` strategy.

    Attributes:
        scout: options of `scout`.
        refinement: options of `autopeft`.
        patience: evaluations in a row after scout without a better score, after which the search ends.
        prior_plans: plans whose values are the prior of the refinement; 0: it starts without one.

    Raises:
        ConfigError: on an impossible value, of the other strategies' options too.
    """

    scout: Mapping[str, Any] = field(default_factory=dict)
    refinement: Mapping[str, Any] = field(default_factory=dict)
    patience: int = 12
    prior_plans: int = 64

    def __post_init__(self) -> None:
        if not self.patience >= 1:
            raise ConfigError(f"patience {self.patience!r}: must be at least 1")
        if not self.prior_plans >= 0:
            raise ConfigError(f"prior_plans {self.prior_plans!r}: must not be below 0")
        for name, kind in (("scout", ScoutOptions), ("refinement", AutoPeftOptions)):
            try:
                kind(**getattr(self, name))
            except (TypeError, ValueError, ConfigError) as error:
                raise ConfigError(f"{name}: {error}") from None


def auto(problem: Problem, options: AutoOptions | None = None) -> Strategy:
    """Return the strategy that scouts, then refines.

    Raises:
        SpaceError: when nothing fits into the budget.
    """
    o = options or AutoOptions()
    switched = any(choice.switch is not None for choice in problem.space.choices)
    if problem.one_shot is None or switched or problem.fidelity.rungs:
        return AutoPeft(problem, AutoPeftOptions(**o.refinement))
    return Auto(problem, scout(problem, ScoutOptions(**o.scout)), o)


class Auto:
    """The strategy where there is a supernet (see the module).

    Args:
        problem: what is to be solved.
        scouting: the first part.
        options: see there.
    """

    def __init__(self, problem: Problem, scouting: ScoutChecks, options: AutoOptions) -> None:
        self._problem, self._scouting, self._o = problem, scouting, options
        self._told: list[Evaluated] = []
        self._running: set[str] = set()
        self._best = float("-inf")
        self._in_vain = 0
        self._refinement: AutoPeft | None = None

    @property
    def note(self) -> str | None:
        """Why scout asked for nothing, for people; ``None`` where all is well."""
        return self._scouting.note

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return scout's checks, and when all of them are told, what AutoPEFT asks for."""
        requests: Sequence[Evaluate] = ()
        if self._refinement is None:
            requests = self._scouting.ask(capacity)
            if not requests and not self._running:
                self._refinement = self._begin()
        if self._refinement is not None and self._in_vain < self._o.patience:
            requests = self._refinement.ask(capacity)
        self._running.update(request.key for request in requests)
        return requests

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Pass it on to who asked, and count what did not improve."""
        self._running.discard(request.key)
        self._told.append((request, outcome))
        (self._scouting if self._refinement is None else self._refinement).tell(request, outcome)
        score = outcome.score if outcome.done else None
        if score is not None and score > self._best:
            self._best, self._in_vain = score, 0
        elif self._refinement is not None:
            self._in_vain += 1

    def _begin(self) -> AutoPeft:
        """Return the refinement, which knows what scout learnt.

        What was trained on from the supernet's weights is no observation of the plan that is trained from fresh ones.
        """
        p = self._problem
        warm = sum(trials_used(request, outcome) for request, outcome in self._told if request.initial)
        left = None if p.trials is None else max(1, p.trials - round(warm))
        refinement = AutoPeft(
            replace(p, trials=left), AutoPeftOptions(**self._o.refinement), p.related or self._prior()
        )
        for request, outcome in self._told:
            if not request.initial:
                refinement.tell(request, outcome)
        return refinement

    def _prior(self) -> tuple[Evaluated, ...]:
        """Return what scout expects of its own plans and of random ones whose costs spread over the log-cost axis."""
        p, search = self._problem, self._scouting.search
        if not search.finished:  # it diverged, or was never asked
            return ()
        rng = np.random.default_rng([p.seed, 3])
        cheapest, n = p.space.cheapest().cost(p.sites), self._o.prior_plans
        limits = [cost_limit((k + 0.5) / n, cheapest, p.budget.parameters) for k in range(n)]
        plans = [p.space.sample_within(Budget(limit, str(limit)), rng) for limit in limits]
        plans += [ranked.plan for ranked in search.ranking()] if n else []
        values = search.values()
        return tuple(
            (
                Evaluate(plan, p.fidelity, p.seed, label="scout's value"),
                Outcome(
                    State.DONE,
                    plan.cost(p.sites),
                    float(sum(values[level] for level in search.modules.levels_of(plan).items())),
                ),
            )
            for plan in {plan.digest: plan for plan in plans}.values()
        )
