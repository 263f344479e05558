"""Random search: plans drawn from the space within the budget. The reference that every search has to beat."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from peftscout.outcome import Evaluate, Outcome
from peftscout.strategies.base import Problem, Strategy, trials_used

ATTEMPTS = 1000
"""Draws without a new plan after which a space counts as exhausted."""

ROUNDING = 1e-9
"""Slack for sums of shares of trials."""


def random_search(problem: Problem) -> Strategy:
    """Return the strategy that draws plans until the trials are used up or the space is exhausted."""
    return _RandomSearch(problem)


class _RandomSearch:
    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._rng = np.random.default_rng(problem.seed)
        self._asked = {problem.baseline.digest}
        self._left: float | None = None if problem.trials is None else problem.trials - 1

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        wanted = capacity if self._left is None else min(capacity, int(self._left + ROUNDING))
        requests = []
        for _ in range(wanted):
            request = self._draw()
            if request is None:
                self._left = 0
                break
            requests.append(request)
            if self._left is not None:
                self._left -= 1
        return requests

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Nothing follows from it, except that what was stopped early leaves room for more."""
        if self._left is not None:
            self._left += 1 - trials_used(request, outcome)

    def _draw(self) -> Evaluate | None:
        p = self._problem
        for _ in range(ATTEMPTS):
            plan = p.space.sample_within(p.budget, self._rng)
            lr_scale = float(self._rng.choice(p.lr_scales))
            if plan.digest not in self._asked:
                self._asked.add(plan.digest)
                return Evaluate(plan, p.fidelity, p.seed, lr_scale, "random")
        return None
