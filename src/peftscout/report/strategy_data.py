"""What a search leaves besides its trials, as plain data: the event log of a supernet, and what a replay tells."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from peftscout.report.replay import Prediction
from peftscout.report.table import Table, written
from peftscout.strategies.design_spaces import RefinementReport

NAMES_SHOWN = 6
"""Modules that a cell of a table names before it says how many more there are."""

LIKELY = 0.5
"""Probability from which a gate counts as open."""


def read_events(study: Path) -> list[Mapping[str, Any]]:
    """Return the event log of a search on a supernet, oldest first; what cannot be read is left out."""
    try:
        lines = (study / "search" / "events.jsonl").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    events: list[Mapping[str, Any]] = []
    for line in lines:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and isinstance(event.get("iteration"), int):
            events.append(event)
    return events


@dataclass(frozen=True)
class Sizes:
    """Expected size of the structure over the steps of a search on a supernet.

    Attributes:
        steps: at which it was told.
        expected: trainable parameters.
        budget: the bound.
        table: the same, with what was pruned or fixed there (BIPEFT), or gates that are likely open (S3Delta).
    """

    steps: tuple[int, ...]
    expected: tuple[float, ...]
    budget: float
    table: Table


def bipeft_sizes(events: Sequence[Mapping[str, Any]]) -> Sizes | None:
    """Return what BIPEFT's triggers did; ``None`` without any."""
    told = [e for e in events if "triggers_left" in e and "expected_size" in e]
    if not told:
        return None
    rows = [
        (
            e["iteration"],
            round(e["expected_size"]),
            e["triggers_left"],
            len(e["pruned"]),
            _some(list(e["pruned"])),
            len(e["fixed"]),
            _some([f"{name} = {size}" for name, size in e["fixed"].items()]),
        )
        for e in told
    ]
    header = ("step", "expected parameters", "triggers left", "pruned", "these", "sizes fixed", "of these")
    return _sizes(told, Table.of(header, rows))


def s3delta_sizes(events: Sequence[Mapping[str, Any]]) -> Sizes | None:
    """Return S3Delta's expected size and gates over its steps; ``None`` without any."""
    told = [e for e in events if "probabilities" in e and "expected_size" in e]
    if not told:
        return None
    rows = []
    for e in told:
        open_ones = [name for name, p in e["probabilities"].items() if max(p, default=0.0) >= LIKELY]
        loss = e.get("loss") or {}
        rows.append(
            (
                e["iteration"], round(e["expected_size"]), loss.get("train"), loss.get("validation"),
                f"{len(open_ones)} of {len(e['probabilities'])}", _some(open_ones),
            )
        )  # fmt: skip
    header = ("step", "expected parameters", "training loss", "validation loss", "gates likely open", "these")
    return _sizes(told, Table.of(header, rows))


def _sizes(told: Sequence[Mapping[str, Any]], table: Table) -> Sizes:
    steps = tuple(int(e["iteration"]) for e in told)
    return Sizes(steps, tuple(float(e["expected_size"]) for e in told), float(told[-1]["budget"]), table)


def final_gates(events: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the most probable module of each gate at the end of S3Delta, the likeliest first; ``None`` without any."""
    if not events or "probabilities" not in events[-1]:
        return None
    likely = {name: float(max(p, default=0.0)) for name, p in events[-1]["probabilities"].items()}
    rows = [(name, likely[name]) for name in sorted(likely, key=lambda name: -likely[name])]
    return Table.of(("module", "probability"), rows)


def _some(names: Sequence[str]) -> str:
    more = len(names) - NAMES_SHOWN
    return ", ".join(names[:NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")


def stages_table(report: RefinementReport) -> Table:
    """Return the stages of Design Spaces in a line each: what was decided, from how many models, and why."""
    rows = [(s.name, s.axis, s.verdict, _some(list(s.kept)), s.models, s.detectable, s.why) for s in report.stages]
    return Table.of(("stage", "axis", "verdict", "kept", "models", "detectable, SD", "why"), rows)


def options_tables(report: RefinementReport) -> list[tuple[str, Table]]:
    """Return a table for every stage that compared options."""
    header = ("option", "models", "mean", "95 % interval", "best 20 %", "lead, SD", "p", "decision", "why")
    tables = []
    for stage in report.stages:
        rows = [
            (
                r.option, r.n, r.mean, _between(r.interval),
                r.upper_mean, r.difference, r.p_value, r.decision, r.why,
            )
            for r in stage.rows
        ]  # fmt: skip
        if rows:
            tables.append((f"{stage.name}: {stage.axis}, {stage.verdict}", Table.of(header, rows)))
    return tables


def _between(interval: tuple[float, float] | None) -> str:
    return "-" if interval is None else f"{written(interval[0])} to {written(interval[1])}"


@dataclass(frozen=True)
class Distributions:
    """Shares of models with at most a score, for each option of a stage; ``name`` says which."""

    name: str
    curves: tuple[tuple[str, tuple[tuple[float, float], ...]], ...]


def distributions(report: RefinementReport) -> list[Distributions]:
    """Return the empirical distributions of every stage that compared options, and of the reference population."""
    found = []
    if report.reference is not None and report.reference.edf:
        found.append(Distributions("S0, reference population", (("all random", _points(report.reference.edf)),)))
    for stage in report.stages:
        if stage.edf:
            curves = tuple((option, _points(points)) for option, points in stage.edf.items())
            found.append(Distributions(f"{stage.name}: {stage.axis}", curves))
    return found


def _points(edf: Sequence[tuple[float, float]]) -> tuple[tuple[float, float], ...]:
    return tuple((float(score), float(share)) for score, share in edf)


def calibration_table(predictions: Sequence[Prediction]) -> Table:
    """Return what was expected of each trial, and what came."""
    rows = [(p.number, p.mean, p.std, p.score, round(p.z, 2)) for p in predictions]
    return Table.of(("trial", "expected", "standard deviation", "score", "standard deviations off"), rows)


def calibration_words(predictions: Sequence[Prediction]) -> str:
    """Return how many scores lay where the surrogate expected them."""
    n = len(predictions)
    one, two = (sum(abs(p.z) <= bound for p in predictions) for bound in (1, 2))
    return (
        f"Of {n} scores, {one} lay within one standard deviation of what the surrogate expected just before "
        f"(68 % of them would, were it right) and {two} within two (95 %)."
    )
