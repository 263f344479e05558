"""Runs studies that are killed at seeded moments, and writes down what became of them. A process of its own.

``python killing.py MODEL DATA FOLDER KILLS`` imports and loads everything once and forks a child for every run. A
child is killed by SIGKILL (no handler, no ``finally``): in turn at the n-th thing that it does to a file of the study,
counted by an audit hook, and after a drawn time. Prints one JSON object: variant -> `Report`.
"""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import numpy as np

from peftscout.config import StudyConfig
from peftscout.engine import run_study
from peftscout.outcome import Evaluate
from peftscout.preparation import Prepared, prepare
from peftscout.report.progress import Silent
from peftscout.study import read_records, read_summary
from peftscout.training.kept_search import KeptSearch

COMMON: dict[str, Any] = {
    "budget": "8%",
    "trials": 5,
    "steps": 2,
    "final": {"seeds": 0},
    "training": {"threads": 1, "batch_size": 8, "precision": "fp32", "evaluations": 1, "shortcuts": False},
}
ONE_SHOT = {"keep_every": 2, "steps": 8}
VARIANTS: dict[str, dict[str, Any]] = {
    "uniform": {"strategy": "uniform"},
    "random, with tuning and final comparison": {
        "strategy": "random",
        "trials": 3,
        "final": {"seeds": 2, "lr_scales": [0.5, 1.0]},
        "training": {"threads": 1, "batch_size": 8, "precision": "fp32"},
    },
    "autopeft": {
        "strategy": "autopeft",
        "space": "autopeft",
        "strategy_options": {"initial": 3, "random_starts": 8, "starts": 2},
    },
    "design-spaces": {
        "strategy": "design-spaces",
        "strategy_options": {"models": 2, "least_models": 2, "reference": 2},
    },
    "bipeft": {
        "strategy": "bipeft",
        "space": "bipeft-s1",
        "trials": 3,
        "strategy_options": {**ONE_SHOT, "threshold": 0.1, "warmup": 0.1},
    },
    "s3delta": {"strategy": "s3delta", "space": "s3delta-m", "trials": 3, "strategy_options": ONE_SHOT},
    "scout": {"strategy": "scout", "space": "lora", "trials": 3, "strategy_options": {**ONE_SHOT, "ranking_rows": 8}},
    "auto": {"strategy": "auto", "space": "lora", "strategy_options": {"scout": {**ONE_SHOT, "checks": 2}}},
    "halving": {
        "strategy": "random",
        "fidelity": "halving",
        "fidelity_options": {"eta": 3, "r_min": 2, "least_plans": 50},
        "steps": 6,
        "trials": 3,
    },
    "one-epoch": {"strategy": "random", "fidelity": "one-epoch", "fidelity_options": {"keep": 1}, "steps": 12},
}


@dataclass
class Report:
    """What became of one study under fire, as often as it takes for so many kills.

    Attributes:
        kills: how often it was killed before it had ended.
        finished: for each time that it was begun: how many evaluations were finished after each kill.
        lost: finished evaluations that were not there, or not the same, after a kill.
        rerun: finished evaluations that were started again.
        different: evaluations at the end that are not those of the study that was left alone.
        same_search: whether the supernet's search ended in the same state, bit for bit.
        same_summary: whether the summaries say the same (times apart).
        trials: evaluations at the end.
    """

    kills: int = 0
    finished: list[list[int]] = field(default_factory=list)
    lost: int = 0
    rerun: int = 0
    different: int = 0
    same_search: bool = True
    same_summary: bool = True
    trials: int = 0


class Starts(Silent):
    """Writes the number of every evaluation that is started into a file, so that it survives a kill."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC)

    def started(self, number: int, stage: object, request: Evaluate, cost: int) -> None:
        os.write(self._file, b"%d\n" % number)


def child(run: Callable[[], object], kill_after: float | None = None) -> bool:
    """Run ``run`` in a forked process, kill that after so many seconds; return whether it ended by itself."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            run()
            code = 0
        except BaseException as error:
            print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        finally:
            os._exit(code)
    if kill_after is not None:
        time.sleep(kill_after)
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return False
    assert os.waitstatus_to_exitcode(status) == 0, "a run that was not killed failed"
    return True


