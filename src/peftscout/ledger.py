"""The ledger: every evaluation that was asked for and what became of it, as an ordinary Optuna study.

A record is written before its evaluation starts and completed after it ended, so that a killed study knows what
finished (never run again) and what was running (run again under the same number with the same request).

Requests and outcomes are sealed (`peftscout.seal`), with their place in the order of events, outcomes under trial and
request, and the whole under its study: what was damaged, exchanged or taken from another study is refused and not read.

For whoever opens it with Optuna alone: a trial's value is its score, and the user attributes ``plan``, ``label``,
``stage`` and ``cost`` are words and numbers. What is read back are ``request`` and ``outcome``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

from peftscout.database import database_url, shown
from peftscout.errors import StudyError
from peftscout.outcome import Evaluate, Outcome, State
from peftscout.seal import sealed, unsealed

Stage = Literal["search", "tune", "final"]

STUDY_NAME = "peftscout"

_OPTUNA_STATE = {State.DONE: TrialState.COMPLETE, State.PRUNED: TrialState.PRUNED}


@dataclass(frozen=True)
class Record:
    """One line of the ledger.

    Attributes:
        number: of the trial; its folder is ``trials/NNN``.
        stage: ``search``; ``tune`` (learning rate of the two contenders); ``final`` (comparison on the report split).
        request: what was asked.
        outcome: ``None`` while it runs, or when it was interrupted.
        told: outcomes that the strategy had been told when it asked for this; ``None``: it was not the strategy.
        finished: outcomes that were recorded before this one: the order of completion.
        files: of its folder, with their SHA-256, when it ended; empty in ledgers of before they were written down.
    """

    number: int
    stage: Stage
    request: Evaluate
    outcome: Outcome | None
    told: int | None = None
    finished: int | None = None
    files: Mapping[str, str] = field(default_factory=dict, compare=False)


class Ledger:
    """Append-only record of evaluations in any Optuna storage."""

    def __init__(self, study: optuna.Study) -> None:
        self._study, self._storage = study, study._storage
        self._records: dict[int, Record] = {}
        self._ids: dict[int, int] = {}
        self._ended: dict[str, int] = {}
        self._open: dict[tuple[Stage, str], int] = {}
        self._free: list[FrozenTrial] | None = None
        for trial in self._trials():
            self._take(_record(trial), trial._trial_id)
        self._finished = len(self._ended)

    @classmethod
    def at(cls, place: Path | str, *, name: str = STUDY_NAME, of: str = "") -> Ledger:
        """Open or create the ledger in a journal file (`Path`) or in a database (RDB URL). No other process writes it.

        A record that was torn by a crash in the middle of writing is cut off the journal's end and kept beside it.
        ``of`` names the study: the seal of its header.

        Raises:
            StudyError: when the file is not a journal, the database cannot be opened, a record is damaged, or the
                ledger is that of another study.
        """
        with _as_study_error(place):
            if isinstance(place, Path):
                cut_torn_tail(place)
                _drop_lock_of_the_dead(place)
                _refuse_damaged_lines(place)
            study = optuna.create_study(
                storage=_storage(place), study_name=name, direction="maximize", load_if_exists=True
            )
            _refuse_other_study(study, of)
            if of and not study.get_trials(deepcopy=False):
                study.set_user_attr("study", of)
            ledger = cls(study)
            ledger._complete_half_told()
        return ledger

    @classmethod
    def reading(cls, place: Path | str, *, name: str = STUDY_NAME, of: str = "") -> Ledger:
        """Open an existing ledger to read it, also while another process writes it.

        Raises:
            StudyError: when there is none; and as `at`.
        """
        with _as_study_error(place):
            if isinstance(place, Path):
                _refuse_damaged_lines(place)
            study = optuna.load_study(storage=_storage(place), study_name=name)
            _refuse_other_study(study, of)
            return cls(study)

    def records(self) -> list[Record]:
        """Return all records by number."""
        return list(self._records.values())

    def recall(self, request: Evaluate) -> Record | None:
        """Return the finished record of an equal request, whatever its stage."""
        number = self._ended.get(request.key)
        return None if number is None else self._records[number]

    def record(self, number: int) -> Record:
        """Return the record of a trial."""
        return self._records[number]

    def start(self, request: Evaluate, stage: Stage, told: int | None = None) -> int:
        """Write down that ``request`` is about to run; an interrupted equal request keeps its number.

        ``told`` is how many outcomes the strategy knew that asked for it.
        """
        if (interrupted := self._open.get((stage, request.key))) is not None:
            return interrupted
        attributes: dict[str, Any] = {"plan": str(request.plan), "label": request.label, "stage": stage}
        if told is not None:
            attributes["told"] = told
        attributes["request"] = sealed(request.to_json(), [stage, told])
        number, trial_id = self._new_trial(attributes)
        self._take(Record(number, stage, request, None, told), trial_id)
        return number

    def finish(self, number: int, outcome: Outcome, files: Mapping[str, str] | None = None) -> None:
        """Write down what became of a started request, and what its folder holds."""
        ended = replace(self._records[number], outcome=outcome, finished=self._finished, files=dict(files or {}))
        content = {**outcome.to_json(), "files": ended.files}
        attributes = {
            "cost": outcome.cost,
            "finished": self._finished,
            "outcome": sealed(content, [number, ended.request.key, self._finished]),
        }
        with self._one_write():
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(self._ids[number], name, value)
            self._tell(number, outcome)
        self._take(ended, self._ids[number])
        self._finished += 1

    @contextmanager
    def _one_write(self) -> Iterator[None]:
        """Let a journal file have what is written inside in one piece: a disk that takes its time takes it once."""
        backend = getattr(self._storage, "_backend", None)
        with backend.one_write() if isinstance(backend, JournalFile) else nullcontext():
            yield

    def _take(self, record: Record, trial_id: int) -> None:
        """Keep a record, new or changed, where it is found again without going through all of them."""
        self._records[record.number], self._ids[record.number] = record, trial_id
        place = record.stage, record.request.key
        if record.outcome is None:
            self._open.setdefault(place, record.number)
        else:
            self._open.pop(place, None)
            self._ended.setdefault(record.request.key, record.number)

    def _new_trial(self, attributes: dict[str, Any]) -> tuple[int, int]:
        """Write a running trial in one piece; return its number and Optuna's id.

        One that a crash left between Optuna's own record and ours, as older versions could, is used first.
        """
        if (unused := self._unused()) is not None:
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(unused._trial_id, name, value)
            return unused.number, unused._trial_id
        trial = optuna.create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        trial_id = self._storage.create_new_trial(self._study._study_id, trial)
        return self._storage.get_trial_number_from_id(trial_id), trial_id

    def _tell(self, number: int, outcome: Outcome) -> None:
        state = _OPTUNA_STATE.get(outcome.state, TrialState.FAIL)
        values = None if outcome.score is None else [outcome.score]
        self._storage.set_trial_state_values(self._ids[number], state, values)

    def _complete_half_told(self) -> None:
        """Finish what a crash left between the outcome and Optuna's own state."""
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and "outcome" in trial.user_attrs:
                outcome = _record(trial).outcome
                assert outcome is not None
                self._tell(trial.number, outcome)

    def _trials(self) -> Iterator[FrozenTrial]:
        return (t for t in self._study.get_trials(deepcopy=False) if "request" in t.user_attrs)

    def _unused(self) -> FrozenTrial | None:
        """Return a trial that was never started: its number is free. Looked for once, as no new ones come up."""
        if self._free is None:
            running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
            self._free = [trial for trial in running if "request" not in trial.user_attrs]
        return self._free.pop(0) if self._free else None


