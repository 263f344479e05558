"""The ledger: every evaluation that was asked for and what became of it, as an ordinary Optuna study.

A record is written before its evaluation starts and completed after it ended, so that a killed study knows what
finished (never run again) and what was running (run again under the same number with the same request).

For whoever opens it with Optuna alone: a trial's value is its score, and the user attributes ``plan``, ``label``,
``stage`` and ``cost`` are words and numbers. What is read back are ``request`` and ``outcome``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import optuna
from optuna.exceptions import OptunaError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from peftscout.errors import StudyError
from peftscout.outcome import Evaluate, Outcome, State

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
    """

    number: int
    stage: Stage
    request: Evaluate
    outcome: Outcome | None
    told: int | None = None
    finished: int | None = None


class Ledger:
    """Append-only record of evaluations in any Optuna storage."""

    def __init__(self, study: optuna.Study) -> None:
        self._study = study
        self._records = {t.number: _record(t) for t in self._trials()}
        self._finished = sum(record.outcome is not None for record in self.records())

    @classmethod
    def at(cls, place: Path | str, *, name: str = STUDY_NAME) -> Ledger:
        """Open or create the ledger in a journal file (`Path`) or in a database (RDB URL).

        A record that was torn by a crash in the middle of writing is cut off the journal's end and kept beside it.

        Raises:
            StudyError: when the file is not a journal or the database cannot be opened.
        """
        if isinstance(place, Path):
            cut_torn_tail(place)
        with _as_study_error(place):
            study = optuna.create_study(
                storage=_storage(place), study_name=name, direction="maximize", load_if_exists=True
            )
            ledger = cls(study)
            ledger._complete_half_told()
        return ledger

    @classmethod
    def reading(cls, place: Path | str, *, name: str = STUDY_NAME) -> Ledger:
        """Open an existing ledger to read it, also while another process writes it.

        Raises:
            StudyError: when there is none.
        """
        with _as_study_error(place):
            return cls(optuna.load_study(storage=_storage(place), study_name=name))

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
        trial.set_user_attr("request", request.to_json())
        self._records[trial.number] = Record(trial.number, stage, request, None, told)
        return trial.number

    def finish(self, number: int, outcome: Outcome) -> None:
        """Write down what became of a started request."""
        trial = next(t for t in self._trials() if t.number == number)
        live = optuna.trial.Trial(self._study, trial._trial_id)
        live.set_user_attr("cost", outcome.cost)
        live.set_user_attr("finished", self._finished)
        live.set_user_attr("outcome", outcome.to_json())
        self._tell(number, outcome)
        self._records[number] = replace(self._records[number], outcome=outcome, finished=self._finished)
        self._finished += 1

    def _tell(self, number: int, outcome: Outcome) -> None:
        state = _OPTUNA_STATE.get(outcome.state, TrialState.FAIL)
        self._study.tell(number, outcome.score if outcome.done else None, state=state)

    def _complete_half_told(self) -> None:
        """Finish what a crash left between the outcome and Optuna's own state."""
        for trial in self._trials():
            if trial.state is TrialState.RUNNING and "outcome" in trial.user_attrs:
                self._tell(trial.number, Outcome.from_json(trial.user_attrs["outcome"]))

    def _trials(self) -> Iterator[FrozenTrial]:
        return (t for t in self._study.get_trials(deepcopy=False) if "request" in t.user_attrs)

    def _unused(self) -> optuna.trial.Trial | None:
        """A trial that a crash left between Optuna's own record and ours: it was never started, its number is free."""
        running = self._study.get_trials(deepcopy=False, states=(TrialState.RUNNING,))
        free = next((t for t in running if "request" not in t.user_attrs), None)
        return None if free is None else optuna.trial.Trial(self._study, free._trial_id)


def _record(trial: FrozenTrial) -> Record:
    attributes = trial.user_attrs
    outcome = Outcome.from_json(attributes["outcome"]) if "outcome" in attributes else None
    request, told = Evaluate.from_json(attributes["request"]), attributes.get("told")
    return Record(trial.number, attributes["stage"], request, outcome, told, attributes.get("finished"))


def _storage(place: Path | str) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(place))) if isinstance(place, Path) else RDBStorage(place)


@contextmanager
def _as_study_error(place: Path | str) -> Iterator[None]:
    try:
        yield
    except (OSError, ImportError, ValueError, KeyError, OptunaError, SQLAlchemyError) as error:
        raise StudyError(f"ledger {place}: cannot be opened: {error}") from None


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
