"""The figures of a report, drawn from `chart_data`. Names from outside are drawn short and plain."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from peftscout.report.chart_data import Bill, Courses, Front, Resources, SiteMap
from peftscout.report.drawing import (
    BLUE,
    GREEN,
    GRID,
    HEIGHT,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    WIDTH,
    Drawing,
    drawing,
    label,
    style,
)

_CELL, _LABELS = 0.3, 0.75
"""Side of a cell of a map, and room for its labels, in inches."""


def draw_front(front: Front, metric: str) -> Drawing | None:
    """Draw trainable parameters (log) against score: trials, front, budget, contenders; ``None`` without a score."""
    if not front.points:
        return None
    with style("front"):
        figure, axes = canvas(height=HEIGHT + 0.5)
        axes.scatter(*_xy(front.points), s=26, color=MUTED, alpha=0.55, linewidths=0, label="trial")
        axes.step(
            *_staircase(front.front, front.budget), where="post", color=BLUE, label="front", solid_capstyle="round"
        )
        axes.scatter(*_xy(front.front), s=30, color=BLUE, zorder=3, linewidths=0)
        if front.baseline is not None:
            axes.scatter(*front.baseline, s=70, marker="D", facecolors="none", edgecolors=ORANGE, linewidths=1.8,
                         zorder=4, label="uniform LoRA")  # fmt: skip
        if front.chosen is not None and front.chosen != front.baseline:
            axes.scatter(*front.chosen, s=150, marker="*", color=GREEN, zorder=4, linewidths=0, label="chosen plan")
        for name, cost, mean, spread, n in front.contenders:
            colour, marker = (ORANGE, "D") if name == "uniform LoRA" else (GREEN, "s")
            axes.errorbar(cost, mean, yerr=spread or None, color=colour, marker=marker, markersize=6, capsize=5,
                          zorder=5, label=f"{name}, report split (n={n})", linestyle="none")  # fmt: skip
        axes.axvline(front.budget, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="budget")
        axes.set_xscale("log")
        _plain_log_axis(axes, [cost for cost, _ in front.points] + [front.budget])
        axes.set(xlabel="trainable parameters (log)", ylabel=label(metric))
        below(axes)
        return drawing(figure, "front", _front_in_words(front))


def _front_in_words(front: Front) -> str:
    (cheap, low), (dear, high) = front.front[0], front.front[-1]
    trials = f"{len(front.points)} trial{'s' * (len(front.points) != 1)}"
    if len(front.front) == 1:
        return f"{trials}; the front is one plan: {low:.4f} with {cheap:,} parameters."
    return f"{trials}; the front rises from {low:.4f} with {cheap:,} parameters to {high:.4f} with {dear:,}."


def draw_map(panel: SiteMap, number: int) -> Drawing:
    """Draw layers by sites: a filled cell with the size where the op sits, hatched where it cannot sit."""
    rows, columns = len(panel.rows), len(panel.columns)
    widest = max(map(len, panel.columns))
    with style(f"map-{number}"):
        figure = Figure(
            figsize=(columns * _CELL + _LABELS, rows * _CELL + _LABELS * max(0.7, widest / 8)), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.grid(False)
        for r, row in enumerate(panel.sizes):
            for c, size in enumerate(row):
                _cell(axes, r, c, size, panel)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), ylabel="layer")
        axes.set_xticks(range(columns), [label(column) for column in panel.columns], rotation=90 if widest > 3 else 0)
        axes.set_yticks(range(rows), panel.rows)
        axes.tick_params(length=0)
        axes.set_aspect("equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
        used = sum(bool(size) for row in panel.sizes for size in row)
        title = f"{panel.stack} {panel.op}".strip()
        axes.set_title(panel.op if not panel.stack else f"{panel.op}, {label(panel.stack)}")
        return drawing(figure, f"map-{number}", f"{title}: {used} of {rows * columns} places are in use.")


def _cell(axes: Axes, row: int, column: int, size: int | None, panel: SiteMap) -> None:
    def box(**look: Any) -> None:
        axes.add_patch(Rectangle((column - 0.46, row - 0.46), 0.92, 0.92, linewidth=0, **look))

    if size is None:
        box(facecolor="none", hatch="////", edgecolor=GRID)
    elif size == 0:
        box(facecolor=GRID, alpha=0.45)
    else:
        share = 1.0 if panel.sizeless or panel.largest == 1 else math.log2(size + 1) / math.log2(panel.largest + 1)
        strength = 0.25 + 0.75 * share
        box(facecolor=BLUE, alpha=strength)
        text = "on" if panel.sizeless else str(size)
        look: dict[str, Any] = {"color": PAPER if strength > 0.6 else INK, "fontsize": 9 if len(text) < 3 else 7}
        axes.text(column, row + 0.02, text, ha="center", va="center", **look)


def draw_courses(courses: Courses, metric: str) -> Drawing | None:
    """Draw best-so-far and hypervolume over search time; ``None`` when nothing was scored."""
    shown = [c for c in courses.courses if any(b == b for b in c.best)]
    if not shown:
        return None
    with style("courses"):
        figure = Figure(figsize=(WIDTH, HEIGHT * 1.4), layout="constrained")
        upper, lower = figure.subplots(2, 1, sharex=True)
        for c, (colour, line) in zip(shown, ((BLUE, "-"), (ORANGE, "--")), strict=False):
            upper.step(c.seconds, c.best, where="post", color=colour, linestyle=line, marker="o", markersize=3.5,
                       label=c.name if c is courses.courses[0] else f"reference: {c.name}")  # fmt: skip
            lower.step(c.seconds, c.hypervolume, where="post", color=colour, linestyle=line, marker="o", markersize=3.5)
        upper.set_title(f"best {label(metric)} so far")
        lower.set_title("hypervolume of the front")
        lower.set_xlabel("seconds of search")
        highest = max((value for c in shown for value in c.hypervolume if value == value), default=0.0)
        lower.set_ylim(0, 1.08 * highest or 1.0)
        if len(shown) > 1:
            below(upper)
        end = shown[0]
        words = f"After {end.seconds[-1]:.1f} seconds of search the best score was {end.best[-1]:.4f}."
        return drawing(figure, "courses", words)


def draw_bill(bill: Bill) -> Drawing:
    """Draw the trainable parameters by op, a bar for each plan."""
    count = len(bill.plans)
    with style("bill"):
        figure, axes = canvas(height=1.0 + 0.3 * (count > 1) + 0.3 * count * len(bill.ops))
        for n, ((name, parameters), colour) in enumerate(zip(bill.plans, (BLUE, ORANGE), strict=False)):
            places = [i + (n - (count - 1) / 2) * 0.38 for i in range(len(bill.ops))]
            bars = axes.barh(places, parameters, height=0.34 if count > 1 else 0.5, color=colour, label=name)
            axes.bar_label(bars, [f"{p:,}" if p else "" for p in parameters], padding=3, fontsize=9)
        axes.set_yticks(range(len(bill.ops)), bill.ops)
        axes.invert_yaxis()
        axes.grid(False, axis="y")
        axes.margins(x=0.18)
        axes.xaxis.set_major_locator(MaxNLocator(4))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
        axes.set_xlabel("trainable parameters")
        if count > 1:
            below(axes)
        name, parameters = bill.plans[0]
        words = f"{name}: " + ", ".join(f"{op} {p:,}" for op, p in zip(bill.ops, parameters, strict=True)) + "."
        return drawing(figure, "bill", words)


def draw_resources(resources: Resources, metric: str) -> Drawing | None:
    """Draw score against peak memory and against seconds; ``None`` without a score."""
    if not resources.points:
        return None
    with_memory = all(mb is not None for mb, *_ in resources.points)
    with style("resources"):
        figure = Figure(figsize=(WIDTH, HEIGHT), layout="constrained")
        panels = figure.subplots(1, 2 if with_memory else 1, sharey=True, squeeze=False)[0]
        panels[0].set_ylabel(label(metric))
        _against(panels[-1], [(s, score, n) for _, s, score, n in resources.points], "seconds", resources.chosen)
        if with_memory:
            memory = [(mb or 0.0, score, n) for mb, _, score, n in resources.points]
            _against(panels[0], memory, "peak memory, MB", resources.chosen)
        seconds = [s for _, s, *_ in resources.points]
        words = f"Trials took {min(seconds):.1f} to {max(seconds):.1f} seconds"
        if with_memory:
            used = [mb or 0.0 for mb, *_ in resources.points]
            words += f" and {min(used):,.0f} to {max(used):,.0f} MB"
        return drawing(figure, "resources", f"{words}.")


def _against(axes: Axes, points: Sequence[tuple[float, float, int]], what: str, chosen: int) -> None:
    for x, score, number in points:
        mine = number == chosen
        axes.scatter(x, score, s=130 if mine else 26, marker="*" if mine else "o", color=GREEN if mine else MUTED,
                     alpha=1.0 if mine else 0.55, linewidths=0, zorder=3 if mine else 2)  # fmt: skip
    axes.set_xlabel(what)
    axes.xaxis.set_major_locator(MaxNLocator(3))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,g}"))


def canvas(height: float = HEIGHT) -> tuple[Figure, Axes]:
    """Return an empty figure of the house format and its axes."""
    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    return figure, figure.add_subplot()


def _xy(points: Sequence[tuple[int, float]]) -> tuple[list[int], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _staircase(front: Sequence[tuple[int, float]], budget: int) -> tuple[list[float], list[float]]:
    """The front goes on to the budget: more parameters may always be left unused."""
    costs, scores = [float(c) for c, _ in front], [s for _, s in front]
    return [*costs, float(max(budget, costs[-1]))], [*scores, scores[-1]]


def _plain_log_axis(axes: Axes, costs: Sequence[float]) -> None:
    """Three to six ticks at round numbers, written out: ``2k``, ``500k``, ``1M``."""
    low, high = min(costs) / 1.25, max(costs) * 1.25
    ticks: list[float] = []
    for mantissas in (
        (1,),
        (1, 3),
        (1, 2, 5),
        (1, 1.5, 2, 3, 5, 7),
        (1, 1.2, 1.4, 1.6, 1.8, 2, 2.5, 3, 4, 5, 6, 7, 8, 9),
    ):
        ticks = [m * 10**e for e in range(13) for m in mantissas if low <= m * 10**e <= high]
        if len(ticks) >= 3:
            break
    ticks = ticks[:: 1 + (len(ticks) - 1) // 6]
    axes.set_xlim(low, high)
    axes.set_xticks(ticks, [_short(t) for t in ticks])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)


def _short(number: float) -> str:
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if number >= size:
            return f"{number / size:g}{letter}"
    return f"{number:g}"


def below(axes: Axes) -> None:
    """Put the legend of ``axes`` below the whole figure."""
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.legend(*axes.get_legend_handles_labels(), loc="outside lower center", ncols=2, handletextpad=0.5)
