"""Worker processes that die, hang and answer nonsense: the search goes on."""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import pytest
from executor_contract import COST, SITES, ExecutorContract, all_events, job, jobs, scores

from peftscout.errors import ExecutorError
from peftscout.executors import Finished, Lost, Retrying
from peftscout.executors.messages import Start
from peftscout.executors.processes import ProcessExecutor

FAKE = (sys.executable, "-S", str(Path(__file__).with_name("fake_worker.py")))


@pytest.fixture(autouse=True)
def _requests_with_their_cost(monkeypatch):
    """The fake worker knows no model: it is told what a plan costs."""
    from peftscout.outcome import Evaluate

    plain = Evaluate.to_json
    monkeypatch.setattr(Evaluate, "to_json", lambda self: {**plain(self), "cost": COST})


def processes(folder: Path, workers: int = 2, *, together: int = 1, behaviour: str = "", **options) -> ProcessExecutor:
    start = Start(header={"together": together, "behaviour": behaviour}, cache=str(folder), stacks=True)
    return ProcessExecutor(start, workers, folder / "workers", command=FAKE, **options)


class TestTwoWorkers(ExecutorContract):
    def make(self, folder: Path) -> ProcessExecutor:
        return processes(folder, 2)


class TestOneWorker(ExecutorContract):
    def make(self, folder: Path) -> ProcessExecutor:
        return processes(folder, 1)


class TestStacksInTwoWorkers(ExecutorContract):
    def make(self, folder: Path) -> ProcessExecutor:
        return processes(folder, 2, together=3)


@pytest.mark.parametrize(
    ("label", "reason"),
    [
        ("exit", "ended with code 0"),
        ("killed", "killed by signal 9"),
        ("garbage", "what is no answer"),
        ("nan", "what is no answer"),
    ],
)
def test_the_job_of_a_worker_that_dies_or_answers_nonsense_is_lost_and_no_other(tmp_path, label, reason):
    executor = processes(tmp_path)
    executor.submit(jobs(tmp_path, "", label, "", ""))
    events = all_events(executor)
    executor.close()
    (lost,) = [e for e in events if isinstance(e, Lost)]
    assert (lost.job.number, lost.final) == (1, False)
    assert reason in lost.reason
    assert scores(events) == {0: 0.0, 2: 0.002, 3: 0.003}


def test_a_job_that_hangs_is_stopped_when_its_time_is_up(tmp_path):
    executor = processes(tmp_path, trial_timeout=1.0)
    executor.submit(jobs(tmp_path, "hangs", "", ""))
    events = all_events(executor)
    executor.close()
    (lost,) = [e for e in events if isinstance(e, Lost)]
    assert (lost.job.number, lost.final) == (0, True)
    assert "longer than executor.trial_timeout, 1 s" in lost.reason
    assert scores(events) == {1: 0.001, 2: 0.002}


def test_in_a_stack_that_hangs_nobody_knows_which_job_it_was(tmp_path):
    executor = processes(tmp_path, 1, together=2, trial_timeout=0.5)
    executor.submit([job(tmp_path, 9)])
    executor.wait()
    executor.submit(jobs(tmp_path, "", "hangs"))
    events = all_events(executor)
    executor.close()
    assert [(e.job.number, e.final) for e in events] == [(0, False), (1, False)]


def test_everything_in_the_zoo_ends_in_its_state_and_the_search_goes_on(tmp_path):
    notes: list[str] = []
    executor = Retrying(processes(tmp_path, trial_timeout=2.0), SITES, retries=1, note=notes.append)
    labels = [
        "", "exit", "killed", "garbage", "nan", "wrong cost", "hangs", "no memory", "half fits", "raises", "once killed"
    ]  # fmt: skip
    executor.submit(jobs(tmp_path, *labels))
    found = {}
    while came := executor.wait():
        found |= {f.job.request.label: f for f in came}
    executor.close()
    states = {label: str(f.outcome.state) for label, f in found.items()}
    failed = ["exit", "killed", "garbage", "nan", "wrong cost", "hangs", "raises"]
    assert states == {
        **dict.fromkeys(failed, "failed"), "": "done", "half fits": "done", "once killed": "done",
        "no memory": "out_of_memory",
    }  # fmt: skip
    assert all(f.outcome.score is None for label, f in found.items() if states[label] != "done")
    assert "2 tries" in found["killed"].outcome.message
    assert "tries" not in found["hangs"].outcome.message
    assert found["half fits"].outcome.message == "batches in 2 parts, after running out of memory"
    assert (found["half fits"].job.staging / "made").read_text() == "8 2 0"
    assert (found["once killed"].job.staging / "made").read_text() == "10 1 1"
    assert sum("ran out of memory" in note for note in notes) == 2
    assert sum("tried again" in note and "memory" not in note for note in notes) == 6


