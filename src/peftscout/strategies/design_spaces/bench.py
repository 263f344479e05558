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

    Outcomes are kept by task and by the key of the request. There is one task for now, without a name; the tables have
    a dimension for tasks.
    """

    def __init__(self, problem: Problem, tasks: Sequence[str] = ("",)) -> None:
        self._problem = problem
        self._tasks = tuple(tasks)
        self._outcomes: dict[tuple[str, str], Outcome] = {}
        self._spent = {Evaluate(problem.baseline, problem.fidelity, problem.seed).key}

    @property
    def told(self) -> int:
        """Number of outcomes."""
        return len(self._outcomes)

    @property
    def left(self) -> int | None:
        """Trials that the procedure may still ask for; ``None``: any number. The baseline counts as asked for."""
        return None if self._problem.trials is None else max(0, self._problem.trials - len(self._spent))

    def tell(self, request: Evaluate, outcome: Outcome, task: str = "") -> None:
        """Keep an outcome, also of a request that was not asked for yet (replay of a ledger)."""
        self._outcomes[task, request.key] = outcome

    def is_told(self, request: Evaluate) -> bool:
        """Return whether the outcome of ``request`` is known for every task."""
        return all((task, request.key) in self._outcomes for task in self._tasks)

    def is_spent(self, request: Evaluate) -> bool:
        """Return whether the procedure asked for ``request`` before."""
        return request.key in self._spent

    def steps(self, share: float) -> int:
        """Return ``share`` of the steps of a full evaluation, at least one."""
        return max(1, round(share * self._problem.fidelity.steps))

    def request(self, candidate: Candidate, share: float, base_model: int, label: str) -> Evaluate:
        """Return the request to train ``candidate`` for ``share`` of the steps.

        Base model ``k`` has the seed ``problem.seed + k`` under every option: the seeds are replicates too, so that a
        population that has come down to a few structures still has as many independent models as it claims.
        """
        fidelity = replace(self._problem.fidelity, steps=self.steps(share))
        seed = self._problem.seed + base_model
        return Evaluate(candidate.compiled.plan, fidelity, seed, candidate.genotype.lr_scale, label)

    def ask(self, requests: Sequence[Evaluate]) -> Procedure[None]:
        """Ask for ``requests`` and wait until all of them were told; those that are known cost nothing."""
        batch = list({request.key: request for request in requests if not self.is_spent(request)}.values())
        assert self.left is None or len(batch) <= self.left, f"{len(batch)} requests, {self.left} trials are left"
        self._spent |= {request.key for request in batch}
        yield list({request.key: request for request in requests}.values())

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
            [[[self._outcomes[task, request.key] for task in self._tasks] for request in row] for row in grid]
        )