class Counter:
    """Counts what this process does to files below ``folder``, and kills it at number ``last``."""

    def __init__(self, folder: Path, last: int | None) -> None:
        self.seen = 0
        self._folder, self._last = str(folder), last
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(("open", "os.", "shutil.")) and self._touches(arguments):
            self.seen += 1
            if self.seen == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def _touches(self, arguments: tuple[Any, ...]) -> bool:
        paths = [os.fspath(a) for a in arguments if isinstance(a, str | os.PathLike)]
        return any(str(path).startswith(self._folder) for path in paths)


def identity(folder: Path) -> list[list[Any]]:
    records = read_records(folder)
    return [[r.number, r.stage, r.request.to_json(), r.outcome and [r.outcome.state, r.outcome.score]] for r in records]


def finished(folder: Path) -> dict[int, list[Any]]:
    if not (folder / "study.json").exists():
        return {}
    return {row[0]: row for row in identity(folder) if row[3] is not None}


def summary_without_times(folder: Path) -> dict[str, Any]:
    summary = read_summary(folder)
    for trial in summary["trials"]:
        del trial["seconds"], trial["peak_memory"]
    return {key: value for key, value in summary.items() if key not in ("spent", "verdict")}


def search_state(folder: Path) -> tuple[dict[str, np.ndarray], list[Any]] | None:
    found = KeptSearch(folder / "search").load()
    if found is None:
        return None
    arrays, facts, events = found
    return arrays, [{name: value for name, value in facts.items() if name != "seconds"}, events]


def same_state(a: tuple[dict[str, np.ndarray], list[Any]] | None, b: Any) -> bool:
    if a is None or b is None:
        return a is b
    return a[1] == b[1] and list(a[0]) == list(b[0]) and all(np.array_equal(a[0][n], b[0][n]) for n in a[0])


def under_fire(prepared: Prepared, folder: Path, kills: int, draw: random.Random) -> Report:
    """Run the study once in peace and as often as it takes under fire, and compare."""
    report = Report()
    whole, starts, count = folder / "whole", folder / "starts", folder / "count"

    def run(study: Path, last: int | None = None) -> None:
        counter = Counter(study, last)
        run_study(prepared, study, Starts(starts))
        count.write_text(str(counter.seen))

    def fire(study: Path, last: int | None, after: float | None) -> bool:
        before = finished(study)
        starts.unlink(missing_ok=True)
        ended = child(lambda: run(study, last), after)
        now = finished(study)
        report.finished[-1].append(len(now))
        report.lost += sum(now.get(number) != row for number, row in before.items())
        report.rerun += len(set(before) & {int(n) for n in starts.read_text().split()}) if starts.exists() else 0
        return ended

    began = time.perf_counter()
    child(lambda: run(whole))
    seconds, events = time.perf_counter() - began, int(count.read_text())
    killed, ended = whole, True
    for n in range(10 * kills):
        if ended:
            killed = folder / f"killed-{n}"
            report.finished.append([])
        by_event = n % 3 != 2
        last = draw.randint(1, events // 2) if by_event else None
        after = None if by_event else draw.uniform(0.02, 0.6) * seconds
        ended = fire(killed, last, after)
        report.kills += not ended
        if report.kills == kills:
            ended = fire(killed, None, None)
        if ended:
            compare(report, killed, whole)
        if report.kills == kills:
            break
    return report


def compare(report: Report, killed: Path, whole: Path) -> None:
    ours, theirs = identity(killed), identity(whole)
    report.trials = len(theirs)
    report.different += sum(a != b for a, b in zip(ours, theirs, strict=False)) + abs(len(ours) - len(theirs))
    report.same_search &= same_state(search_state(killed), search_state(whole))
    report.same_summary &= summary_without_times(killed) == summary_without_times(whole)


def main(model: str, data: str, folder: str, kills: str) -> None:
    draw = random.Random(0)
    reports = {}
    warm = StudyConfig.from_mapping({"model": model, "data": {"source": data}, **COMMON, **VARIANTS["auto"]})
    run_study(prepare(warm), Path(folder) / "warm", Silent())  # what is imported late is imported now, once
    gc.collect()
    gc.freeze()  # no child goes through, and so copies, what is loaded
    for name, chosen in VARIANTS.items():
        config = StudyConfig.from_mapping({"model": model, "data": {"source": data}, **COMMON, **chosen})
        place = Path(folder) / name.replace(" ", "-").replace(",", "")
        place.mkdir()
        print(name, file=sys.stderr, flush=True)
        reports[name] = asdict(under_fire(prepare(config), place, int(kills), draw))
    print(json.dumps(reports))


if __name__ == "__main__":
    main(*sys.argv[1:])
