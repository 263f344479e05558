"""Studies and plans side by side: what ``peftscout compare`` shows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table as RichTable
from rich.text import Text

from peftscout.errors import PeftscoutError, PlanError, StudyError
from peftscout.plan import Plan, Sites, diff
from peftscout.report.plan_words import describe
from peftscout.report.table import Cell, Table, plain, written
from peftscout.report.view import View
from peftscout.study import read_header, read_json, read_summary

LINES_SHOWN = 20
"""Differences between two plans that are listed before it is said how many more there are."""


@dataclass(frozen=True)
class Entry:
    """One of those that are compared.

    Attributes:
        name: as given.
        plan: of the file, or the chosen one of the study.
        view: of the study; ``None`` for a plan file.
        report_rows: fingerprint of the rows that its final scores are of; ``None`` where it is not known.
    """

    name: str
    plan: Plan
    view: View | None = None
    report_rows: str | None = None


@dataclass(frozen=True)
class SideBySide:
    """What is shown.

    Attributes:
        table: a row for each fact, a column for each entry.
        differences: for every entry after the first, the placements in which it differs from the first.
        caveats: why scores cannot be compared, where they cannot.
    """

    table: Table
    differences: tuple[tuple[str, tuple[str, ...]], ...]
    caveats: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        names = self.table.header[1:]
        facts = {str(row[0]): dict(zip(names, row[1:], strict=True)) for row in self.table.rows}
        return {"facts": facts, "differences": dict(self.differences), "caveats": list(self.caveats)}


def read_entry(place: Path) -> Entry:
    """Read a study's folder, or a file that holds a plan: ``plan.json``, or ``summary.json`` of a study.

    Raises:
        StudyError: when there is no such folder or file, or the study has not finished.
        PlanError: when the file holds no plan.
    """
    if place.is_dir() and (place / "study.json").exists():
        view = View(read_summary(place))
        return Entry(str(place), view.best.plan, view, _report_rows(read_header(place).data))
    data = read_json(place / "plan.json" if place.is_dir() else place, f"{place}: no study, and no file with a plan")
    if isinstance(data, Mapping) and isinstance(data.get("best"), Mapping) and "trials" in data:
        view = View(data)
        return Entry(str(place), view.best.plan, view)
    try:
        return Entry(str(place), Plan.from_json(data))
    except PlanError as error:
        raise PlanError(f"{place}: {error}") from None


def _report_rows(manifest: Mapping[str, Any]) -> str | None:
    splits = manifest.get("splits")
    report = splits.get("report") if isinstance(splits, Mapping) else None
    return str(report.get("sha256")) if isinstance(report, Mapping) else None


def side_by_side(entries: Sequence[Entry]) -> SideBySide:
    """Compare two or more entries.

    Raises:
        StudyError: when there are fewer than two, or one is there twice.
    """
    names = [entry.name for entry in entries]
    if len(names) < 2:
        raise StudyError("compare: give two or more studies or plans")
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise StudyError(f"compare: {doubled} is given twice")
    facts = [_facts(entry, _sites_for(entry, entries)) for entry in entries]
    rows: list[tuple[Cell, ...]] = []
    for name in dict.fromkeys(name for fact in facts for name in fact):
        rows.append((name, *(fact.get(name) for fact in facts)))
    first = entries[0]
    differences = tuple((e.name, tuple(diff(first.plan, e.plan))) for e in entries[1:])
    return SideBySide(Table.of(("", *names), rows), differences, tuple(_caveats(entries)))


def _sites_for(entry: Entry, entries: Sequence[Entry]) -> Sites | None:
    """The entry's own sites, or those of a study beside it in which all its places exist."""
    known = [e.view.sites for e in (entry, *entries) if e.view is not None and e.view.sites is not None]
    return next((sites for sites in known if all(p.site in sites for p in entry.plan)), None)


def _facts(entry: Entry, sites: Sites | None) -> dict[str, Cell]:
    facts: dict[str, Cell] = {}
    if entry.view is not None:
        s, best = entry.view.summary, entry.view.best
        facts |= {
            "model": str(s["model"]),
            "task": str(s["task"]),
            "budget": entry.view.budget,
            "strategy": str(s["strategy"]),
            "space": str(s["space"]),
            "evaluations": len(s["trials"]),
            "seconds": f"{s['spent']['seconds']:,.1f}",
            "passes": round(s["spent"]["forward_backward_passes"]),
            f"{s['metric']}, search split": best.score,
        }
        if final := s.get("final"):
            facts |= {
                f"{s['metric']}, report split": _spread(final["best"]),
                "uniform LoRA": _spread(final["baseline"]),
                "difference": _difference(final),
            }
    facts |= {"plan": _words(entry.plan, sites), "placements": len(entry.plan), "parameters": _cost(entry, sites)}
    return facts


def _words(plan: Plan, sites: Sites | None) -> str:
    return describe(plan, sites) if sites is not None else ", ".join(plan.ops) or "nothing"


def _cost(entry: Entry, sites: Sites | None) -> int | None:
    if entry.view is not None:
        return entry.view.best.cost
    try:
        return None if sites is None else entry.plan.cost(sites)
    except PeftscoutError:
        return None


def _spread(scores: Mapping[str, Any]) -> str:
    spread = "" if scores["std"] is None else f" +- {scores['std']:.4f}"
    return f"{scores['mean']:.4f}{spread} (n={len(scores['scores'])})"


def _difference(final: Mapping[str, Any]) -> str:
    interval = final["interval"]
    between = "" if interval is None else f" ({interval[0]:+.4f} to {interval[1]:+.4f})"
    return f"{final['difference']:+.4f}{between}"


def _caveats(entries: Sequence[Entry]) -> list[str]:
    views = [entry.view for entry in entries if entry.view is not None]
    caveats = []
    for what in ("task", "metric", "model"):
        if len({str(view.summary[what]) for view in views}) > 1:
            caveats.append(f"They differ in the {what}: their scores cannot be compared.")
    if len({entry.report_rows for entry in entries if entry.report_rows is not None}) > 1:
        caveats.append("Their final scores are of different rows.")
    if len({view.budget for view in views}) > 1:
        caveats.append("They had different budgets.")
    return caveats


def shown(found: SideBySide) -> RenderableType:
    """Return the comparison for a terminal."""
    table = RichTable()
    for heading in found.table.header:
        table.add_column(Text(plain(heading)), overflow="fold")
    for row in found.table.rows:
        table.add_row(*(Text(plain(written(cell))) for cell in row))
    parts: list[RenderableType] = [table, *(Text(caveat, style="bold") for caveat in found.caveats)]
    first = found.table.header[1]
    for name, lines in found.differences:
        more = len(lines) - LINES_SHOWN
        end = [f"... and {more} more"] if more > 0 else []
        heading = f"{name}, compared with {first}:" if lines else f"{name}: the same plan as {first}."
        parts.append(Text(plain(heading), style="bold"))
        parts += [Text(plain(line)) for line in (*lines[:LINES_SHOWN], *end)]
    return Group(*parts)