class JournalFile(JournalFileBackend):
    """Optuna's journal file; several of its records can be written in one piece."""

    def __init__(self, path: str) -> None:
        super().__init__(path)
        self._held: list[dict[str, Any]] | None = None

    def append_logs(self, logs: list[dict[str, Any]]) -> None:
        """Append records, or hold them back inside of `one_write`."""
        if self._held is None:
            super().append_logs(logs)
        else:
            self._held += logs

    @contextmanager
    def one_write(self) -> Iterator[None]:
        """Hold back what is appended inside, and append all of it at the end; nothing where the inside fails."""
        self._held = []
        try:
            yield
            held = self._held
        finally:
            self._held = None
        super().append_logs(held)


def _record(trial: FrozenTrial) -> Record:
    """Read a trial.

    Raises:
        StudyError: when it is damaged.
    """
    attributes, number = trial.user_attrs, trial.number
    try:
        stage, told, finished = attributes["stage"], attributes.get("told"), attributes.get("finished")
        request = Evaluate.from_json(unsealed(attributes["request"], [stage, told]))
        if "outcome" not in attributes:
            return Record(number, stage, request, None, told)
        content = unsealed(attributes["outcome"], [number, request.key, finished])
        files = content.pop("files", {})
        return Record(number, stage, request, Outcome.from_json(content), told, finished, files)
    except Exception as error:
        raise StudyError(f"the record of trial {number} cannot be read: {error}; {_RESTORE}") from None


