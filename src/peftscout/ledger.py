"""The ledger: every evaluation that was asked for and what became of it, as an ordinary Optuna study.

A record is written before its evaluation starts and completed after it ended, so that a killed study knows what
finished (never run again) and what was running (run again under the same number with the same request).

Requests and outcomes are sealed (`peftscout.seal`) under the number of their trial, and the whole under its study: what
was damaged, exchanged or taken from another study is refused and not read.

For whoever opens it with Optuna alone: a trial's value is its score, and the user attributes ``plan``, ``label``,
``stage`` and ``cost`` are words and numbers. What is read back are ``request`` and ``outcome``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import optuna
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState

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
        self._study = study
        self._records = {t.number: _record(t) for t in self._trials()}
        self._finished = sum(record.outcome is not None for record in self.records())

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
        return next((r for r in self.records() if r.outcome is not None and r.request.key == request.key), None)

    def record(self, number: int) -> Record:
        """Return the record of a trial."""
        return self._records[number]

    def start(self, request: Evaluate, stage: Stage, told: int | None = None) -> int:
        """Write down that ``request`` is about to run; an interrupted equal request keeps its number.

        ``told`` is how many outcomes the strategy knew that asked for it.
        """
        for record in self.records():
            if record.outcome is None and record.stage == stage and record.request.key == request.key:
                return record.number
        trial = self._unused() or self._study.ask()
        trial.set_user_attr("plan", str(request.plan))
        trial.set_user_attr("label", request.label)
        trial.set_user_attr("stage", stage)
        if told is not None:
            trial.set_user_attr("told", told)
        trial.set_user_attr("request", sealed(request.to_json(), _context(trial.number, stage, told)))
        self._records[trial.number] = Record(trial.number, stage, request, None, told)
        return trial.number

    def finish(self, number: int, outcome: Outcome, files: Mapping[str, str] | None = None) -> None:
        """Write down what became of a started request, and what its folder holds."""
        trial = next(t for t in self._trials() if t.number == number)
        live = optuna.trial.Trial(self._study, trial._trial_id)
        kept = dict(files or {})
        content = {**outcome.to_json(), "files": kept}
        live.set_user_attr("cost", outcome.cost)
        live.set_user_attr("finished", self._finished)
        key = self._records[number].request.key
        live.set_user_attr("outcome", sealed(content, _context(number, key, self._finished)))
        self._tell(number, outcome)
        ended = replace(self._records[number], outcome=outcome, finished=self._finished, files=kept)
        self._records[number] = ended
        self._finished += 1

    def _tell(self, number: int, outcome: Outcome) -> None:
        state = _OPTUNA_STATE.get(outcome.state, TrialState.FAIL)
        self._study.tell(number, outcome.score if outcome.done else None, state=state)

    def _complete_half_told(self) -> None:
        """Finish what a crash left between the outcome and Optuna's own state."""
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and "outcome" in trial.user_attrs:
                outcome = _record(trial).outcome
                assert outcome is not None
                self._tell(trial.number, outcome)

    def _trials(self) -> Iterator[FrozenTrial]:
        return (t for t in self._study.get_trials(deepcopy=False) if "request" in t.user_attrs)

    def _unused(self) -> optuna.trial.Trial | None:
        """A trial that a crash left between Optuna's own record and ours: it was never started, its number is free."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        free = next((t for t in running if "request" not in t.user_attrs), None)
        return None if free is None else optuna.trial.Trial(self._study, free._trial_id)


def _record(trial: FrozenTrial) -> Record:
    """Read a trial.

    Raises:
        StudyError: when it is damaged.
    """
    attributes, number = trial.user_attrs, trial.number
    try:
        stage, told, finished = attributes["stage"], attributes.get("told"), attributes.get("finished")
        request = Evaluate.from_json(unsealed(attributes["request"], _context(number, stage, told)))
        if "outcome" not in attributes:
            return Record(number, stage, request, None, told)
        content = unsealed(attributes["outcome"], _context(number, request.key, finished))
        files = content.pop("files", {})
        return Record(number, stage, request, Outcome.from_json(content), told, finished, files)
    except Exception as error:
        raise StudyError(f"the record of trial {number} cannot be read: {error}; {_RESTORE}") from None


def _context(number: int, of: str, place: int | None) -> list[int | str]:
    """Return what a seal holds for besides its content; ``place`` in the order of events came later than seals."""
    return [number, of] if place is None else [number, of, place]


def _storage(place: Path | str) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if isinstance(place, Path):
        return JournalStorage(JournalFileBackend(str(place.absolute())))  # its lock is a link to this path
    return RDBStorage(place)


_RESTORE = "put the file back from a copy, or search in another --study folder"


@contextmanager
def _as_study_error(place: Path | str) -> Iterator[None]:
    """Name the place. What a damaged journal makes Optuna raise has no bounds, hence every kind of error."""
    try:
        yield
    except Exception as error:
        reason = str(error) or type(error).__name__
        raise StudyError(f"ledger {place}: cannot be opened: {reason}") from error


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
