"""What every executor promises, against work that needs no model. Not a test module by itself."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path

import pytest

from fake_sites import fake_sites
from peftscout.executors import Event, Executor, Finished, Job
from peftscout.outcome import Evaluate, Fidelity
from peftscout.plan import Plan

SITES = fake_sites("encoder")
PLAN = Plan.of({(next(site.id for site in SITES.values() if site.kind == "linear"), "lora"): 2})
COST = PLAN.cost(SITES)


def job(folder: Path, number: int, label: str = "", task: str = "", **changes) -> Job:
    request = Evaluate(PLAN, Fidelity(1), seed=number, label=label, task=task)
    return Job(number, request, folder / "trials" / f"{number:03d}", **changes)


def jobs(folder: Path, *labels: str) -> list[Job]:
    return [job(folder, number, label) for number, label in enumerate(labels)]


def all_events(executor: Executor, most: int = 50) -> list[Event]:
    """Wait until nothing comes any more; nothing may also come while workers join."""
    events, in_vain = list[Event](), 0
    for _ in range(most):
        came = list(executor.wait())
        in_vain = 0 if came else in_vain + 1
        events += came
        if in_vain == 4:
            break
    return events


def scores(events: Sequence[Event]) -> dict[int, float | None]:
    return {e.job.number: e.outcome.score for e in events if isinstance(e, Finished)}


class ExecutorContract:
    """Subclass it and give `make`: every executor promises this."""

    def make(self, folder: Path) -> Executor:
        raise NotImplementedError

    @pytest.fixture
    def executor(self, tmp_path) -> Iterator[Executor]:
        with closing(self.make(tmp_path)) as executor:
            yield executor

    def test_every_job_comes_back_once_with_its_own_outcome(self, executor, tmp_path):
        asked = jobs(tmp_path, *[""] * 7)
        executor.submit(asked)
        events = all_events(executor)
        assert sorted(e.job.attempt for e in events) == sorted(j.attempt for j in asked)
        assert scores(events) == {n: n / 1000 for n in range(7)}
        assert all(e.outcome.cost == COST for e in events)

    def test_jobs_of_several_tasks_in_any_mixture_come_back_once(self, executor, tmp_path):
        asked = [job(tmp_path, n, task=("", "other", "")[n % 3]) for n in range(8)]
        executor.submit(asked)
        assert sorted(e.job.attempt for e in all_events(executor)) == sorted(j.attempt for j in asked)

    def test_without_jobs_there_is_nothing_to_wait_for(self, executor):
        assert list(executor.wait()) == []

    def test_there_is_room_until_the_capacity_is_under_way_and_again_when_it_came_back(self, executor, tmp_path):
        assert executor.room == executor.capacity >= 1
        executor.submit(jobs(tmp_path, *[""] * executor.capacity))
        assert executor.room == 0
        all_events(executor)
        assert executor.room == executor.capacity >= 1

    def test_more_jobs_than_the_capacity_wait_their_turn(self, executor, tmp_path):
        count = 2 * executor.capacity + 1
        executor.submit(jobs(tmp_path, *[""] * count))
        assert len(all_events(executor)) == count

    def test_what_is_submitted_while_others_run_comes_back_too(self, executor, tmp_path):
        executor.submit(jobs(tmp_path, "", ""))
        first = list(executor.wait()) or list(executor.wait())
        executor.submit([job(tmp_path, 5), job(tmp_path, 6)])
        assert sorted(e.job.number for e in [*first, *all_events(executor)]) == [0, 1, 5, 6]

    def test_a_cancelled_job_never_comes_back(self, executor, tmp_path):
        asked = jobs(tmp_path, *["sleeps 0.05"] * 4)
        executor.submit(asked)
        executor.cancel([asked[0], asked[3]])
        assert sorted(e.job.number for e in all_events(executor)) == [1, 2]

    def test_a_failed_evaluation_is_an_outcome_like_any_other(self, executor, tmp_path):
        executor.submit(jobs(tmp_path, "raises", ""))
        states = {e.job.number: str(e.outcome.state) for e in all_events(executor)}
        assert states == {0: "failed", 1: "done"}

    def test_what_a_try_made_is_in_its_staging_folder_or_with_its_event(self, executor, tmp_path):
        asked = jobs(tmp_path, "", "")
        executor.submit(asked)
        for event in all_events(executor):
            made = event.files.get("made.json") or (event.job.staging / "made").read_bytes()
            assert made.split()[0] == str(event.job.number).encode()

    def test_closing_stops_what_runs_and_can_be_done_twice(self, executor, tmp_path):
        executor.submit(jobs(tmp_path, "sleeps 30", "sleeps 30"))
        began = time.monotonic()
        executor.close()
        executor.close()
        assert time.monotonic() - began < 20
