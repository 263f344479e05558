"""What scout found out: what modules are worth, layer by layer, and how it ranked its plans."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from peftscout.report.drawing import BLUE, GRID, INK, PAPER, Drawing, drawing, label, style
from peftscout.report.plan_table import column_order, place
from peftscout.report.section import Section
from peftscout.report.table import Table

MODULES_SHOWN = 40
"""Rows of the table of modules: those that are worth most."""

_CELL = 0.42
_LABELS = 1.5


@dataclass(frozen=True)
class Values:
    """What the modules of a supernet are worth.

    Attributes:
        rows: stacks and layers, in words.
        columns: places in a layer, each with its op, in words.
        shares: [rows][columns]: the share of the worth of all modules, each at its best size; ``None``: no such module.
        table: the modules that are worth most, with every size.
    """

    rows: tuple[str, ...]
    columns: tuple[str, ...]
    shares: tuple[tuple[float | None, ...], ...]
    table: Table


def module_values(events: Sequence[Mapping[str, Any]]) -> Values | None:
    """Return what scout's last event says of the modules; ``None`` where it says nothing."""
    modules = (events[-1].get("values") if events else None) or []
    worth: dict[tuple[tuple[str, int | None], tuple[str, str]], float] = defaultdict(float)
    for module in modules:
        best = max(0.0, *module["values"])
        for site, op in module["places"]:
            stack, layer, column = place(site)
            worth[(stack, layer), (op, column)] += best / len(module["places"])
    total = sum(worth.values())
    if not total > 0:
        return None
    rows = sorted({row for row, _ in worth}, key=lambda row: (row[0], row[1] is None, row[1] or 0))
    columns = sorted({column for _, column in worth}, key=lambda column: (column[0], column_order(column[1])))
    several = len({stack for stack, layer in rows if layer is not None}) > 1
    return Values(
        tuple(_row_name(stack, layer, several) for stack, layer in rows),
        tuple(f"{column} {op}" for op, column in columns),
        tuple(
            tuple(worth[row, column] / total if (row, column) in worth else None for column in columns) for row in rows
        ),
        _table(modules, total),
    )


_ROWS = {True: "all rows", False: "a part of them"}


def ranking_table(events: Sequence[Mapping[str, Any]]) -> Table | None:
    """Return the plans that scout ranked, the best first; ``None`` without a ranking."""
    ranked = (events[-1].get("ranking") if events else None) or []
    if not ranked:
        return None

    def place(r: Mapping[str, Any]) -> tuple[bool, float]:
        loss = r["held_out_loss"]
        return not r.get("all_rows", True) or loss is None, float("inf") if loss is None else loss

    return Table.of(
        ("plan", "parameters", "value", "held-out loss with the supernet's weights", "on"),
        [
            (r["label"], r["cost"], r["value"], r["held_out_loss"], _ROWS[r.get("all_rows", True)])
            for r in sorted(ranked, key=place)
        ],
    )


def scout_section(events: Sequence[Mapping[str, Any]], title: str) -> Section | None:
    """Return the section; ``None`` where scout has left nothing to tell."""
    values, ranking = module_values(events), ranking_table(events)
    if values is None or ranking is None:
        return None
    text = (
        "A supernet was trained for a part of one fine-tuning; from the slopes of its loss follows what each size of "
        "each module is worth, and from that the plans. They are ranked by their loss on training rows that it did not "
        "see; the first of them were trained."
    )
    tables = (("Plans as scout ranked them", ranking), ("Modules that are worth most", values.table))
    return Section("strategy", title, (text,), (draw_values(values),), tables)


def draw_values(values: Values) -> Drawing:
    """Draw layers by places: the darker, the larger the share of the worth of all modules."""
    largest = max(share for row in values.shares for share in row if share is not None)
    widest = max(map(len, values.columns))
    rows, columns = len(values.rows), len(values.columns)
    with style("strategy"):
        figure = Figure(
            figsize=(columns * _CELL + _LABELS, rows * _CELL + _LABELS * max(0.7, widest / 9)), layout="constrained"
        )
        axes = figure.add_subplot()
        axes.grid(False)
        for r, row in enumerate(values.shares):
            for c, share in enumerate(row):
                look: dict[str, Any] = {"facecolor": "none", "hatch": "////", "edgecolor": GRID}
                if share is not None:
                    look = {"facecolor": BLUE if share else GRID, "alpha": 0.08 + 0.92 * share / largest}
                axes.add_patch(Rectangle((c - 0.46, r - 0.46), 0.92, 0.92, linewidth=0, **look))
                if share is not None and share >= 0.005:
                    colour = PAPER if share > 0.55 * largest else INK
                    axes.text(c, r + 0.02, f"{100 * share:.0f}", ha="center", va="center", fontsize=7, color=colour)
        axes.set(xlim=(-0.5, columns - 0.5), ylim=(rows - 0.5, -0.5), ylabel="layer")
        axes.set_xticks(range(columns), [label(column, 32) for column in values.columns], rotation=90)
        axes.set_yticks(range(rows), [label(row) for row in values.rows])
        axes.tick_params(length=0)
        axes.set_aspect("equal")
        for spine in axes.spines.values():
            spine.set_visible(False)
        axes.set_title("share of the worth of all modules, %")
        best, where = max(
            (share, f"{values.columns[c]} in layer {values.rows[r]}")
            for r, row in enumerate(values.shares)
            for c, share in enumerate(row)
            if share is not None
        )
        return drawing(figure, "strategy", f"Most is worth {where}: {100 * best:.0f} % of the worth of all modules.")


def _row_name(stack: str, layer: int | None, several: bool) -> str:
    if layer is None:
        return f"{stack} end".strip() if several else "end"
    return f"{stack} {layer}" if several else str(layer)


def _table(modules: Sequence[Mapping[str, Any]], total: float) -> Table:
    best = sorted(modules, key=lambda m: -max(m["values"]))[:MODULES_SHOWN]
    rows = [
        (
            m["name"],
            100 * max(0.0, *m["values"]) / total,
            ", ".join(f"{size}: {value:.3g}" for size, value in zip(m["sizes"], m["values"], strict=True)),
        )
        for m in best
    ]
    return Table.of(("module", "share of all worth, %", "size: worth"), rows)
