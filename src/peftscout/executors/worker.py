"""A worker process: loads model and data once, then evaluates what it is told to, until nobody tells it anything.

It is told on standard input and answers on what was its standard output; everything that it prints goes to the log.
When the search that it works for is gone, so is it: at once, in the middle of whatever it does.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from queue import SimpleQueue
from threading import Thread
from typing import IO, Any

from peftscout import disk
from peftscout.config import StudyConfig, config_diff
from peftscout.errors import ExecutorError, PeftscoutError
from peftscout.executors.group import GRACE, Followers, follows
from peftscout.executors.messages import Answered, Message, Note, Ready, Refused, Start, Stepped, Told, Work, read_told
from peftscout.executors.shipment import moved, under_their_names
from peftscout.executors.work import Workplace, loaded_for_good
from peftscout.outcome import Outcome, State
from peftscout.preparation import Prepared, prepare
from peftscout.training.arithmetic import Arithmetic

GONE = 3
"""Exit code of a worker whose search is gone, or whose GPU is in no state to go on."""


def prepared_as(header: dict[str, Any], places: Mapping[str, str] | None = None) -> Prepared:
    """Prepare the study of ``header``, a `peftscout.header.Header` as JSON, on this machine.

    ``places`` are where folders and files are on this machine, where they are not where the study has them.

    Raises:
        PeftscoutError: when it cannot be prepared here.
        ExecutorError: when what is found here is not what the study was made with: other data, model or versions.
    """
    config = StudyConfig.from_mapping(header["config"])
    if places:
        prepared = under_their_names(prepare(StudyConfig.from_mapping(moved(header["config"], places))), config)
    else:
        prepared = prepare(config)
    prepared = replace(prepared, arithmetic=Arithmetic.from_json(header["arithmetic"]))
    here = json.loads(json.dumps(prepared.header().to_json()))
    if lines := config_diff(header, here):
        raise ExecutorError("a worker found something else than the search has:\n  " + "\n  ".join(lines))
    return prepared


def broken_device(outcome: Outcome) -> bool:
    """Whether an outcome leaves the process unfit for more: a CUDA error other than running out of memory stays."""
    return outcome.state is State.FAILED and "CUDA error" in outcome.message


def out_of_step(outcome: Outcome) -> bool:
    """Whether an outcome leaves a group of processes unfit for more: they may wait for each other at other places."""
    return outcome.state in (State.FAILED, State.OUT_OF_MEMORY)


def work(start: Start, following: Callable[[], Told], say: Callable[[Message], None]) -> None:
    """Load, then do what is ``following``, until that leaves this process unfit for more."""
    unfit = broken_device if start.processes == 1 else out_of_step
    try:
        workplace = Workplace(
            prepared_as(start.header),
            Path(start.cache),
            stacks=start.stacks,
            note=lambda text: say(Note(text=text)),
        )
        together = workplace.together
    except PeftscoutError as error:
        say(Refused(reason=str(error)))
        return
    progress = (lambda done, total: say(Stepped(done=done, total=total))) if start.steps else None
    say(Ready(together=together))
    with loaded_for_good():
        while isinstance(told := following(), Work):
            jobs = [data.job() for data in told.jobs]
            try:
                outcomes = workplace.do(jobs, progress)
            except Exception as error:
                if (trouble := disk.trouble(error)) is None:
                    raise
                say(Refused(reason=f"a worker: {trouble} ({error}); mend it and run the same command again"))
                return
            for job, outcome in zip(jobs, outcomes, strict=True):
                say(Answered(attempt=job.attempt, outcome=outcome))
            if any(map(unfit, outcomes)):
                return


def listen(told: IO[bytes], inbox: SimpleQueue[Told]) -> None:
    """Put what comes into ``inbox``; when nothing can come any more, end the process as it is."""
    for line in told:
        inbox.put(read_told(line))
    os._exit(GONE)


def main() -> None:
    """Work for whoever is at the other end of standard input and output."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the search, which sees to its workers
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    inbox: SimpleQueue[Told] = SimpleQueue()
    Thread(target=listen, args=(sys.stdin.buffer, inbox), daemon=True).start()
    start = inbox.get()
    if isinstance(start, Start):
        work(start, *_lines(start, inbox, lambda message: _write(answers, message.line())))
    if follows():
        time.sleep(GRACE)
    os._exit(GONE)  # a broken GPU context can hang an orderly end


def _lines(
    start: Start, inbox: SimpleQueue[Told], say: Callable[[Message], None]
) -> tuple[Callable[[], Told], Callable[[Message], None]]:
    """Return what this process hears and whom it tells: a leader passes on what it is told, a follower only listens."""
    if follows():
        return inbox.get, lambda message: None
    if start.processes == 1:
        return inbox.get, say
    followers = Followers(start.processes, GONE)
    followers.tell(start)

    def following() -> Told:
        told = inbox.get()
        followers.tell(told)
        return told

    return following, say


def _write(out: IO[bytes], data: bytes) -> None:
    """Write all of it: an unbuffered pipe may take less at once."""
    while data:
        data = data[out.write(data) :]


if __name__ == "__main__":
    main()
