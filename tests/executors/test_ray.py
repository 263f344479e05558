"""A real local Ray: workers die, the driver dies, and the study is the one that a single process makes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from executor_contract import COST, SITES, ExecutorContract, all_events, job, jobs, scores
from fake_ray_worker import FakeRayWorker

from peftscout.api import search_config
from peftscout.config import StudyConfig
from peftscout.errors import ConfigError, ExecutorError
from peftscout.executors import Lost, Retrying
from peftscout.executors.messages import Start
from peftscout.executors.ray_cluster import Need, RayExecutor
from peftscout.report.progress import Silent
from peftscout.study import read_records
from tiny_task import save_tiny_model, write_task

ray = pytest.importorskip("ray", reason="needs Ray: pip install 'peftscout[ray]'")
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of two cores on this machine; its address. Its workers find the fakes beside this file.

    Ray runs workers at niceness 15: beside another busy test they would take ten minutes to import what they need.
    """
    path = os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("PYTHONPATH", path)
        environment.setenv("RAY_worker_niceness", "0")
        ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
        yield ray.get_runtime_context().gcs_address
        ray.shutdown()


@pytest.fixture(autouse=True)
def _requests_with_their_cost(monkeypatch, request):
    """The fake worker knows no model: it is told what a plan costs."""
    if "study" not in request.node.name:
        from peftscout.outcome import Evaluate

        plain = Evaluate.to_json
        monkeypatch.setattr(Evaluate, "to_json", lambda self: {**plain(self), "cost": COST})


def on_ray(
    folder: Path, *, together: int = 1, behaviour: str = "", most: int | None = 2, cpus: float = 0.1, **options
) -> RayExecutor:
    start = Start(header={"together": together, "behaviour": behaviour}, cache=str(folder), stacks=True)
    return RayExecutor(start, Need(cpus=cpus), most=most, worker=FakeRayWorker, **options)


@pytest.fixture(scope="class")
def shared(cluster, tmp_path_factory) -> Iterator[RayExecutor]:
    """One executor for most of the contract: starting workers takes longer than the tests."""
    with closing(on_ray(tmp_path_factory.mktemp("ray"))) as executor:
        yield executor


class TestOnRay(ExecutorContract):
    @pytest.fixture
    def executor(self, shared, tmp_path, request) -> Iterator[RayExecutor]:
        if "closing" not in request.node.name:
            yield shared
            return
        with closing(on_ray(tmp_path)) as executor:
            yield executor


def test_everything_in_the_zoo_ends_in_its_state_and_the_search_goes_on(cluster, tmp_path):
    with closing(on_ray(tmp_path, trial_timeout=20)) as raw:
        executor = Retrying(raw, SITES, retries=1)
        labels = ["", "once killed", "bug", "nonsense", "escapes", "wrong cost", "half fits", "raises"]
        executor.submit(jobs(tmp_path, *labels))
        found = {}
        for _ in range(60):
            found |= {f.job.request.label: f for f in executor.wait()}
    states = {label: str(f.outcome.state) for label, f in found.items()}
    failed = ["bug", "nonsense", "escapes", "wrong cost", "raises"]
    assert states == {**dict.fromkeys(failed, "failed"), "": "done", "once killed": "done", "half fits": "done"}
    assert found["once killed"].job.tries == 1
    assert "a defect of the worker" in found["bug"].outcome.message
    assert "what is no answer" in found["escapes"].outcome.message
    assert found["half fits"].files == {"made.json": b"6 2 0"}


def test_stacks_are_of_one_task_and_no_job_is_left_behind(cluster, tmp_path):
    asked = [job(tmp_path, n, task=("", "other", "")[n % 3]) for n in range(9)]
    with closing(on_ray(tmp_path, together=4, most=1)) as executor:
        executor.submit(asked)
        assert sorted(e.job.number for e in all_events(executor)) == list(range(9))


def test_a_job_that_hangs_is_stopped_when_its_time_is_up(cluster, tmp_path):
    with closing(on_ray(tmp_path, trial_timeout=1.0, most=1)) as executor:
        executor.submit(jobs(tmp_path, "hangs"))
        (lost,) = [e for e in all_events(executor) if isinstance(e, Lost)]
        assert lost.final
        assert "longer than executor.trial_timeout" in lost.reason
        executor.submit([job(tmp_path, 1)])
        assert scores(all_events(executor)) == {1: 0.001}


def test_a_cluster_is_filled_and_workers_that_join_are_used(cluster, tmp_path):
    with closing(on_ray(tmp_path, most=None, together=2, cpus=1.0)) as executor:
        assert executor.room == 1
        executor.submit(jobs(tmp_path, ""))
        deadline = time.monotonic() + 60
        while executor.workers < 2 and time.monotonic() < deadline:
            executor.submit([job(tmp_path, 7, "sleeps 0.2")])
            executor.wait()
        assert (executor.workers, executor.capacity) == (2, 4)


def test_workers_that_cannot_start_or_refuse_end_the_search_with_the_reason(cluster, tmp_path):
    for behaviour, message in [("cannot start", "libfake"), ("refuses", "data: other rows")]:
        with closing(on_ray(tmp_path, behaviour=behaviour, most=1)) as executor:
            executor.submit(jobs(tmp_path, ""))
            with pytest.raises(ExecutorError, match=message):
                all_events(executor)


