"""The runs of a multi-fidelity search: how far each plan was trained, what became of it, and which steps are left."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator
from dataclasses import dataclass, field, replace
from typing import Literal

from peftscout.outcome import Evaluate, Outcome
from peftscout.strategies.base import Problem

RankBy = Literal["loss", "score"]
"""What plans are ranked by at a rung: the validation loss, less noisy on small sets, or the main metric."""


@dataclass(eq=False)
class PartialRun:
    """The training of one plan, as far as it has come.

    Attributes:
        request: the first one, at the rung where it began.
        number: in order of beginning.
        cost: of the plan, in parameters.
        asked: steps that were asked for so far.
        outcomes: steps -> what became of the run to there.
    """

    request: Evaluate
    number: int
    cost: int
    asked: int
    outcomes: dict[int, Outcome] = field(default_factory=dict)

    @property
    def running(self) -> bool:
        """Whether an outcome is awaited."""
        return self.asked not in self.outcomes

    @property
    def failed(self) -> bool:
        """Whether it ended without a score; it is never asked for again."""
        return any(not outcome.done for outcome in self.outcomes.values())

    @property
    def finished(self) -> bool:
        """Whether it has the score of the full training."""
        return self.has(self.request.fidelity.rungs[-1])

    @property
    def paused(self) -> bool:
        """Whether it stands below the top with a score, and can go on."""
        return not (self.running or self.failed or self.finished)

    def has(self, steps: int) -> bool:
        """Whether it has a score at ``steps``."""
        return steps in self.outcomes and self.outcomes[steps].done


class PartialRuns:
    """Every run of a search, and the account of its steps.

    A rung costs its increment, since a run goes on where it was paused. The account is one of requests: the same
    whether a run was resumed, had to begin again or ended early.

    Args:
        problem: its fidelity is on a ladder; its trials are units of full training, of which the baseline has one.
        rank_by: see `RankBy`; it is the score from the first outcome on that comes without a loss.
    """

    def __init__(self, problem: Problem, rank_by: RankBy) -> None:
        self._problem = problem
        self._runs: dict[tuple[Hashable, ...], PartialRun] = {}
        self._by_loss = rank_by == "loss"
        self.ladder = problem.fidelity.rungs
        self.left: float = math.inf if problem.trials is None else (problem.trials - 1) * self.ladder[-1]

    def __iter__(self) -> Iterator[PartialRun]:
        return iter(self._runs.values())

    def __len__(self) -> int:
        return len(self._runs)

    @property
    def running(self) -> bool:
        """Whether any outcome is awaited."""
        return any(run.running for run in self)

    def of(self, request: Evaluate) -> PartialRun | None:
        """Return the run that ``request`` is part of, at whatever rung; ``None`` for a plan that was not begun."""
        return self._runs.get(_course(request))

    def begin(self, request: Evaluate) -> Evaluate:
        """Take ``request`` into account and return it."""
        steps = request.fidelity.steps
        cost = request.plan.cost(self._problem.sites)
        self._runs[_course(request)] = PartialRun(request, len(self), cost, steps)
        self.left -= steps
        return request

    def go_on(self, run: PartialRun, steps: int) -> Evaluate:
        """Return the request that takes a paused run to ``steps``."""
        self.left -= steps - run.asked
        run.asked = steps
        return replace(run.request, fidelity=replace(run.request.fidelity, steps=steps))

    def tell(self, request: Evaluate, outcome: Outcome) -> PartialRun | None:
        """Keep an outcome and return its run; ``None`` where there is none: the baseline's."""
        run = self.of(request)
        if run is not None:
            run.outcomes[request.fidelity.steps] = outcome
            self._by_loss &= not outcome.done or "loss" in outcome.metrics
        return run

    def value(self, run: PartialRun, steps: int) -> float:
        """Return what the run is ranked by at ``steps``, lower is better."""
        outcome = run.outcomes[steps]
        assert outcome.score is not None
        if not self._by_loss:
            return -outcome.score
        loss = outcome.metrics["loss"]
        return loss if math.isfinite(loss) else math.inf

    def rank_key(self, run: PartialRun, steps: int) -> tuple[float, int, int]:
        """Return the sort key at ``steps``: the value, on ties the cheaper plan, then the one begun first."""
        return self.value(run, steps), run.cost, run.number


def at_rung(request: Evaluate, outcome: Outcome, steps: int) -> tuple[Evaluate, Outcome]:
    """Return what the outcome of a run to the end (the baseline's) was at ``steps``, read off its curve.

    Where the curve has no score there, or the run failed, both are returned as they are.
    """
    scores = [score for step, _, score in outcome.curve if step == steps and score is not None]
    if not (outcome.done and scores and request.fidelity.rungs):
        return request, outcome
    early = replace(request, fidelity=replace(request.fidelity, steps=steps))
    return early, Outcome(outcome.state, outcome.cost, scores[0], steps=steps)


def band_of(cost: int, budget: int, factor: float) -> int:
    """Return the band of a plan: 0 from the budget down to (but without) budget / factor, 1 below it, and so on."""
    band = 0
    while cost * factor ** (band + 1) <= budget:
        band += 1
    return band


def _course(request: Evaluate) -> tuple[Hashable, ...]:
    """What requests have in common when one continues the other."""
    return request.plan.digest, request.seed, request.lr_scale, request.op_lr_scales
