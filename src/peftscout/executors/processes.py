"""Worker processes on this machine. Each keeps model and data loaded; whatever kills one, the search goes on.

Workers are programs of their own, not forks: they are told what to do in JSON on their standard input. So a script that
searches needs no ``if __name__ == "__main__"``, and no state of the search leaks into an evaluation.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from queue import Empty, SimpleQueue
from threading import Thread

from peftscout.errors import ExecutorError
from peftscout.executors.base import Event, Finished, Job, Lost
from peftscout.executors.local import next_together
from peftscout.executors.messages import (
    Answered,
    JobData,
    Message,
    Note,
    Ready,
    Refused,
    Start,
    Stepped,
    Work,
    read_answer,
)
from peftscout.training.loop import Progress

COMMAND = (sys.executable, "-m", "peftscout.executors.worker")

STARTS = 3
"""Workers that may die in a row before one was ready."""

PATIENCE = 2.0
"""Seconds that a worker has to leave by itself."""

LOG_TAIL = 2000
"""Characters of a worker's log that are shown when it could not start."""


@dataclass(eq=False)
class _Worker:
    """A worker process.

    Attributes:
        process: told on ``stdin``.
        log: what it prints.
        together: jobs that are worth giving it at once; ``None`` while it loads.
        jobs: at hand, by attempt.
        deadline: when it must have answered, in `time.monotonic` seconds.
    """

    process: subprocess.Popen[bytes]
    log: Path
    together: int | None = None
    jobs: dict[str, Job] = field(default_factory=dict)
    deadline: float | None = None

    @property
    def idle(self) -> bool:
        return self.together is not None and not self.jobs

    def tell(self, message: Message) -> None:
        """Send a message; when the worker is dead its end is noticed where answers are read."""
        assert self.process.stdin is not None
        with suppress(OSError):
            self.process.stdin.write(message.line())
            self.process.stdin.flush()


