"""What is tried again, and what is given up: the same for every executor."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace

from peftscout.executors.base import Event, Executor, Finished, Job, Lost
from peftscout.executors.local import LocalExecutor
from peftscout.outcome import Outcome, State
from peftscout.plan import Sites


class Retrying:
    """An executor of which every job comes back with an outcome, and with one only.

    * A job that was lost with its worker is tried again, alone, ``retries`` times; then it has failed.
    * A job that ran out of memory is tried once more with half the rows in a pass and twice the passes in a step, which
      is the same training; then it is out of memory.
    * Whatever comes late, of a try that was given up or replaced, is thrown away.

    Args:
        executor: that runs the jobs.
        sites: of the model: an outcome whose cost is not that of its plan is no outcome.
        retries: most tries of a lost job after the first.
        halves: whether passes can be divided: not in a training that is the user's own.
        note: is told, in words, what is tried again and why.
    """

    def __init__(
        self,
        executor: Executor,
        sites: Sites,
        *,
        retries: int = 2,
        halves: bool = True,
        note: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.executor = executor
        self._sites, self._retries, self._halves, self._note = sites, retries, halves, note
        self._current: dict[int, str] = {}

    @property
    def workers(self) -> int:
        """How many evaluate side by side."""
        return self.executor.workers

    @property
    def elsewhere(self) -> bool:
        """Whether evaluations leave this process."""
        return not isinstance(self.executor, LocalExecutor)

    @property
    def capacity(self) -> int:
        """Jobs that are worth having under way at once."""
        return self.executor.capacity

    @property
    def room(self) -> int:
        """Jobs that are worth submitting now."""
        return self.executor.room

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs."""
        self._current |= {job.number: job.attempt for job in jobs}
        self.executor.submit(jobs)

    def wait(self) -> list[Finished]:
        """Return finished jobs: at least one, unless none is under way or there is room for more.

        Raises:
            ExecutorError: when no worker can do this work.
        """
        finished: list[Finished] = []
        while self._current and not finished:
            events = self.executor.wait()
            finished = [ended for event in events if (ended := self._judged(event)) is not None]
            if not events:
                break
        return finished

    def rest(self) -> None:
        """Let workers go that have nothing to do."""
        self.executor.rest()

    def close(self) -> None:
        """Stop everything."""
        self.executor.close()

    def _judged(self, event: Event) -> Finished | None:
        """Return ``event`` when it is the last word on its job; else see to it that there will be one."""
        job = event.job
        if self._current.get(job.number) != job.attempt:
            _throw_away(job)
            return None
        if isinstance(event, Finished) and event.outcome.cost != job.request.plan.cost(self._sites):
            event = Lost(job, f"the worker answered with a cost of {event.outcome.cost}, which is not that of the plan")
        if isinstance(event, Lost):
            if job.tries < self._retries and not event.final:
                self._try(job.again(), job, f"trial {job.number} is tried again: {event.reason}")
                return None
            event = Finished(job, self._given_up(job, event.reason))
        if event.outcome.state is State.OUT_OF_MEMORY and self._halves and job.micro_batches == 1:
            self._try(job.halved(), job, f"trial {job.number} ran out of memory: it is tried again in half batches")
            return None
        del self._current[job.number]
        return replace(event, outcome=_marked(event.outcome, job))

    def _try(self, job: Job, after: Job, note: str) -> None:
        self._note(note)
        _throw_away(after)
        self.submit([job])

    def _given_up(self, job: Job, reason: str) -> Outcome:
        tries = "" if not job.tries else f" ({job.tries + 1} tries)"
        return Outcome(State.FAILED, job.request.plan.cost(self._sites), message=reason + tries)


def _marked(outcome: Outcome, job: Job) -> Outcome:
    """Say of an outcome that it took halves of batches to get it."""
    if job.micro_batches == 1:
        return outcome
    halves = f"batches in {job.micro_batches} parts, after running out of memory"
    return replace(outcome, message=f"{outcome.message} ({halves})" if outcome.message else halves)


def _throw_away(job: Job) -> None:
    shutil.rmtree(job.staging, ignore_errors=True)
