"""The only way in which the engine gets outcomes: each request at most once in the life of a study."""

from __future__ import annotations

from collections.abc import Sequence

from peftscout.executors import Finished, Job, Retrying
from peftscout.ledger import Record, Stage
from peftscout.outcome import Evaluate
from peftscout.plan import Sites
from peftscout.replay import Replay
from peftscout.report.progress import Reporter
from peftscout.study import Study

AT_ONCE = 8
"""Requests that a strategy is asked for at once, at most, where each goes to a worker of its own."""


class Runner:
    """Takes requests and gives records: from the ledger where they finished before, else from the executor.

    Args:
        study: open.
        executor: that evaluates.
        sites: of the model.
        reporter: is told every event.
    """

    def __init__(self, study: Study, executor: Retrying, sites: Sites, reporter: Reporter) -> None:
        self.study = study
        self.reporter = reporter
        self._executor, self._sites = executor, sites
        self._replay = Replay(study.ledger.records())
        self._known: dict[str, Record] = {}
        self._running: dict[int, Record] = {}
        self._told = 0
        self._best: float | None = None

    @property
    def workers(self) -> int:
        """How many evaluate side by side."""
        return self._executor.workers

    @property
    def awaited(self) -> bool:
        """Whether any submitted request has not come back."""
        return bool(self._known or self._running)

    @property
    def room(self) -> int:
        """How many more requests are worth submitting now; of many, a few, so that these run while others are found.

        Where workers share passes it is all of them: whoever hands them out has to see them together.
        """
        room = self._replay.room(self._told, self.awaited)
        if room is not None:
            return room
        stacks = self._executor.capacity > self._executor.workers
        return self._executor.room if stacks else min(self._executor.room, AT_ONCE)

    def submit(self, requests: Sequence[Evaluate]) -> None:
        """Submit what a strategy asks for; the ledger keeps after how many outcomes that was."""
        for request in requests:
            self._replay.asked(request.key)
        self._start(requests, "search", told=self._told)

    def wait(self) -> list[Record]:
        """Wait for records of what was asked for, at least one, and return them in the order of their completion."""
        records = self._came()
        self._told += len(records)
        return records

    def run(self, requests: Sequence[Evaluate], stage: Stage, *, predict: bool = False) -> list[Record]:
        """Return the records of ``requests``, in their order, when all have come. Nothing else may be under way.

        ``predict`` keeps predictions on the report split in the trials' folders; such trials share no passes.
        """
        waiting = list({request.key: request for request in requests}.values())
        most = self._executor.workers if predict else self._executor.capacity
        found: dict[str, Record] = {}
        while waiting or self.awaited:
            free = max(most - len(self._running), not self.awaited)
            self._start(waiting[:free], stage, predict=predict)
            waiting = waiting[free:]
            found |= {record.request.key: record for record in self._came()}
        return [found[request.key] for request in requests]

    def _start(
        self, requests: Sequence[Evaluate], stage: Stage, *, told: int | None = None, predict: bool = False
    ) -> None:
        jobs = []
        for request in {request.key: request for request in requests}.values():
            if (known := self.study.ledger.recall(request)) is not None:
                self._known[request.key] = known
                continue
            number = self.study.ledger.start(request, stage, told)
            self._running[number] = Record(number, stage, request, None)
            self.reporter.started(number, stage, request, request.plan.cost(self._sites))
            jobs.append(Job(number, request, self.study.fresh_trial_folder(number, request.plan), predict))
        self._executor.submit(jobs)

    def _came(self) -> list[Record]:
        """Return what came, recorded outcomes first: in the recorded order, one at a time, as far as there is one."""
        if self._known:
            key = self._replay.next(self._known)
            keys = list(self._known) if key is None else [key]
            return [self._reported(self._known.pop(key), recalled=True) for key in keys]
        return [self._reported(self._accept(finished), recalled=False) for finished in self._executor.wait()]

    def _accept(self, finished: Finished) -> Record:
        self._running.pop(finished.job.number)
        self.study.accept(finished.job.number, finished.job.staging, finished.files)
        self.study.finish(finished.job.number, finished.outcome)
        return self.study.ledger.record(finished.job.number)

    def _reported(self, record: Record, recalled: bool) -> Record:
        score = None if record.outcome is None else record.outcome.score
        if score is not None and record.stage != "final" and not record.request.task:
            self._best = score if self._best is None else max(score, self._best)
        self.reporter.finished(record, self._best, recalled)
        return record
