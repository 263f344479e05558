"""Evaluates in the process of the search, several plans at once where the stacked evaluator serves."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import islice, takewhile

from peftscout.executors.base import Finished, Job
from peftscout.executors.work import Workplace
from peftscout.training.loop import Progress


class LocalExecutor:
    """Runs what was submitted while somebody waits for it. Nothing survives what kills the process.

    Args:
        workplace: of this process.
        progress: is told every optimiser step.
    """

    workers = 1

    def __init__(self, workplace: Workplace, progress: Progress | None = None) -> None:
        self._workplace, self._progress = workplace, progress
        self._waiting: list[Job] = []

    @property
    def capacity(self) -> int:
        """Plans that are worth stacking."""
        return self._workplace.together

    @property
    def room(self) -> int:
        """All or nothing: the jobs of a stack begin and end together."""
        return 0 if self._waiting else self.capacity

    def submit(self, jobs: Sequence[Job]) -> None:
        """Keep the jobs until they are waited for."""
        self._waiting += jobs

    def wait(self) -> list[Finished]:
        """Run the first of what waits, as many as share their passes."""
        jobs = next_together(self._waiting, self.capacity) if self._waiting else []
        self._waiting = [job for job in self._waiting if job not in jobs]
        outcomes = self._workplace.do(jobs, self._progress) if jobs else []
        return [Finished(job, outcome) for job, outcome in zip(jobs, outcomes, strict=True)]

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget what did not run yet."""
        self._waiting = [job for job in self._waiting if job not in jobs]

    def rest(self) -> None:
        """Nothing is held that the search itself would not hold."""

    def close(self) -> None:
        """Nothing runs outside of `wait`."""
        self._waiting = []


def next_together(waiting: Sequence[Job], most: int) -> list[Job]:
    """Return the jobs of a queue that go to a worker at once: the first one, if it has to be alone, or up to ``most``.

    They are of one task. Those of other tasks in between stay where they are.
    """
    if waiting[0].alone:
        return [waiting[0]]
    before = takewhile(lambda job: not job.alone, waiting)
    return list(islice((job for job in before if job.request.task == waiting[0].request.task), most))
