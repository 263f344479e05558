"""Evaluates on the machines of a Ray cluster: one actor a worker, as many as there is room for, which come and go.

Ray places the actors and notices when one is gone; it retries nothing: what is tried again is decided where it is for
every executor (`peftscout.executors.retries`), so that no outcome is applied twice.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from peftscout.errors import ConfigError, ExecutorError
from peftscout.executors.base import Event, Finished, Job, Lost
from peftscout.executors.local import next_together
from peftscout.executors.messages import Answered, JobData, Ready, Refused, Start, read_answer
from peftscout.executors.shipment import pack, places_of
from peftscout.study import is_made_by_trials

STARTS = 3
"""Workers that may die in a row before one was ready."""

GROWTH = 10.0
"""Seconds between two looks at how large the cluster is."""

PATIENCE = 60.0
"""Seconds without any worker after which it is said what is waited for."""


@dataclass(frozen=True)
class Need:
    """What a worker takes of the cluster.

    Attributes:
        cpus: cores.
        gpus: share of a GPU; ``None``: one where the cluster has any.
        memory: bytes of main memory.
    """

    cpus: float = 1.0
    gpus: float | None = None
    memory: int = 0

    def within(self, resources: Mapping[str, float]) -> Need:
        """Return this need, GPUs decided."""
        return self if self.gpus is not None else replace(self, gpus=float(resources.get("GPU", 0) > 0))

    def fits(self, resources: Mapping[str, float]) -> int:
        """Return how many workers ``resources``, in Ray's words, have room for; at least one."""
        wanted = {"CPU": self.cpus, "GPU": self.gpus or 0.0, "memory": self.memory}
        return max(1, min(math.floor(resources.get(name, 0.0) / much + 1e-9) for name, much in wanted.items() if much))

    def options(self) -> dict[str, Any]:
        """Return the options of an actor."""
        return {"num_cpus": self.cpus, "num_gpus": self.gpus or 0.0, "memory": self.memory or None}

    def __str__(self) -> str:
        return f"{self.cpus:g} CPU, {self.gpus or 0:g} GPU, {self.memory / 1e9:.1f} GB"


@dataclass(eq=False)
class _Worker:
    """An actor.

    Attributes:
        actor: Ray's handle.
        answer: what it is to answer next; ``None`` while it has nothing to do.
        together: jobs that are worth giving it at once; ``None`` while it loads.
        shared: whether it sees the study's folder.
        jobs: at hand, by attempt.
        deadline: when it must have answered, in `time.monotonic` seconds.
    """

    actor: Any
    answer: Any = None
    together: int | None = None
    shared: bool = False
    jobs: dict[str, Job] = field(default_factory=dict)
    deadline: float | None = None


