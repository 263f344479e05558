"""The bench: turns populations into requests and outcomes into score tables, and knows how many trials are left."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import replace
from typing import TypeVar

from peftscout.outcome import Evaluate, Outcome
from peftscout.strategies.base import Problem
from peftscout.strategies.design_spaces.populations import Candidate
from peftscout.strategies.design_spaces.stages import score_table
from peftscout.strategies.design_spaces.statistics import Array

T = TypeVar("T")

Procedure = Generator[list[Evaluate], None, T]
"""Yields batches of requests, goes on when all of a batch were told, and ends with a result."""


class Bench:
    """Requests and outcomes of one problem.

    Models are requests for the first task; each is trained on every task, and every training is a trial.
    """

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._outcomes: dict[str, Outcome] = {}
        self._spent = {Evaluate(problem.baseline, problem.fidelity, problem.seed).key}

    @property
    def told(self) -> int:
        """Number of outcomes."""
        return len(self._outcomes)

    @property
    def left(self) -> int | None:
        """Models that may still be asked for, on every task; ``None``: any number. The baseline counts as asked for."""
        if self._problem.trials is None:
            return None
        return max(0, self._problem.trials - len(self._spent)) // len(self._problem.tasks)

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        """Keep an outcome, also of a request that was not asked for yet (replay of a ledger)."""
        self._outcomes[request.key] = outcome

    def is_told(self, request: Evaluate) -> bool:
        """Return whether the outcome of ``request`` is known."""
        return request.key in self._outcomes

    def is_spent(self, model: Evaluate) -> bool:
        """Return whether the procedure asked for ``model`` before, on every task."""
        return all(request.key in self._spent for request in self._on_every_task(model))

    def steps(self, share: float) -> int:
        """Return ``share`` of the steps of a full evaluation, at least one."""
        return max(1, round(share * self._problem.fidelity.steps))

    def request(self, candidate: Candidate, share: float, base_model: int, label: str) -> Evaluate:
        """Return the request, on the first task, to train ``candidate`` for ``share`` of the steps.

        Base model ``k`` has the seed ``problem.seed + k`` under every option: the seeds are replicates too, so that a
        population that has come down to a few structures still has as many independent models as it claims.
        """
        fidelity = replace(self._problem.fidelity, steps=self.steps(share))
        seed = self._problem.seed + base_model
        plan, rates = candidate.compiled.plan, candidate.genotype.rates
        by_op = tuple((op, factor) for op, factor in rates.by_op if op in plan.ops)
        return Evaluate(plan, fidelity, seed, rates.lr_scale, label, op_lr_scales=by_op)

    def ask(self, models: Sequence[Evaluate]) -> Procedure[None]:
        """Have ``models`` trained on every task and wait for all outcomes; those that are known cost nothing."""
        requests = {request.key: request for model in models for request in self._on_every_task(model)}
        batch = requests.keys() - self._spent
        most = self._problem.trials
        assert most is None or len(self._spent) + len(batch) <= most, f"{len(batch)} requests are more than are left"
        self._spent |= batch
        yield list(requests.values())

    def _on_every_task(self, model: Evaluate) -> list[Evaluate]:
        named = [replace(model, task=t, label=f"{model.label}, {t}") for t in self._problem.tasks[1:]]
        return [model, *named]

    def measure(
        self, populations: Sequence[Sequence[Candidate]], share: float, labels: Sequence[str]
    ) -> Procedure[Array]:
        """Train ``populations`` (one an option, base model by base model) and return their scores.

        Returns:
            ``[options, models, tasks]``, NaN where there is none (see `score_table`).
        """
        # Base model by base model, so that a search that is cut short has complete pairs.
        grid = [
            [self.request(candidate, share, k, f"{label} #{k}") for k, candidate in enumerate(models)]
            for models, label in zip(populations, labels, strict=True)
        ]
        yield from self.ask([row[k] for k in range(len(grid[0])) for row in grid])
        return score_table(
            [[[self._outcomes[request.key] for request in self._on_every_task(model)] for model in row] for row in grid]
        )
