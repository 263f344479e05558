"""The contract between strategies and the engine: `ask` for work, be `told` outcomes.

A strategy never sees a model. It gets a `Problem` and hands out `Evaluate` requests; who runs them is not its concern,
so every algorithm runs in milliseconds against a closed-form objective in its tests. A strategy is a deterministic
function of its problem and of the outcomes it was told, in order: that is what makes a study resumable by replay.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Plan, Sites
from peftscout.space import Space

if TYPE_CHECKING:
    from peftscout.gates import WeightTraining
    from peftscout.strategies.one_shot import OneShot


Evaluated = tuple[Evaluate, Outcome]
"""A request and what became of it."""


@dataclass(frozen=True)
class Problem:
    """What a strategy is to solve.

    Attributes:
        sites: the sites of the model, by id.
        space: what may be chosen.
        budget: upper bound on the cost of every plan that is asked for.
        baseline: uniform LoRA at the budget: the engine's trial 0, already asked for and told first.
        trials: evaluations allowed in all, the baseline among them; ``None`` when only time limits the search. One that
            was stopped early counts as the share of it that was trained, see `trials_used`.
        fidelity: what a full evaluation gets.
        seed: of the search.
        lr_scales: learning-rate factors that the search may draw from.
        reference_score: what a plan that learned nothing scores: the most frequent class, or the mean, on the search
            split; ``None`` where nobody knows.
        observed: what another study observed of this very problem; it counts as known and costs no trial.
        related: what another study observed of the same model on another task, or under other training.
        tasks: names of those that plans may be trained on, see `Evaluate.task`. The first one, without a name, is the
            study's own, whose scores decide which plan is chosen; the others have further data.
        one_shot: opens a supernet of the space, for strategies that search on one; ``None``: there is none to be had.
    """

    sites: Sites
    space: Space
    budget: Budget
    baseline: Plan
    fidelity: Fidelity
    trials: int | None = None
    seed: int = 0
    lr_scales: tuple[float, ...] = (1.0,)
    reference_score: float | None = None
    observed: tuple[Evaluated, ...] = ()
    related: tuple[Evaluated, ...] = ()
    tasks: tuple[str, ...] = ("",)
    one_shot: Callable[[WeightTraining], AbstractContextManager[OneShot]] | None = field(
        default=None, compare=False, repr=False
    )


class Strategy(Protocol):
    """Turns a problem into plans worth having."""

    def ask(self, capacity: int) -> Sequence[Evaluate]:
        """Return up to ``capacity`` requests that were never asked before.

        Empty means: nothing more to ask until an outcome is told, or, when none is pending, finished.
        Every plan is within the budget and none is empty. ``Evaluate.key`` never repeats. While outcomes are pending,
        asking for several is asking for one after the other, and a question in vain changes nothing: so what was asked
        for, after how many outcomes, and the order of these are all that a replay needs.
        """
        ...

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Take note of the outcome of a request, whatever its state."""
        ...


def trials_used(request: Evaluate, outcome: Outcome) -> float:
    """Return what an evaluation takes of the trials: 1, or the share of its steps where it was stopped early."""
    stopped = outcome.state is State.PRUNED and outcome.steps
    return outcome.steps / request.fidelity.steps if stopped else 1.0
