"""The executor in the process of the search, on work that needs no model."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path

import pytest
from executor_contract import COST, ExecutorContract, all_events, job, jobs

from peftscout.executors import Job
from peftscout.executors.local import LocalExecutor, next_together
from peftscout.outcome import Outcome, State


class FakeWorkplace:
    """Does what the label says, as far as a process that is to survive can."""

    def __init__(self, together: int = 1) -> None:
        self.together = together
        self.done: list[list[int]] = []

    def do(self, jobs: list[Job], progress=None) -> list[Outcome]:
        self.done.append([job.number for job in jobs])
        return [self._do(job) for job in jobs]

    def _do(self, job: Job) -> Outcome:
        label = job.request.label
        if label == "raises":
            return Outcome(State.FAILED, COST, message="RuntimeError: on purpose")
        if label == "interrupted":
            raise KeyboardInterrupt
        if label.startswith("sleeps "):
            time.sleep(float(label.removeprefix("sleeps ")))
        job.staging.mkdir(parents=True)
        (job.staging / "made").write_text(str(job.number))
        return Outcome(State.DONE, COST, job.request.seed / 1000)


class TestOneByOne(ExecutorContract):
    def make(self, folder: Path) -> LocalExecutor:
        return LocalExecutor(FakeWorkplace())


class TestInStacks(ExecutorContract):
    def make(self, folder: Path) -> LocalExecutor:
        return LocalExecutor(FakeWorkplace(together=3))


def test_jobs_share_passes_up_to_the_size_of_a_stack(tmp_path):
    place = FakeWorkplace(together=3)
    executor = LocalExecutor(place)
    executor.submit(jobs(tmp_path, *[""] * 5))
    all_events(executor)
    assert place.done == [[0, 1, 2], [3, 4]]


def test_the_final_comparison_and_second_tries_go_alone(tmp_path):
    place = FakeWorkplace(together=4)
    executor = LocalExecutor(place)
    final, lost, halved = job(tmp_path, 2, predict=True), job(tmp_path, 3).again(), job(tmp_path, 4).halved()
    executor.submit([job(tmp_path, 0), job(tmp_path, 1), final, lost, halved, job(tmp_path, 5)])
    all_events(executor)
    assert place.done == [[0, 1], [2], [3], [4], [5]]


def test_nothing_runs_before_somebody_waits(tmp_path):
    place = FakeWorkplace()
    executor = LocalExecutor(place)
    executor.submit(jobs(tmp_path, ""))
    assert place.done == []
    executor.wait()
    assert place.done == [[0]]


def test_ctrl_c_goes_through(tmp_path):
    executor = LocalExecutor(FakeWorkplace())
    executor.submit(jobs(tmp_path, "interrupted"))
    with pytest.raises(KeyboardInterrupt):
        executor.wait()


def test_the_head_of_a_queue_is_divided_where_a_job_has_to_be_alone(tmp_path):
    a, b, c = jobs(tmp_path, "", "", "")
    assert next_together([a, b, c], 2) == [a, b]
    assert next_together([a, b.again(), c], 3) == [a]
    alone = a.again()
    assert next_together([alone, b, c], 3) == [alone]


def test_only_jobs_of_one_task_share_a_stack(tmp_path):
    a, b, c, d = (job(tmp_path, n) for n in range(4))
    b, c = (replace(j, request=replace(j.request, task="cola")) for j in (b, c))
    assert next_together([a, b, c, d], 2) == [a, d]
    assert next_together([b, c, d], 2) == [b, c]
    assert next_together([a, b.again(), d], 3) == [a]
