"""What is said between a search and its workers: JSON, one message a line; what is no message is refused on receipt."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from peftscout.executors.base import Job
from peftscout.outcome import Evaluate, Outcome


class Message(BaseModel):
    """Strict in what it holds."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    def line(self) -> bytes:
        """Return the message as one line."""
        return self.model_dump_json().encode() + b"\n"


class Start(Message):
    """The first thing that a worker is told.

    Attributes:
        header: of the study, see `peftscout.study.Header`: a worker that finds anything else refuses to work.
        cache: folder of the study's cache.
        stacks: whether jobs may share passes.
        steps: whether every optimiser step is to be told.
        processes: that evaluate a job together.
    """

    kind: Literal["start"] = "start"
    header: dict[str, Any]
    cache: str
    stacks: bool
    steps: bool = False
    processes: int = Field(default=1, ge=1)


class JobData(Message):
    """A `Job`, as plain data."""

    number: int
    request: dict[str, Any]
    folder: str
    predict: bool
    tries: int
    micro_batches: int
    attempt: str

    @classmethod
    def of(cls, job: Job) -> JobData:
        """Return the message of ``job``."""
        return cls(
            number=job.number,
            request=job.request.to_json(),
            folder=str(job.folder),
            predict=job.predict,
            tries=job.tries,
            micro_batches=job.micro_batches,
            attempt=job.attempt,
        )

    def job(self) -> Job:
        """Return the job."""
        request, folder = Evaluate.from_json(self.request), Path(self.folder)
        return Job(self.number, request, folder, self.predict, self.tries, self.micro_batches, self.attempt)


class Work(Message):
    """Jobs for a worker, to be done at once."""

    kind: Literal["work"] = "work"
    jobs: tuple[JobData, ...]


class Ready(Message):
    """A worker has loaded model and data.

    Attributes:
        together: jobs that are worth giving it at once.
    """

    kind: Literal["ready"] = "ready"
    together: int = Field(ge=1)


class Refused(Message):
    """A worker cannot do the work of this study, and no other one could."""

    kind: Literal["refused"] = "refused"
    reason: str


class Note(Message):
    """Something for people."""

    kind: Literal["note"] = "note"
    text: str


class Stepped(Message):
    """The job at hand has taken ``done`` of ``total`` steps."""

    kind: Literal["step"] = "step"
    done: int
    total: int


class Answered(Message):
    """The outcome of a try."""

    kind: Literal["outcome"] = "outcome"
    attempt: str
    outcome: Outcome


Told = Start | Work
Answer = Ready | Refused | Note | Stepped | Answered

_TOLD: TypeAdapter[Told] = TypeAdapter(Annotated[Told, Field(discriminator="kind")])
_ANSWER: TypeAdapter[Answer] = TypeAdapter(Annotated[Answer, Field(discriminator="kind")])


def read_told(line: bytes) -> Told:
    """Read what a worker is told.

    Raises:
        ValueError: when it is no message.
    """
    return _TOLD.validate_json(line, strict=True)


def read_answer(line: bytes) -> Answer:
    """Read what a worker answers.

    Raises:
        ValueError: when it is no message: broken JSON, unknown or missing fields, a score that is not finite.
    """
    return _ANSWER.validate_json(line, strict=True)
