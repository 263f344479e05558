"""Paused trials on disk: a rung that goes on costs its increment only. A few MB each: adapters, head, optimiser."""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from peftscout.outcome import Evaluate
from peftscout.training.initial_states import digest_of

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Paused:
    """A trial that stands still.

    Attributes:
        tensors: trained tensors, their optimiser state, the best state, random streams.
        run: what it had reached (`peftscout.training.trial.Run`), as plain data.
    """

    tensors: Mapping[str, Tensor]
    run: Mapping[str, Any]


class PausedTrials:
    """The paused trials of a study, one file each, in ``folder``; with ``None`` nothing is kept.

    A file that is missing, damaged or of another request only means that the trial runs from its start: the outcome is
    the same.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder

    def save(self, request: Evaluate, paused: Paused) -> None:
        """Keep ``paused`` for requests that go on from ``request``; it appears in one piece."""
        if self._folder is None:
            return
        path = self._path(request)
        unfinished = path.with_suffix(f".{os.getpid()}")
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            run = json.dumps(dict(paused.run))
            facts = {"course": request.course, "run": run, "content": _content(paused.tensors, run)}
            save_file(dict(paused.tensors), unfinished, facts)
            unfinished.replace(path)
        except (SafetensorError, OSError) as error:
            with suppress(OSError):
                unfinished.unlink(missing_ok=True)
            _log.warning("%s: the trial is not kept for its next rung: %s", path, error)

    def load(self, request: Evaluate) -> Paused | None:
        """Return where the run of ``request`` stands, if that is not beyond its steps."""
        if self._folder is None or not self._path(request).is_file():
            return None
        path = self._path(request)
        try:
            with safe_open(path, framework="pt") as file:
                facts = file.metadata()
                run = json.loads(facts["run"])
                if facts["course"] != request.course or run["steps"] > request.fidelity.steps:
                    return None
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
            if facts["content"] != _content(tensors, facts["run"]):
                raise ValueError("content and hash differ")
            return Paused(tensors, run)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            _log.warning("%s: damaged, the trial runs from its start: %s", path, error)
            return None

    def drop(self, request: Evaluate) -> None:
        """Forget the run of ``request``: it has ended."""
        if self._folder is not None:
            self._path(request).unlink(missing_ok=True)

    def _path(self, request: Evaluate) -> Path:
        assert self._folder is not None
        return self._folder / f"{request.course}.safetensors"


def _content(tensors: Mapping[str, Tensor], run: str) -> str:
    return f"{digest_of(tensors)} {hashlib.sha256(run.encode()).hexdigest()[:16]}"
