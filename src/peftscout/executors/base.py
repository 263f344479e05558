"""The contract between the engine and whoever runs evaluations: jobs go in, events come out, in any order.

An executor makes no decisions: it says what became of a job. What is tried again, and what is given up, is decided in
one place for all of them (`peftscout.executors.retries`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Protocol
from uuid import uuid4

from peftscout.outcome import Evaluate, Outcome

HALVED = 2
"""Micro-batches of the second try of what ran out of memory."""


@dataclass(frozen=True)
class Job:
    """One try of an evaluation.

    Attributes:
        number: of the trial.
        request: what to evaluate.
        folder: of the trial.
        predict: whether predictions on the report split are wanted: in the final comparison, and only there.
        tries: how many were lost before.
        micro_batches: passes that a step is divided into.
        attempt: identity of this try, over all processes and machines: answers to any other are not taken.
    """

    number: int
    request: Evaluate
    folder: Path
    predict: bool = False
    tries: int = 0
    micro_batches: int = 1
    attempt: str = field(default_factory=lambda: uuid4().hex)

    @property
    def staging(self) -> Path:
        """Where this try leaves what it makes; it is moved into place when its outcome is accepted."""
        return self.folder / f"attempt-{self.attempt}"

    @property
    def alone(self) -> bool:
        """Whether it must not share a pass with others: the final comparison, and whatever went wrong before."""
        return self.predict or self.tries > 0 or self.micro_batches > 1

    def again(self) -> Job:
        """Return the next try of a job that was lost."""
        return replace(self, tries=self.tries + 1, attempt=uuid4().hex)

    def halved(self) -> Job:
        """Return the next try of a job that ran out of memory: half the rows in a pass, twice the passes in a step."""
        return replace(self, micro_batches=HALVED, attempt=uuid4().hex)


@dataclass(frozen=True)
class Finished:
    """A job has an outcome, of whatever state.

    Attributes:
        job: that it is of.
        outcome: what became of it.
        files: what it made, by path below the trial's folder, where the worker could not write into `Job.staging`.
    """

    job: Job
    outcome: Outcome
    files: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Lost:
    """A job whose worker died, or answered what is no answer.

    Attributes:
        job: that is lost.
        reason: in words.
        final: whether another try would end the same way; else it may go better elsewhere (a transient failure).
    """

    job: Job
    reason: str
    final: bool = False


Event = Finished | Lost


class Executor(Protocol):
    """Runs jobs. A failure that no other try can mend (no worker can be started) is an `ExecutorError` of `wait`."""

    @property
    def workers(self) -> int:
        """How many evaluate side by side."""
        ...

    @property
    def capacity(self) -> int:
        """Jobs that are worth having under way at once. It may change while workers come and go."""
        ...

    @property
    def room(self) -> int:
        """Jobs that are worth submitting now."""
        ...

    def submit(self, jobs: Sequence[Job]) -> None:
        """Take jobs, as many as there are: what there is no room for waits its turn. Returns at once."""
        ...

    def wait(self) -> Sequence[Event]:
        """Return what came of jobs, in the order in which it came: at least one event.

        Nothing when no job is under way, or when workers have joined and there is room for more.

        Raises:
            ExecutorError: when no worker can do this work; everything that was submitted is then as good as lost.
        """
        ...

    def cancel(self, jobs: Sequence[Job]) -> None:
        """Forget ``jobs``: no event of them will come any more, and what runs only for them is stopped."""
        ...

    def rest(self) -> None:
        """Let workers go that have nothing to do, and the memory they hold; the next job starts them again."""
        ...

    def close(self) -> None:
        """Stop all that runs and let the workers go. What was not answered is lost."""
        ...
