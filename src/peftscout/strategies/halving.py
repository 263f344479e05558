"""Successive halving for every trial-based strategy: asynchronous (ASHA), inside bands of cost, resuming paused runs.

The rule is that of ASHA (Li et al., MLSys 2020, algorithm 2): from the highest rung down, a plan among the best 1/eta
of its rung that has not gone on goes on; where there is none, a new plan begins at the lowest rung. What is ours:

* Bands. Plans are compared only with plans of similar cost, in geometric bands counted down from the budget: the cost
  of a plan is known before it is trained, so a cheap plan need not beat a dear one to be trained to the end.
* What the inner strategy learns from. It is given the problem at the *lowest* rung: every plan that it asked for has a
  score there, at once and under equal conditions. Were it told full scores only, it would see none but the survivors;
  with stopped plans told as pruned, a surrogate would learn nothing from two thirds of what was trained. The survivors'
  later scores decide the study, not the inner strategy.
* The end. The steps that bring one plan of every band to the end are held back; at the last they, and what is left
  over, take the best paused plan of each band to the end, then the second best of each, and so on.
* The guard. When the rungs turn out not to agree on ranks (`rank_agreement`), no further plan is stopped: the paused
  ones go to the end, and the inner strategy begins again, at full training, told what was finished.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from peftscout.outcome import Evaluate, Outcome
from peftscout.strategies.base import Problem, Strategy
from peftscout.strategies.multi_fidelity_options import HalvingOptions
from peftscout.strategies.partial_runs import PartialRun, PartialRuns, at_rung, band_of
from peftscout.strategies.rank_agreement import Agreement, Band, rank_agreement


class SuccessiveHalving:
    """The strategy (see the module for the method).

    Args:
        inner: makes the strategy that proposes plans, for the problem that it is given.
        problem: its fidelity is the full one, on a ladder. ``trials`` are units of full training: increments of rungs
            are asked for until together they reach ``trials`` times the full steps, the baseline's among them.
        options: see `HalvingOptions`.

    Attributes:
        note: why no plan is stopped any more, for people; ``None`` while the rungs are trusted.
    """

    def __init__(self, inner: Callable[[Problem], Strategy], problem: Problem, options: HalvingOptions) -> None:
        self.problem = problem
        self.options = options
        self.note: str | None = None
        self._make_inner = inner
        self._runs = PartialRuns(problem, options.rank_by)
        self._first, *_, self._full = self._runs.ladder
        plans = None if problem.trials is None else 1 + options.plans_within(self._runs.left, self._runs.ladder)
        lowest = replace(problem.fidelity, steps=self._first)
        self._inner = inner(replace(problem, fidelity=lowest, trials=plans))
        self._inner_is_done = False
        self._ended: list[tuple[Evaluate, Outcome]] = []

    # -- the contract -------------------------------------------------------------------------------------------------

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return up to ``capacity`` requests: to go on with paused runs, or to begin new ones."""
        requests: list[Evaluate] = []
        while len(requests) < capacity and (request := self._next()) is not None:
            requests.append(request)
        return requests

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of an outcome; the inner strategy is told that of its rung."""
        run = self._runs.tell(request, outcome)
        ended = run is None or run.failed or run.finished
        at_full = request if run is None else replace(request, fidelity=self.problem.fidelity)
        if ended:
            self._ended.append((at_full, outcome))
        if self.note is not None:
            if ended:
                self._inner.tell(at_full, outcome)
            return
        if run is None:
            self._inner.tell(*at_rung(request, outcome, self._first))
        elif request.fidelity.steps == self._first:
            self._inner.tell(request, outcome)
        else:
            self._judge_rungs()

    # -- what goes on -------------------------------------------------------------------------------------------------

    def _next(self) -> Evaluate | None:
        if self.note is not None:
            return self._finish() or self._begin(self._full)
        if (request := self._promote() or self._begin(self._first)) is not None:
            return request
        undecided = any(run.running and run.asked < self._full for run in self._runs)
        return None if undecided else self._finish()

    def _promote(self) -> Evaluate | None:
        """Return the request that takes the best promotable run to its next rung (ASHA's ``get_job``)."""
        for rung, above in reversed(list(pairwise(self._runs.ladder))):
            for _, band in sorted(self._bands().items()):
                ranked = self._ranked(band, rung)
                for run in ranked[: len(ranked) // self.options.eta]:
                    if run.paused and run.asked == rung and self._leaves_the_reserve(run, band, above - rung):
                        return self._runs.go_on(run, above)
        return None

    def _begin(self, steps: int) -> Evaluate | None:
        """Return the next new plan of the inner strategy, where it could still be trained to the end."""
        while not self._inner_is_done and self._runs.left - steps >= max(self._reserve(), self._full - steps):
            asked = self._inner.ask(1)
            if not asked:
                self._inner_is_done = not self._runs.running
                return None
            known = self._runs.of(asked[0])
            if known is None:
                return self._runs.begin(asked[0])
            self._answer(known)
        return None

    def _finish(self) -> Evaluate | None:
        """Return the request that takes a paused run to the end: of the band that has the fewest of them, its best."""
        turns: list[tuple[tuple[float, ...], PartialRun]] = []
        for band in self._bands().values():
            at_the_end = sum(run.asked == self._full and not run.failed for run in band)
            turns += [((at_the_end, *self._furthest_first(run)), run) for run in band if run.paused]
        for _, run in sorted(turns, key=lambda turn: turn[0]):
            if self._full - run.asked <= self._runs.left:
                return self._runs.go_on(run, self._full)
        return None

    def _furthest_first(self, run: PartialRun) -> tuple[float, ...]:
        return -run.asked, *self._runs.rank_key(run, run.asked)

    def _ranked(self, band: Sequence[PartialRun], rung: int) -> list[PartialRun]:
        """Return the runs of a band with a score at ``rung``, the best first; failed ones are not counted."""
        return sorted((run for run in band if run.has(rung)), key=lambda run: self._runs.rank_key(run, rung))

    def _bands(self) -> dict[int, list[PartialRun]]:
        bands: dict[int, list[PartialRun]] = defaultdict(list)
        for run in self._runs:
            bands[band_of(run.cost, self.problem.budget.parameters, self.options.band_factor)].append(run)
        return bands

    # -- what is held back --------------------------------------------------------------------------------------------

    def _reserve(self) -> float:
        """Return the steps that bring the furthest run of every band to the end, where no run has got there yet."""
        return sum(
            self._full - max(alive)
            for band in self._bands().values()
            if not any(run.finished for run in band) and (alive := _alive(band))
        )

    def _leaves_the_reserve(self, run: PartialRun, band: Sequence[PartialRun], increment: int) -> bool:
        """Whether the reserve is untouched when ``run`` goes on: the furthest of its band is what it is held for."""
        held_for_it = not any(other.finished for other in band) and run.asked == max(_alive(band))
        return self._runs.left - (0 if held_for_it else increment) >= self._reserve()

    # -- the guard ----------------------------------------------------------------------------------------------------

    def agreement(self, rung: int, above: int) -> Agreement:
        """Return how well two rungs (in steps) agree on the order of the plans so far."""
        return rank_agreement(self._seen_at_both(band, rung, above) for band in self._bands().values())

    def _seen_at_both(self, band: Sequence[PartialRun], rung: int, above: int) -> Band:
        at_rung = self._ranked(band, rung)
        through = [n for n, run in enumerate(at_rung) if run.has(above)]
        return Band(
            [self._runs.value(run, rung) for run in at_rung],
            through,
            [self._runs.value(at_rung[n], above) for n in through],
        )

    def _judge_rungs(self) -> None:
        """Give up stopping when two rungs agree less than they must, by more than a standard error.

        Without that margin it would soon be given up by chance, since it is judged again after every outcome.
        """
        for rung, above in pairwise(self._runs.ladder):
            seen = self.agreement(rung, above)
            if (
                seen.upper is None
                or seen.plans < self.options.least_plans
                or seen.upper >= self.options.least_agreement
            ):
                continue
            self._stop_stopping(
                f"no plan is stopped any more: the ranks of {seen.plans} plans after {rung} and after {above} steps "
                f"correlate by {seen.correlation:.2f} ({seen.upper:.2f} with a standard error on top), below "
                f"{self.options.least_agreement:g}"
            )
            return

    def _stop_stopping(self, note: str) -> None:
        """Let every plan go to the end from now on, and have the inner strategy begin again with what was finished."""
        self.note = note
        left = self._runs.left
        trials = None if math.isinf(left) else 1 + len(self._runs) + int(left // self._full)
        self._inner = self._make_inner(replace(self.problem, trials=trials))
        self._inner_is_done = False
        for request, outcome in self._ended:
            self._inner.tell(request, outcome)

    def _answer(self, run: PartialRun) -> None:
        """Tell the inner strategy, which began again, what it asks for and is known; the rest it is told in time."""
        if run.failed or run.finished:
            request = replace(run.request, fidelity=self.problem.fidelity)
            self._inner.tell(request, run.outcomes[run.asked])


def _alive(band: Sequence[PartialRun]) -> list[int]:
    """Return how far the runs of a band are, or are on their way to, without the failed ones."""
    return [run.asked for run in band if not run.failed]
