"""R20: a full, limited or read-only disk stops a study with words; run again, it ends as if nothing had been."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from contextlib import suppress
from pathlib import Path

import pytest

from figures import record
from peftscout import disk, engine
from peftscout.engine import run_study
from peftscout.errors import DiskError
from peftscout.preparation import Prepared
from peftscout.report.progress import Silent
from peftscout.study import read_records


def identity(folder: Path) -> list[object]:
    return [(r.number, r.stage, r.request, r.outcome and r.outcome.score) for r in read_records(folder)]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of its own of 600 kB, where a test may mount one."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=600k", "tmpfs", str(place)]
    if shutil.which("mount") is None or subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("needs the right to mount a tmpfs")
    yield place
    subprocess.run(["umount", str(place)], check=True)


class Filling(Silent):
    """Fills the disk when evaluation ``number`` begins, or while it trains: then there is room for the words that it
    failed, but not for its adapter.
    """

    def __init__(self, place: Path, number: int, moment: str) -> None:
        self.place, self.number, self.moment = place, number, moment
        self.at = -1

    def started(self, number, stage, request, cost) -> None:
        self.at = number
        self._fill("begins")

    def step(self, done, total) -> None:
        self._fill("trains")

    def _fill(self, moment: str) -> None:
        if (self.at, self.moment) == (self.number, moment):
            with (self.place / "filling").open("wb", buffering=0) as file:
                with suppress(OSError):
                    while True:
                        file.write(bytes(4096))
                if moment == "trains":
                    file.truncate(file.tell() - 4 * 4096)


@pytest.mark.parametrize(("number", "moment"), [(0, "begins"), (1, "trains"), (3, "trains")])
def test_a_disk_that_fills_up_stops_the_study_which_goes_on_when_there_is_room(
    random_study, small_disk, number, moment
):
    folder = small_disk / "s"
    with pytest.raises(DiskError, match=r"the disk is full.*bytes are free.*all trials together take about .*again"):
        run_study(random_study.prepared, folder, Filling(small_disk, number, moment))
    assert [r.outcome is not None for r in read_records(folder)] == [True] * number + [False]
    with pytest.raises(DiskError, match=r"its trials need about .*, and .* are free there; make room"):
        run_study(random_study.prepared, folder, Silent())
    (small_disk / "filling").unlink()
    run_study(random_study.prepared, folder, Silent())
    assert identity(folder) == identity(random_study.folder)
    record("disks filled", 1)


def test_a_disk_that_is_too_small_is_refused_before_any_time_is_spent(random_study, tmp_path, monkeypatch):
    monkeypatch.setattr(disk, "free_bytes", lambda folder: 100_000)
    with pytest.raises(DiskError, match=r"s: its trials need about [\d,.]+ MB, and 0\.1 MB are free there"):
        run_study(random_study.prepared, tmp_path / "s", Silent())
    assert list(tmp_path.iterdir()) == []


def fails(prepared: Prepared, folder: Path) -> bool:
    try:
        run_study(prepared, folder, Silent())
    except DiskError:
        return True
    return False


def _path_of(handle: int) -> str:
    try:
        return str(Path(f"/proc/self/fd/{handle}").readlink())
    except OSError:
        return ""


@pytest.mark.slow
@pytest.mark.parametrize(("name", "number"), [("random_study", errno.ENOSPC), ("scout_study", errno.EDQUOT)])
def test_a_disk_that_fails_at_any_write_costs_no_finished_trial(name, number, request, tmp_path, monkeypatch):
    """Each run fails where a later write is made safe (fsync), until one goes through."""
    study, folder, failed = request.getfixturevalue(name), tmp_path / "s", 0
    fsync, left, before = os.fsync, [0], []

    def failing(handle: int) -> None:
        if "/cache/" not in _path_of(handle):  # which only saves time, and may fail
            left[0] -= 1
            if left[0] == 0:
                raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", failing)
    for n in range(40):
        left[0] = 1 + 2 * n
        if ended := not fails(study.prepared, folder):
            break
        failed += 1
        left[0] = 0
        done = [row for row in identity(folder) if row[3] is not None] if (folder / "study.json").exists() else []
        assert all(row in done for row in before)
        before = done
    assert ended
    assert failed >= 5
    assert identity(folder) == identity(study.folder)
    record("writes that failed", failed)


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES])
def test_a_folder_that_cannot_be_written_is_named(random_study, tmp_path, monkeypatch, number):
    def refuse(*args, **kwargs):
        raise OSError(number, os.strerror(number), str(tmp_path / "s"))

    monkeypatch.setattr(Path, "mkdir", refuse)
    with pytest.raises(DiskError, match=r"/s: (the disk is read-only|it may not be written) .*run the same command"):
        run_study(random_study.prepared, tmp_path / "s", Silent())


def test_a_read_only_disk_can_still_be_read(random_study, small_disk):
    shutil.copytree(random_study.folder, small_disk / "s")
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    assert identity(small_disk / "s") == identity(random_study.folder)
    with pytest.raises(DiskError, match="the disk is read-only"):
        engine.run_study(random_study.prepared, small_disk / "s", Silent())


def test_what_is_no_trouble_of_the_disk_stays_an_outcome():
    assert disk.trouble(OSError("disk full")) is None
    assert disk.trouble(FileNotFoundError(errno.ENOENT, "gone")) is None
    assert disk.trouble(RuntimeError("shapes")) is None
    assert disk.trouble(RuntimeError("I/O error: No space left on device (os error 28)")) == "the disk is full"
    chained = RuntimeError("saving failed")
    chained.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert disk.trouble(chained) == "the disk is full"