def test_a_full_disk_of_a_worker_ends_the_search_and_is_no_outcome(cluster, tmp_path):
    with closing(on_ray(tmp_path, most=1)) as executor:
        executor.submit(jobs(tmp_path, "full"))
        with pytest.raises(ExecutorError, match="node 7: the disk is full"):
            all_events(executor)


@pytest.mark.parametrize(
    ("need", "resources", "workers"),
    [
        (Need(gpus=0.25), {"CPU": 16, "GPU": 2}, 8),
        (Need(gpus=1.0), {"CPU": 16, "GPU": 8}, 8),
        (Need(gpus=0.0, memory=4_000_000_000), {"CPU": 16, "memory": 10_000_000_000}, 2),
        (Need(cpus=4), {"CPU": 10}, 2),
        (Need(gpus=1.0), {"CPU": 4}, 1),
    ],
)
def test_as_many_workers_as_the_cluster_has_room_for(need, resources, workers):
    assert need.fits(resources) == workers


def test_a_worker_takes_a_gpu_where_there_are_any_and_nothing_else_was_said():
    assert Need().within({"CPU": 2, "GPU": 1}).gpus == 1.0
    assert Need().within({"CPU": 2}).gpus == 0.0
    assert Need(gpus=0.5).within({"CPU": 2}).gpus == 0.5


def test_without_ray_it_is_said_what_to_install(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'peftscout\[ray\]'"):
        on_ray(tmp_path)


def test_a_study_on_ray_survives_its_driver_and_a_worker_and_equals_that_of_one_process(cluster, tmp_path, monkeypatch):
    model, data = save_tiny_model(tmp_path / "model"), write_task(tmp_path / "data", train=120, validation=30)
    plain = {
        "model": str(model), "budget": "5%", "data": {"source": str(data)}, "strategy": "random", "trials": 6,
        "steps": 4, "training": {"precision": "fp32", "batch_size": 16, "shortcuts": False},
        "final": {"seeds": 1, "lr_scales": [1.0]},
    }  # fmt: skip
    config = StudyConfig.from_mapping(plain | {"executor": {"kind": "ray", "workers": 2, "address": cluster}})
    (tmp_path / "config.yaml").write_text(config.to_yaml())
    study = tmp_path / "s"
    command = [sys.executable, "-m", "peftscout", "search", "--config", str(tmp_path / "config.yaml")]
    driver = subprocess.Popen([*command, "--study", str(study), "--workers", "1"], stderr=subprocess.PIPE, text=True)
    for line in driver.stderr:
        if "search 0: score" in line:
            break
    driver.send_signal(signal.SIGKILL)
    driver.communicate()
    before = {r.number: r.outcome for r in read_records(study) if r.outcome is not None}
    assert before

    from dying_ray_worker import DyingRayWorker

    monkeypatch.setattr("peftscout.executors.ray_worker.RayWorker", DyingRayWorker)
    result = search_config(config, study, Silent())
    assert (study / "cache" / "died").exists()
    alone = search_config(StudyConfig.from_mapping(plain), tmp_path / "alone", Silent())
    columns = ["number", "stage", "label", "state", "cost", "score", "seed", "steps", "plan"]
    assert result.trials[columns].equals(alone.trials[columns])
    assert result.summary["final"] == alone.summary["final"]
    after = {r.number: r.outcome for r in read_records(study)}
    assert {number: after[number] for number in before} == before
    for number in result.trials["number"]:
        assert (study / "trials" / f"{number:03d}" / "adapter" / "adapter_model.safetensors").is_file()


def test_a_study_on_machines_without_its_disk_is_sent_model_and_data(cluster, tmp_path, monkeypatch):
    from far_ray_worker import FarRayWorker

    model, data = save_tiny_model(tmp_path / "model"), write_task(tmp_path / "data", train=120, validation=30)
    plain = {
        "model": str(model), "budget": "5%", "data": {"source": str(data)}, "strategy": "random", "trials": 3,
        "steps": 4, "training": {"precision": "fp32", "batch_size": 16, "shortcuts": False}, "final": {"seeds": 0},
    }  # fmt: skip
    config = StudyConfig.from_mapping(plain | {"executor": {"kind": "ray", "workers": 1, "address": cluster}})
    nodes = ray.nodes()
    assert len(nodes) == 1
    monkeypatch.setattr(ray, "nodes", lambda: nodes * 2)
    monkeypatch.setattr("peftscout.executors.ray_worker.RayWorker", FarRayWorker)
    result = search_config(config, tmp_path / "s", Silent())
    alone = search_config(StudyConfig.from_mapping(plain), tmp_path / "alone", Silent())
    columns = ["number", "stage", "label", "state", "cost", "score", "seed", "steps", "plan"]
    assert result.trials[columns].equals(alone.trials[columns])
    adapters = [f / "trials" / "000" / "adapter" / "adapter_config.json" for f in (result.folder, alone.folder)]
    assert adapters[0].read_text() == adapters[1].read_text()
    assert result.export(tmp_path / "out").difference <= 1e-5
