"""How many workers one driver keeps busy: the real runner, study, ledger and strategy, and evaluations that take time.

    OMP_NUM_THREADS=1 python benchmarks/executor_scale.py --workers 1 8 64 512 --seconds 60 --trials-per-worker 3
    OMP_NUM_THREADS=1 python benchmarks/executor_scale.py --workers 8 --seconds 0.5 --trials-per-worker 20 --really
    OMP_NUM_THREADS=1 python benchmarks/executor_scale.py --workers 1000 --seconds 60 --trials 10000

By default nothing sleeps: the clock of the workers is that of the driver, plus the time that is skipped while the
driver would wait. So what the driver does takes the time that it takes here and now, with a ledger of the size that
it has by then, and an hour of a thousand workers takes minutes. With --really evaluations sleep. Plans are those of a
BERT-base, drawn by the strategy, and every trial is written to disk as in a study. Rows are appended to
results/executor_scale.csv.
"""

from __future__ import annotations

import argparse
import heapq
import random
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import torch
from transformers import BertConfig, BertModel

from csv_rows import append
from peftscout.architecture import ModelMap
from peftscout.executors import Finished, Job, Retrying
from peftscout.header import Header
from peftscout.ledger import Ledger
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Budget, Sites
from peftscout.report.progress import Silent
from peftscout.runner import Runner
from peftscout.space import load_space
from peftscout.strategies import make_strategy
from peftscout.strategies.base import Problem
from peftscout.strategies.uniform import lora_on_query_value
from peftscout.study import Study

RESULTS = Path(__file__).parent / "results" / "executor_scale.csv"

SPREAD = 0.1
"""Trials take between 90 and 110 % of the given seconds: workers do not finish in step for long."""


@dataclass(frozen=True)
class Row:
    """One search.

    Attributes:
        kind: ``virtual``, or ``sleeping``.
        workers: side by side.
        seconds: of a trial, on average.
        strategy: that asked.
        trials: in all.
        storage: ``journal``, or the kind of database.
        wall_seconds: on the clock of the workers.
        busy_percent: of the time of all workers, until the last trial was handed out.
        trials_per_second: as they were finished.
        driver_ms_per_trial: all that the driver did, asking and telling included.
        ask_ms_per_trial: of that, the strategy.
        ledger_ms_per_trial: of that, the ledger.
        open_seconds: to open the ledger of this search again.
    """

    kind: str
    workers: int
    seconds: float
    strategy: str
    trials: int
    storage: str
    wall_seconds: float
    busy_percent: float
    trials_per_second: float
    driver_ms_per_trial: float
    ask_ms_per_trial: float
    ledger_ms_per_trial: float
    open_seconds: float


class Clock:
    """The time of the workers: real, plus what was skipped."""

    def __init__(self, really: bool) -> None:
        self._really = really
        self.skipped = self.slept = 0.0
        self._began = time.perf_counter()

    @property
    def now(self) -> float:
        return time.perf_counter() - self._began + self.skipped

    @property
    def driver(self) -> float:
        """Seconds in which the driver did something."""
        return time.perf_counter() - self._began - self.slept

    def until(self, then: float) -> None:
        """Wait, or skip the wait."""
        left = then - self.now
        if left > 0 and self._really:
            time.sleep(left)
            self.slept += left
        elif left > 0:
            self.skipped += left


class VirtualWorkers:
    """An executor whose evaluations do nothing but take time."""

    def __init__(self, workers: int, seconds: float, sites: Sites, clock: Clock) -> None:
        self.workers = self.capacity = workers
        self._seconds, self._sites, self._clock = seconds, sites, clock
        self._rng = random.Random(0)
        self._running: list[tuple[float, int, Job]] = []
        self._times: list[tuple[float, float]] = []

    @property
    def room(self) -> int:
        return self.capacity - len(self._running)

    def submit(self, jobs: Sequence[Job]) -> None:
        for job in jobs:
            seconds = self._seconds * self._rng.uniform(1 - SPREAD, 1 + SPREAD)
            now = self._clock.now
            heapq.heappush(self._running, (now + seconds, job.number, job))
            self._times.append((now, now + seconds))

    def wait(self) -> list[Finished]:
        if not self._running:
            return []
        self._clock.until(self._running[0][0])
        ended = []
        while self._running and self._running[0][0] <= self._clock.now:
            ended.append(heapq.heappop(self._running)[2])
        return [Finished(job, self._outcome(job)) for job in ended]

    def cancel(self, jobs: Sequence[Job]) -> None:
        raise NotImplementedError

    def close(self) -> None:
        self._running = []

    @property
    def busy(self) -> float:
        """Share of the time of all workers in which they had a trial, until the last one was handed out."""
        last = max(start for start, _ in self._times)
        return sum(min(end, last) - start for start, end in self._times) / (self.workers * last) if last else 1.0

    def _outcome(self, job: Job) -> Outcome:
        score = int(job.request.key, 16) % 1000 / 1000
        curve = tuple((step, 0.5, score) for step in (50, 100))
        metrics = {"accuracy": score, "loss": 0.5}
        cost = job.request.plan.cost(self._sites)
        return Outcome(State.DONE, cost, score, metrics, 60.0, 100, 120.0, 10_000, 9_000, 10**9, curve)


