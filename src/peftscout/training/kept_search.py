"""A search on disk: tensors as safetensors, the rest as JSON, and a marker that is written last and knows their hashes.

The state before the last one stays, too: where files of the last one are damaged, the search goes on from there.

```
search/
  kept.json               which state counts; replaced in one piece, after the state is on disk
  kept-before.json        likewise of the state before
  state-N.safetensors     arrays of the strategy, weights, optimiser
  state-N.json            facts of the strategy, data order, step
  events.jsonl            the event log, one JSON object a line
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from peftscout.errors import StudyError
from peftscout.seal import file_digest, first_difference, sealed, unsealed

SCHEMA = 1
"""Version of the files."""

LAST, BEFORE = "kept.json", "kept-before.json"

REMEDY = "; remove the folder to search anew"


class KeptSearch:
    """The folder of one search.

    Args:
        folder: made when something is saved.
        note: is told of damage that did no harm.
    """

    def __init__(self, folder: Path, note: Callable[[str], None] | None = None) -> None:
        self.folder = folder
        self._note = note or (lambda text: None)
        self._last: dict[str, Any] | None = None

    def save(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], events: Sequence[Any]) -> None:
        """Save a state in the place of the one before the last: after a power cut, two of the three are there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self._last is None:
            self.load()
        before = self._last
        number = 1 if before is None else before["state"] + 1
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, self._path(number, "safetensors"))
        _flush(self._path(number, "safetensors"))
        _write(self._path(number, "json"), json.dumps({"facts": dict(facts), "events": len(events)}, allow_nan=False))
        log = "".join(json.dumps(event) + "\n" for event in events)
        _write(self.folder / "events.jsonl", log)
        state = [self._path(number, suffix) for suffix in ("safetensors", "json")]
        content = {"files": {path.name: file_digest(path) for path in state}, "events": _digest(log)}
        if before is not None:
            _write(self.folder / BEFORE, json.dumps(sealed(before)))
        marker = {"schema": SCHEMA, "state": number, **content}
        _write(self.folder / LAST, json.dumps(sealed(marker)))
        self._last = marker
        for suffix in ("safetensors", "json"):
            self._path(number - 2, suffix).unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any], list[Any]] | None:
        """Return arrays, facts and events of the state saved last, or ``None``; of the one before if it is damaged.

        Raises:
            StudyError: when the files of both are damaged, or of another version.
        """
        older = (self.folder / BEFORE).exists()
        if not older and not (self.folder / LAST).exists():
            return None
        try:
            return self._read(LAST)
        except StudyError as damaged:
            if not older:
                raise
            try:
                before = self._read(BEFORE)
            except StudyError:
                raise damaged from None
            self._note(f"{str(damaged).removesuffix(REMEDY)}: it goes on from what was saved before")
            return before

    def _read(self, name: str) -> tuple[dict[str, np.ndarray], dict[str, Any], list[Any]]:
        """Read the state of a marker; what is saved next comes after it."""
        marker = self._marker(name)
        if (wrong := first_difference(self.folder, marker.get("files", {}))) is not None:
            raise self._damaged(wrong)
        try:
            arrays = load_file(self._path(marker["state"], "safetensors"))
            rest = json.loads(self._path(marker["state"], "json").read_text(encoding="utf-8"))
            # The log is written before the marker, and may be ahead of it by what came after.
            lines = (self.folder / "events.jsonl").read_text(encoding="utf-8").splitlines(keepends=True)
            log = lines[: rest["events"]]
            if "events" in marker and _digest("".join(log)) != marker["events"]:
                raise ValueError(f"{self.folder / 'events.jsonl'}: is not what was written")
            self._last = marker
            return arrays, rest["facts"], [json.loads(line) for line in log]
        except Exception as error:
            raise self._damaged(error) from error

    def _marker(self, name: str) -> dict[str, Any]:
        try:
            marker = json.loads((self.folder / name).read_text(encoding="utf-8"))
            marker = unsealed(marker) if isinstance(marker, dict) else marker
        except (OSError, ValueError) as error:
            raise self._damaged(f"{name}: {error}") from error
        if not isinstance(marker, dict) or marker.get("schema") != SCHEMA or not isinstance(marker.get("state"), int):
            raise self._damaged(f"{name} is {marker!r}")
        return marker

    def _damaged(self, reason: object) -> StudyError:
        return StudyError(f"{self.folder}: the saved search cannot be read ({reason}){REMEDY}")

    def _path(self, number: int, suffix: str) -> Path:
        return self.folder / f"state-{number}.{suffix}"


def _write(path: Path, text: str) -> None:
    unfinished = path.with_name(path.name + ".unfinished")
    unfinished.write_text(text, encoding="utf-8")
    _flush(unfinished)
    unfinished.replace(path)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _flush(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())