class RayExecutor:
    """As many workers as were asked for, or as the cluster has room for; Ray places them when and where it can.

    Args:
        start: what every worker is told first.
        need: of a worker.
        most: workers; ``None``: as many as the cluster has room for, looked at again while it changes.
        address: of the cluster; ``auto``: of this machine; ``None``: a new one on this machine.
        trial_timeout: seconds that a trial may take.
        note: is told what is worth a line.
        worker: class of the actors; by default `RayWorker`.

    Raises:
        ConfigError: when Ray is not installed.
    """

    def __init__(
        self,
        start: Start,
        need: Need,
        *,
        most: int | None = None,
        address: str | None = None,
        trial_timeout: float | None = None,
        note: Callable[[str], None] = lambda text: None,
        worker: type | None = None,
    ) -> None:
        try:
            import ray
        except ImportError:
            raise ConfigError("executor.kind ray: Ray is not installed: pip install 'peftscout[ray]'") from None
        self._ray: Any = ray
        self._start, self._need, self._most, self._address = start, need, most, address
        self._trial_timeout, self._note, self._class = trial_timeout, note, worker
        self._workers: list[_Worker] = []
        self._queue: list[Job] = []
        self._target = most or 1
        self._looked = -math.inf
        self._failed_starts = 0
        self._began = math.inf
        self._own_cluster = False
        self._parcels: dict[str, list[Any]] = {}

    @property
    def workers(self) -> int:
        """Those that are ready."""
        return max(1, sum(worker.together is not None for worker in self._workers))

    @property
    def capacity(self) -> int:
        """As many stacks as workers are ready."""
        return max(1, sum(worker.together or 0 for worker in self._workers))

    @property
    def room(self) -> int:
        """What is under way does not reach for."""
        return max(0, self.capacity - len(self._queue) - sum(len(worker.jobs) for worker in self._workers))

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; the first ones start the workers."""
        self._queue += jobs
        self._join()
        self._feed()

    def wait(self) -> list[Event]:
        """Return what came of jobs; nothing when none is under way, or when workers joined and there is room for more.

        Raises:
            ExecutorError: when workers cannot be started, or refuse the work.
        """
        events: list[Event] = []
        before = self.capacity
        while not events and (self._queue or any(worker.jobs for worker in self._workers)):
            self._grow()
            self._feed()
            for worker in self._answered():
                events += self._take(worker)
            events += self._overdue()
            if self.capacity > before and not self._queue:
                break
        self._feed()
        return events

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget ``jobs``; a worker that has nothing else at hand is stopped."""
        attempts = {job.attempt for job in jobs}
        self._queue = [job for job in self._queue if job.attempt not in attempts]
        for worker in list(self._workers):
            if worker.jobs and worker.jobs.keys() <= attempts:
                self._kill(worker)
            for attempt in attempts & worker.jobs.keys():
                del worker.jobs[attempt]

    def rest(self) -> None:
        """Let idle workers go; those that wait for a place are let go, too."""
        for worker in [worker for worker in self._workers if not worker.jobs]:
            self._kill(worker)

    def close(self) -> None:
        """Let all workers go; a cluster that was started for this search is shut down."""
        for worker in list(self._workers):
            self._kill(worker)
        self._queue, self._parcels = [], {}
        if self._own_cluster:
            self._ray.shutdown()
            self._own_cluster = False

    # -- the cluster --------------------------------------------------------------------------------------------------

    def _join(self) -> None:
        """Connect to the cluster, or start one; a connection that is there is used."""
        if not self._ray.is_initialized():
            self._connect()
        self._need = self._need.within(self._ray.cluster_resources())

    def _connect(self) -> None:
        try:
            self._ray.init(address=self._address, include_dashboard=False, log_to_driver=False, configure_logging=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = self._address or "a new cluster on this machine"
            raise ExecutorError(f"Ray, {where}: cannot be reached: {error}") from None
        self._own_cluster = True

    def _grow(self) -> None:
        """Keep as many workers as are wanted; those that have no place yet wait for one in Ray's queue."""
        now = time.monotonic()
        if self._most is None and now - self._looked > GROWTH:
            self._target, self._looked = self._need.fits(self._ray.cluster_resources()), now
        while len(self._workers) < self._target:
            self._workers.append(self._started())
        if self._began is math.inf:
            self._began = now
        if now - self._began > PATIENCE and all(worker.together is None for worker in self._workers):
            self._began = now
            self._note(f"no worker is ready yet; each needs {self._need}, and Ray waits for room or for it to load")

    def _started(self) -> _Worker:
        if self._class is None:
            from peftscout.executors.ray_worker import RayWorker

            self._class = RayWorker
        remote = self._ray.remote(self._class).options(max_restarts=0, max_task_retries=0, **self._need.options())
        actor = remote.remote(self._start.line(), str(Path.cwd()))
        return _Worker(actor, actor.load.remote(self._sent()))

    def _sent(self) -> Mapping[str, Sequence[Any]]:
        """Return Ray's references to what the search reads from its disk, where there are machines without that disk.

        Packed once, into the object store, from which every machine fetches what it lacks. Each reference is in a list,
        as Ray would fetch one that is not.
        """
        if not self._parcels and sum(node["Alive"] for node in self._ray.nodes()) > 1:
            config = self._start.header["config"]
            self._parcels = {place: [self._ray.put(pack(config, place))] for place in places_of(config)}
        return self._parcels

    # -- work out -----------------------------------------------------------------------------------------------------

    def _feed(self) -> None:
        """Give idle workers what waits, in equal shares."""
        idle = [worker for worker in self._workers if worker.together is not None and not worker.jobs]
        while self._queue and idle:
            worker = idle[0]
            assert worker.together is not None
            jobs = next_together(self._queue, min(-(-len(self._queue) // len(idle)), worker.together))
            self._queue, idle = [job for job in self._queue if job not in jobs], idle[1:]
            worker.jobs = {job.attempt: job for job in jobs}
            worker.deadline = (
                None if self._trial_timeout is None else time.monotonic() + self._trial_timeout * len(jobs)
            )
            lines = [JobData.of(job).line() for job in jobs]
            worker.answer = worker.actor.work.remote(lines, {} if worker.shared else self._initial(jobs))

    def _initial(self, jobs: Sequence[Job]) -> dict[str, bytes]:
        """Return the states that ``jobs`` start from, for a worker that does not see the study's folder."""
        names = {job.request.initial for job in jobs if job.request.initial}
        return {n: (Path(self._start.cache) / "initial" / f"{n}.safetensors").read_bytes() for n in names}

    # -- answers ------------------------------------------------------------------------------------------------------

    def _answered(self) -> list[_Worker]:
        """Return the workers that have answered, or died, after a while if there are none."""
        awaited = {worker.answer: worker for worker in self._workers if worker.answer is not None}
        deadlines = [worker.deadline for worker in self._workers if worker.jobs and worker.deadline is not None]
        patience = max(0.0, min([GROWTH, *(deadline - time.monotonic() for deadline in deadlines)]))
        ready, others = self._ray.wait(list(awaited), num_returns=1, timeout=patience)
        if ready and others:
            ready += self._ray.wait(others, num_returns=len(others), timeout=0)[0]
        return [awaited[answer] for answer in ready]

    def _take(self, worker: _Worker) -> list[Event]:
        """Read an answer."""
        answer, worker.answer, worker.deadline = worker.answer, None, None
        try:
            told = self._ray.get(answer)
        except self._ray.exceptions.RayError as error:
            return self._ended(worker, _words(error))
        try:
            return self._loaded(worker, *told) if worker.together is None else self._finished(worker, told)
        except (ValueError, TypeError) as error:
            self._kill(worker)
            return self._lost(worker, f"its worker answered what is no answer: {str(error).splitlines()[0]}")

    def _loaded(self, worker: _Worker, line: bytes, shared: bool) -> list[Event]:
        match read_answer(line):
            case Refused(reason=reason):
                raise ExecutorError(reason)
            case Ready(together=together):
                worker.together, worker.shared = together, shared
                self._failed_starts = 0
            case other:
                raise ValueError(f"{other.kind} while it loads")
        return []

    def _finished(self, worker: _Worker, replies: Sequence[tuple[bytes, Mapping[str, bytes]]]) -> list[Event]:
        events: list[Event] = []
        for line, files in replies:
            answer = read_answer(line)
            if isinstance(answer, Refused):
                raise ExecutorError(answer.reason)
            if not isinstance(answer, Answered) or not all(map(is_made_by_trials, files)):
                raise ValueError(f"{answer.kind} with {', '.join(files) or 'no files'}")
            if answer.attempt in worker.jobs:
                events.append(Finished(worker.jobs.pop(answer.attempt), answer.outcome, dict(files)))
        if worker.jobs:
            events += self._lost(worker, "its worker answered for others only")
            worker.jobs = {}
        return events

    def _ended(self, worker: _Worker, how: str) -> list[Event]:
        """Take note of the end of a worker: what it had at hand is lost."""
        self._kill(worker)
        if worker.together is None:
            self._failed_starts += 1
            if self._failed_starts >= STARTS:
                raise ExecutorError(f"workers cannot be started on Ray: {how}")
        return self._lost(worker, f"its worker was lost: {how}")

    def _overdue(self) -> list[Event]:
        """Stop the workers whose time is up. Which job of a stack hangs is not known: they are tried again, alone."""
        events: list[Event] = []
        for worker in list(self._workers):
            if worker.jobs and worker.deadline is not None and worker.deadline <= time.monotonic():
                self._kill(worker)
                reason = f"took longer than executor.trial_timeout, {self._trial_timeout:g} s"
                events += self._lost(worker, reason, final=len(worker.jobs) == 1)
        return events

    def _kill(self, worker: _Worker) -> None:
        self._workers.remove(worker)
        self._ray.kill(worker.actor, no_restart=True)

    @staticmethod
    def _lost(worker: _Worker, reason: str, final: bool = False) -> list[Event]:
        return [Lost(job, reason, final) for job in worker.jobs.values()]


def _words(error: Exception) -> str:
    """Return the first telling line of an error of Ray."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return f"{type(error).__name__}: {lines[-1] if lines else 'no message'}"
