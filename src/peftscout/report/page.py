"""The report of a finished study as files: one HTML page, Markdown with the same words and tables, CSV of the trials.

The page needs no network and no other file. A policy in its head lets nothing be loaded and no script run but its own.
"""

from __future__ import annotations

import base64
import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from peftscout import __version__
from peftscout.errors import StudyError
from peftscout.header import Header
from peftscout.report import chart_data, figures
from peftscout.report.facts import facts
from peftscout.report.plan_table import plan_lines
from peftscout.report.plan_words import describe
from peftscout.report.rendering import environment, escape_markdown, table_lines
from peftscout.report.section import Section
from peftscout.report.strategy_sections import strategy_section
from peftscout.report.table import Cell, Table, plain
from peftscout.report.view import View
from peftscout.study import read_header, read_summary

FILES = ("report.html", "report.md", "trials.csv")
"""What is written, beside each other."""

_FORMULA = ("=", "+", "-", "@", "\t", "\r")


@dataclass(frozen=True)
class Written:
    """Where the files of a report lie."""

    html: Path
    markdown: Path
    csv: Path


def write_report(folder: Path, out: Path | None = None, reference: Path | None = None) -> Written:
    """Write the report of the finished study in ``folder`` and return where its files lie.

    Args:
        folder: of the study.
        out: folder for the files; by default that of the study.
        reference: another finished study of the same task, metric and budget, such as a random search, whose course is
            drawn beside this one.

    Raises:
        StudyError: when the study has not finished, the reference cannot be compared with it, or the files cannot be
            written.
    """
    view = View(read_summary(folder))
    beside = None if reference is None else _comparable(View(read_summary(reference)), view, reference)
    header = read_header(folder)
    parts = sections(folder, view, beside)
    place = out or folder
    texts = (page(view, header, parts), markdown(view, header, parts), csv_text(chart_data.trials_table(view)))
    try:
        place.mkdir(parents=True, exist_ok=True)
        for name, text in zip(FILES, texts, strict=True):
            (place / name).write_text(text, encoding="utf-8", newline="")
    except OSError as error:
        raise StudyError(f"{place}: the report cannot be written: {error}; name another folder with --out") from None
    return Written(*(place / name for name in FILES))


def _comparable(reference: View, view: View, place: Path) -> View:
    for what in ("task", "metric", "budget"):
        ours, theirs = view.summary[what], reference.summary[what]
        if what == "budget":
            ours, theirs = ours["parameters"], theirs["parameters"]
        if ours != theirs:
            raise StudyError(f"{place}: cannot be the reference, its {what} is {theirs}, and here it is {ours}")
    return reference


def sections(folder: Path, view: View, reference: View | None = None) -> list[Section]:
    """Return the parts of the report in order, those left out that have nothing to show."""
    made = [
        _front(view),
        _course(view, reference),
        _map(view),
        _bill(view),
        _resources(view),
        strategy_section(folder, view),
    ]
    return [section for section in made if section is not None]


def _front(view: View) -> Section:
    data = chart_data.front(view)
    picture = figures.draw_front(data, view.metric)
    if picture is None:
        return Section("front", "Score and parameters", ("No fully trained evaluation has a score.",))
    text = "The front: no other trial of the search is cheaper and better. Scores are of the search split"
    text += (
        "; those of the report split are means over fresh seeds with one standard deviation."
        if data.contenders
        else "."
    )
    return Section("front", "Score and parameters", (text,), (picture,), (("The front", data.table),), half=True)


def _map(view: View) -> Section:
    panels = chart_data.site_maps(view.best.plan, view.sites)
    pictures = tuple(figures.draw_map(panel, n) for n, panel in enumerate(panels))
    words = describe(view.best.plan, view.sites) if view.sites else str(view.best.plan)
    table = ("Every placement", chart_data.placements_table(view.best.plan))
    text: tuple[str, ...] = (f"{words[0].upper()}{words[1:]}.",)
    if any(size is None for panel in panels for row in panel.sizes for size in row):
        text += ("Hatched: this op cannot sit there.",)
    lines = tuple(plan_lines(view.best.plan, view.sites))
    return Section("map", "The chosen plan, layer by layer", text, pictures, (table,), lines)


