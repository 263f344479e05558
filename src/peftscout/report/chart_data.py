"""What each figure of the report draws, as plain data with a table that says the same. No drawing here."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from peftscout.cost import SIZELESS, largest_size, ops_at
from peftscout.plan import Plan, Sites
from peftscout.report.plan_table import column_order, place, short_names
from peftscout.report.table import Cell, Table
from peftscout.report.view import Contender, Trial, View
from peftscout.surrogate.staircase import Reference, hypervolume

MEGABYTE = 10**6


@dataclass(frozen=True)
class Front:
    """Trainable parameters against score.

    Attributes:
        points: every fully trained evaluation with a score: (parameters, score on the search split).
        front: those that no other beats, cheapest first.
        contenders: chosen plan and baseline with (parameters, mean, standard deviation or 0, seeds) on the report
            split; without a final comparison empty.
        chosen: (parameters, score) of the chosen plan on the search split.
        baseline: likewise of uniform LoRA, where it has a score.
        budget: the bound.
        table: the front.
    """

    points: tuple[tuple[int, float], ...]
    front: tuple[tuple[int, float], ...]
    contenders: tuple[tuple[str, int, float, float, int], ...]
    chosen: tuple[int, float] | None
    baseline: tuple[int, float] | None
    budget: int
    table: Table


def front(view: View) -> Front:
    """Return what the figure of the front draws."""
    finals = [_on_report_split(c) for c in (view.best, view.baseline) if c.scores]
    if view.best.plan == view.baseline.plan:
        finals = finals[:1]
    header = ("trial", "trainable parameters", f"{view.metric}, search split", "plan")
    return Front(
        points=tuple(map(_point, view.searched)),
        front=tuple(map(_point, view.front)),
        contenders=tuple(finals),
        chosen=_searched(view.best),
        baseline=_searched(view.baseline),
        budget=view.budget,
        table=Table.of(header, [(t.number, t.cost, t.score, t.label) for t in view.front]),
    )


def _point(trial: Trial) -> tuple[int, float]:
    assert trial.cost is not None
    assert trial.score is not None
    return trial.cost, trial.score


def _searched(contender: Contender) -> tuple[int, float] | None:
    return None if contender.score is None else (contender.cost, contender.score)


def _on_report_split(c: Contender) -> tuple[str, int, float, float, int]:
    spread = float(np.std(c.scores, ddof=1)) if len(c.scores) > 1 else 0.0
    return c.name, c.cost, float(np.mean(c.scores)), spread, len(c.scores)


@dataclass(frozen=True)
class SiteMap:
    """Sizes of one op in one stack.

    Attributes:
        op: what sits there.
        stack: the stack, or "" where there is only one.
        rows: layers, in words; ``end`` is what lies outside of the layers.
        columns: sites of a layer, in words.
        sizes: [rows][columns]: the size, 0 where nothing sits, ``None`` where this op cannot sit.
        largest: the largest size in any panel of this op.
    """

    op: str
    stack: str
    rows: tuple[str, ...]
    columns: tuple[str, ...]
    sizes: tuple[tuple[int | None, ...], ...]
    largest: int

    @property
    def sizeless(self) -> bool:
        """Whether the op is there or not, without a size."""
        return self.op in SIZELESS


def site_maps(plan: Plan, sites: Sites | None) -> list[SiteMap]:
    """Return one panel for each op and stack of ``plan``: layers by sites, with the sizes.

    Without ``sites`` only what the plan holds has rows and columns.
    """
    stacks = list(dict.fromkeys(place(site)[0] for site in [*(sites or ()), *(p.site for p in plan)]))
    panels = []
    for op in plan.ops:
        largest = max(p.size for p in plan if p.op == op)
        for stack in stacks:
            used = {p.site: p.size for p in plan if p.op == op and place(p.site)[0] == stack}
            if used:
                possible = set(used) | {s for s in sites or () if place(s)[0] == stack and _can_sit(sites, s, op)}
                panels.append(_panel(op, stack if len(stacks) > 1 else "", used, possible, largest))
    return panels


def _can_sit(sites: Sites | None, site: str, op: str) -> bool:
    assert sites is not None
    return op in ops_at(sites[site]) and largest_size(sites[site], op) > 0


def _panel(op: str, stack: str, used: dict[str, int], possible: set[str], largest: int) -> SiteMap:
    cells = {place(site)[1:]: used.get(site, 0) for site in possible}
    numbered = [layer for layer, _ in cells if layer is not None]
    layers: list[int | None] = list(range(min(numbered), max(numbered) + 1)) if numbered else []
    layers += [None] if any(layer is None for layer, _ in cells) else []
    columns = sorted({column for _, column in cells}, key=column_order)
    return SiteMap(
        op,
        stack,
        tuple("end" if layer is None else str(layer) for layer in layers),
        tuple(short_names(columns)),
        tuple(tuple(cells.get((layer, column)) for column in columns) for layer in layers),
        largest,
    )


@dataclass(frozen=True)
class Course:
    """Best score and hypervolume over the time of a search.

    Attributes:
        name: of the search.
        seconds: at the end of each evaluation of the search, its supernet counted before the first result.
        best: best score of fully trained plans so far; ``nan`` before the first.
        hypervolume: area between front and floor over log10 of the parameters, up to the budget.
    """

    name: str
    seconds: tuple[float, ...]
    best: tuple[float, ...]
    hypervolume: tuple[float, ...]


@dataclass(frozen=True)
class Courses:
    """The search itself, then the reference where there is one.

    Attributes:
        courses: as said.
        floor: the score from which hypervolume is measured: the lowest of all.
        table: both, evaluation by evaluation where the best score rose.
    """

    courses: tuple[Course, ...]
    floor: float
    table: Table


def courses(view: View, reference: View | None = None) -> Courses:
    """Return best-so-far and hypervolume over search time; ``reference`` is another study, such as a random search."""
    views = [view] if reference is None else [view, reference]
    scores = [t.score for v in views for t in _search(v) if t.score is not None]
    floor = min(scores, default=0.0)
    made = tuple(_course(v, floor) for v in views)
    rows = [
        (c.name, round(c.seconds[i], 1), c.best[i], c.hypervolume[i])
        for c in made
        for i in range(len(c.seconds))
        if c.best[i] == c.best[i] and (i == 0 or not c.best[i] <= c.best[i - 1] or i == len(c.seconds) - 1)
    ]
    return Courses(made, floor, Table.of(("search", "seconds", f"best {view.metric}", "hypervolume"), rows))


def _search(view: View) -> list[Trial]:
    return [t for t in view.trials if t.stage == "search" and t.seconds is not None]


def _course(view: View, floor: float) -> Course:
    trials = _search(view)
    supernet = (view.summary.get("spent") or {}).get("supernet") or {}
    begin = supernet.get("seconds", 0.0)
    seconds = [t.seconds or 0.0 for t in trials]
    if len(seconds) > 1:  # the baseline was trained before the supernet
        seconds[1] += begin
    counted = [t.score if t.counts and t.score is not None else float("nan") for t in trials]
    best = np.fmax.accumulate(counted) if counted else np.array([])
    corner = Reference(float(np.log10(view.budget + 1)), floor)
    areas = []
    for i in range(len(trials)):
        done = [(t.cost, t.score) for t in trials[: i + 1] if t.counts and t.score is not None and t.cost]
        costs = np.log10([float(cost) for cost, _ in done]) if done else np.array([])
        areas.append(hypervolume(costs, np.array([score for _, score in done], dtype=float), corner))
    name = str(view.summary["strategy"])
    return Course(name, tuple(accumulate(seconds)), tuple(map(float, best)), tuple(areas))


@dataclass(frozen=True)
class Bill:
    """Trainable parameters by op.

    Attributes:
        ops: in canonical order.
        plans: name and parameters of each op.
        table: the same.
    """

    ops: tuple[str, ...]
    plans: tuple[tuple[str, tuple[int, ...]], ...]
    table: Table


def bill(view: View) -> Bill | None:
    """Return the parameters by op of the chosen plan and of uniform LoRA; ``None`` when sites are not known."""
    contenders = [view.best] if view.best.plan == view.baseline.plan else [view.best, view.baseline]
    bills = [(c.name, view.parameters_by_op(c.plan)) for c in contenders]
    known = [(name, b) for name, b in bills if b is not None]
    if len(known) < len(bills):
        return None
    ops = tuple(dict.fromkeys(op for _, b in known for op in b))
    plans = tuple((name, tuple(b.get(op, 0) for op in ops)) for name, b in known)
    counts = [Counter(p.op for p in c.plan) for c in contenders]
    rows: list[tuple[Cell, ...]] = [
        (op, *(cell for (_, b), count in zip(plans, counts, strict=True) for cell in (count[op], b[i])))
        for i, op in enumerate(ops)
    ]
    rows.append(
        ("together", *(cell for (_, b), c in zip(plans, counts, strict=True) for cell in (sum(c.values()), sum(b))))
    )
    header = ("op", *(h for name, _ in plans for h in (f"{name}: places", f"{name}: parameters")))
    return Bill(ops, plans, Table.of(header, rows))


@dataclass(frozen=True)
class Resources:
    """Score against peak memory and time, one point an evaluation: (megabytes or ``None``, seconds, score, number)."""

    points: tuple[tuple[float | None, float, float, int], ...]
    chosen: int
    table: Table


def resources(view: View) -> Resources:
    """Return what the figure of memory and time draws."""
    points = [
        (t.peak_memory / MEGABYTE if t.peak_memory else None, t.seconds or 0.0, t.score or 0.0, t.number)
        for t in view.searched
    ]
    header = ("trial", f"{view.metric}, search split", "seconds", "peak memory, MB")
    rows = [(n, score, round(s, 2), None if mb is None else round(mb)) for mb, s, score, n in points]
    return Resources(tuple(points), int(view.summary["best"]["trial"]), Table.of(header, rows))


def trials_table(view: View) -> Table:
    """Return every evaluation, for the table that can be sorted and filtered and for the CSV file."""
    header = (
        "trial", "stage", "state", "plan", "parameters", view.metric, "seconds", "steps", "full", "memory, MB", "seed",
        "lr factor", "message",
    )  # fmt: skip
    rows = [
        (
            t.number, t.stage, t.state, t.label, t.cost, t.score, t.seconds, t.steps, "yes" if t.full else "no",
            None if not t.peak_memory else round(t.peak_memory / MEGABYTE), t.seed, t.lr_scale, t.message,
        )
        for t in view.trials
    ]  # fmt: skip
    return Table.of(header, rows)


def comparison_table(view: View) -> Table:
    """Return chosen plan and baseline side by side, and their difference."""
    final = view.summary.get("final")
    header = ("", "parameters", f"{view.metric}, search", f"{view.metric}, report", "spread", "seeds")
    rows: list[tuple[Cell, ...]] = [_compared(c) for c in (view.best, view.baseline)]
    if final is not None:
        interval = final["interval"]
        between = "-" if interval is None else f"95 % interval {interval[0]:+.4f} to {interval[1]:+.4f}"
        rows.append(("difference", None, None, float(final["difference"]), between, None))
    return Table.of(header, rows)


def _compared(c: Contender) -> tuple[Cell, ...]:
    if not c.scores:
        return c.name, c.cost, c.score, None, "-", 0
    _, _, mean, spread, n = _on_report_split(c)
    return c.name, c.cost, c.score, mean, f"+- {spread:.4f}" if n > 1 else "-", n


def placements_table(plan: Plan) -> Table:
    """Return every placement of a plan."""
    rows: list[tuple[Cell, ...]] = [(p.site, p.op, "on" if p.op in SIZELESS else p.size) for p in plan]
    return Table.of(("site", "op", "size"), rows)
