"""Whole studies in worker processes, with a real tiny model: the same study as in one process, whatever dies."""

from __future__ import annotations

import errno
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from queue import SimpleQueue

import pytest

import peftscout
from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.errors import ConfigError, ExecutorError
from peftscout.executors import Job, Workplace, environments, processes, worker
from peftscout.executors.messages import JobData, Start, Work, read_answer, read_told
from peftscout.executors.ray_worker import RayWorker
from peftscout.outcome import Outcome, State
from peftscout.report.progress import Silent
from peftscout.study import is_made_by_trials, read_header, read_records
from tiny_task import save_tiny_model, write_task

FAULTY = (sys.executable, str(Path(__file__).with_name("faulty_worker.py")))


class Notes(Silent):
    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> StudyConfig:
    model = save_tiny_model(tmp_path_factory.mktemp("model"))
    data = write_task(tmp_path_factory.mktemp("data"), train=120, validation=30)
    return StudyConfig.from_mapping(
        {
            "model": str(model), "budget": "5%", "data": {"source": str(data)}, "strategy": "random", "trials": 5,
            "steps": 4, "training": {"precision": "fp32", "batch_size": 16, "shortcuts": False},
            "final": {"seeds": 1, "lr_scales": [1.0]},
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def in_process(config, tmp_path_factory) -> peftscout.Result:
    return search_config(config, tmp_path_factory.mktemp("local") / "s", Silent())


def executed(config: StudyConfig, **executor) -> StudyConfig:
    return StudyConfig.from_mapping({**config.to_mapping(), "executor": executor})


@pytest.mark.slow
def test_two_workers_make_the_study_that_one_process_makes(config, in_process, tmp_path):
    result = search_config(executed(config, workers=2), tmp_path / "s", Silent())
    columns = ["number", "stage", "label", "state", "cost", "score", "seed", "steps", "plan"]
    assert result.trials[columns].equals(in_process.trials[columns])
    assert result.best == in_process.best
    assert result.summary["final"] == in_process.summary["final"]
    for number in result.trials["number"]:
        made = {path.name for path in (tmp_path / "s" / "trials" / f"{number:03d}").iterdir()}
        assert made - {"predictions.safetensors"} == {"plan.json", "outcome.json", "adapter"}
    logs = tmp_path / "s" / "workers"
    assert {path.name for path in logs.iterdir()} == {"0.log", "1.log"}
    # Who runs a study does not decide it: one process takes it up where two workers left it.
    assert search_config(config, tmp_path / "s", Silent()).summary == result.summary


@pytest.mark.slow
def test_an_isolated_study_survives_what_kills_its_worker_and_says_what_it_did(
    config, in_process, tmp_path, monkeypatch
):
    monkeypatch.setattr(processes, "COMMAND", FAULTY)
    monkeypatch.setenv("FAULTS", ",killed,,raises,little memory,little memory,no memory,no memory")
    monkeypatch.setenv("FAULTS_COUNTED", str(tmp_path / "counted"))
    reporter = Notes()
    quick = StudyConfig.from_mapping({**config.to_mapping(), "final": {"seeds": 0}})
    result = search_config(executed(quick, isolate="process"), tmp_path / "s", reporter)
    trials, whole = result.trials, in_process.trials
    assert list(trials["state"]) == ["done", "done", "failed", "done", "out_of_memory"]
    assert list(trials["plan"]) == list(whole["plan"][:5])
    assert list(trials["score"][:2]) == list(whole["score"][:2])
    assert trials["score"][3] == pytest.approx(whole["score"][3], abs=0.1)
    assert list(trials["message"]) == [
        "", "", "RuntimeError: on purpose", "batches in 2 parts, after running out of memory",
        "out of memory (batches in 2 parts, after running out of memory)",
    ]  # fmt: skip
    assert [note for note in reporter.notes if note.startswith("trial")] == [
        "trial 1 is tried again: its worker was killed by signal 9",
        "trial 3 ran out of memory: it is tried again in half batches",
        "trial 4 ran out of memory: it is tried again in half batches",
    ]
    done = [r.number for r in read_records(tmp_path / "s") if r.outcome.done]
    for number in done:
        assert (tmp_path / "s" / "trials" / f"{number:03d}" / "adapter" / "adapter_model.safetensors").is_file()


@pytest.mark.slow
def test_a_disk_that_is_full_in_a_worker_stops_the_study_and_is_no_outcome(config, in_process, tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "COMMAND", FAULTY)
    monkeypatch.setenv("FAULTS", ",no room")
    monkeypatch.setenv("FAULTS_COUNTED", str(tmp_path / "counted"))
    quick = StudyConfig.from_mapping({**config.to_mapping(), "trials": 3, "final": {"seeds": 0}})
    with pytest.raises(ExecutorError, match="a worker: the disk is full .* run the same command again"):
        search_config(executed(quick, isolate="process"), tmp_path / "s", Silent())
    assert [r.outcome is not None for r in read_records(tmp_path / "s")] == [True, False]
    result = search_config(quick, tmp_path / "s", Silent())
    assert list(result.trials["score"]) == list(in_process.trials["score"][:3])


@pytest.mark.slow
def test_an_evaluation_spread_over_two_gpus_is_that_of_one_process(config, in_process, tmp_path, monkeypatch):
    """On this CPU: two processes with gloo, in the place of the GPUs that the search is made to believe in."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    two = StudyConfig.from_mapping({**config.to_mapping(), "trials": 2})
    result = search_config(executed(two, gpus_per_trial=2), tmp_path / "s", Silent())
    columns = ["number", "stage", "label", "state", "cost", "steps", "plan"]
    searched = in_process.trials[:2]
    assert result.trials[:2][columns].equals(searched[columns])
    assert list(result.trials["score"][:2]) == pytest.approx(list(searched["score"]), abs=0.05)
    losses = [json.loads((folder / "trials/001/outcome.json").read_text())["curve"][-1][1]
              for folder in (result.folder, in_process.folder)]  # fmt: skip
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    assert (tmp_path / "s" / "trials" / "002" / "predictions.safetensors").is_file()


# --- what is asked for -----------------------------------------------------------------------------------------------


def test_what_is_tied_to_this_process_is_refused_before_anything_is_written(config, tmp_path):
    plain = config.to_mapping()
    for options in ({"workers": 2}, {"isolate": "process"}, {"trial_timeout": 60}):
        with pytest.raises(ConfigError, match="a training of your own is a function of this process"):
            search_config(executed(config, **options), tmp_path / "s", Silent(), own_training=lambda candidate: 0.5)
    from datasets import Dataset, DatasetDict

    texts = [f"{('bad', 'good')[n % 2]} word{n // 2}" for n in range(40)]
    rows = Dataset.from_dict({"text": texts, "label": [n % 2 for n in range(40)]})
    with pytest.raises(ConfigError, match="write them to files"):
        peftscout.search(
            plain["model"], DatasetDict(train=rows, validation=rows), budget="5%", study=tmp_path / "s",
            executor={"workers": 2}, progress=False,
        )  # fmt: skip
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize(
    ("executor", "message"),
    [
        ({"workers": 0}, "executor.workers"),
        ({"retries": -1}, "executor.retries"),
        ({"gpus_per_trial": 0}, "executor.gpus_per_trial"),
        ({"trial_timeout": "soon"}, "executor.trial_timeout"),
        ({"kind": "slurm"}, "executor.kind"),
        ({"address": "auto"}, "add kind: ray"),
        ({"gpus_per_trial": 1.5}, "a whole number"),
        ({"gpus_per_trial": 2, "kind": "ray"}, "of one machine"),
        ({"isolate": "none", "workers": 2}, "isolate: none has no workers"),
        ({"isolate": "none", "trial_timeout": 5}, "isolate: none has no workers"),
        ({"wrokers": 2}, "did you mean 'workers'"),
    ],
)
def test_an_impossible_executor_is_refused(config, executor, message):
    with pytest.raises(ConfigError, match=message):
        executed(config, **executor)


def test_who_runs_a_study_does_not_decide_it(config):
    assert executed(config, workers=8).deciding() == config.deciding()
    assert peftscout.api.default_folder(executed(config, workers=8)) == peftscout.api.default_folder(config)
    assert executed(config, workers=8, trial_timeout="10m").to_mapping()["executor"]["trial_timeout"] == 600


def test_workers_get_their_gpu_or_their_share_of_the_cores(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("peftscout.executors.available_cores", lambda: 8)
    assert environments(4, 2, None) == [{"CUDA_VISIBLE_DEVICES": "0"}, {"CUDA_VISIBLE_DEVICES": "1"}]
    assert environments(2, 5, None, 2) == [{"CUDA_VISIBLE_DEVICES": "0,1"}, {"CUDA_VISIBLE_DEVICES": "2,3"}]
    assert environments(3, 0, None) == [{"OMP_NUM_THREADS": "2"}]
    assert environments(3, 0, 1) == environments(1, 0, None) == [{}]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert environments(4, 2, None) == [{"CUDA_VISIBLE_DEVICES": "5"}, {"CUDA_VISIBLE_DEVICES": "7"}]
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environments(3, 0, None) == [{}]


# --- the worker ------------------------------------------------------------------------------------------------------


def test_more_gpus_for_an_evaluation_than_there_are_is_refused(config, tmp_path):
    with pytest.raises(ConfigError, match=r"executor.gpus_per_trial 64: this machine has"):
        search_config(executed(config, gpus_per_trial=64), tmp_path / "s", Silent())
    assert not (tmp_path / "s").exists()


def test_a_worker_leaves_as_soon_as_its_search_is_gone(monkeypatch):
    left = []
    monkeypatch.setattr(os, "_exit", left.append)
    inbox: SimpleQueue = SimpleQueue()
    start = Start(header={}, cache="c", stacks=True)
    worker.listen(io.BytesIO(start.line()), inbox)
    assert inbox.get() == start
    assert left == [worker.GONE]


def test_a_worker_that_finds_other_data_than_the_search_refuses_to_work(config, in_process, tmp_path):
    header = read_header(in_process.folder).to_json()
    assert worker.prepared_as(header).header().to_json()["model"] == header["model"]
    header["data"]["splits"]["train"]["rows"] += 1
    with pytest.raises(ExecutorError, match=r"something else than the search has:\n  data.splits.train.rows: 97 -> 96"):
        worker.prepared_as(header)
    said: list = []
    worker.work(Start(header=header, cache=str(tmp_path), stacks=True), SimpleQueue().get, said.append)
    assert [message.kind for message in said] == ["refused"]


def test_a_worker_on_a_machine_without_the_study_has_a_cache_of_its_own_and_sends_what_it_made(
    config, in_process, tmp_path, monkeypatch
):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr(tempfile, "tempdir", None)
    record = read_records(in_process.folder)[1]
    header = read_header(in_process.folder).to_json()
    elsewhere = Start(header=header, cache=str(tmp_path / "nowhere" / "cache"), stacks=True)
    actor = RayWorker(elsewhere.line(), str(tmp_path / "nowhere"))
    line, shared = actor.load({})
    assert read_answer(line).kind == "ready"
    assert not shared
    job = Job(1, record.request, Path("/no/such/folder"), predict=True)
    ((line, files),) = actor.work([JobData.of(job).line()], {"0123456789abcdef": b"a state"})
    answer = read_answer(line)
    assert (answer.attempt, answer.outcome.score) == (job.attempt, record.outcome.score)
    assert {"adapter/adapter_model.safetensors", "predictions.safetensors"} <= set(files)
    assert all(map(is_made_by_trials, files))
    trained = in_process.folder / "trials" / "001" / "adapter" / "adapter_model.safetensors"
    assert files["adapter/adapter_model.safetensors"] == trained.read_bytes()
    (cache,) = tmp_path.glob("peftscout-*")
    assert (cache / "initial" / "0123456789abcdef.safetensors").read_bytes() == b"a state"
    assert not (tmp_path / "nowhere").exists()

    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Workplace, "do", full)
    ((line, files),) = actor.work([JobData.of(job).line()], {})
    assert "the disk is full" in read_answer(line).reason
    here = Start(header=header, cache=str(in_process.folder / "cache"), stacks=True)
    assert RayWorker(here.line(), ".")._shared


def test_an_error_of_the_gpu_that_stays_ends_the_worker_and_running_out_of_memory_does_not():
    def failed(state: State, message: str) -> bool:
        return worker.broken_device(Outcome(state, 1, message=message))

    assert failed(State.FAILED, "AcceleratorError: CUDA error: device-side assert triggered")
    assert not failed(State.OUT_OF_MEMORY, "CUDA out of memory. CUDA error may follow")
    assert not failed(State.FAILED, "RuntimeError: on purpose")
    assert worker.out_of_step(Outcome(State.OUT_OF_MEMORY, 1))
    assert not worker.out_of_step(Outcome(State.DIVERGED, 1))


@pytest.mark.parametrize(
    "line",
    [b"", b"{", b"[]", b'{"kind": "start"}', b'{"kind": "shell", "command": "ls"}', b'{"kind":"work","jobs":[{}]}'],
)
def test_a_worker_reads_nothing_but_messages(line):
    with pytest.raises(ValueError, match="validation error"):
        read_told(line)
    assert read_told(Work(jobs=()).line()) == Work(jobs=())


# --- the supernet ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("elsewhere", "on_gpu", "what"), [(True, True, "rest train vacate"), (True, False, "train"),
                                                           (False, True, "train")])  # fmt: skip
def test_a_gpu_need_not_hold_the_model_of_a_worker_and_of_a_supernet_at_once(
    monkeypatch, tmp_path, elsewhere, on_gpu, what
):
    from contextlib import contextmanager
    from types import SimpleNamespace

    from peftscout import engine

    said: list[str] = []

    @contextmanager
    def trained(training):
        said.append("train")
        yield SimpleNamespace(steps=1, passes=1.0, seconds=1.0)

    monkeypatch.setattr(engine, "one_shot_factory", lambda *_: trained)
    space = SimpleNamespace(choices=())
    here = SimpleNamespace(
        prepared=SimpleNamespace(space=space), evaluator=None, on_gpu=on_gpu, vacate=lambda: said.append("vacate")
    )
    executor = SimpleNamespace(elsewhere=elsewhere, rest=lambda: said.append("rest"))
    supernet = engine.SupernetHere(here, tmp_path, Silent(), executor)
    with supernet(SimpleNamespace(steps=1)):
        pass
    assert " ".join(said) == what
    assert supernet.spent.steps == 1


def test_a_workplace_that_was_vacated_is_taken_up_again(config, tmp_path):
    from peftscout.preparation import prepare

    place = Workplace(prepare(config), tmp_path)
    first = place.evaluator
    place.vacate()
    assert place.evaluator is not first
    assert not place.on_gpu
    place.vacate()
    place.vacate()