def _course(view: View, reference: View | None) -> Section | None:
    data = chart_data.courses(view, reference)
    picture = figures.draw_courses(data, view.metric)
    if picture is None:
        return None
    words = (
        f"Hypervolume is the area between the front and the lowest score seen ({data.floor:.4f}), over log10 of the "
        "parameters up to the budget."
    )
    text = [words]
    if reference is None and view.summary["strategy"] != "random":
        text.append("There is no random search beside it; name one with --reference STUDY.")
    return Section(
        "course", "The course of the search", tuple(text), (picture,), (("Where it rose", data.table),), half=True
    )


def _bill(view: View) -> Section | None:
    data = chart_data.bill(view)
    if data is None:
        text = (
            "The sites are not in this summary, which an older version wrote; run the same search again to have them."
        )
        return Section("bill", "Parameters by op", (text,))
    return Section(
        "bill", "Parameters by op", (), (figures.draw_bill(data),), (("Parameters by op", data.table),), half=True
    )


def _resources(view: View) -> Section | None:
    data = chart_data.resources(view)
    picture = figures.draw_resources(data, view.metric)
    if picture is None:
        return None
    text = "The star is the chosen plan. Memory on a CPU is that of the whole process, with what came before."
    return Section("resources", "Memory and time", (text,), (picture,), (("Memory and time", data.table),), half=True)


# -- HTML -------------------------------------------------------------------------------------------------------------


def page(view: View, header: Header, parts: Sequence[Section]) -> str:
    """Return the HTML page."""
    templates = environment()
    script = Markup(templates.get_template("report.js").render())
    trials = chart_data.trials_table(view)
    return templates.get_template("report.html.j2").render(
        view=view,
        title=f"{view.summary['task']} within {view.summary['budget']['text']}",
        comparison=chart_data.comparison_table(view),
        facts=facts(view, header),
        sections=parts,
        trials=trials,
        states=sorted({t.state for t in view.trials}),
        style=Markup(templates.get_template("report.css").render()),
        script=script,
        policy=f"default-src 'none'; style-src 'unsafe-inline'; script-src 'sha256-{_digest(script)}'",
        version=__version__,
    )


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


# -- Markdown and CSV -------------------------------------------------------------------------------------------------


def markdown(view: View, header: Header, parts: Sequence[Section]) -> str:
    """Return the report as Markdown: the same words and tables; what the pictures show is said."""
    out = [f"# {escape_markdown(view.summary['task'])} within {escape_markdown(view.summary['budget']['text'])}", ""]
    out += [f"**{escape_markdown(view.summary['verdict'])}**", "", *table_lines(chart_data.comparison_table(view)), ""]
    for section in parts:
        out += [f"## {section.title}", ""]
        for text in (*section.text, *(d.words for d in section.drawings)):
            out += [escape_markdown(text), ""]
        if section.lines:
            out += [*("    " + plain(line) for line in section.lines), ""]
        for caption, table in section.tables:
            out += [f"{escape_markdown(caption)}:", "", *table_lines(table), ""]
    out += ["## Every evaluation", "", *table_lines(chart_data.trials_table(view)), "", "## What decided the study", ""]
    out += [f"- {name}: {escape_markdown(text)}" for name, text in facts(view, header)]
    return "\n".join([*out, "", f"Written by peftscout {__version__}.", ""])


def csv_text(table: Table) -> str:
    """Return a table as CSV, numbers in full; text that a spreadsheet would take for a formula is quoted."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.header)
    for row in table.rows:
        writer.writerow([_csv_cell(cell) for cell in row])
    return out.getvalue()


def _csv_cell(cell: Cell) -> Cell:
    if isinstance(cell, str):
        text = plain(cell)
        return f"'{text}" if text.startswith(_FORMULA) else text
    return "" if cell is None else cell
