"""The part of a report that tells what its strategy did, where the strategy leaves something to tell."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from peftscout.errors import PeftscoutError
from peftscout.ledger import Record
from peftscout.report.drawing import BLUE, GREEN, INK, MUTED, ORANGE, PURPLE, Drawing, drawing, label, style
from peftscout.report.figures import below, canvas
from peftscout.report.replay import Prediction, predictions, problem_of, refinement
from peftscout.report.scout_section import scout_section
from peftscout.report.section import Section
from peftscout.report.strategy_data import (
    Distributions,
    Sizes,
    bipeft_sizes,
    calibration_table,
    calibration_words,
    distributions,
    final_gates,
    options_tables,
    read_events,
    s3delta_sizes,
    stages_table,
)
from peftscout.report.view import View
from peftscout.study import read_config, read_records

_LINES = ("-", "--", "-.", ":", (0, (1, 1)), (0, (5, 1, 1, 1)))
_COLOURS = (BLUE, ORANGE, GREEN, PURPLE, MUTED, INK)


def strategy_section(folder: Path, view: View) -> Section | None:
    """Return what the strategy of a finished study has to tell; ``None`` when that is nothing.

    What cannot be had (a ledger in a database that is gone, a space file that was moved) is said, and no error.
    """
    strategy = view.summary["strategy"]
    try:
        match strategy:
            case "bipeft":
                return _bipeft(folder)
            case "s3delta":
                return _s3delta(folder)
            case "scout":
                return scout_section(read_events(folder), "What scout found")
            case "auto":
                return scout_section(read_events(folder), "What scout found, before AutoPEFT went on")
            case "design-spaces" | "autopeft":
                return _replayed(folder, view, strategy)
            case _:
                return None
    except (PeftscoutError, KeyError, TypeError, ValueError) as error:
        return Section("strategy", f"What {strategy} did", (f"This cannot be told: {error}.",))


def _bipeft(folder: Path) -> Section | None:
    sizes = bipeft_sizes(read_events(folder))
    if sizes is None:
        return None
    text = (
        "At each trigger the supernet's expected size is brought nearer to the budget: positions that matter least are "
        "pruned, and sizes that have settled are fixed."
    )
    return Section(
        "strategy", "What BIPEFT did", (text,), (_draw_sizes(sizes),), (("Triggers of the search", sizes.table),)
    )


def _s3delta(folder: Path) -> Section | None:
    events = read_events(folder)
    sizes, gates = s3delta_sizes(events), final_gates(events)
    if sizes is None or gates is None:
        return None
    text = "The gates' expected size is held at the budget; which gates open is learnt on held-out rows."
    tables = (("Steps of the search", sizes.table), ("Gates at the end, the likeliest first", gates))
    return Section("strategy", "What S3Delta did", (text,), (_draw_sizes(sizes),), tables)


def _replayed(folder: Path, view: View, strategy: str) -> Section | None:
    config = read_config(folder)
    records: Sequence[Record] = read_records(folder, config.storage)
    problem = problem_of(view, config, records)
    if problem is None:
        return None
    if strategy == "autopeft":
        found = predictions(problem, config, records)
        return _calibration(found, view.metric) if found else None
    report = refinement(problem, config, records)
    stages = distributions(report)
    tables = (("Stages", stages_table(report)), *options_tables(report))
    pictures = tuple(_draw_distributions(d, n, view.metric) for n, d in enumerate(stages))
    text = [f"Design space {report.design_space}; what is left of it: {report.rule}."]
    if report.reference is not None:
        text.append(f"Successive halving: {report.reference.halving}.")
    return Section("strategy", "What Design Spaces decided", tuple(text), pictures, tables)


def _calibration(found: Sequence[Prediction], metric: str) -> Section:
    words = calibration_words(found)
    picture = _draw_calibration(found, metric)
    table = calibration_table(found)
    return Section("strategy", "What AutoPEFT expected", (words,), (picture,), (("Expected and seen", table),))


def _draw_sizes(sizes: Sizes) -> Drawing:
    with style("strategy"):
        figure, axes = canvas()
        axes.step(
            sizes.steps, sizes.expected, where="post", color=BLUE, marker="o", markersize=4, label="expected size"
        )
        axes.axhline(sizes.budget, color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="budget")
        axes.set(xlabel="step of the search", ylabel="parameters")
        axes.set_ylim(0, 1.08 * max(sizes.budget, *sizes.expected))
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.0f}")
        below(axes)
        words = (
            f"The expected size went from {sizes.expected[0]:,.0f} to {sizes.expected[-1]:,.0f} parameters, the budget "
            f"being {sizes.budget:,.0f}."
        )
        return drawing(figure, "strategy", words)


def _draw_distributions(found: Distributions, number: int, metric: str) -> Drawing:
    with style(f"edf-{number}"):
        figure, axes = canvas()
        for n, (option, points) in enumerate(found.curves):
            if points:
                _curve(axes, points, n, label(option))
        axes.set(xlabel=label(metric), ylabel="share of models", ylim=(0, 1.02))
        axes.set_title(label(found.name, 50))
        below(axes)
        options = f"{len(found.curves)} option{'s' * (len(found.curves) != 1)}"
        words = f"{found.name}: shares of models with at most a score, for {options}."
        return drawing(figure, f"edf-{number}", words)


def _curve(axes: Axes, points: Sequence[tuple[float, float]], n: int, label: str) -> None:
    scores, shares = [points[0][0], *(s for s, _ in points)], [0.0, *(p for _, p in points)]
    line, colour = _LINES[n % len(_LINES)], _COLOURS[n % len(_COLOURS)]
    axes.step(scores, shares, where="post", color=colour, linestyle=line, label=label)


def _draw_calibration(found: Sequence[Prediction], metric: str) -> Drawing:
    with style("strategy"):
        figure, axes = canvas()
        means, stds, scores = ([getattr(p, name) for p in found] for name in ("mean", "std", "score"))
        axes.errorbar(means, scores, xerr=stds, color=BLUE, linestyle="none", marker="o", markersize=5, capsize=2,
                      ecolor=MUTED, elinewidth=1, label="trial, with one standard deviation")  # fmt: skip
        low, high = min(*means, *scores), max(*means, *scores)
        axes.plot([low, high], [low, high], color=INK, linestyle=(0, (4, 3)), linewidth=1.2, label="as expected")
        axes.set(xlabel=f"expected {label(metric)}", ylabel=f"{label(metric)} seen")
        below(axes)
        return drawing(figure, "strategy", f"Expected and seen {metric} of {len(found)} trials.")