class Stopwatch:
    """Sums up the seconds in calls of some functions."""

    def __init__(self) -> None:
        self.seconds = 0.0

    def timed(self, function):  # type: ignore[no-untyped-def]
        def timed(*args, **kwargs):  # type: ignore[no-untyped-def]
            began = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self.seconds += time.perf_counter() - began

        return timed


def problem(trials: int) -> Problem:
    """Return the problem of a BERT-base with all ops and a budget of 0.5 %; no weights are made."""
    with torch.device("meta"):
        model_map = ModelMap.from_model(BertModel(BertConfig()))
    budget = Budget.parse("0.5%", model_map.total)
    baseline = lora_on_query_value(model_map.sites, budget).plan
    space = load_space("all", model_map.sites)
    return Problem(model_map.sites, space, budget, baseline, Fidelity(100), trials=trials + 1)


def search(workers: int, seconds: float, trials: int, strategy: str, storage: str | None, really: bool) -> Row:
    """Run one search as the engine does, from an empty ledger."""
    task = problem(trials)
    asking, writing = Stopwatch(), Stopwatch()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / f"scale-{workers}-{trials}-{time.time_ns()}"
        with Study(place, Header({}, {}, {}, {}), storage) as study:
            planner = make_strategy(strategy, task, {})
            first = Evaluate(task.baseline, task.fidelity, 0)
            planner.tell(first, Outcome(State.DONE, task.baseline.cost(task.sites), 0.5))
            for name in ("start", "finish", "recall"):
                setattr(study.ledger, name, writing.timed(getattr(study.ledger, name)))
            clock = Clock(really)
            executor = VirtualWorkers(workers, seconds, task.sites, clock)
            runner = Runner(study, Retrying(executor, task.sites), task.sites, Silent())
            done = 0
            ask, tell = asking.timed(planner.ask), asking.timed(planner.tell)
            while True:
                if runner.room:
                    runner.submit(requests := ask(runner.room))
                    if requests and runner.room:
                        continue
                if not runner.awaited:
                    break
                for record in runner.wait():
                    tell(record.request, record.outcome)
                    done += 1
            wall, driver = clock.now, clock.driver
        began = time.perf_counter()
        Ledger.reading(storage or place / "ledger.journal", name="peftscout" if storage is None else place.name)
        opening = time.perf_counter() - began
    return Row(
        kind="sleeping" if really else "virtual",
        workers=workers,
        seconds=seconds,
        strategy=strategy,
        trials=done,
        storage="journal" if storage is None else storage.partition(":")[0],
        wall_seconds=round(wall, 2),
        busy_percent=round(100 * executor.busy, 2),
        trials_per_second=round(done / wall, 2),
        driver_ms_per_trial=round(1000 * driver / done, 2),
        ask_ms_per_trial=round(1000 * asking.seconds / done, 2),
        ledger_ms_per_trial=round(1000 * writing.seconds / done, 2),
        open_seconds=round(opening, 2),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--seconds", type=float, default=60.0, help="of a trial")
    parser.add_argument("--trials", type=int, help="in all; by default --trials-per-worker for each worker")
    parser.add_argument("--trials-per-worker", type=int, default=4)
    parser.add_argument("--strategy", default="random")
    parser.add_argument("--storage", help="URL of a database, in place of a journal file")
    parser.add_argument("--really", action="store_true", help="sleep")
    parser.add_argument("--out", type=Path, default=RESULTS)
    args = parser.parse_args()
    for workers in args.workers:
        trials = args.trials or args.trials_per_worker * workers
        row = search(workers, args.seconds, trials, args.strategy, args.storage, args.really)
        print(row)
        append(args.out, [f.name for f in fields(Row)], [asdict(row)])


if __name__ == "__main__":
    main()
