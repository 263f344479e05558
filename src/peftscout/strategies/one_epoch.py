"""One epoch for every plan, then the best K to the end: the baseline that every multi-fidelity method has to beat.

"Is One Epoch All You Need For Multi-Fidelity Hyperparameter Optimization?" (Egele et al., ESANN 2023). No bands, no
guard, no intermediate rungs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from peftscout.outcome import Evaluate, Outcome
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.multi_fidelity_options import OneEpochOptions
from peftscout.strategies.partial_runs import PartialRun, PartialRuns, at_rung


class OneEpoch:
    """The strategy. The inner strategy is given the problem at one epoch; it never hears of the full training.

    Args:
        inner: makes the strategy that proposes plans, for the problem that it is given.
        problem: its fidelity is the full one, on the ladder of one epoch and all steps. ``trials`` are units of full
            training, the baseline's among them.
        options: see `OneEpochOptions`.
    """

    def __init__(self, inner: Callable[[Problem], Strategy], problem: Problem, options: OneEpochOptions) -> None:
        self._runs = PartialRuns(problem, options.rank_by)
        self._epoch, self._full = self._runs.ladder
        self._keep = options.keep
        plans = None
        if problem.trials is not None:
            self._keep = min(options.keep, problem.trials - 1)
            plans = int(self._room())
        at_epoch = replace(problem.fidelity, steps=self._epoch)
        self._inner = inner(replace(problem, fidelity=at_epoch, trials=None if plans is None else 1 + plans))
        self._begun_all = False

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return new plans for one epoch; when all of them are told, the best K to the end."""
        if not self._begun_all:
            wanted = int(min(capacity, self._room()))
            new = [self._runs.begin(request) for request in self._inner.ask(wanted)] if wanted else []
            if new or self._runs.running:
                return new
            self._begun_all = True
        return [self._runs.go_on(run, self._full) for run in self._best()[:capacity]]

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of an outcome; the inner strategy is told that after one epoch."""
        run = self._runs.tell(request, outcome)
        if run is None:
            self._inner.tell(*at_rung(request, outcome, self._epoch))
        elif request.fidelity.steps == self._epoch:
            self._inner.tell(request, outcome)

    def _room(self) -> float:
        """Return how many plans can still be begun when the best K are to be trained to the end."""
        return (self._runs.left - self._keep * (self._full - self._epoch)) // self._epoch

    def _best(self) -> list[PartialRun]:
        """Return the paused runs that are to go on now; the next best takes the place of one that failed."""
        wanted = self._keep - sum(run.asked == self._full and not run.failed for run in self._runs)
        affordable = self._runs.left // (self._full - self._epoch)
        paused = (run for run in self._runs if run.paused)
        ranked = sorted(paused, key=lambda run: self._runs.rank_key(run, self._epoch))
        return ranked[: int(min(wanted, affordable))]
