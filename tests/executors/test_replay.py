"""A search that was interrupted goes the same way again: asynchronous strategies get the same questions and answers."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from executor_contract import SITES
from hypothesis import given
from hypothesis import strategies as st

from peftscout.executors import Finished, Job, Retrying
from peftscout.header import Header
from peftscout.ledger import Ledger, Record
from peftscout.outcome import Evaluate, Fidelity, Outcome, State
from peftscout.plan import Plan
from peftscout.replay import Replay
from peftscout.report.progress import Silent
from peftscout.runner import Runner
from peftscout.strategies import make_strategy
from peftscout.strategies.base import Problem
from peftscout.study import Study

LINEAR = [site.id for site in SITES.values() if site.kind == "linear"]


def plan(number: int) -> Plan:
    return Plan.of({(LINEAR[number % len(LINEAR)], "lora"): 1 + number // len(LINEAR)})


def request(number: int) -> Evaluate:
    return Evaluate(plan(number), Fidelity(1), 0)


def outcome_of(request: Evaluate) -> Outcome:
    return Outcome(State.DONE, request.plan.cost(SITES), int(request.key, 16) % 1000 / 1000)


class Shuffling:
    """Finishes jobs in an order of its own; interrupts after so many."""

    def __init__(self, workers: int, seed: int, interrupt_after: int | None = None) -> None:
        self.workers = self.capacity = workers
        self._rng = random.Random(seed)
        self._jobs: list[Job] = []
        self._left = interrupt_after
        self.evaluated: list[str] = []

    @property
    def room(self) -> int:
        return self.capacity - len(self._jobs)

    def submit(self, jobs) -> None:
        self._jobs += jobs

    def wait(self) -> list[Finished]:
        if self._left == 0:
            raise KeyboardInterrupt
        if self._left is not None:
            self._left -= 1
        if not self._jobs:
            return []
        job = self._jobs.pop(self._rng.randrange(len(self._jobs)))
        self.evaluated.append(job.request.key)
        job.staging.mkdir()
        (job.staging / "made").touch()
        return [Finished(job, outcome_of(job.request))]

    def cancel(self, jobs) -> None:
        self._jobs = [job for job in self._jobs if job not in jobs]

    def close(self) -> None:
        self._jobs = []


def study(folder: Path) -> Study:
    return Study(folder, Header({}, {}, {}, {}))


class Learning:
    """What it asks for next depends on all that it was told, in order."""

    def __init__(self, trials: int) -> None:
        self.trials, self.asked, self.told = trials, 0, 0

    def ask(self, capacity: int) -> list[Evaluate]:
        requests = []
        while len(requests) < capacity and self.asked < self.trials:
            self.asked += 1
            requests.append(Evaluate(plan(self.asked), Fidelity(1), seed=self.told))
        return requests

    def tell(self, request: Evaluate, outcome: Outcome) -> None:
        self.told = hash((self.told, request.key, outcome.score)) % 2**31


def search(folder: Path, strategy, executor: Shuffling) -> list[tuple[str, str]]:
    """Drive ``strategy`` as the engine does; return the questions and answers in their order."""
    course = []
    with study(folder) as opened:
        runner = Runner(opened, Retrying(executor, SITES), SITES, Silent())
        while True:
            if runner.room:
                requests = strategy.ask(runner.room)
                course += [("asked", r.key) for r in requests]
                runner.submit(requests)
                if requests and runner.room:
                    continue
            if not runner.awaited:
                return course
            for record in runner.wait():
                strategy.tell(record.request, record.outcome)
                course.append(("told", record.request.key))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("cuts", [(1,), (4,), (2, 5, 1), (11,)])
def test_a_continued_search_repeats_its_course_and_evaluates_nothing_twice(tmp_path, workers, cuts):
    evaluated, courses = [], []
    for n, cut in enumerate([*cuts, None]):
        executor = Shuffling(workers, seed=n, interrupt_after=cut)
        strategy = Learning(12)
        try:
            courses.append(search(tmp_path / "s", strategy, executor))
        except KeyboardInterrupt:
            with study(tmp_path / "s") as opened:
                courses.append([("told", r.request.key) for r in opened.ledger.records() if r.outcome])
        evaluated += executor.evaluated
    assert len(evaluated) == len(set(evaluated)) == 12
    again = search(tmp_path / "s", Learning(12), Shuffling(5, seed=99))
    assert again == courses[-1]


def test_one_worker_that_was_interrupted_asks_what_one_that_was_not_asks(tmp_path):
    whole = search(tmp_path / "whole", Learning(9), Shuffling(1, 0))
    for cut in (1, 3, 2):
        with pytest.raises(KeyboardInterrupt):
            search(tmp_path / "cut", Learning(9), Shuffling(1, 0, interrupt_after=cut))
    assert search(tmp_path / "cut", Learning(9), Shuffling(1, 0)) == whole


@pytest.mark.parametrize("name", ["random", "uniform"])
def test_the_order_of_completion_does_not_change_what_an_order_independent_strategy_finds(tmp_path, name):
    from peftscout.plan import Budget
    from peftscout.space import load_space
    from peftscout.strategies.uniform import lora_on_query_value

    budget = Budget(2000, "2000")
    baseline = lora_on_query_value(SITES, budget).plan
    problem = Problem(SITES, load_space("all", SITES), budget, baseline, Fidelity(1), trials=15)

    def found(workers: int, seed: int) -> set[tuple[str, float | None]]:
        folder = tmp_path / f"{workers}-{seed}"
        search(folder, make_strategy(name, problem, {}), Shuffling(workers, seed))
        with study(folder) as opened:
            return {(r.request.key, r.outcome.score) for r in opened.ledger.records()}

    serial = found(1, 0)
    assert len(serial) > 3
    assert found(4, 1) == found(4, 2) == found(13, 3) == serial


def test_a_search_that_takes_another_way_is_not_held_up(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "s", Learning(8), Shuffling(3, 0, interrupt_after=5))

    class Other(Learning):
        def ask(self, capacity):
            return [Evaluate(r.plan, r.fidelity, r.seed + 1) for r in super().ask(capacity)]

    executor = Shuffling(3, 1)
    course = search(tmp_path / "s", Other(8), executor)
    assert len(executor.evaluated) == 8
    assert len(course) == 16


def test_what_a_try_made_is_moved_into_place_and_nothing_else_stays(tmp_path):
    search(tmp_path / "s", Learning(2), Shuffling(2, 0))
    made = sorted(p.relative_to(tmp_path / "s" / "trials").as_posix() for p in (tmp_path / "s").rglob("trials/*/*"))
    assert made == [f"00{n}/{name}" for n in (0, 1) for name in ("made", "outcome.json", "plan.json")]


def test_requests_that_are_run_come_back_in_their_order(tmp_path):
    asked = [request(n) for n in range(6)]
    with study(tmp_path / "s") as opened:
        runner = Runner(opened, Retrying(Shuffling(4, 3), SITES), SITES, Silent())
        records = runner.run([*asked, asked[2]], "tune")
        assert [r.request for r in records] == [*asked, asked[2]]
        assert {r.told for r in records} == {None}
        assert sorted(r.finished for r in records[:6]) == list(range(6))
        assert runner.run(asked[:2], "final") == records[:2]


def record(number: int, told: int | None, finished: int | None) -> Record:
    outcome = None if finished is None else outcome_of(request(number))
    return Record(number, "search", request(number), outcome, told, finished)


def test_a_ledger_from_before_there_were_workers_has_no_course():
    replay = Replay([record(0, None, None), record(1, None, 0)])
    assert replay.room(0, False) is None
    assert replay.next({request(1).key}) is None


def test_recorded_outcomes_come_in_the_recorded_order_before_anything_new_is_asked():
    replay = Replay([record(0, None, 0), record(1, 0, 3), record(2, 0, 1), record(3, 1, 2), record(4, 2, None)])
    keys = {n: request(n).key for n in range(5)}
    assert replay.room(0, False) == 2
    replay.asked(keys[1])
    replay.asked(keys[2])
    assert replay.room(0, True) == 0
    assert replay.next({keys[1], keys[2]}) == keys[2]
    assert replay.room(1, True) == 1
    replay.asked(keys[3])
    assert replay.next({keys[1], keys[3]}) == keys[3]
    assert replay.room(2, True) == 1
    replay.asked(keys[4])
    assert replay.room(2, True) == 0
    assert replay.next({keys[1]}) == keys[1]
    assert replay.room(3, True) is None


@given(st.data())
def test_a_replay_never_waits_for_what_cannot_come(data):
    """However damaged the record is, there is always something to be asked or told."""
    count = data.draw(st.integers(0, 6))
    records = [
        record(n, data.draw(st.none() | st.integers(0, 6)), data.draw(st.none() | st.integers(0, 6)))
        for n in range(count)
    ]
    replay, awaited = Replay(records), set[str]()
    for told in range(40):
        room = replay.room(told, bool(awaited))
        if room is None:
            return
        for _ in range(room):
            key = data.draw(st.sampled_from([request(n).key for n in range(7)]))
            replay.asked(key)
            awaited.add(key)
        if not awaited:
            assert room > 0 or replay.room(told, False) is None
            return
        key = replay.next(awaited) or sorted(awaited)[0]
        awaited.discard(key)
    raise AssertionError("the replay does not end")


def test_the_order_of_completion_is_kept_on_disk(tmp_path):
    ledger = Ledger.at(tmp_path / "ledger.journal")
    first, second = ledger.start(request(0), "search", 0), ledger.start(request(1), "search", 0)
    ledger.finish(second, outcome_of(request(1)))
    ledger.finish(first, outcome_of(request(0)))
    for opened in (ledger, Ledger.at(tmp_path / "ledger.journal")):
        assert [(r.told, r.finished) for r in opened.records()] == [(0, 1), (0, 0)]
