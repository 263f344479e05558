"""Check before you trust: the plans that scout ranks first are trained as any plan is, and the best one is kept."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from peftscout.errors import ConfigError, SupernetError
from peftscout.gates import Modules, WeightTraining
from peftscout.outcome import Evaluate, Outcome
from peftscout.plan import Plan
from peftscout.strategies.base import Problem
from peftscout.strategies.one_shot import Search, require_affordable, run
from peftscout.strategies.scout_options import ScoutOptions


class Ranked(NamedTuple):
    """A candidate in the ranking."""

    label: str
    plan: Plan


class RankingSearch(Search, Protocol):
    """A one-shot search that ends with a ranking.

    Attributes:
        modules: of the space.
    """

    modules: Modules

    def ranking(self) -> Sequence[Ranked]:
        """Return the candidates, the most promising first."""
        ...


class _Check(NamedTuple):
    """A candidate, by its place in the ranking, from fresh weights or from those of the supernet."""

    place: int
    warm: bool


class ScoutChecks:
    """A strategy that searches when it is first asked, then has the first of the ranking trained.

    The first plan is trained from fresh weights and from its weights in the supernet. The plans after it start as the
    better of the two did. The last check goes to the best plan so far, the other way round, unless it had both: so what
    the search learnt is used where it helps, and never where it does not. All that is scored stays in the study, which
    keeps the best, uniform LoRA included. Where the supernet diverges, or does not fit into memory, nothing is asked
    for, and uniform LoRA is left.

    Attributes:
        search: on the supernet; not finished before the first `ask`.
        note: why nothing is asked for, for people; ``None`` where all is well.

    Args:
        problem: with a `one_shot`.
        training: of the supernet's weights.
        search: a fresh search.
        options: see there.

    Raises:
        ConfigError: when the problem comes without a supernet.
        SpaceError: when nothing fits into the budget.
    """

    def __init__(
        self, problem: Problem, training: WeightTraining, search: RankingSearch, options: ScoutOptions
    ) -> None:
        require_affordable(problem)
        if problem.one_shot is None:
            raise ConfigError("strategy 'scout': needs a supernet, which this problem comes without")
        self._problem, self._open, self._training, self.search = problem, problem.one_shot, training, search
        self._o = options
        self.note: str | None = None
        self._lr_scale = 1.0 if 1.0 in problem.lr_scales else problem.lr_scales[0]
        self._requests: dict[_Check, Evaluate] | None = None
        self._asked: dict[_Check, Evaluate] = {}
        self._scores: dict[str, float] = {}
        self._left = options.checks if problem.trials is None else min(options.checks, problem.trials - 1)

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return the next checks; the first call is the one-shot search."""
        handed: list[Evaluate] = []
        while len(handed) < capacity and self._left > 0 and (check := self._next()) is not None:
            handed.append(self._take(check))
            self._left -= 1
        return handed

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of the score, or that there is none."""
        score = outcome.score if outcome.done else None
        self._scores[request.key] = float("-inf") if score is None else score

    def _take(self, check: _Check) -> Evaluate:
        request = self._possible()[check]
        self._asked[check] = request
        return request

    def _possible(self) -> dict[_Check, Evaluate]:
        """Return every check that can be asked for; the first call searches."""
        if self._requests is None:
            try:
                self._requests = self._searched()
            except SupernetError as error:
                self.note = f"scout trains no plan: {error}"
                self._requests, self._left = {}, 0
            for check, request in self._requests.items():
                if request.key in self._scores:
                    self._asked[check] = request  # uniform LoRA, which is trial 0
        return self._requests

    def _searched(self) -> dict[_Check, Evaluate]:
        p = self._problem
        with self._open(self._training) as one_shot:
            run(self.search, one_shot, self._o.keep_every)
            first = self.search.ranking()[: self._o.checks + 1]  # one of them may be uniform LoRA, which is known
            requests = {}
            for place, (label, plan) in enumerate(first):
                requests[_Check(place, warm=False)] = Evaluate(plan, p.fidelity, p.seed, self._lr_scale, label)
                if self._o.warm_start:
                    requests[_Check(place, warm=True)] = Evaluate(
                        plan, p.fidelity, p.seed, self._lr_scale, f"{label}, warm", one_shot.keep_slice(plan)
                    )
        return requests

    def _next(self) -> _Check | None:
        """Return the next check; ``None``: it depends on an outcome that is not there yet, or nothing is left."""
        possible = self._possible()
        if not possible:
            return None
        both = [check for check in (_Check(0, warm=False), _Check(0, warm=True)) if check in possible]
        for check in both:
            if check not in self._asked:
                return check
        if any(self._score(check) is None for check in both):
            return None
        if self._left > 1:
            warm = self._best(both).warm
            for check in possible:
                if check.warm is warm and check not in self._asked:
                    return check
        if any(self._score(check) is None for check in self._asked):
            return None
        best = self._best(list(self._asked))
        other = best._replace(warm=not best.warm)
        if other in possible and other not in self._asked:
            return other
        return next((check for check in possible if check.warm is best.warm and check not in self._asked), None)

    def _score(self, check: _Check) -> float | None:
        return self._scores.get(self._asked[check].key)

    def _best(self, checks: Sequence[_Check]) -> _Check:
        """Return the check of the highest score; on a tie the fresh one, then the earlier in the ranking."""
        return max(checks, key=lambda check: (self._score(check), not check.warm, -check.place))
