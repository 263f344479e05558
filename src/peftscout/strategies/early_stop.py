"""Early stopping for every trial-based strategy: a run ends at a rung where it cannot enter the front any more.

The inner strategy asks for full trainings. Each is begun up to the first rung at which the rule is on (`stop_rule`),
and goes on from there, bit for bit, unless it is stopped. While the rule is off at a rung, nothing halts there: every
full training reports its scores at all rungs anyway, so that the rule can turn itself on, and off again.

The inner strategy is told each plan once: the outcome of its full training, or that it was pruned, with the curve up to
there, so that a surrogate can still learn from it. A stopped run takes its share of the trials only; what is left over
goes into further plans.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from peftscout.outcome import Evaluate, Outcome, State
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.multi_fidelity_options import EarlyStopOptions
from peftscout.strategies.partial_runs import PartialRun, PartialRuns
from peftscout.strategies.stop_rule import StopRule


class EarlyStop:
    """The strategy (see the module for the method).

    Args:
        inner: makes the strategy that proposes plans, for the problem that it is given.
        problem: its fidelity is the full one, on a ladder. ``trials`` are units of full training, the baseline's among
            them.
        options: see `EarlyStopOptions`.

    Attributes:
        note: at which rungs runs are stopped, and the rank correlations that say so; ``None`` before there are any.
    """

    def __init__(self, inner: Callable[[Problem], Strategy], problem: Problem, options: EarlyStopOptions) -> None:
        self.problem = problem
        self.note: str | None = None
        self.rule = StopRule(options, problem.budget.parameters)
        self._runs = PartialRuns(problem, "score")
        *self._rungs, self._full = self._runs.ladder
        self._stopped: set[int] = set()
        self._on: list[int] = []
        for request, outcome in problem.observed:
            if request.fidelity == problem.fidelity:
                self.rule.learn(outcome)
        self._inner = inner(problem)

    # -- the contract -------------------------------------------------------------------------------------------------

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return up to ``capacity`` requests: to go on with runs that were not stopped, then to begin new ones."""
        requests: list[Evaluate] = []
        while len(requests) < capacity and (request := self._go_on() or self._begin()) is not None:
            requests.append(request)
        return requests

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of an outcome; the inner strategy is told when its run has ended or is stopped."""
        run = self._runs.tell(request, outcome)
        if run is None:
            self._ended(request, outcome)
        elif run.failed or run.finished:
            self._ended(replace(request, fidelity=self.problem.fidelity), outcome)
        elif self._is_hopeless(run, outcome):
            self._stopped.add(run.number)
            pruned = replace(outcome, state=State.PRUNED, score=None)
            self._ended(replace(request, fidelity=self.problem.fidelity), pruned)

    # -- what goes on -------------------------------------------------------------------------------------------------

    def _go_on(self) -> Evaluate | None:
        for run in self._runs:
            if run.paused and run.number not in self._stopped:
                return self._runs.go_on(run, self._next_halt(run.asked))
        return None

    def _begin(self) -> Evaluate | None:
        """Return the next plan of the inner strategy, where the steps reach for it and for all that are under way."""
        under_way = sum(self._full - run.asked for run in self._runs if not (run.failed or run.number in self._stopped))
        if self._runs.left - under_way < self._full:
            return None
        asked = self._inner.ask(1)
        if not asked:
            return None
        return self._runs.begin(replace(asked[0], fidelity=replace(asked[0].fidelity, steps=self._next_halt(0))))

    def _next_halt(self, steps: int) -> int:
        """Return the next rung above ``steps`` at which a run may be stopped, or the end."""
        return next((rung for rung in self._rungs if rung > steps and self.rule.is_on(rung)), self._full)

    # -- what is stopped ----------------------------------------------------------------------------------------------

    def _is_hopeless(self, run: PartialRun, outcome: Outcome) -> bool:
        assert outcome.score is not None
        return self.rule.should_stop(run.cost, run.asked, outcome.score)

    def _ended(self, request: Evaluate, outcome: Outcome) -> None:
        self.rule.learn(outcome)
        self._inner.tell(request, outcome)
        on = [rung for rung in self._rungs if self.rule.is_on(rung)]
        if on != self._on:
            self._on = on
            self.note = self._words()

    def _words(self) -> str:
        """Say at which rungs runs are stopped from now on, and why."""
        seen = [(rung, self.rule.agreement(rung)) for rung in self._rungs]
        measured = ", ".join(
            f"{rung} steps: {a.correlation:.2f} over {a.plans} plans" for rung, a in seen if a.correlation is not None
        )
        rungs = " or ".join(map(str, self._on))
        where = f"runs that cannot enter the front are stopped after {rungs} steps" if rungs else "no run is stopped"
        return f"{where} from now on; rank correlation with the end after {measured}"
