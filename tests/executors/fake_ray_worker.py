"""An actor without a model, which does what the label of a request says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from fake_worker import do


class FakeRayWorker:
    def __init__(self, start: bytes, folder: str) -> None:
        self._header = json.loads(start)["header"]

    def load(self, parcels: dict) -> tuple[bytes, bool]:
        if self._header.get("behaviour") == "cannot start":
            raise OSError("no such thing as libfake.so")
        if self._header.get("behaviour") == "refuses":
            return b'{"kind": "refused", "reason": "data: other rows"}', True
        return json.dumps({"kind": "ready", "together": self._header.get("together", 1)}).encode(), True

    def work(self, jobs: list[bytes], initial: dict[str, bytes]) -> list[tuple[bytes, dict[str, bytes]]]:
        return [self._reply(json.loads(line)) for line in jobs]

    def _reply(self, job: dict) -> tuple[bytes, dict[str, bytes]]:
        if job["request"]["label"] == "bug":
            raise RuntimeError("a defect of the worker")
        if job["request"]["label"] == "nonsense":
            return b"\x00 not json {", {}
        if job["request"]["label"] == "full":
            return b'{"kind": "refused", "reason": "a worker on node 7: the disk is full"}', {}
        outcome = do(job)
        staging = Path(job["folder"]) / f"attempt-{job['attempt']}"
        made = {path.name + ".json": path.read_bytes() for path in staging.glob("*")}
        shutil.rmtree(staging, ignore_errors=True)
        if job["request"]["label"] == "escapes":
            made = {"../../study.json": b"{}"}
        line = json.dumps({"kind": "outcome", "attempt": job["attempt"], "outcome": outcome})
        return line.encode(), made
