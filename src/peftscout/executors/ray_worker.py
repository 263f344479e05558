"""What an actor of a Ray cluster does: the work of a worker process, with messages and files that travel over Ray."""

from __future__ import annotations

import hashlib
import os
import platform
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from peftscout import disk
from peftscout.errors import PeftscoutError
from peftscout.executors.base import Job
from peftscout.executors.messages import Answered, JobData, Ready, Refused, Start
from peftscout.executors.shipment import unpack
from peftscout.executors.work import Workplace
from peftscout.executors.worker import broken_device, prepared_as
from peftscout.study import read_header

Files = Mapping[str, bytes]
"""What a job made, or needs, by path."""

Reply = tuple[bytes, Files]
"""The line of an `Answered`, and what the job made by path below the trial's folder."""


class RayWorker:
    """Model and data, loaded once; evaluates what it is given.

    What is said are lines of JSON and files as bytes, as between any search and its workers: never objects.

    Args:
        start: line of a `Start`.
        folder: where the search runs; relative paths are meant from there.
    """

    def __init__(self, start: bytes, folder: str) -> None:
        self._start = Start.model_validate_json(start, strict=True)
        if Path(folder).is_dir():
            os.chdir(folder)
        self._cache = Path(self._start.cache)
        self._shared = _is_here(self._start)
        if not self._shared:
            digest = hashlib.sha256(start).hexdigest()[:16]
            self._cache = Path(tempfile.gettempdir()) / f"peftscout-{digest}"
        self._workplace: Workplace | None = None

    def load(self, parcels: Mapping[str, Sequence[Any]]) -> tuple[bytes, bool]:
        """Load model and data. Return the line of a `Ready` or `Refused`, and whether the study's folder is seen.

        ``parcels`` have, by place, Ray's reference to what the search has there: it is fetched, once a machine, where
        this machine has no such place.
        """
        import ray

        try:
            places = {
                place: unpack(ray.get(parcel), self._cache / "sent" / str(number))
                for number, (place, (parcel,)) in enumerate(parcels.items())
                if not self.sees(place)
            }
            prepared = prepared_as(self._start.header, places)
            self._workplace = Workplace(prepared, self._cache, stacks=self._start.stacks)
            return Ready(together=self._workplace.together).line(), self._shared
        except PeftscoutError as error:
            return Refused(reason=str(error)).line(), self._shared

    @staticmethod
    def sees(place: str) -> bool:
        """Whether a folder or file of the search is there on this machine, too."""
        return Path(place).exists()

    def work(self, jobs: list[bytes], initial: Files) -> list[Reply]:
        """Evaluate ``jobs``, lines of `JobData`; ``initial`` are states that they start from, by name.

        Trouble with this machine's disk is no outcome of theirs: the answer is a `Refused` then.
        """
        try:
            return self._worked(jobs, initial)
        except Exception as error:
            if (trouble := disk.trouble(error)) is None:
                raise
            reason = f"a worker on {platform.node()}: {trouble} ({error}); mend it and run the same command again"
            return [(Refused(reason=reason).line(), {})]

    def _worked(self, jobs: list[bytes], initial: Files) -> list[Reply]:
        assert self._workplace is not None
        for name, data in initial.items():
            _keep(self._cache / "initial" / f"{name}.safetensors", data)
        with tempfile.TemporaryDirectory() as scratch:
            given = [_moved(JobData.model_validate_json(line, strict=True), Path(scratch)) for line in jobs]
            outcomes = self._workplace.do(given)
            replies = [
                (Answered(attempt=job.attempt, outcome=outcome).line(), _made(job.staging))
                for job, outcome in zip(given, outcomes, strict=True)
            ]
        if any(map(broken_device, outcomes)):
            self.work = self._broken  # type: ignore[method-assign]
        return replies

    def _broken(self, jobs: list[bytes], initial: Files) -> list[Reply]:
        """Leave: the GPU's context is in no state to go on, and another worker takes the jobs."""
        os._exit(1)


def _is_here(start: Start) -> bool:
    """Whether the folder of the study is seen from this machine."""
    try:
        return read_header(Path(start.cache).parent).to_json() == start.header
    except PeftscoutError:
        return False


def _keep(path: Path, data: bytes) -> None:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(f".{os.getpid()}")
        unfinished.write_bytes(data)
        unfinished.replace(path)


def _moved(data: JobData, scratch: Path) -> Job:
    """Return the job in a folder of this machine."""
    return data.model_copy(update={"folder": str(scratch / str(data.number))}).job()


def _made(staging: Path) -> Files:
    found = {path.relative_to(staging).as_posix(): path.read_bytes() for path in staging.rglob("*") if path.is_file()}
    shutil.rmtree(staging, ignore_errors=True)
    return found