def _storage(place: Path | str) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(place, Path):
        return JournalStorage(JournalFile(str(place.absolute())))  # its lock is a link to this path
    return RDBStorage(database_url(place).render_as_string(hide_password=False), engine_kwargs={"pool_pre_ping": True})


_RESTORE = "put the file back from a copy, or search in another --study folder"


@contextmanager
def _as_study_error(place: Path | str) -> Iterator[None]:
    """Name the place. What a damaged journal makes Optuna raise has no bounds, hence every kind of error."""
    try:
        yield
    except Exception as error:
        named = place if isinstance(place, Path) else shown(place)
        raise StudyError(f"ledger {named}: cannot be opened: {str(error) or type(error).__name__}") from error


def _refuse_other_study(study: optuna.Study, of: str) -> None:
    known = study.user_attrs.get("study", "")
    if of and known and known != of:
        raise StudyError(f"it is the ledger of another study; {_RESTORE}")


def _refuse_damaged_lines(journal: Path) -> None:
    """Raise a StudyError at a line that is no record; the last one may just be in the making."""
    if not journal.exists():
        return
    *lines, _ = journal.read_bytes().split(b"\n")
    for number, line in enumerate(lines[:-1], start=1):
        try:
            whole = isinstance(json.loads(line), dict)
        except ValueError:
            whole = False
        if not whole:
            raise StudyError(f"line {number} is damaged; {_RESTORE}")


def _drop_lock_of_the_dead(journal: Path) -> None:
    """Remove the lock file that Optuna leaves behind when it is killed while it writes a line.

    It would wait for it for 30 seconds, and for ever where the journal was opened by a path relative to the working
    folder. The study's own lock, which the system gives back when a process dies, keeps others out.
    """
    for left in journal.parent.glob(f"{journal.name}.lock*"):
        with suppress(OSError):
            left.unlink()


def has_begun(journal: Path) -> bool:
    """Whether there is a journal with a whole line: a process may be killed, or at work, before it wrote its first."""
    try:
        with journal.open("rb") as file:
            return file.readline().endswith(b"\n")
    except FileNotFoundError:
        return False


def cut_torn_tail(journal: Path) -> None:
    """Cut an unfinished last line off a journal file; what was cut is kept in ``<name>.torn``.

    Optuna reads past a torn last line, but would append the next record to it and lose both.
    """
    if not journal.exists():
        return
    data = journal.read_bytes()
    end = len(data)
    if data and not data.endswith(b"\n"):
        end = data.rfind(b"\n") + 1
    elif data:
        last = data.rfind(b"\n", 0, end - 1) + 1
        try:
            json.loads(data[last:end])
        except ValueError:
            end = last
    if end < len(data):
        with journal.with_name(journal.name + ".torn").open("ab") as kept:
            kept.write(data[end:] + b"\n")
        with journal.open("r+b") as file:
            file.truncate(end)