class ProcessExecutor:
    """Up to ``workers`` processes, started when there is something to do.

    Args:
        start: what every worker is told first.
        workers: how many evaluate side by side.
        logs: folder for what they print.
        trial_timeout: seconds that a trial may take.
        environments: variables of each worker, in turn: which GPU it sees.
        progress: is told the steps of a job, where there is one worker.
        note: is told what workers have to say.
        command: the program; by default `COMMAND`.
    """

    def __init__(
        self,
        start: Start,
        workers: int,
        logs: Path,
        *,
        trial_timeout: float | None = None,
        environments: Sequence[Mapping[str, str]] = ({},),
        progress: Progress | None = None,
        note: Callable[[str], None] = lambda text: None,
        command: Sequence[str] | None = None,
    ) -> None:
        self.workers = workers
        self._start, self._logs, self._command = start, logs, command or COMMAND
        self._trial_timeout, self._environments = trial_timeout, environments
        self._progress, self._note = progress, note
        self._noted: set[str] = set()
        self._running: dict[int, _Worker] = {}  # by slot
        self._queue: list[Job] = []
        self._answers: SimpleQueue[tuple[int, _Worker, bytes | None]] = SimpleQueue()
        self._failed_starts = 0
        self._together = 1

    @property
    def capacity(self) -> int:
        """As many stacks as there are workers; how large a stack is, the first worker knows."""
        return self.workers * self._together

    @property
    def room(self) -> int:
        """What is under way does not reach for; for one worker all or nothing, as in the process of the search."""
        busy = len(self._queue) + sum(len(worker.jobs) for worker in self._running.values())
        if self.workers == 1:
            return 0 if busy else self.capacity
        return max(0, self.capacity - busy)

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; idle workers begin at once."""
        self._queue += jobs
        self._feed()

    def wait(self) -> list[Event]:
        """Return what came of jobs: at least one event, unless none is under way.

        Raises:
            ExecutorError: when workers cannot be started, or refuse the work.
        """
        events: list[Event] = []
        while not events and (self._queue or any(worker.jobs for worker in self._running.values())):
            self._feed()
            try:
                events = self._take(*self._answers.get(timeout=self._patience()))
            except Empty:
                events = self._overdue()
        self._feed()
        return events

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget ``jobs``; a worker that has nothing else at hand is stopped."""
        attempts = {job.attempt for job in jobs}
        self._queue = [job for job in self._queue if job.attempt not in attempts]
        for slot, worker in list(self._running.items()):
            if worker.jobs and worker.jobs.keys() <= attempts:
                self._kill(slot)
            for attempt in attempts & worker.jobs.keys():
                del worker.jobs[attempt]

    def rest(self) -> None:
        """Let idle workers go; those that load are let go, too."""
        idle = [worker for worker in self._running.values() if not worker.jobs]
        self._running = {slot: worker for slot, worker in self._running.items() if worker.jobs}
        self._let_go(idle)

    def close(self) -> None:
        """Let all workers go."""
        workers, self._running, self._queue = list(self._running.values()), {}, []
        self._let_go(workers)

    @staticmethod
    def _let_go(workers: Sequence[_Worker]) -> None:
        """Workers leave as soon as nobody can tell them anything."""
        for worker in workers:
            assert worker.process.stdin is not None
            with suppress(OSError):
                worker.process.stdin.close()
        for worker in workers:
            try:
                worker.process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                worker.process.kill()
                worker.process.wait()

    # -- work out -----------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Give idle workers what waits, in equal shares; start workers as long as there are too few."""
        while self._queue and (idle := next((w for w in self._running.values() if w.idle), None)):
            free = self.workers - sum(bool(worker.jobs) for worker in self._running.values())
            share = -(-len(self._queue) // free)
            assert idle.together is not None
            jobs = next_together(self._queue, min(share, idle.together))
            self._queue = [job for job in self._queue if job not in jobs]
            idle.jobs = {job.attempt: job for job in jobs}
            if self._trial_timeout is not None:
                idle.deadline = time.monotonic() + self._trial_timeout * len(jobs)
            idle.tell(Work(jobs=tuple(map(JobData.of, jobs))))
        loading = sum(worker.together is None for worker in self._running.values())
        for slot in range(self.workers):
            if slot not in self._running and loading < len(self._queue):
                self._running[slot] = self._started(slot)
                loading += 1

    def _started(self, slot: int) -> _Worker:
        self._logs.mkdir(parents=True, exist_ok=True)
        log = self._logs / f"{slot}.log"
        environment = os.environ | self._environments[slot % len(self._environments)]
        with log.open("wb") as out:
            process = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=out,
                env=environment,
                start_new_session=True,  # Ctrl-C is for the search alone
            )
        worker = _Worker(process, log)
        Thread(target=self._read, args=(slot, worker), daemon=True).start()
        worker.tell(self._start)
        return worker

    def _read(self, slot: int, worker: _Worker) -> None:
        """Pass on the answers of a worker, and its end; in a thread of its own."""
        assert worker.process.stdout is not None
        with worker.process.stdout as out:
            for line in out:
                self._answers.put((slot, worker, line))
        self._answers.put((slot, worker, None))

    # -- answers ------------------------------------------------------------------------------------------------------

    def _take(self, slot: int, worker: _Worker, line: bytes | None) -> list[Event]:
        if self._running.get(slot) is not worker:
            return []  # was stopped before
        if line is None:
            return self._ended(slot, worker)
        try:
            answer = read_answer(line)
        except ValueError as error:
            reason = f"its worker answered what is no answer: {str(error).splitlines()[0]}"
            return self._lost(self._kill(slot), reason)
        match answer:
            case Ready(together=together):
                worker.together = self._together = together
                self._failed_starts = 0
            case Refused(reason=reason):
                raise ExecutorError(reason)
            case Note(text=text) if text not in self._noted:
                self._noted.add(text)
                self._note(text)
            case Stepped(done=done, total=total) if self._progress is not None and self.workers == 1:
                self._progress(done, total)
            case Answered(attempt=attempt, outcome=outcome) if attempt in worker.jobs:
                return [Finished(worker.jobs.pop(attempt), outcome)]
        return []

    def _ended(self, slot: int, worker: _Worker) -> list[Event]:
        """Take note of the end of a worker: what it had at hand is lost."""
        del self._running[slot]
        code = worker.process.wait()
        how = f"was killed by signal {-code}" if code < 0 else f"ended with code {code}"
        if worker.together is None:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise ExecutorError(
                    f"workers cannot be started: the last one {how}. Its log ends:\n{_tail(worker.log)}"
                )
        return self._lost(worker, f"its worker {how}")

    def _overdue(self) -> list[Event]:
        """Stop the workers whose time is up. Which job of a stack hangs is not known: they are tried again, alone."""
        events: list[Event] = []
        for slot, worker in list(self._running.items()):
            if worker.jobs and worker.deadline is not None and worker.deadline <= time.monotonic():
                reason = f"took longer than executor.trial_timeout, {self._trial_timeout:g} s"
                events += self._lost(self._kill(slot), reason, final=len(worker.jobs) == 1)
        return events

    def _patience(self) -> float | None:
        """Seconds until the next worker is overdue."""
        deadlines = [w.deadline for w in self._running.values() if w.jobs and w.deadline is not None]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else None

    def _kill(self, slot: int) -> _Worker:
        worker = self._running.pop(slot)
        worker.process.kill()
        worker.process.wait()
        return worker

    @staticmethod
    def _lost(worker: _Worker, reason: str, final: bool = False) -> list[Event]:
        return [Lost(job, reason, final) for job in worker.jobs.values()]


def _tail(log: Path) -> str:
    try:
        return log.read_text(encoding="utf-8", errors="replace")[-LOG_TAIL:].strip()
    except OSError as error:
        return str(error)
