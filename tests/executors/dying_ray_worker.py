"""A real actor that dies once, in the middle of a trial."""

from __future__ import annotations

import json
import os
import signal

from peftscout.executors.ray_worker import Files, RayWorker, Reply

DIES_AT = 4


class DyingRayWorker(RayWorker):
    def work(self, jobs: list[bytes], initial: Files) -> list[Reply]:
        marker = self._cache / "died"
        if not marker.exists() and any(json.loads(line)["number"] == DIES_AT for line in jobs):
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return super().work(jobs, initial)
