"""Presses Ctrl-C in a terminal of its own, once and twice, and writes down what the command line does.

``python interrupting.py MODEL DATA FOLDER`` imports everything once and forks a child with a pseudo-terminal for every
case. Prints one JSON object: case -> `Ending`.
"""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from peftscout import cli
from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.preparation import prepare
from peftscout.report.progress import Silent
from peftscout.study import read_records

CASES: dict[str, tuple[float, ...]] = {
    "once, as a trial begins": (0.0,),
    "once, in the middle of a trial": (0.3,),
    "twice at once": (0.15, 0.0),
    "twice": (0.1, 0.15),
}
"""Seconds before each Ctrl-C, from when the second trial has begun."""

STEPS = 160
"""Of a trial: takes several times the longest wait, so that a fast machine has not ended when it is interrupted."""

SETTINGS = {
    "budget": "8%",
    "strategy": "random",
    "space": "lora",
    "trials": 2,
    "steps": STEPS,
    "final": {"seeds": 0},
    "training": {"threads": 1, "batch_size": 8, "precision": "fp32", "evaluations": 1, "shortcuts": False},
}


@dataclass
class Ending:
    """How a case ended.

    Attributes:
        code: exit code; negative: the signal that ended it.
        seconds: from the last Ctrl-C to the end.
        told: whether it said how to go on.
        traceback: whether it showed one.
        left: whether processes of its group were left.
        finished: trials that had finished, and still were there.
        same: whether the study, run again, ended as the one that was left alone.
    """

    code: int
    seconds: float
    told: bool
    traceback: bool
    left: bool
    finished: int = 0
    same: bool = False


def press(arguments: list[str], study: Path, pauses: tuple[float, ...]) -> Ending:
    pid, terminal = pty.fork()
    if pid == 0:
        sys.argv = ["peftscout", *arguments]
        signal.signal(signal.SIGINT, signal.default_int_handler)
        cli.main()
        os._exit(0)
    shown = b""
    while not (study / "trials" / "001").exists():
        shown += read(terminal, 0.01)
    for pause in pauses:
        time.sleep(pause)
        with suppress(OSError):
            os.write(terminal, b"\x03")
    began = time.perf_counter()
    while True:
        ended, status = os.waitpid(pid, os.WNOHANG)
        shown += read(terminal, 0.01)
        if ended:
            break
    seconds = time.perf_counter() - began
    shown += read(terminal, 0.05)
    left = True
    try:
        os.killpg(pid, 0)
    except ProcessLookupError:
        left = False
    text = shown.decode(errors="replace")
    told = "run the same command again" in " ".join(text.split())
    return Ending(os.waitstatus_to_exitcode(status), seconds, told, "Traceback" in text, left)


def read(terminal: int, patience: float) -> bytes:
    if not select.select([terminal], [], [], patience)[0]:
        return b""
    try:
        return os.read(terminal, 1 << 16)
    except OSError:  # the other end is closed
        return b""


def identity(folder: Path) -> list[object]:
    return [[r.number, r.stage, r.request.to_json(), r.outcome and r.outcome.score] for r in read_records(folder)]


def main(model: str, data: str, folder: str) -> None:
    place = Path(folder)
    config = StudyConfig.from_mapping({"model": model, "data": {"source": data}, **SETTINGS})
    (place / "study.yaml").write_text(config.to_yaml())
    prepared = prepare(config)
    run_study(prepared, place / "whole", Silent())
    whole, endings = identity(place / "whole"), {}
    for n, (case, pauses) in enumerate(CASES.items()):
        study = place / f"s{n}"
        ending = press(["search", "--config", str(place / "study.yaml"), "--study", str(study)], study, pauses)
        ending.finished = sum(row[3] is not None for row in identity(study))
        run_study(prepared, study, Silent())
        ending.same = identity(study) == whole
        endings[case] = asdict(ending)
    print(json.dumps(endings))


if __name__ == "__main__":
    main(*sys.argv[1:])