def test_no_worker_outlives_its_search(tmp_path):
    executor = processes(tmp_path)
    executor.submit(jobs(tmp_path, "", ""))
    all_events(executor)
    pids = [worker.process.pid for worker in executor._running.values()]
    assert len(pids) == 2
    executor.close()
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_workers_that_rest_are_gone_and_those_that_work_are_not_disturbed(tmp_path):
    executor = processes(tmp_path)
    executor.submit(jobs(tmp_path, "", "sleeps 1"))
    (first,) = executor.wait()
    assert first.job.number == 0
    idle, busy = sorted(executor._running.values(), key=lambda worker: bool(worker.jobs))
    executor.rest()
    assert (idle.process.poll() is None, busy.process.poll() is None) == (False, True)
    assert scores(all_events(executor)) == {1: 0.001}
    executor.close()


def test_workers_are_started_when_there_is_work_and_not_before(tmp_path):
    executor = processes(tmp_path, 4)
    assert executor._running == {}
    executor.submit(jobs(tmp_path, "", ""))
    assert len(executor._running) == 2
    executor.close()


def test_workers_share_what_waits(tmp_path):
    executor = processes(tmp_path, 2, together=8)
    executor.submit([job(tmp_path, 20, "sleeps 0.3"), job(tmp_path, 21, "sleeps 0.3")])
    all_events(executor)
    assert executor.capacity == 16
    executor.submit(jobs(tmp_path, *["sleeps 0.2"] * 6))
    assert sorted(len(worker.jobs) for worker in executor._running.values()) == [3, 3]
    executor.close()


def test_an_executor_whose_workers_cannot_start_says_why(tmp_path):
    executor = processes(tmp_path, behaviour="cannot start")
    executor.submit(jobs(tmp_path, ""))
    with pytest.raises(ExecutorError, match=r"ended with code 1. Its log ends:\nno such thing as libfake.so"):
        executor.wait()
    executor.close()


def test_a_worker_that_finds_something_else_than_the_search_ends_it(tmp_path):
    executor = processes(tmp_path, behaviour="refuses")
    executor.submit(jobs(tmp_path, ""))
    with pytest.raises(ExecutorError, match="data: other rows"):
        executor.wait()
    executor.close()


def test_what_workers_have_to_say_is_said_once(tmp_path):
    notes: list[str] = []
    executor = processes(tmp_path, 2, note=notes.append)
    executor.submit(jobs(tmp_path, "sleeps 0.2", "sleeps 0.2"))
    all_events(executor)
    executor.close()
    assert notes == ["hello"]


def test_a_cancelled_job_that_runs_is_stopped(tmp_path):
    executor = processes(tmp_path, 1)
    slow = job(tmp_path, 0, "sleeps 30")
    executor.submit([slow, job(tmp_path, 1)])
    deadline = time.monotonic() + 10
    while not any(worker.jobs for worker in executor._running.values()) and time.monotonic() < deadline:
        executor._take(*executor._answers.get(timeout=5))
        executor._feed()
    executor.cancel([slow])
    assert [e.job.number for e in all_events(executor)] == [1]
    assert time.monotonic() < deadline
    executor.close()


def test_workers_see_their_own_gpu_in_turn(tmp_path):
    executor = processes(tmp_path, 3, environments=[{"FAKE_GPU": "0"}, {"FAKE_GPU": "1"}])
    executor.submit(jobs(tmp_path, "", "", ""))
    environments = [
        Path(f"/proc/{executor._running[slot].process.pid}/environ").read_bytes().split(b"\0") for slot in range(3)
    ]
    executor.close()
    assert [next(e for e in env if e.startswith(b"FAKE_GPU")) for env in environments] == [
        b"FAKE_GPU=0", b"FAKE_GPU=1", b"FAKE_GPU=0"
    ]  # fmt: skip


def test_late_answers_of_a_try_that_was_replaced_are_thrown_away(tmp_path):
    class Late:
        """Answers the first try after the second one."""

        workers, room, capacity = 1, 1, 1

        def __init__(self) -> None:
            self.jobs = []

        def submit(self, jobs):
            self.jobs += jobs

        def wait(self):
            from peftscout.outcome import Outcome, State

            if len(self.jobs) == 1:
                return [Lost(self.jobs[0], "its node was gone")]
            first, second = self.jobs
            first.staging.mkdir(parents=True, exist_ok=True)
            answers = [(first, 0.1), (second, 0.2), (second, 0.3), (first, 0.4)]
            return [Finished(job, Outcome(State.DONE, COST, score)) for job, score in answers]

        def close(self):
            pass

    late = Late()
    executor = Retrying(late, SITES)
    executor.submit(jobs(tmp_path, ""))
    (finished,) = executor.wait()
    assert finished.outcome.score == 0.2
    assert finished.job.tries == 1
    assert not late.jobs[0].staging.exists()
    assert executor.wait() == []
