"""A study on disk: one folder with its header, ledger, trials and summary. Opened by one process at a time.

```
STUDY/
  study.json        what decides the study: config, data manifest, model fingerprint, versions, changes (sealed)
  ledger.journal    every evaluation (an Optuna journal), unless a database URL holds it
  trials/NNN/       plan.json, outcome.json, adapter/ (safetensors), predictions.safetensors for the final comparison
  workers/N.log     what the N-th worker process printed, where there are any
  cache/            token ids
  summary.json      written at the end, sealed
  *.before-change-N what the N-th accepted change made invalid: a summary, a search on a supernet
  lock              held while a process works in the folder
```
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path, PurePosixPath
from typing import Any, Self

from filelock import FileLock, Timeout

from peftscout.config import StudyConfig
from peftscout.database import WriteLock
from peftscout.errors import StudyError
from peftscout.header import SCHEMA, Change, Header, differences, leaves_the_search, what_forbids_a_change
from peftscout.ledger import Ledger, Record, has_begun
from peftscout.outcome import Outcome
from peftscout.plan import Plan
from peftscout.seal import KEY, BrokenSealError, first_difference, folder_digests, sealed, unsealed

_MADE = (".safetensors", ".json", ".md")
"""Endings of the files of a trial."""


class Study:
    """An open study folder. Use as a context manager: the lock is held inside.

    Args:
        folder: made when it is not there.
        header: what decides the study.
        storage: database of the ledger, if any.
        accept_change: whether a study that was made with something else goes on with this, and has it recorded.

    Attributes:
        changes: that were accepted so far, in order; known inside.

    Raises:
        StudyError: when another process holds the folder, or when it was made by a different configuration, other data,
            another model or other versions: the difference is in the message. With ``accept_change`` only where scores
            would no longer be those of one study.
    """

    def __init__(
        self, folder: Path, header: Header, storage: str | None = None, *, accept_change: bool = False
    ) -> None:
        self.folder = folder
        self.header = header
        self.changes: tuple[Change, ...] = ()
        self._accept_change = accept_change
        self._storage = storage
        self._lock = FileLock(folder / "lock", blocking=False)
        self._database: WriteLock | None = None
        self._taken_back = ExitStack()
        self.ledger: Ledger

    def __enter__(self) -> Self:
        self._refuse_foreign_folder()
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            self._lock.acquire()
        except Timeout:
            other = _read_text(self.folder / "lock.holder") or "another process"
            raise StudyError(
                f"{self.folder}: {other} is working in it; wait for it, or choose another --study"
            ) from None
        with ExitStack() as taken_back:
            taken_back.callback(self._lock.release)
            holder = self.folder / "lock.holder"
            taken_back.callback(holder.unlink, missing_ok=True)
            holder.write_text(f"process {os.getpid()}")
            changed = self._write_or_compare_header()
            if self._storage is not None:
                self._database = taken_back.enter_context(WriteLock(self._storage, self._ledger_name()))
            place = self._storage or self.folder / "ledger.journal"
            self.ledger = Ledger.at(place, name=self._ledger_name(), of=_seal_of_header(self.folder))
            _refuse_lost_records(self.folder, self.ledger.records())
            if changed:
                self._go_on_changed(changed)
            self.changes = read_changes(self.folder)
            self._taken_back = taken_back.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._taken_back.close()

    def _ledger_name(self) -> str:
        return "peftscout" if self._storage is None else self.folder.resolve().name

    def _refuse_foreign_folder(self) -> None:
        if self.folder.exists() and not self.folder.is_dir():
            raise StudyError(f"{self.folder}: is a file; --study takes a folder")
        known = {"study.json", "lock", "lock.holder", "study.json.unfinished"}
        if (
            self.folder.exists()
            and not (self.folder / "study.json").exists()
            and {p.name for p in self.folder.iterdir()} - known
        ):
            raise StudyError(f"{self.folder}: is not empty and not a study (no study.json); choose another folder")

    def _write_or_compare_header(self) -> tuple[str, ...]:
        """Return the differences with which the study goes on; none when it is new or the same."""
        path = self.folder / "study.json"
        if not path.exists():
            write_sealed(path, self.header.to_json())
            return ()
        old = read_header(self.folder)
        if not (lines := differences(old, self.header)):
            return ()
        if forbidden := what_forbids_a_change(old, self.header):
            remedy = (
                "Scores of before would not be those of this study. Run it with what it was made with to continue it, "
                f"or choose another --study folder, with --from-study {self.folder} to begin with what this one found."
            )
            lines = forbidden if self._accept_change else lines
        elif self._accept_change:
            return lines
        else:
            remedy = (
                "Run it with what it was made with to continue it, go on with this and have it recorded by "
                "--accept-change, or choose another --study folder."
            )
        told = "\n  ".join([f"{self.folder}: this study was made with something else:", *lines])
        raise StudyError(f"{told}\n{remedy}")

    def _go_on_changed(self, lines: tuple[str, ...]) -> None:
        """Write down that the study goes on with something else; what that makes invalid is set aside."""
        begun_as = _seal_of_header(self.folder)
        ended = sum(record.outcome is not None for record in self.ledger.records())
        changes = [*read_changes(self.folder), Change(ended, lines)]
        _set_aside(self.folder / "summary.json", len(changes))
        if not all(map(leaves_the_search, lines)):
            _set_aside(self.folder / "search", len(changes))
        history = {"begun_as": begun_as, "changes": [change.to_json() for change in changes]}
        write_sealed(self.folder / "study.json", self.header.to_json() | history)

    def trial_folder(self, number: int) -> Path:
        """Return the folder of a trial."""
        return trial_folder(self.folder, number)

    def fresh_trial_folder(self, number: int, plan: Plan) -> Path:
        """Make the folder of a trial that starts: whatever an interrupted try left in it is removed."""
        folder = self.trial_folder(number)
        if folder.resolve() != trial_folder(self.folder.resolve(), number):
            raise StudyError(f"{folder}: a link leads out of the study, to {folder.resolve()}; remove the link")
        if folder.exists():
            shutil.rmtree(folder)
        folder.mkdir(parents=True)
        write_json(folder / "plan.json", plan.to_json())
        return folder

    def accept(self, number: int, staging: Path, files: Mapping[str, bytes]) -> None:
        """Move what a try of a trial made from ``staging``, or from ``files``, into the trial's folder.

        Raises:
            StudyError: when a file would land elsewhere, or is of a kind that no trial makes.
        """
        for name, data in files.items():
            _write_file(staging, name, data)
        folder = self.trial_folder(number)
        if staging.is_dir():
            for made in staging.iterdir():
                made.replace(folder / made.name)
        for tried in folder.glob("attempt-*"):
            shutil.rmtree(tried, ignore_errors=True)

    def finish(self, number: int, outcome: Outcome) -> None:
        """Write the outcome of a trial: first beside its adapter, then, as the last word, into the ledger."""
        if self._database is not None:
            self._database.check()
        folder = self.trial_folder(number)
        write_json(folder / "outcome.json", outcome.to_json())
        self.ledger.finish(number, outcome, folder_digests(folder))

    def write_summary(self, summary: Mapping[str, Any]) -> None:
        """Write ``summary.json``, sealed, and as one of this study."""
        write_sealed(self.folder / "summary.json", {**summary, "study": _seal_of_header(self.folder)})

    def finished_folder(self, number: int) -> Path:
        """Return the folder of a trial that ended, its files checked.

        Raises:
            StudyError: when one of them is not what the trial wrote.
        """
        return check_files(self.folder, self.ledger.record(number))


def _set_aside(path: Path, change: int) -> None:
    if path.exists():
        path.rename(path.with_name(f"{path.stem}.before-change-{change}{path.suffix}"))


def trial_folder(study: Path, number: int) -> Path:
    """Return the folder of trial ``number`` of a study folder."""
    return study / "trials" / f"{number:03d}"


def check_files(study: Path, record: Record) -> Path:
    """Return the folder of a trial, once it is sure that its files are those that it wrote.

    Raises:
        StudyError: naming the file that is not.
    """
    folder = trial_folder(study, record.number)
    if (wrong := first_difference(folder, record.files)) is not None:
        raise StudyError(
            f"{wrong}; put it back from a copy, or train the plan again: peftscout apply {folder / 'plan.json'}"
        )
    return folder


def _refuse_lost_records(folder: Path, records: list[Record]) -> None:
    """Raise a StudyError when trials ended of which the ledger knows nothing: it was removed, emptied or exchanged."""
    known = {trial_folder(folder, r.number) for r in records}
    lost = sorted(p.parent for p in folder.glob("trials/*/outcome.json") if p.parent not in known)
    if lost:
        raise StudyError(
            f"{folder}: its ledger knows nothing of {lost[0].name} and {len(lost) - 1} more finished trials: it was "
            "removed, cut or exchanged; put it back from a copy, or search in another --study folder"
        )


def read_header(folder: Path) -> Header:
    """Read ``study.json``.

    Raises:
        StudyError: when the folder is no study or the header is damaged.
    """
    path = folder / "study.json"
    return Header.from_json(read_json(path, f"{folder}: is not a study (no study.json)"), path)


def read_changes(folder: Path) -> tuple[Change, ...]:
    """Return what was changed, as was asked for, since the study began.

    Raises:
        StudyError: when the folder is no study or the header is damaged.
    """
    read_header(folder)
    data = read_json(folder / "study.json", "")
    return tuple(map(Change.from_json, data.get("changes", ())))


def read_config(folder: Path) -> StudyConfig:
    """Return the configuration a study was made with."""
    return StudyConfig.from_mapping(read_header(folder).config)


def read_records(folder: Path, storage: str | None = None) -> list[Record]:
    """Return the ledger of a study without changing the folder, also while another process works in it.

    Raises:
        StudyError: when the folder is no study, or its ledger is damaged, lost or of another one.
    """
    read_header(folder)
    place = folder / "ledger.journal"
    records: list[Record] = []
    if storage is not None or has_begun(place):
        name = "peftscout" if storage is None else folder.resolve().name
        records = Ledger.reading(storage or place, name=name, of=_seal_of_header(folder)).records()
    _refuse_lost_records(folder, records)
    return records


def read_summary(folder: Path) -> dict[str, Any]:
    """Return ``summary.json`` of a finished study.

    Raises:
        StudyError: when the study has not finished, or the file is damaged or that of another study.
    """
    read_header(folder)
    path = folder / "summary.json"
    summary = read_json(path, f"{folder}: has no summary yet; run the same search again to finish it")
    if not isinstance(summary, dict) or summary.get("schema") != SCHEMA:
        raise StudyError(f"{path}: not a summary of schema {SCHEMA}")
    if summary.pop("study", "") != _seal_of_header(folder):
        raise StudyError(f"{path}: is the summary of another study; put it back from a copy")
    return summary


def _seal_of_header(folder: Path) -> str:
    """Return by what the ledger of a study knows it, from its first header on; empty before there were seals."""
    data = json.loads((folder / "study.json").read_text(encoding="utf-8"))
    return str(data.get("begun_as", data.get(KEY, "")))


def read_json(path: Path, absent: str) -> Any:
    """Read a JSON file, without its seal; StudyError says ``absent`` when there is none, or where it is damaged."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        return unsealed(data) if isinstance(data, dict) else data
    except FileNotFoundError:
        raise StudyError(absent) from None
    except BrokenSealError as error:
        raise StudyError(f"{path}: {error}; put it back from a copy") from None
    except (OSError, ValueError, RecursionError) as error:
        raise StudyError(f"{path}: cannot be read: {error}") from None


def write_sealed(path: Path, data: Mapping[str, Any]) -> None:
    """Write JSON of which `read_json` knows when it is damaged; see `write_json`."""
    write_json(path, sealed(data))


def write_json(path: Path, data: Any) -> None:
    """Write JSON so that the file is either the old one or the whole new one, also after a power cut."""
    unfinished = path.with_name(path.name + ".unfinished")
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(data, file, indent=1, ensure_ascii=False, allow_nan=False)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)


def is_made_by_trials(name: str) -> bool:
    """Whether a file that a worker sends may be written below a trial's folder: no path out of it, nothing unknown."""
    path = PurePosixPath(name)
    return not path.is_absolute() and ".." not in path.parts and path.suffix in _MADE


def _write_file(folder: Path, name: str, data: bytes) -> None:
    if not is_made_by_trials(name):
        raise StudyError(f"{name!r}: a worker sent what no trial makes")
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    (folder / name).write_bytes(data)


def _read_text(path: Path) -> str | None:
    try:
        return path.read_text()
    except OSError:
        return None
