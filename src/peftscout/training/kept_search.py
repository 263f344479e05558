"""A search on disk: tensors as safetensors, the rest as JSON, and a marker that is written last and knows their hashes.

```
search/
  kept.json               which state counts; replaced in one piece, after the state is on disk
  state-N.safetensors     arrays of the strategy, weights, optimiser
  state-N.json            facts of the strategy, data order, step
  events.jsonl            the event log, one JSON object a line
```
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from peftscout.errors import StudyError
from peftscout.seal import file_digest, first_difference, sealed, unsealed

SCHEMA = 1
"""Version of the files."""


class KeptSearch:
    """The folder of one search.

    Args:
        folder: made when something is saved.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, arrays: Mapping[str, np.ndarray], facts: Mapping[str, Any], events: Sequence[Any]) -> None:
        """Save a state in the place of the one before: after a power cut, one of the two is there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        marker = self._marker()
        number = 1 if marker is None else marker["state"] + 1
        save_file({name: np.asarray(a, order="C") for name, a in arrays.items()}, self._path(number, "safetensors"))
        _flush(self._path(number, "safetensors"))
        _write(self._path(number, "json"), json.dumps({"facts": dict(facts), "events": len(events)}, allow_nan=False))
        log = "".join(json.dumps(event) + "\n" for event in events)
        _write(self.folder / "events.jsonl", log)
        state = [self._path(number, suffix) for suffix in ("safetensors", "json")]
        content = {"files": {path.name: file_digest(path) for path in state}, "events": _digest(log)}
        _write(self.folder / "kept.json", json.dumps(sealed({"schema": SCHEMA, "state": number, **content})))
        for suffix in ("safetensors", "json"):
            self._path(number - 1, suffix).unlink(missing_ok=True)

    def load(self) -> tuple[dict[str, np.ndarray], dict[str, Any], list[Any]] | None:
        """Return arrays, facts and events of the state saved last, or ``None``.

        Raises:
            StudyError: when the files are damaged, or of another version.
        """
        marker = self._marker()
        if marker is None:
            return None
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
            return arrays, rest["facts"], [json.loads(line) for line in log]
        except Exception as error:
            raise self._damaged(error) from error

    def _marker(self) -> dict[str, Any] | None:
        try:
            marker = json.loads((self.folder / "kept.json").read_text(encoding="utf-8"))
            marker = unsealed(marker) if isinstance(marker, dict) else marker
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise self._damaged(f"kept.json: {error}") from error
        if not isinstance(marker, dict) or marker.get("schema") != SCHEMA or not isinstance(marker.get("state"), int):
            raise self._damaged(f"kept.json is {marker!r}")
        return marker

    def _damaged(self, reason: object) -> StudyError:
        return StudyError(
            f"{self.folder}: the saved search cannot be read ({reason}); remove the folder to search anew"
        )

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
