"""How a study stands, running or finished: what ``peftscout status`` says above its list of evaluations."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal

from rich.console import RenderableType
from rich.text import Text

from peftscout.front import front_of
from peftscout.ledger import Record

Phase = Literal["running", "finished", "stopped"]

BARS = "▁▂▃▄▅▆▇█"
LONGEST = 40
"""Bars of a sparkline at most."""


@dataclass(frozen=True)
class Standing:
    """How a study stands.

    Attributes:
        phase: finished: there is a summary; running: a process works in the folder; else stopped.
        ended: evaluations that have an outcome.
        most: evaluations that the study takes at most.
        best: best score of fully trained plans, and the parameters of that plan; ``None`` before the first.
        front: plans on the front.
        scores: best score so far, evaluation by evaluation.
        seconds: that evaluations took.
        left: seconds left at most, at the mean time of an evaluation; ``None`` when nothing tells, or nothing is left.
    """

    phase: Phase
    ended: int
    most: int
    best: tuple[float, int] | None
    front: int
    scores: tuple[float, ...]
    seconds: float
    left: float | None

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        return asdict(self)


def standing(records: Sequence[Record], phase: Phase, most: int) -> Standing:
    """Return how a study with these records stands; ``most`` evaluations in all."""
    ended = [r.outcome for r in records if r.outcome is not None]
    scored = [
        (r.outcome.score, r.outcome.cost)
        for r in records
        if r.outcome is not None and r.outcome.score is not None and r.stage != "final"
        if r.request.fidelity.full and not r.request.task
    ]
    running_best: list[float] = []
    for score, _ in scored:
        running_best.append(max(score, running_best[-1]) if running_best else score)
    seconds = sum(o.seconds for o in ended)
    waiting = max(0, most - len(ended))
    left = seconds / len(ended) * waiting if ended and waiting and phase != "finished" else None
    return Standing(
        phase=phase,
        ended=len(ended),
        most=max(most, len(ended)) if phase != "finished" else len(ended),
        best=max(scored, key=lambda entry: (entry[0], -entry[1]), default=None),
        front=len(front_of([cost for _, cost in scored], [score for score, _ in scored])),
        scores=tuple(running_best),
        seconds=seconds,
        left=left,
    )


def phase_of(folder: Path) -> Phase:
    """Return whether a study has finished, is running on this machine, or has stopped."""
    if _works_in(folder):
        return "running"
    return "finished" if (folder / "summary.json").exists() else "stopped"


def _works_in(folder: Path) -> bool:
    try:
        process = int((folder / "lock.holder").read_text().rpartition(" ")[2])
        os.kill(process, 0)
    except (OSError, ValueError, OverflowError) as error:
        return isinstance(error, PermissionError)  # it lives, and is somebody else's
    return True


def sparkline(values: Sequence[float], longest: int = LONGEST) -> str:
    """Return values as bars, from the lowest to the highest; of more than ``longest``, evenly chosen ones."""
    if len(values) > longest:
        values = [values[round(i * (len(values) - 1) / (longest - 1))] for i in range(longest)]
    low, high = min(values, default=0.0), max(values, default=0.0)
    spread = high - low
    return "".join(BARS[round((v - low) / spread * (len(BARS) - 1)) if spread else 0] for v in values)


def shown(s: Standing) -> RenderableType:
    """Return one or two lines."""
    total = f" of at most {s.most}" if s.phase != "finished" else ""
    lines = [f"{s.phase}: {s.ended}{total} evaluations in {timedelta(seconds=round(s.seconds))}"]
    if s.left is not None:
        lines[0] += f", about {timedelta(seconds=round(s.left))} left at most"
    if s.best is not None:
        plans = f"{s.front} plan{'s' * (s.front != 1)} on the front"
        lines.append(f"best in budget {s.best[0]:.4f} with {s.best[1]:,} parameters, {plans}  {sparkline(s.scores)}")
    return Text("\n".join(lines))
