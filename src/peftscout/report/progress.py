"""What a person sees while a search runs: a live display on a terminal, plain lines elsewhere, or nothing."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from datetime import timedelta
from typing import Protocol, Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from peftscout.ledger import Record, Stage
from peftscout.outcome import Evaluate
from peftscout.report.standing import sparkline, standing

BARS_SHOWN = 12
"""Of the sparkline beside the study's bar."""


class Reporter(AbstractContextManager["Reporter"], Protocol):
    """Gets every event of a running study."""

    def note(self, text: str) -> None:
        """Something worth a line."""

    def planned(self, evaluations: int) -> None:
        """How many evaluations the study has in all, as far as is known now."""

    def started(self, number: int, stage: Stage, request: Evaluate, cost: int) -> None:
        """An evaluation begins."""

    def searching(self, choices: int, steps: int) -> None:
        """A supernet of so many choices is going to be trained, for at most ``steps``."""

    def step(self, done: int, total: int) -> None:
        """The running evaluation, or supernet, has taken ``done`` of ``total`` steps."""

    def finished(self, record: Record, best: float | None, recalled: bool) -> None:
        """An evaluation ended, or its outcome was taken from the ledger; ``best`` is the best score in the budget."""


class Silent:
    """Says nothing."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        return None

    def note(self, text: str) -> None:
        """Nothing."""

    def planned(self, evaluations: int) -> None:
        """Nothing."""

    def started(self, number: int, stage: Stage, request: Evaluate, cost: int) -> None:
        """Nothing."""

    def searching(self, choices: int, steps: int) -> None:
        """Nothing."""

    def step(self, done: int, total: int) -> None:
        """Nothing."""

    def finished(self, record: Record, best: float | None, recalled: bool) -> None:
        """Nothing."""


class PlainLines(Silent):
    """One timestamped line per event, for logs and pipes."""

    def __init__(self, write: Callable[[str], object] | None = None) -> None:
        self._write = write or (lambda line: print(line, file=sys.stderr, flush=True))
        self._pace = _Pace()
        self._quarters: int | None = None  # of the supernet's steps that were told; None: no supernet is trained

    def note(self, text: str) -> None:
        """One line."""
        self._line(text)

    def planned(self, evaluations: int) -> None:
        """Remember the total for the time left."""
        self._pace.total = evaluations

    def searching(self, choices: int, steps: int) -> None:
        """One line now, and one after every quarter of the steps."""
        self._line(f"supernet of {choices:,} choices: at most {steps:,} steps")
        self._quarters = 0

    def step(self, done: int, total: int) -> None:
        """A line when a quarter of a supernet's steps is done; of an evaluation only its end is told."""
        if self._quarters is not None and (quarters := 4 * done // total) > self._quarters:
            self._quarters = quarters
            self._line(f"supernet: step {done:,} of {total:,}")

    def started(self, number: int, stage: Stage, request: Evaluate, cost: int) -> None:
        """One line."""
        self._quarters = None
        self._line(f"{stage} {number}: {request.label or 'plan'}, {cost:,} parameters, lr x{request.lr_scale:g}")

    def finished(self, record: Record, best: float | None, recalled: bool) -> None:
        """One line, with the time left."""
        self._pace.count(recalled)
        self._line(f"{record.stage} {record.number}: {_result(record)}{_best(best)}, {self._pace.left()}")

    def _line(self, text: str) -> None:
        self._write(f"{time.strftime('%H:%M:%S')} {text}")


class Live(Silent):
    """A bar for the study and one for the running evaluation; finished ones scroll above."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._study: TaskID | None = None
        self._trial: TaskID | None = None
        self._records: list[Record] = []

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """One line above the bars."""
        self._progress.console.print(f"[dim]{escape(text)}[/dim]", highlight=False)

    def planned(self, evaluations: int) -> None:
        """Set the length of the study's bar."""
        if self._study is None:
            self._study = self._progress.add_task("study", total=evaluations)
        self._progress.update(self._study, total=evaluations)

    def started(self, number: int, stage: Stage, request: Evaluate, cost: int) -> None:
        """A new bar for the evaluation."""
        self._bar(f"{stage} {number}: {request.label or 'plan'}, {cost:,} parameters", request.fidelity.steps)

    def searching(self, choices: int, steps: int) -> None:
        """A new bar for the supernet."""
        self._bar(f"supernet of {choices:,} choices", steps)

    def _bar(self, text: str, steps: int) -> None:
        """Show this bar in the place of the one before."""
        if self._trial is not None:
            self._progress.remove_task(self._trial)
        self._trial = self._progress.add_task(escape(text), total=steps)

    def step(self, done: int, total: int) -> None:
        """Move the bar of the evaluation."""
        if self._trial is not None:
            self._progress.update(self._trial, completed=done, total=total)

    def finished(self, record: Record, best: float | None, recalled: bool) -> None:
        """One line above the bars; the study's bar moves on."""
        cost = "" if record.outcome is None else f"{record.outcome.cost:>12,} parameters  "
        text = f"{record.stage:>6} {record.number:>3}  {cost}{_result(record)}{_best(best)}  {record.request.label}"
        self._progress.console.print(escape(text), highlight=False)
        self._records.append(record)
        if self._study is not None:
            self._progress.update(self._study, advance=1, description=_course(self._records))


def reporter_for(console: Console) -> Reporter:
    """Return the live display on a terminal, plain lines elsewhere (``NO_COLOR`` is honoured by rich itself)."""
    return Live(console) if console.is_terminal else PlainLines()


class _Pace:
    """Time left, from the mean time of what was really run."""

    def __init__(self) -> None:
        self.total = 0
        self._done = self._run = 0
        self._since = time.monotonic()

    def count(self, recalled: bool) -> None:
        self._done += 1
        if recalled:
            self._since = time.monotonic() if self._run == 0 else self._since
        else:
            self._run += 1

    def left(self) -> str:
        if not self._run:
            return "from the ledger"
        seconds = (time.monotonic() - self._since) / self._run * max(0, self.total - self._done)
        return f"about {timedelta(seconds=round(seconds))} left"


def _course(records: Sequence[Record]) -> str:
    """Return ``study: best 0.8125, 3 on the front`` and the best scores so far as bars."""
    s = standing(records, "running", len(records))
    if s.best is None:
        return "study"
    return f"study: best {s.best[0]:.4f}, {s.front} on the front {sparkline(s.scores, BARS_SHOWN)}"


def _result(record: Record) -> str:
    outcome = record.outcome
    if outcome is None:
        return "running"
    if not outcome.done:
        return f"{outcome.state}: {outcome.message}"
    return f"score {outcome.score:.4f} in {outcome.seconds:.1f} s"


def _best(best: float | None) -> str:
    return "" if best is None else f", best in budget {best:.4f}"
